"""The step that ships, from a signed plan to the bytes that leave: nothing of it is rebuilt here.

Plan and terms come from the coordinator's own code, the rules, the statement and the trainer from the site's, the records from
pictures through the shipped base network. A fault is planted by putting another class in the place of `engine.PrivateRound`."""

import csv
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray
from PIL import Image

from sgps.draw import PRESETS, draw_patient
from sgps.encoders import ImageEncoder
from sgps.memory import COUNTS, ROWS
from sgps.plan import Plan
from sgps.release import Release
from sgps.settings import dump
from sgps.signing import fingerprint
from sgps_client import kinds
from sgps_client import round as rounds_at_site
from sgps_client.config import Site
from sgps_client.kinds import Record
from sgps_client.records import cohort_of, encoded
from sgps_client.rules import check
from sgps_privacy import egress, engine, statement
from sgps_privacy.audit import without_noise
from sgps_privacy.engine import PrivateRound
from sgps_privacy.events import Event
from sgps_privacy.ledger import Order
from sgps_privacy.noise import Grid
from sgps_privacy.terms import Terms
from sgps_server.config import Federation, Listen
from sgps_server.kinds import CONDUCT, terms_of
from sgps_server.plans import PlanOffice, accepted_code

Floats = NDArray[np.float64]
Rounds = type[PrivateRound]
DELTA = 1e-5
AS_PLANNED = "as planned"


@dataclass(frozen=True)
class Sent:
    """One run. steps: [noised sums, numbers] float64 inside the engine. payload: the bytes that leave."""

    steps: Floats
    payload: bytes

    @property
    def reply(self) -> egress.Reply:
        return egress.decode(self.payload)

    @property
    def flat(self) -> Floats:
        """All numbers as sent, float64: rows, then counts."""
        return np.concatenate([self.reply.arrays[n].ravel() for n in (ROWS, COUNTS)]).astype(np.float64)


@dataclass(frozen=True)
class Step:
    """The trainer of `sgps_client.round` for one plan. name: of the terms. accepted: whether the site's own rules admit them."""

    name: str
    site: Site
    plan: Plan
    terms: Terms
    start: Mapping[str, NDArray[np.float32]]
    facts: Mapping[str, Any]
    release: Release
    accepted: bool
    rounds: Rounds = PrivateRound

    @property
    def numbers(self) -> int:
        return sum(a.size for a in self.start.values())

    @property
    def grid(self) -> Grid:
        """As the statement that leaves promises it, not as the engine has it."""
        return Grid(self.facts["clip"], self.facts["sigma"], self.numbers)

    @property
    def paid(self) -> float:
        """Sensitivity that the promised noise pays for: the clip, and rounding to the grid."""
        return self.grid.std / float(self.facts["sigma"])

    def planted(self, rounds: Rounds) -> "Step":
        return replace(self, rounds=rounds)

    def quiet(self) -> "Step":
        """Without noise, for claims about the sum."""
        return replace(self, rounds=without_noise(self.rounds))

    def slots(self, number: int) -> "Step":
        """With another public number of slots."""
        return replace(self, site=replace(self.site, config=self.site.config.model_copy(update={"slots": number})))

    def trainer(self, records: Sequence[Record | None]) -> tuple[Callable[[], bytes], list[PrivateRound]]:
        """What runs after CHARGE, and the rounds that it has run, each with its `noised` sums."""
        seen: list[PrivateRound] = []

        def run(work: PrivateRound, *args: Any) -> Any:
            seen[:] = [work]
            return self.rounds.run(work, *args)

        with patch.object(engine, "PrivateRound", type("Watched", (self.rounds,), {"run": run})):
            train = rounds_at_site._trainer(
                self.site, self.plan, self.terms, self.start, records, self.facts, self.release
            )
        return train, seen

    def __call__(self, records: Sequence[Record | None]) -> Sent:
        train, seen = self.trainer(records)
        payload = train()
        return Sent(np.stack(seen[0].noised) * self.terms.denominator, payload)


