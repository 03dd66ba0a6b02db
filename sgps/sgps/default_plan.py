"""The plan of a new federation: the one that `bench.plans` found best on public data (docs/results/plans.md)."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class DefaultPlan:
    """The keys of federation.yaml that decide what a patient pays and what a release gains."""

    rounds: int
    kind: str
    centre_sites: bool
    epsilon: float
    delta: float

    def __str__(self) -> str:
        centred = " after the means of the sites" if self.centre_sites else ""
        many = f"{self.rounds} `{self.kind}` rounds" if self.rounds > 1 else f"one `{self.kind}` round"
        return f"{many}{centred} at epsilon {self.epsilon:g}, delta {self.delta:g}"


DEFAULT_PLAN: Final = DefaultPlan(rounds=1, kind="rows", centre_sites=False, epsilon=3.0, delta=1e-5)


def rows_beside(epsilon: float, delta: float) -> str:
    """A forecast's line: whether one `rows` round at this price is the default plan."""
    if DefaultPlan(1, "rows", False, epsilon, delta) == DEFAULT_PLAN:
        return f"plan   the default: {DEFAULT_PLAN}"
    return f"plan   one `rows` round; the default is {DEFAULT_PLAN}"
