"""Claims about the step that ships, each measured on real rounds; a planted fault must break one.

Random thresholds are 5 standard errors or p = 1e-7 and below: the whole set raises a false alarm about once in 10,000 runs."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import chi2, chisquare, fisher_exact, kstest

from bench._step import AS_PLANNED, Floats, Step
from bench._step_games import along, game, point
from sgps.memory import COUNTS, ROWS
from sgps_client.kinds import Record
from sgps_privacy import statement
from sgps_privacy.audit import Verdict
from sgps_privacy.engine import PrivateRound
from sgps_privacy.errors import PrivacyError

Records = list[Record | None]


@dataclass(frozen=True)
class World:
    """patients: from pictures, the zero record among them. runs: repeats of a check of the noise. trials: of the game."""

    patients: Records
    runs: int
    trials: int

    def hostile(self, step: Step) -> Records:
        """The patients, one that is huge, two that pull against each other, one in all classes, one far below the clip."""
        rng = np.random.default_rng(3)
        pull, every, shape = rng.normal(size=step.numbers), rng.normal(size=step.numbers), step.start[ROWS].shape
        made = [along(step, 7, 1e6), *(point(shape, s * 50 * pull) for s in (1, -1)), point(shape, every)]
        return [*made, *self.patients, point(shape, 1e-3 * every)]


def replay(step: Step, world: World) -> Verdict:
    """The zero record in the place of any one record moves no sum by more than the noise pays for, no group by more than its
    clip."""
    quiet, records, worst = step.quiet(), world.hostile(step), 0.0
    ends = [step.start[ROWS].size]
    whole = quiet(records).steps
    for i in range(len(records)):
        for moved in whole - quiet([*records[:i], None, *records[i + 1 :]]).steps:
            worst = max(worst, float(np.linalg.norm(moved)) / step.paid)
            if len(step.terms.clips) > 1:
                for part, clip in zip(np.split(moved, ends), step.terms.clips, strict=True):
                    room = clip * (1 + 1e-6) + 1.001 * step.grid.gamma * math.sqrt(part.size)
                    worst = max(worst, float(np.linalg.norm(part)) / room)
    return Verdict(worst <= 1 + 1e-9, f"largest move {worst:.6f} of what the noise pays for")


def denominator(step: Step, world: World) -> Verdict:
    """Two patients fewer: what leaves is still the plain sum of the others."""
    quiet, records = step.quiet(), [r for r in world.patients if r is not None]
    many, few = quiet([*records[:-2], None, None]).steps, quiet(records[:-2]).steps
    single = np.sum([quiet([r]).steps for r in records[:-2]], axis=0)
    room = len(records) * step.grid.gamma * 1.001
    gap = max(float(np.abs(many - few).max()), float(np.abs(few - single).max()))
    return Verdict(gap <= room, f"sum against single records: {gap:.1e} of {room:.1e} from rounding")


def gradient(step: Step, world: World) -> Verdict:
    """Gradients of the real loss against central differences in float64, one coordinate after the other, at two points; the sum
    without noise, in the engine and as sent, against a float64 loop that clips and adds."""
    quiet, records = step.quiet(), world.hostile(step)
    sent = quiet(records)
    train, seen = quiet.trainer([])
    train()
    work, patient = seen[0], next(r for r in world.patients if r is not None)
    tensors = {n: torch.from_numpy(a) for n, a in patient.items()}
    slope = 0.0
    for at in (0.0, 1.0):
        theta = {n: torch.full(a.shape, at, dtype=torch.float64) for n, a in step.start.items()}
        exact = {n: t.double() for n, t in tensors.items()}
        found = work.gradients({n: t.float() for n, t in theta.items()}, [tensors])
        for name, t in theta.items():
            for i in range(t.numel()):
                t.view(-1)[i] = at + 1
                high = float(work.loss(theta, exact))
                t.view(-1)[i] = at - 1
                low = float(work.loss(theta, exact))
                t.view(-1)[i] = at
                slope = max(slope, abs(float(found[name].reshape(-1)[i]) - (high - low) / 2))
    total = np.zeros(step.numbers)
    for r in records:
        if r is not None:
            total += clipped(step, r)
    inside = max(float(np.abs(s + total).max()) for s in sent.steps)  # the gradient is minus the record
    wire = float(np.abs(sent.flat - len(sent.steps) * total).max())
    room, coarse = step.grid.gamma, len(sent.steps) * step.grid.gamma + 1e-6 * float(np.abs(total).max())
    return Verdict(
        slope < 1e-9 and inside <= room and wire <= coarse,
        f"gradient differs by {slope:.1e}, sum by {inside:.1e} (grid step {room:.1e}), as sent by {wire:.1e}",
    )


def clipped(step: Step, record: Record) -> Floats:
    """One record, clipped in plain float64; 1e-6 is Opacus's, and only shortens."""
    parts = [np.asarray(record[n], np.float64).ravel() for n in (ROWS, COUNTS)]
    if len(step.terms.clips) == 1:
        parts = [np.concatenate(parts)]
    norms = [math.sqrt(sum(float(x) ** 2 for x in p)) for p in parts]
    return np.concatenate(
        [p * min(1.0, c / (n + 1e-6)) for p, n, c in zip(parts, norms, step.terms.clips, strict=True)]
    )


