"""One round at a site: where science and promise meet.

Plan checks, site limits and ledger come first, before a record is read. Then the records are read and encoded (nothing is spent
yet), then CHARGE -> noised sum -> outbox -> COMMIT, then the wait for the plan's `answer_at`. A refusal is one constant word.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sgps.code import contributor_code
from sgps.errors import ConfigError, SgpsError
from sgps.files import write_atomic
from sgps.memory import COUNTS, ROWS
from sgps.plan import LIMIT, Plan, SignedPlan, arrays_sha256
from sgps.release import Release
from sgps.signing import load_public
from sgps_client import log
from sgps_client.config import Site
from sgps_client.records import Record, cohort_of, prepared
from sgps_client.store import Store
from sgps_privacy import egress, statement
from sgps_privacy.egress import Reply
from sgps_privacy.errors import PrivacyError, Refused
from sgps_privacy.ledger import Ledger, Order
from sgps_privacy.limits import Limits
from sgps_privacy.terms import Terms

Arrays = Mapping[str, NDArray[Any]]
CLOCK_SLACK = 300.0  # seconds that a plan may seem to come from the future
ARRAY_BYTES = 64 << 20
BUSY_SECONDS = 20.0  # how long a round waits for somebody who looks at the ledger
PLANS = "plans.json"


class RoundFailed(SgpsError):
    """The machine failed, or was too slow: nothing may be said about it, so the site is silent. The text stays here."""


@dataclass(frozen=True)
class Seen:
    """Verified plans that a site remembers: the last one, and when the plan of each charged round was issued."""

    last: SignedPlan | None
    charged: Mapping[str, float]

    @classmethod
    def read(cls, state: Path) -> "Seen":
        try:
            found = json.loads((state / PLANS).read_bytes())
            return cls(SignedPlan.model_validate(found["last"]), dict(found["charged"]))
        except FileNotFoundError:
            return cls(None, {})
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError("is damaged", where=state / PLANS, do="put it back from the backup") from error

    def write(self, state: Path) -> None:
        last = None if self.last is None else self.last.model_dump()
        write_atomic(state / PLANS, json.dumps({"last": last, "charged": dict(self.charged)}).encode(), 0o600)


def answer(site: Site, text: str, signature: str, arrays: Arrays) -> Reply:
    """The reply to an order, at the plan's `answer_at`. Refusals are replies too.

    text, signature: of the signed plan, as they came. arrays: the start, as it came.
    Raises RoundFailed when the site has to stay silent.
    """
    try:
        plan, signed = _opened(site, text, signature, arrays)
    except Refused as refused:  # no plan that could be trusted with a time to wait for
        log.current()("refused", f"order refused: {refused.detail}", bad=True, code=refused.code)
        return egress.refuse(refused.code)
    log.current()(
        "plan",
        f"round {plan.round}: plan received, verified with the federation's key",
        round=plan.round, attempt=plan.attempt, plan=plan.sha256(), answer_at=plan.answer_at, deadline=plan.deadline,
    )  # fmt: skip
    code = contributor_code()
    try:
        reply = _carried_out(site, plan, signed, arrays)
    except Refused as refused:
        log.current()(
            "refused", f"round {plan.round} refused: {refused.detail or refused.code}; nothing was spent",
            bad=True, round=plan.round, plan=plan.sha256(), code=refused.code,
        )  # fmt: skip
        reply = egress.refuse(refused.code, plan_id=plan.sha256(), code_hash=code)
    _wait(plan)
    return reply


def _wait(plan: Plan) -> None:
    now = time.time()
    if plan.issued - CLOCK_SLACK <= now < plan.answer_at:
        time.sleep(plan.answer_at - now)


def _opened(site: Site, text: str, signature: str, arrays: Arrays) -> tuple[Plan, SignedPlan]:
    """Size, then signature, then content."""
    if len(text) > LIMIT or sum(a.nbytes for a in arrays.values()) > ARRAY_BYTES:
        raise Refused("plan_size", "the order is larger than any plan")
    try:
        signed = SignedPlan(text=text, signature=signature)
        return signed.open(load_public(site.plan_key)), signed
    except (SgpsError, ValueError) as error:
        raise Refused(
            "plan_signature", str(error) if isinstance(error, SgpsError) else "no signed plan in the order"
        ) from error


def check(site: Site, plan: Plan, arrays: Arrays, release: Release | None, last_round: int, now: float) -> Terms:
    """The site's rules in their fixed order; a plan that breaks one is refused before ledger and records. Returns its terms.

    release: the site's newest verified one. last_round: highest round of this federation that the site knows of.
    """
    config, code = site.config, contributor_code()
    _rule(plan.federation == config.federation.fingerprint, "plan_federation", "the plan is of another federation")
    _rule(config.role == "contribute", "plan_site", "this site only receives")
    _rule(site.name in plan.sites, "plan_site", "this site is not in the round")
    _rule(plan.issued - CLOCK_SLACK <= now <= plan.deadline, "plan_time", _clock(plan, now))
    _rule(plan.round >= last_round, "plan_round", f"round {last_round} is known already")
    _rule(
        code in plan.code,
        "plan_code",
        f"the coordinator does not accept this site's code {code[:12]}: install the same version",
    )
    release = _here(release)
    manifest = release.manifest
    _rule(
        plan.encoder == manifest.encoder_sha256,
        "plan_encoder",
        "the plan is for another base network or other coordinates",
    )
    _rule(plan.classes == manifest.classes, "plan_classes", "the plan's classes are not those of the release")
    shapes = {ROWS: (len(plan.classes), len(release.memory().coordinates.directions)), COUNTS: (len(plan.classes),)}
    sound = {n: a.shape for n, a in arrays.items()} == shapes and all(a.dtype == np.float32 for a in arrays.values())
    _rule(
        sound and arrays_sha256(dict(arrays)) == plan.start, "plan_start", "the arrays are not those that were signed"
    )
    terms = Terms.from_mapping(plan.terms)
    limits = config.limits
    _rule(terms.kind == plan.kind and terms.kind in limits.kinds, "plan_kind", f"kind {plan.kind} is not allowed here")
    _rule(terms.q == 1 or terms.kind != "rows", "plan_q", "a rows round takes every patient once, so q must be 1")
    Limits(
        max_clip=limits.most_clip,
        min_sigma=limits.least_sigma,
        max_q=limits.most_q,
        max_steps=limits.most_steps,
        denominator=limits.denominator,
        names=frozenset(shapes),
        max_numbers=sum(int(np.prod(shape)) for shape in shapes.values()),
        code_hashes=frozenset({code}),
    ).check(terms, shapes, code)
    return terms


def _here(release: Release | None) -> Release:
    if release is None:
        raise Refused("plan_encoder", "no verified release is here yet")
    return release


def _rule(holds: bool, code: str, detail: str) -> None:
    if not holds:
        raise Refused(code, detail)


def _clock(plan: Plan, now: float) -> str:
    if now > plan.deadline:
        return f"the plan's deadline passed {now - plan.deadline:.0f} s ago; check this machine's clock"
    return f"the plan comes from {plan.issued - now:.0f} s in the future; check this machine's clock"


def _carried_out(site: Site, plan: Plan, signed: SignedPlan, arrays: Arrays) -> Reply:
    release = Store(site).newest()
    with open_ledger(site) as ledger:
        seen = Seen.read(site.state)
        charged = ledger.next_cohort(
            plan.federation, plan.kind, plan.round
        )  # without opening: only if this round is charged
        terms = check(site, plan, arrays, release, 0 if charged else _last_round(site, ledger, seen, plan), time.time())
        Seen(signed, seen.charged).write(site.state)
        cohort = charged or _next_cohort(site, ledger, plan, _here(release))
        order = Order.of(
            terms,
            federation=plan.federation,
            round=plan.round,
            plan_hash=plan.sha256(),
            cohort=cohort,
            echo=plan.echo.get(site.name),
        )
        if ledger.preview(order) == "resend":
            payload, receipt = ledger.answer(order, _never)
            log.current()(
                "resend", f"round {plan.round}: the same bytes again, nothing is spent",
                round=plan.round, attempt=plan.attempt, cohort=cohort, receipt=receipt,
            )  # fmt: skip
            return egress.decode(payload).with_receipt(receipt)
        records, facts = _records(site, plan, _here(release), cohort), _facts(site, ledger, order, terms, arrays)
        if time.time() > plan.answer_at:
            raise RoundFailed(
                f"round {plan.round}: the records were not ready at answer_at; nothing was charged",
                do="they are kept for the next attempt; ask the coordinator for a longer answer_after",
            )
        Seen(signed, {**seen.charged, str(plan.round): plan.issued}).write(site.state)
        start = time.monotonic()
        payload, receipt = ledger.answer(order, lambda: _noised(site, plan, terms, arrays, records, facts))
        log.current()(
            "charged",
            f"round {plan.round}: charged to cohort {cohort}: {facts['epsilon']:.3f} of epsilon {facts['cap_epsilon']:g} is spent "
            f"in this federation (mu {facts['mu']:.3f}); the noised sum waits for answer_at",
            round=plan.round, cohort=cohort, sigma=terms.sigma, epsilon=facts["epsilon"], mu=facts["mu"], receipt=receipt,
            budget=facts["cap_epsilon"], delta=facts["delta"], seconds=round(time.monotonic() - start, 3),
        )  # fmt: skip
        return egress.decode(payload).with_receipt(receipt)


def _last_round(site: Site, ledger: Ledger, seen: Seen, plan: Plan) -> int:
    known = [e["round"] for e in ledger.history() if e["kind"] == "CHARGE" and e["federation"] == plan.federation]
    if seen.last is not None:
        last = seen.last.open(load_public(site.plan_key))
        known.append(last.round if last.federation == plan.federation else 0)
    return max(known, default=0)


def _next_cohort(site: Site, ledger: Ledger, plan: Plan, release: Release) -> str:
    open_cohorts(site, ledger, release)
    name = ledger.next_cohort(plan.federation, plan.kind, plan.round)
    if name is None:
        raise Refused(
            "budget", "no cohort has budget left that did not pay for a round of this kind in this federation"
        )
    return name


def _records(site: Site, plan: Plan, release: Release, cohort: str) -> Sequence[Record | None]:
    log.current()(
        "reading", f"round {plan.round}: cohort {cohort} is read and encoded; nothing is spent yet", cohort=cohort
    )
    try:
        return prepared(site, release, cohort)
    except (SgpsError, PrivacyError, OSError) as error:
        raise RoundFailed(f"round {plan.round}: the cohort cannot be read: {error}", do="sgps-client check") from error


def _facts(site: Site, ledger: Ledger, order: Order, terms: Terms, arrays: Arrays) -> dict[str, Any]:
    """The privacy statement, before the charge, when a mistake costs nothing yet."""
    budget = ledger.budget(order.cohort)
    unit = next(c.unit_column for c in site.config.cohorts if c.name == order.cohort)
    return statement.statement(
        terms,
        [*ledger.spent(order.cohort, order.federation), order.event],
        delta=budget.delta,
        cap=budget.epsilon,
        numbers=sum(a.size for a in arrays.values()),
        code_hash=contributor_code(),
        plan_hash=order.plan_hash,
        unit_column=unit,
    )


def _noised(
    site: Site, plan: Plan, terms: Terms, arrays: Arrays, records: Sequence[Record | None], facts: Mapping[str, Any]
) -> bytes:
    """After CHARGE: clip, sum, noise."""
    import torch

    from sgps_privacy.engine import PrivateRound

    def loss(theta: Mapping[str, torch.Tensor], record: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Design D13: the gradient of -<row, x> - count is the record itself."""
        return -(theta[ROWS] * record[ROWS]).sum() - (theta[COUNTS] * record[COUNTS]).sum()

    start = {name: torch.from_numpy(np.array(a)) for name, a in arrays.items()}
    tensors = [None if r is None else {name: torch.from_numpy(a) for name, a in r.items()} for r in records]
    if site.config.slots is None:
        raise ConfigError("slots: missing", where=site.file)
    noised = PrivateRound(terms, loss).run(start, tensors, site.config.slots)
    return egress.encode(egress.accept(noised, plan_id=plan.sha256(), code_hash=contributor_code(), statement=facts))


