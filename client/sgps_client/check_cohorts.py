"""The part of `check` that looks at cohorts: lists, pictures, the ledger's closed lists, budgets. Nothing is spent or written."""

import secrets
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from sgps.catalogue import Catalogue
from sgps.default_plan import DEFAULT_PLAN
from sgps.errors import InputError, SgpsError
from sgps.release import Release
from sgps_client.config import Cohort, Site
from sgps_client.data.cohort import LEFT_OUT
from sgps_client.data.table import counted
from sgps_client.findings import BAD, NOTE, Finding, good, raised
from sgps_client.forecast import too_few
from sgps_client.records import cohort_of, within
from sgps_client.round import open_ledger
from sgps_privacy import accountant, statement
from sgps_privacy.cohort import rehearsed
from sgps_privacy.errors import PrivacyError, Refused
from sgps_privacy.events import Event

if TYPE_CHECKING:
    from sgps_client.data import Records

LEDGER_SECONDS = 10.0  # how long a look waits for a round that is under way
SHOWN = 5  # bad pictures that are named
AREA = "cohort"


def cohorts(site: Site, release: Release | None) -> Iterator[Finding]:
    """release: whose classes count; without one the catalogue of this installation stands in."""
    classes: Sequence[str] = Catalogue.load().ids if release is None else release.manifest.classes
    if release is None:
        what = "looked at with the catalogue of this installation: no release is here yet"
        yield Finding(AREA, NOTE, what, "sgps-client pull, then check again")
    columns = {cohort.unit_column for cohort in site.config.cohorts}
    if len(columns) > 1:
        what = f"cohorts name their patients by different columns ({', '.join(sorted(columns))})"
        yield Finding(AREA, NOTE, what, "a patient of two cohorts is noticed only where the ids are the same")
    readers: dict[str, Records] = {}
    for cohort in site.config.cohorts:
        try:
            readers[cohort.name] = cohort_of(site, cohort.name, classes)
        except SgpsError as error:
            yield raised(AREA, error)
            continue
        yield from _list(site, cohort.name, readers[cohort.name])
        yield from _pictures(site, cohort.name, readers[cohort.name])
    if len(readers) == len(site.config.cohorts):
        yield from _map(site, classes, frozenset().union(*(r.labels for r in readers.values())))
    yield from _ledger(site, {name: reader.patients for name, reader in readers.items()})


def _map(site: Site, ids: Sequence[str], labels: frozenset[str]) -> Iterator[Finding]:
    """`classes:` of site.yaml against the classes of the release and the labels of all cohorts. A wrong id of a label that stands in
    the data is said with its pictures."""
    given = site.config.classes
    for label in sorted(set(given) - labels):
        if given[label] not in {*ids, LEFT_OUT}:
            do = "`sgps-client classes` lists ids"
            yield Finding(
                AREA, BAD, f"`classes:` maps {label!r} to {given[label]!r}, which is no id of the release", do, 3
            )
        near = next((seen for seen in sorted(labels) if seen.casefold() == label.casefold()), None)
        do = f"write it as in the data: {near!r}" if near else "correct it, or remove the line"
        yield Finding(AREA, NOTE, f"`classes:` names {label!r}, a label of no picture", do)
    for one in sorted(set(given.values()) - {LEFT_OUT}):
        same = sorted(label for label in labels if given.get(label, label.casefold()) == one)
        if len(same) > 1:
            what = f"{', '.join(map(repr, same))} all count as {one}"
            yield Finding(AREA, NOTE, what, "right where they are names of one disease; else give each its own id")


def _list(site: Site, name: str, reader: "Records") -> Iterator[Finding]:
    for problem in reader.problems:
        what, _, do = problem.partition(" - ")
        yield Finding(AREA, BAD, f"{name}: {what}", do, 2)
    for note in reader.notes:
        yield Finding(AREA, NOTE, f"{name}: {note}")
    patients, slots, cap = reader.patients, site.config.slots, site.config.images_per_patient
    if slots is not None and len(patients) > slots:
        do = "raise `slots:` or split the cohort"
        yield Finding(AREA, BAD, f"{name}: {len(patients)} patients, {slots} slots", do, 3)
    images = [reader.images(patient) for patient in patients]
    yield good(
        AREA,
        f"{name}: {len(patients)} patients in {slots} slots, {sum(map(len, images))} images, "
        f"{len(reader.classes())} classes; the unit is {reader.unit_column}",
    )
    yield from _too_few(site, name, images)
    if over := sum(len(found) > cap for found in images):
        what = f"{name}: {counted(over, 'patient')} with more than {cap} images"
        yield Finding(AREA, NOTE, what, "the first ones are taken")