def draws(step: Step, runs: int) -> Floats:
    """[runs, steps, numbers] of rounds without a patient, over the deviation that the statement in the payload claims."""
    found = []
    for _ in range(runs):
        sent = step([])
        facts = sent.reply.statement
        found.append(sent.steps / (facts["sigma"] * facts["clip"]))
    return np.stack(found)


def noise_size(step: Step, world: World) -> Verdict:
    """Standard deviation and normal shape in every step, group and coordinate, as the statement that leaves says."""
    z = draws(step, world.runs)
    errors, shape = [], 1.0
    for i in range(z.shape[1]):
        for part in np.split(z[:, i], [step.start[ROWS].size], axis=1):
            errors.append((float(np.sqrt((part**2).mean())) - 1) * math.sqrt(2 * part.size))
            shape = min(shape, float(kstest(part.ravel(), "norm").pvalue))
    squares = (z**2).sum((0, 1))
    single = 2 * z[0].size * min(float(f(squares, z.shape[0] * z.shape[1]).min()) for f in (chi2.sf, chi2.cdf))
    low, high = min(errors), max(errors)
    return Verdict(
        max(-low, high) < 5 and shape > 1e-7 and single > 1e-7,
        f"deviation {low:+.1f} to {high:+.1f} standard errors, least KS p {shape:.2g}, worst coordinate p {min(1.0, single):.2g}",
    )


def noise_independence(step: Step, world: World) -> Verdict:
    """No correlation between runs, steps, neighbouring numbers or neighbouring classes."""
    z, width = draws(step, world.runs), step.start[ROWS].shape[1]
    pairs = {
        "runs": (z[1:], z[:-1]), "steps": (z[:, 1:], z[:, :-1]), "numbers": (z[..., 1:], z[..., :-1]),
        "classes": (z[..., width:], z[..., :-width]),
    }  # fmt: skip
    found = {
        k: float(np.corrcoef(a.ravel(), b.ravel())[0, 1]) * math.sqrt(a.size) if a.std() * b.std() > 0 else math.inf
        for k, (a, b) in pairs.items()
        if a.size
    }
    return Verdict(
        max(map(abs, found.values())) < 5,
        "correlation in standard errors: " + ", ".join(f"{k} {v:+.1f}" for k, v in found.items()),
    )


