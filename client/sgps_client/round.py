"""One round at a site: where science and promise meet.

Plan checks, site limits and ledger come first, before a record is read. Then the records are read and encoded (nothing is spent
yet), then CHARGE -> noised sum -> outbox -> COMMIT, then the wait for the plan's `answer_at`. A refusal is one constant word. A sum
that missed `answer_at` goes with a later attempt (ADR 10).
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sgps import site_mean
from sgps.code import contributor_code
from sgps.errors import SgpsError
from sgps.kinds import KINDS
from sgps.plan import Plan, SignedPlan
from sgps.release import Release
from sgps_client import approval, kinds, log
from sgps_client.config import Site
from sgps_client.records import Patient, cohort_of, drop_pictures, prepared
from sgps_client.rules import CLOCK_SLACK, MOST_WAIT, Arrays, check, here, opened
from sgps_client.seen import Seen
from sgps_client.store import Store
from sgps_privacy import accountant, egress, statement
from sgps_privacy.egress import Reply
from sgps_privacy.errors import PrivacyError, Refused
from sgps_privacy.events import Event
from sgps_privacy.ledger import Ledger, Order
from sgps_privacy.terms import Terms

if TYPE_CHECKING:
    from sgps_client.data import Records

BUSY_SECONDS = 20.0  # how long a round waits for somebody who looks at the ledger


class RoundFailed(SgpsError):
    """The machine failed, or was too slow: nothing may be said about it, so the site is silent. The text stays here."""


def answer(site: Site, text: str, signature: str, arrays: Arrays, *, wait: bool = True) -> Reply:
    """The reply to an order, at the plan's `answer_at`. Refusals are replies too.

    After `answer_at` leaves only what no record timed: a refusal, or a sum that was ready before and whose way out was broken.

    text, signature: of the signed plan, as they came. arrays: the start, as it came. wait: false where pictures are public, so that
    the time of an answer need not hide anything.
    Raises RoundFailed when the site has to stay silent.
    """
    try:
        plan, signed = opened(site, text, signature, arrays)
    except Refused as refused:  # no plan that could be trusted with a time to wait for
        log.current()("refused", f"order refused: {refused.detail}", bad=True, code=refused.code)
        return egress.refuse(refused.code)
    log.current()(
        "plan",
        f"round {plan.round}: plan received, verified with the federation's key",
        seldom=True, round=plan.round, attempt=plan.attempt, plan=plan.sha256(), answer_at=plan.answer_at, deadline=plan.deadline,
    )  # fmt: skip
    code = contributor_code()
    try:
        reply = _carried_out(site, plan, signed, arrays, hide=wait)
    except Refused as refused:
        spent = "its charge stands" if refused.code == "round_lost" else "nothing was spent"
        log.current()(
            "refused", f"round {plan.round} refused: {refused.detail or refused.code}; {spent}",
            bad=True, round=plan.round, plan=plan.sha256(), code=refused.code,
        )  # fmt: skip
        reply = egress.refuse(refused.code, plan_id=plan.sha256(), code_hash=code)
    if wait:
        _wait(plan)
    return reply


def _wait(plan: Plan) -> None:
    """Until `answer_at`, unless it is past or too far away."""
    now = time.time()
    if plan.issued - CLOCK_SLACK <= now <= plan.deadline and plan.answer_at - now <= MOST_WAIT:
        time.sleep(max(0.0, plan.answer_at - now))


def _held_until(begun: float, ended: float) -> float:
    """The moment before which a late sum does not leave: a power of two seconds after it was begun. A sum takes as long as there are
    patients, and a coordinator may make attempts as short as it likes: this tells it their number to a factor of two at best."""
    return begun + 2.0 ** math.ceil(math.log2(max(ended - begun, 1.0)))


def _silent(plan: Plan) -> RoundFailed:
    return RoundFailed(
        f"round {plan.round}: the noised sum was not ready at answer_at; it is kept, and goes with a later attempt at no further cost",
        do="ask the coordinator for a longer answer_after, or for fewer steps",
    )


def _too_late(site: Site, plan: Plan, began: float) -> RoundFailed:
    """began: when the plan was allowed here, and reading could begin."""
    if began <= plan.answer_at:
        return RoundFailed(
            f"round {plan.round}: the records were not ready at answer_at; nothing was charged",
            do="they are kept for the next attempt; ask the coordinator for a longer answer_after",
        )
    if site.config.approve == "manual":
        return RoundFailed(
            f"round {plan.round}: approved, but answer_at has passed; nothing was charged",
            do="nothing to do, the yes holds for the next attempt of this round",
        )
    return RoundFailed(
        f"round {plan.round}: the plan came after answer_at; nothing was charged",
        do="the records are ready for the next attempt; ask the coordinator for a longer answer_after",
    )


def _carried_out(site: Site, plan: Plan, signed: SignedPlan, arrays: Arrays, *, hide: bool) -> Reply:
    """hide: whether a sum that misses `answer_at` is kept back."""
    release = Store(site).newest()
    with open_ledger(site) as ledger:
        seen = Seen.read(site)
        charged = ledger.next_cohort(
            plan.federation, plan.kind, plan.round
        )  # without opening: only if this round is charged
        terms = check(site, plan, arrays, release, 0 if charged else _last_round(site, ledger, seen, plan), time.time())
        seen = replace(seen, last=signed)
        seen.write(site)
        if not charged and KINDS[plan.kind].bound and plan.release != here(release).sha256:
            raise RoundFailed(
                f"round {plan.round} starts from release {plan.release[:12]}, and the newest one here is {here(release).sha256[:12]}; "
                "nothing was charged",
                do="nothing where the client is running: it fetches the release and tries again; else sgps-client pull",
            )
        centre = None if charged else _centre(site, ledger, plan, here(release))
        cohort, reader = (charged, None) if charged else _next_cohort(site, ledger, plan, here(release), centre, terms)
        order = Order.of(
            terms,
            federation=plan.federation,
            round=plan.round,
            plan_hash=plan.sha256(),
            cohort=cohort,
            echo=plan.echo.get(site.name),
            numbers=sum(a.size for a in arrays.values()),
        )
        if ledger.preview(order) == "resend":
            if hide and plan.answer_at < seen.held.get(str(plan.round), 0.0):
                raise _silent(plan)
            payload, receipt = ledger.answer(order, _never)
            log.current()(
                "resend", f"round {plan.round}: the same bytes again, nothing is spent",
                round=plan.round, attempt=plan.attempt, cohort=cohort, receipt=receipt,
            )  # fmt: skip
            return egress.decode(payload).with_receipt(receipt)
        facts = _facts(site, ledger, order, terms)
        cost = _tell_cost(ledger, plan, order, facts)
        listed = {"patients": 0 if reader is None else len(reader.patients), "unit": _unit(site, cohort)}
        if not approval.given(site, plan, cohort, facts, {**listed, **cost}):
            raise RoundFailed(
                f"round {plan.round} waits for approval: it would cost cohort {cohort} epsilon {statement.up(facts['epsilon'])} in all",
                do=f"sgps-client plans approve {plan.sha256()[:12]} --officer NAME",
            )
        began = time.time()
        pictures = kinds.WORK[plan.kind].pictures(here(release), terms.names)
        patients = _patients(site, plan, here(release), cohort, reader, pictures)
        records = kinds.records(plan.kind, here(release), patients, None if centre is None else centre.offset)
        train = _trainer(site, plan, terms, arrays, records, facts, here(release))
        if time.time() > plan.answer_at:
            raise _too_late(site, plan, began)
        start = time.monotonic()
        with approval.standing(site, plan, cohort) as stands:
            if not stands:
                raise RoundFailed(
                    f"round {plan.round}: the approval was taken back while the records were read; nothing was charged",
                    do="nothing to do; the plan waits for approval again",
                )
            seen = replace(seen, charged={**seen.charged, str(plan.round): plan.issued})
            seen.write(site)
            begun = time.time()
            with uninterrupted():
                payload, receipt = ledger.answer(order, train)
                ended = time.time()
                if late := hide and ended > plan.answer_at:
                    replace(seen, held={**seen.held, str(plan.round): _held_until(begun, ended)}).write(site)
        drop_pictures()
        log.current()(
            "charged",
            f"round {plan.round}: charged to cohort {cohort}: {statement.up(facts['epsilon'])} of epsilon {facts['cap_epsilon']:g} is spent "
            f"in this federation (mu {facts['mu']:.3f}); the noised sum waits for {'a later attempt' if late else 'answer_at'}",
            round=plan.round, cohort=cohort, sigma=terms.sigma, epsilon=facts["epsilon"], mu=facts["mu"], receipt=receipt,
            budget=facts["cap_epsilon"], delta=facts["delta"], seconds=round(time.monotonic() - start, 3),
        )  # fmt: skip
        if late:
            raise _silent(plan)
        return egress.decode(payload).with_receipt(receipt)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """From CHARGE to COMMIT, about a second, Ctrl-C and SIGTERM wait: in between they would lose the round and its budget."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread only
        return
    waiting: list[int] = []
    before = {s: signal.signal(s, lambda number, _: waiting.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if waiting:
        signal.raise_signal(waiting[0])


def _last_round(site: Site, ledger: Ledger, seen: Seen, plan: Plan) -> int:
    known = [e["round"] for e in ledger.history() if e["kind"] == "CHARGE" and e["federation"] == plan.federation]
    if seen.last is not None:
        last = seen.last.open(site.pinned_key())
        known.append(last.round if last.federation == plan.federation else 0)
    return max(known, default=0)


@dataclass(frozen=True)
class Centre:
    """The noised mean of an earlier `site_mean` round, exactly as it left. offset: [k], feature units. cohort: whose it is."""

    cohort: str
    offset: NDArray[np.float64]


def _centre(site: Site, ledger: Ledger, plan: Plan, release: Release) -> Centre | None:
    """What the plan centres this site's records by. The plan names the receipt, the receipt names the bytes in the outbox, and the
    plan's hash covers the receipt: what shapes the payload stands in the payload's identity. Raises Refused("plan_centre")."""
    if not plan.centres:
        return None
    found = ledger.released(plan.federation, plan.centres[site.name])
    if found is None or found[0]["plan_kind"] != "site_mean":
        raise Refused(
            "plan_centre", "the receipt that the plan centres by is not one of a site_mean round in this ledger"
        )
    facts, arrays = found[0], egress.decode(found[1]).arrays
    coordinates = release.memory().coordinates
    offset = site_mean.offset(arrays[site_mean.SUM], arrays[site_mean.COUNT], float(facts["sigma"]), coordinates)
    return Centre(str(facts["cohort"]), offset)


def _next_cohort(
    site: Site, ledger: Ledger, plan: Plan, release: Release, centre: Centre | None, terms: Terms
) -> "tuple[str, Records]":
    """A centred round takes the cohort whose mean it is centred by; any other the one whose turn it is. A mean is taken of a cohort
    only that can pay for the rows after it, too."""
    readers = open_cohorts(site, ledger, release)
    event, then = Event(terms.sigma, terms.q, terms.steps), {}
    if plan.kind == "site_mean":
        then = {"rows": Event(site_mean.rows_sigma(terms.sigma), 1.0, 1)}
    only = None if centre is None else centre.cohort
    name = ledger.next_cohort(
        plan.federation, plan.kind, plan.round, once=KINDS[plan.kind].once, event=event, then=then, only=only
    )
    if name is None and only is not None:
        raise Refused("plan_centre", f"cohort {only}, by whose mean the plan centres, has paid for its rows or cannot")
    if name is None:
        raise Refused(
            "budget",
            "no cohort has budget left for this plan"
            + (" and the rows after it" if then else "")
            + (" that did not pay for a round of this kind in this federation" if KINDS[plan.kind].once else ""),
        )
    return name, readers[name]


def _patients(
    site: Site, plan: Plan, release: Release, cohort: str, reader: "Records | None", pictures: bool
) -> Sequence[Patient | None]:
    try:
        return prepared(site, release, cohort, reader, pictures)
    except (SgpsError, PrivacyError, OSError) as error:
        raise RoundFailed(f"round {plan.round}: the cohort cannot be read: {error}", do="sgps-client check") from error


def _unit(site: Site, cohort: str) -> str:
    """The column that names its patients."""
    return next(c.unit_column for c in site.config.cohorts if c.name == cohort)


def _tell_cost(ledger: Ledger, plan: Plan, order: Order, facts: Mapping[str, Any]) -> dict[str, float]:
    """To the site's own people: over all federations, which the statement does not say. Epsilon before and after, and the budget."""
    budget, spent = ledger.budget(order.cohort), ledger.spent(order.cohort)
    now = accountant.epsilon(spent, budget.delta) if spent else 0.0
    after = accountant.epsilon([*spent, order.event], budget.delta)
    log.current()(
        "cost",
        f"round {plan.round}: the plan is within this site's limits; it takes cohort {order.cohort} from epsilon {statement.up(now)} to "
        f"{statement.up(after)} of {budget.epsilon:g} (noise {order.event.sigma:g}); nothing is spent yet",
        seldom=True, round=plan.round, plan=order.plan_hash, cohort=order.cohort, sigma=order.event.sigma, mu=facts["mu"],
        epsilon=after, budget=budget.epsilon, delta=budget.delta,
    )  # fmt: skip
    return {"before": now, "after": after, "budget": budget.epsilon}


def _facts(site: Site, ledger: Ledger, order: Order, terms: Terms) -> dict[str, Any]:
    """The privacy statement, before the charge, when a mistake costs nothing yet."""
    budget = ledger.budget(order.cohort)
    return statement.statement(
        terms,
        [*ledger.spent(order.cohort, order.federation), order.event],
        delta=budget.delta,
        cap=budget.epsilon,
        numbers=order.numbers,
        most_numbers=ledger.most_numbers(order.cohort, order.federation),
        code_hash=contributor_code(),
        plan_hash=order.plan_hash,
        unit_column=_unit(site, order.cohort),
    )


def _trainer(
    site: Site, plan: Plan, terms: Terms, arrays: Arrays, records: Sequence[kinds.Record | None], facts: Mapping[str, Any],
    release: Release,
) -> Callable[[], bytes]:  # fmt: skip
    """Everything that can fail or take time, before CHARGE; what it returns clips, sums, noises and encodes."""
    import torch

    from sgps_privacy.engine import PrivateRound
    from sgps_privacy.unit import fill_slots

    slots = site.config.slots or 0
    start = {name: torch.from_numpy(np.array(a)) for name, a in arrays.items()}
    tensors = [None if r is None else {name: torch.as_tensor(a) for name, a in r.items()} for r in records]
    fill_slots(tensors, slots)
    private, code = PrivateRound(terms, kinds.WORK[plan.kind].loss(release, terms.names)), contributor_code()
    return lambda: _noised(lambda: private.run(start, tensors, slots), plan.sha256(), code, facts)


def _noised(run: Callable[[], dict[str, NDArray[np.float32]]], plan: str, code: str, facts: Mapping[str, Any]) -> bytes:
    """After CHARGE."""
    return egress.encode(egress.accept(run(), plan_id=plan, code_hash=code, statement=facts))


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


def open_cohorts(site: Site, ledger: Ledger, release: Release) -> "dict[str, Records]":
    """Closes new cohorts of site.yaml and opens known ones. Cohort -> the list that was compared with the ledger's; records are
    made from this very list, because the file may change at any moment.

    Raises RoundFailed when a list cannot be read, is not the one that was closed, does not fit into the slots, or would be closed
    although something in it is wrong: a cohort is closed once. None of these shapes a reply.
    """
    readers = {}
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
        readers[cohort.name] = reader
    return readers