def _too_few(site: Site, name: str, images: Sequence[Sequence[tuple[str, object]]]) -> Iterator[Finding]:
    """What the forecast says of diseases with too few patients here, in one line."""
    patients = Counter(label for found in images for label in {label for label, _ in found})
    budget = next(c.budget for c in site.config.cohorts if c.name == name)
    few = too_few(patients, budget.epsilon, budget.delta)
    if few:
        smallest = next(iter(few))
        what = f"{name}: too few patients to help alone at epsilon {budget.epsilon:g}: {', '.join(f'{c} {patients[c]}' for c in few)}"
        yield Finding("forecast", NOTE, what, f"nothing to mend; of {smallest}: {few[smallest]}")


def _pictures(site: Site, name: str, reader: "Records") -> Iterator[Finding]:
    """Reads every picture that a round would read."""
    faults = [line for patient in reader.patients for line in _unread(site, reader, patient)]
    do = "mend it before the first round; in a closed cohort it makes its patient an empty record, and nothing else"
    for what in faults[:SHOWN]:
        yield Finding(AREA, BAD, f"{name}: {what}", do, 2)
    if more := len(faults) - SHOWN:
        yield from [Finding(AREA, BAD, f"{name}: and {counted(more, 'picture')} more", do, 2)] if more > 0 else []


def _unread(site: Site, reader: "Records", patient: str) -> list[str]:
    """One line for each picture of a patient that cannot be read, or for the patient when reading takes too long."""
    found: list[str] = []

    def read() -> None:
        for _, load in reader.images(patient)[: site.config.images_per_patient]:
            try:
                load()
            except InputError as error:
                found.append(f"{error.where}: {error.what}")
            except (OSError, MemoryError) as error:
                found.append(f"{reader.where(patient)}: {error or 'does not fit into memory'}")

    seconds = site.config.seconds_per_patient
    try:
        within(seconds, read)
    except TimeoutError:
        return [f"{reader.where(patient)}: the pictures of this patient take longer than {seconds:g} s"]
    return found


def _ledger(site: Site, lists: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
    """Whether `start` would open these lists, and what each cohort has left."""
    spent: dict[str, list[Event]] = {}
    if (site.state / "ledger.sqlite").exists():
        try:
            with open_ledger(site, LEDGER_SECONDS) as ledger:
                yield good("ledger", f"{ledger.verify()} entries; the chain holds")
                spent = {name: ledger.spent(name) for name in ledger.cohorts()}
                wrong = ledger.rehearse(lists)
        except (PrivacyError, Refused) as error:
            yield raised("ledger", error)
            return
    else:
        wrong = rehearsed(lists, secrets.token_bytes(32), [])
    for name, why in wrong.items():
        do = "put the list back as it was; new patients form a new cohort" if name in spent else "correct the list"
        yield Finding(AREA, BAD, f"{name}: {why}", do, 5)
    for cohort in site.config.cohorts:
        yield _budget(site, cohort, spent.get(cohort.name, []))


def _budget(site: Site, cohort: Cohort, spent: list[Event]) -> Finding:
    budget, least = cohort.budget, site.config.limits.least_sigma
    now = accountant.epsilon(spent, budget.delta) if spent else 0.0
    text = f"{cohort.name}: epsilon {statement.up(now)} of {budget.epsilon:g} spent at delta {budget.delta:g}"
    if now > 0.9 * budget.epsilon:
        return Finding("budget", NOTE, text, "little or nothing is left: new patients form a new cohort")
    try:
        sigma = accountant.calibrate(budget.epsilon, budget.delta, 1, spent=spent)
    except PrivacyError:  # so much is left that the least noise of all fits
        sigma = accountant.LEAST_SIGMA
    most = accountant.epsilon([*spent, Event(max(sigma, least), 1.0, 1)], budget.delta)
    return good(
        "budget",
        f"{text}; a plan needs noise {max(sigma, least):g} or more, and then costs epsilon {statement.up(most - now)} at most; "
        f"the default plan, {DEFAULT_PLAN}, {'fits' if _fits(site, cohort, spent) else 'would be refused'}",
    )


def _fits(site: Site, cohort: Cohort, spent: list[Event]) -> bool:
    """Whether budget and limits allow the default plan."""
    sigma, limits = accountant.calibrate(DEFAULT_PLAN.epsilon, DEFAULT_PLAN.delta, 1), site.config.limits
    price = accountant.epsilon([*spent, Event(sigma, 1.0, 1)], cohort.budget.delta)
    return price <= cohort.budget.epsilon and sigma >= limits.least_sigma and DEFAULT_PLAN.kind in limits.kinds