def noise_source(step: Step, world: World) -> Verdict:
    """Sums are whole steps of the public grid, and the seeds of torch and numpy do not reach the noise."""
    out = []
    for _ in range(2):
        torch.manual_seed(7)
        np.random.seed(7)
        out.append(step(world.patients).steps)
    k = out[0] / step.grid.gamma
    off, again = float(np.abs(k - np.rint(k)).max()), float((out[0] == out[1]).mean())
    return Verdict(
        off < 1e-3 and again < 0.01, f"off the grid by {off:.1e} steps; same seed, same numbers: {100 * again:.0f} %"
    )


def low_bits(step: Step, _: World) -> Verdict:
    """Sums of 0 and of 1 everywhere: the last eight bits of the whole numbers are uniform in both, and numbers near zero are as
    fine in the one as in the other, in the engine and as sent (Mironov 2012: float noise near -1 has no finer bits than 2^-53)."""
    uniform, fine = 1.0, []
    full = step.slots(step.numbers)
    for records in ([], [along(step, i) for i in range(step.numbers)]):
        sent = full(records)
        k = np.rint(sent.steps[0] / step.grid.gamma).astype(np.int64)
        uniform = min(uniform, float(chisquare(np.bincount(k & 255, minlength=256)).pvalue))
        fine.append([finer(sent.steps[0], 53), finer(sent.flat, 25)])
    tell = min(float(fisher_exact([zero, one]).pvalue) for zero, one in zip(*fine, strict=True))
    counts = ", ".join(f"{z[0]} of {sum(z)} and {o[0]} of {sum(o)}" for z, o in zip(*fine, strict=True))
    return Verdict(
        uniform > 1e-7 and tell > 1e-7, f"least p {uniform:.2g}; finer than 2^-53, as sent than 2^-25: {counts}"
    )


def finer(values: Floats, bits: int) -> tuple[int, int]:
    """How many numbers in (-1/4, 1/4) are no multiple of 2^-bits, and how many are one."""
    small = values[np.abs(values) < 0.25] * 2.0**bits
    broken = int((small != np.rint(small)).sum())
    return broken, small.size - broken


def empty_round(step: Step, world: World) -> Verdict:
    """No patient at all: the same number of sums, the noise in full."""
    z = draws(step, world.runs)
    error = (float(np.sqrt((z**2).mean())) - 1) * math.sqrt(2 * z.size)
    return Verdict(
        z.shape[1] == step.terms.steps and abs(error) < 5,
        f"{z.shape[1]} sums, noise deviates by {error:+.1f} standard errors",
    )


def bad_record(step: Step, world: World) -> Verdict:
    """NaN, infinity, another shape, a missing part: the output of the zero record, bit for bit, and no message. The largest
    float32: at most what the noise pays for."""
    quiet, rest = step.quiet(), world.hostile(step)[1:]
    shape = step.start[ROWS].shape
    good = point(shape, np.ones(step.numbers))
    spoilt = {"nan": math.nan, "inf": math.inf}
    bad: dict[str, Record] = {
        **{k: {ROWS: np.where(np.arange(good[ROWS].size).reshape(shape) == 9, np.float32(x), good[ROWS]), COUNTS: good[COUNTS]}
           for k, x in spoilt.items()},
        "shape": {ROWS: good[ROWS][:, :-1].copy(), COUNTS: good[COUNTS]},
        "part": {ROWS: good[ROWS]},
    }  # fmt: skip
    want, gaps = quiet([None, *rest]).steps, dict.fromkeys(bad, math.inf)
    for kind, record in bad.items():
        try:
            got = quiet([record, *rest]).steps
        except Exception:  # noqa: BLE001, S112  raising is the fault that is looked for
            continue
        gaps[kind] = float(np.nan_to_num(np.linalg.norm(got - want), nan=math.inf))
    huge = float(np.linalg.norm(quiet([along(step, 7, 3e38), *rest]).steps[0] - want[0])) / step.paid
    return Verdict(
        max(gaps.values()) == 0 and huge <= 1 + 1e-9,
        "from the zero record: " + ", ".join(f"{k} {v:.2g}" for k, v in gaps.items()) + f", huge {huge:.4f}",
    )