def _never() -> bytes:
    raise PrivacyError("a reply that is in the outbox is never made again")


def open_ledger(site: Site, seconds: float = BUSY_SECONDS) -> Ledger:
    """The site's ledger; waits while another process looks at it. Raises Refused("busy"), Refused("damaged")."""
    end = time.monotonic() + seconds
    while True:
        try:
            return Ledger(site.state)
        except Refused as refused:
            if refused.code != "busy" or time.monotonic() > end:
                raise
            time.sleep(0.2)


def open_cohorts(site: Site, ledger: Ledger, release: Release) -> dict[str, int]:
    """Closes new cohorts of site.yaml and opens known ones. Cohort -> number of patients.

    Raises RoundFailed when a list cannot be read, is not the one that was closed, does not fit into the slots, or would be closed
    although something in it is wrong: a cohort is closed once. None of these shapes a reply.
    """
    counts = {}
    for cohort in site.config.cohorts:
        where = f"{site.file} cohort {cohort.name}"
        try:
            reader = cohort_of(site, cohort.name, release.manifest.classes)
            fresh = cohort.name not in ledger.cohorts()
            if fresh and reader.problems:
                raise RoundFailed(
                    f"is not closed yet and has {len(reader.problems)} problems; the first: {reader.problems[0]}"
                )
            if site.config.slots is None or len(reader.patients) > site.config.slots:
                raise RoundFailed(f"{len(reader.patients)} patients do not fit into {site.config.slots} slots")
            ledger.open_cohort(cohort.name, reader.patients, cohort.budget.epsilon, cohort.budget.delta)
        except (SgpsError, PrivacyError, OSError) as error:
            raise RoundFailed(str(error), where=where, do="`sgps-client check` lists everything") from error
        counts[cohort.name] = len(reader.patients)
    return counts