class SiteFolder:
    """A site with drawn patients that is ready for rounds at several budgets, each with a ledger of its own.

    The last patient's picture cannot be read: the zero record.
    """

    def __init__(
        self, folder: Path, release: Release, patients: int, budgets: Sequence[float], slots: int = 200
    ) -> None:
        self.release, self.key = release, Ed25519PrivateKey.generate()
        self.mark = fingerprint(self.key.public_key())
        self._draw(folder, patients)
        self.sites = {e: self._site(folder, e, slots) for e in budgets}
        site = next(iter(self.sites.values()))
        reader = cohort_of(site, "first", release.manifest.classes)
        self.records = kinds.records("rows", release, encoded(reader, ImageEncoder(release), release, site))

    def _draw(self, folder: Path, patients: int) -> None:
        names = [n for n in PRESETS if n in self.release.manifest.classes]
        (folder / "images").mkdir()
        with (folder / "table.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(("image_id", "patient_id", "diagnosis"))
            for p in range(patients):
                for i in range(1 + p % 3):  # patients of one to three pictures; the second class of every fourth
                    name = names[(p + i * (p % 4 == 2)) % len(names)]
                    picture = folder / "images" / f"p{p}-{i}.png"
                    Image.fromarray(draw_patient(PRESETS[name], 10 * p + i)[0]).save(picture)
                    if p == patients - 1:
                        picture.write_bytes(b"\x89PNG\r\n\x1a\n no more")
                    table.writerow((f"p{p}-{i}", f"patient {p:03d}", name))

    def _site(self, folder: Path, epsilon: float, slots: int) -> Site:
        file = folder / f"site-{epsilon:g}.yaml"
        cohort = {
            "name": "first", "images": "images", "table": "table.csv", "unit_column": "patient_id", "image_column": "image_id",
            "label_column": "diagnosis", "budget": {"epsilon": float(epsilon), "delta": DELTA},
        }  # fmt: skip
        federation = {"name": "derm", "url": "https://localhost:8443", "fingerprint": self.mark}
        settings = {"site": "north", "role": "contribute", "federation": federation, "state": f"state-{epsilon:g}"}
        file.write_text(dump({**settings, "slots": slots, "cohorts": [cohort]}))
        return Site.load(file)

    def plan(self, epsilon: float, **changes: Any) -> tuple[Plan, dict[str, NDArray[np.float32]]]:
        """The coordinator's plan for a budget; `changes` to its terms."""
        listen = Listen(host="localhost", port=8443)
        settings = Federation(
            name="derm", url="https://localhost:8443", listen=listen, rounds=1, epsilon=epsilon, delta=DELTA, quorum=1
        )
        office = PlanOffice(settings, self.key)
        planned = terms_of(settings, "rows", None, self.release).to_mapping()
        terms = Terms.from_mapping({**planned, **changes})
        start = CONDUCT["rows"].start(self.release, terms)
        code = accepted_code(settings)
        plan, _ = office.plan(1, 1, terms, start, code, ["north"], {}, release=self.release, centres={}, quorum=1)
        return plan, start

    def step(self, epsilon: float, name: str = AS_PLANNED, **changes: Any) -> Step:
        """The step of the site for such a plan. Its rules are asked first; terms beyond them get a statement all the same."""
        site = self.sites[epsilon]
        plan, start = self.plan(epsilon, **changes)
        if "steps" not in changes:
            terms = check(site, plan, start, self.release, 0, time.time())
            with self.ledger(epsilon) as ledger:
                facts = rounds_at_site._facts(site, ledger, self.order(plan, terms, start), terms)
            return Step(name, site, plan, terms, start, facts, self.release, accepted=True)
        terms = Terms.from_mapping(plan.terms)
        facts = statement.statement(
            terms, [Event(terms.sigma, terms.q, terms.steps)], delta=DELTA, cap=epsilon,
            numbers=sum(a.size for a in start.values()), code_hash=plan.code[0], plan_hash=plan.sha256(),
        )  # fmt: skip
        return Step(name, site, plan, terms, start, facts, self.release, accepted=False)

    @contextmanager
    def ledger(self, epsilon: float) -> Iterator[Any]:
        site = self.sites[epsilon]
        with rounds_at_site.open_ledger(site) as ledger:
            rounds_at_site.open_cohorts(site, ledger, self.release)
            yield ledger

    @staticmethod
    def order(plan: Plan, terms: Terms, start: Mapping[str, NDArray[np.float32]]) -> Order:
        return Order.of(
            terms, federation=plan.federation, round=plan.round, plan_hash=plan.sha256(), cohort="first",
            numbers=sum(a.size for a in start.values()),
        )  # fmt: skip


def steps(folder: SiteFolder, epsilon: float) -> list[Step]:
    """The step as planned, and the terms under which a fault shows that these hide."""
    sigma = float(folder.plan(epsilon)[0].terms["sigma"])
    return [
        folder.step(epsilon),
        folder.step(epsilon, "clip 0.5", clips=[0.5]),
        folder.step(epsilon, "two groups", groups=[[ROWS], [COUNTS]], clips=[0.8, 0.6]),
        folder.step(epsilon, "three steps", steps=3, sigma=round(sigma * 3**0.5 + 1e-4, 4)),
    ]