def reply(step: Step, world: World) -> Verdict:
    """Exactly the arrays of the plan and the fields of the statement leave; form, texts and length are those of a site without a
    patient."""
    seen = []
    for records in (world.patients, world.patients[1:], [], [*world.patients[:-1], *world.patients[:-1]]):
        try:
            sent = step(records)
            answer = sent.reply
        except PrivacyError as error:
            return Verdict(False, f"no reply could be made: {error}")
        seen.append((len(sent.payload), sent.payload[: -4 * step.numbers], sorted(answer.statement)))
        shapes = {n: (a.shape, a.dtype) for n, a in answer.arrays.items()}
        extra = sorted(set(shapes) ^ set(step.start))
        if shapes != {n: (a.shape, a.dtype) for n, a in step.start.items()}:
            return Verdict(False, f"arrays that no plan asked for: {', '.join(extra) or 'another shape'}")
    same = all(s == seen[0] for s in seen) and seen[0][2] == sorted(statement.FIELDS)
    return Verdict(same, f"{seen[0][0]} bytes, all but the sums equal in {len(seen)} cohorts: {same}")


def distinguishing(step: Step, world: World) -> Verdict:
    """The game of `bench._step_games` refutes no claim."""
    found = game(step, [r for r in world.patients if r is not None][:3], world.trials, step.name)
    worst = max(found, key=lambda b: b.lower / b.claimed)
    return Verdict(
        all(b.holds for b in found), f"{worst.quantity} lower bound {worst.lower:.2f}, claimed {worst.claimed:.2f}"
    )


CHECKS: dict[str, Callable[[Step, World], Verdict]] = {
    "replay": replay,
    "denominator": denominator,
    "gradient": gradient,
    "noise size": noise_size,
    "noise independence": noise_independence,
    "noise source": noise_source,
    "low bits": low_bits,
    "empty round": empty_round,
    "reply": reply,
    "bad record": bad_record,
    "game": distinguishing,
}
ONCE = frozenset({"low bits", "game"})  # on the step as planned only


def verdicts(
    steps: Sequence[Step], world: World, only: Sequence[str] = tuple(CHECKS)
) -> dict[tuple[str, str], Verdict]:
    """(check, terms) -> verdict."""
    return {(name, step.name): verdict(name, step, world) for name, step in pairs(steps, only)}


def verdict(name: str, step: Step, world: World) -> Verdict:
    """One check. A round that raises because of what its records hold is an answer about them: the check does not hold."""
    try:
        return CHECKS[name](step, world)
    except Exception as error:  # noqa: BLE001  see above
        return Verdict(False, f"raises {type(error).__name__}: {error}")


def pairs(steps: Sequence[Step], only: Sequence[str] = tuple(CHECKS)) -> Iterator[tuple[str, Step]]:
    for name in only:
        yield from ((name, step) for step in steps if name not in ONCE or step.name == AS_PLANNED)


@dataclass(frozen=True)
class Caught:
    """What a planted fault breaks: (check, terms) -> verdict. dead: terms under which it cannot run on these records at all."""

    by: dict[tuple[str, str], Verdict]
    dead: list[str]


def caught(
    rounds: type[PrivateRound], steps: Sequence[Step], world: World, only: Sequence[str] = tuple(CHECKS)
) -> Caught:
    """The checks on a planted fault."""
    running, dead = [], []
    for step in (s.planted(rounds) for s in steps):
        try:
            step(world.patients)
            running.append(step)
        except PrivacyError:  # the reply's own rules speak: a check reports it
            running.append(step)
        except Exception:  # noqa: BLE001  a fault written for other records: said in the table, not counted as caught
            dead.append(step.name)
    return Caught({k: v for k, v in verdicts(running, world, only).items() if not v.holds}, dead)
