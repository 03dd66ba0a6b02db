"""What a site asks of an order before ledger and records: size, signature, then its own rules in a fixed order."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sgps.code import contributor_code
from sgps.errors import SgpsError
from sgps.kinds import KINDS
from sgps.plan import LIMIT, Plan, SignedPlan, arrays_sha256
from sgps.release import Release
from sgps_client.config import EpisodesLimits, Site
from sgps_privacy.errors import Refused
from sgps_privacy.limits import Limits
from sgps_privacy.terms import Terms

Arrays = Mapping[str, NDArray[Any]]
CLOCK_SLACK = 300.0  # seconds that a plan may seem to come from the future
MOST_WAIT = 7 * 86400.0  # seconds that an order may hold a site until it answers
ARRAY_BYTES = 64 << 20


def opened(site: Site, text: str, signature: str, arrays: Arrays) -> tuple[Plan, SignedPlan]:
    """Size, then signature, then content."""
    if len(text) > LIMIT or sum(a.nbytes for a in arrays.values()) > ARRAY_BYTES:
        raise Refused("plan_size", "the order is larger than any plan")
    try:
        signed = SignedPlan(text=text, signature=signature)
        return signed.open(site.pinned_key()), signed
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
    days = (plan.answer_at - now) / 86400
    _rule(
        plan.answer_at - now <= MOST_WAIT, "plan_time", f"the plan asks for its answer in {days:.0f} days: ask for less"
    )
    _rule(plan.round >= last_round, "plan_round", f"round {last_round} is known already")
    _rule(
        code in plan.code,
        "plan_code",
        f"the coordinator does not accept this site's code {code[:12]}: install the same version",
    )
    release = here(release)
    manifest = release.manifest
    _rule(
        plan.encoder == manifest.encoder_sha256,
        "plan_encoder",
        "the plan is for another base network or other coordinates",
    )
    _rule(plan.classes == manifest.classes, "plan_classes", "the plan's classes are not those of the release")
    kind, terms = KINDS.get(plan.kind), Terms.from_mapping(plan.terms)
    if kind is None or terms.kind != plan.kind or plan.kind not in config.limits.kinds:
        raise Refused("plan_kind", f"kind {plan.kind} is not allowed here")
    _rule(terms.q == 1 or kind.sampled, "plan_q", f"a {plan.kind} round takes every patient, so q must be 1")
    limits, shapes = config.limits.of(plan.kind), kind.shapes(release, terms.names)
    names, numbers = frozenset(shapes), sum(math.prod(shape) for shape in shapes.values())
    most = numbers
    if isinstance(limits, EpisodesLimits):
        most, names = limits.most_numbers, names & set(limits.parameters or names)
    Limits(
        max_clip=limits.most_clip,
        min_sigma=limits.least_sigma,
        max_q=limits.most_q,
        max_steps=limits.most_steps,
        denominator=limits.denominator,
        names=names,
        max_numbers=most,
        code_hashes=frozenset({code}),
    ).check(terms, shapes, code)
    signal = terms.signal(numbers, plan.quorum)
    _rule(
        signal >= kind.least_signal,
        "plan_signal",
        f"N mu / sqrt(S d) is {signal:.1f}: below {kind.least_signal:g} the round would harm more than help",
    )
    sound = {n: a.shape for n, a in arrays.items()} == shapes and all(
        a.dtype == np.float32 and np.isfinite(a).all()  # from another start no reply could be made, after the charge
        for a in arrays.values()
    )
    _rule(
        sound and arrays_sha256(dict(arrays)) == plan.start, "plan_start", "the arrays are not those that were signed"
    )
    _rule(
        not plan.centres or site.name in plan.centres,
        "plan_centre",
        "the round is centred and this site was not in the site_mean round before it",
    )
    return terms


def here(release: Release | None) -> Release:
    if release is None:
        raise Refused("plan_encoder", "no verified release is here yet")
    return release


def _rule(holds: bool, code: str, detail: str) -> None:
    if not holds:
        raise Refused(code, detail)


def _clock(plan: Plan, now: float) -> str:
    if now > plan.deadline:
        return f"the plan's deadline passed {now - plan.deadline:.0f} s ago; when this happens to every plan, check this machine's clock"
    return f"the plan comes from {plan.issued - now:.0f} s in the future; check this machine's clock"
