"""One round: the arithmetic by hand, record slots, the rows workload, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from sgps_privacy import audit
from sgps_privacy.egress import accept, encode
from sgps_privacy.engine import Parameters, PrivateRound, Record
from sgps_privacy.errors import PrivacyError
from sgps_privacy.events import Event
from sgps_privacy.gradients import per_record_gradients, zero_bad_records
from sgps_privacy.statement import statement
from sgps_privacy.terms import Terms
from sgps_privacy.unit import MAX_SLOTS, fill_slots

ROWS = Terms("rows", 1.391, 1.0, 1, (1.0,), (("memory.rows", "memory.counts"),), 1)
CLASSES = 60


def memory_loss(theta: Parameters, record: Record) -> Tensor:
    rows, counts = (theta["memory.rows"] * record["rows"]).sum(), (theta["memory.counts"] * record["counts"]).sum()
    return -rows - counts


def memory() -> Parameters:
    return {"memory.rows": torch.zeros(CLASSES, 64), "memory.counts": torch.zeros(CLASSES)}


def patients(count: int, size: float = 0.9) -> list[Record | None]:
    make, found = torch.Generator().manual_seed(3), []
    for i in range(count):
        rows, counts = torch.zeros(CLASSES, 64), torch.zeros(CLASSES)
        direction = torch.randn(64, generator=make)
        rows[i % CLASSES] = size * math.sqrt(0.9) * direction / direction.norm()
        counts[i % CLASSES] = size * math.sqrt(0.1)
        found.append({"rows": rows, "counts": counts})
    return found


def by_hand(facts: Terms, records: list[Record | None]) -> dict[str, np.ndarray]:
    """The local steps of the audit problem without noise: plain loops in numpy."""
    before = {n: p.double().numpy() for n, p in audit.start().items()}
    now = {n: p.copy() for n, p in before.items()}
    whole = len(facts.clips) == 1
    parts = [(facts.names, facts.clip)] if whole else list(zip(facts.groups, facts.clips, strict=True))
    for _ in range(facts.steps):
        total = {n: np.zeros_like(p) for n, p in now.items()}
        for r in records:
            if r is None:
                continue
            x = r["x"].double().numpy()
            logits = now["w"] @ x + now["b"]
            error = np.exp(logits - logits.max())
            error /= error.sum()
            error[int(r["y"])] -= 1
            g = {"w": np.outer(error, x), "b": error}
            for names, clip in parts:
                norm = np.sqrt(sum((g[n] ** 2).sum() for n in names))
                for n in names:
                    total[n] += g[n] * min(1.0, clip / (norm + 1e-6))
        for n in now:
            now[n] -= facts.rate * total[n] / facts.denominator
    return {n: now[n] - before[n] for n in now}


@pytest.mark.parametrize("clips", [audit.FLAT, audit.GROUPED], ids=["flat", "by group"])
def test_two_noiseless_steps_equal_the_loop_by_hand(clips: tuple[float, ...]) -> None:
    facts, records = audit.terms(clips, steps=2), [*audit.world()[:6], None]
    got = audit.without_noise(PrivateRound)(facts, audit.loss, torch.float64).run(audit.start(), records, audit.SLOTS)
    for name, want in by_hand(facts, records).items():
        np.testing.assert_allclose(got[name], want, atol=2e-6)


def test_a_rows_round_returns_the_noised_sum_of_the_records() -> None:
    records = patients(150)
    got = audit.without_noise(PrivateRound)(ROWS, memory_loss).run(memory(), records, 200)
    for name, key in (("memory.rows", "rows"), ("memory.counts", "counts")):
        want = torch.stack([r[key].double() for r in records if r is not None]).sum(0)
        np.testing.assert_allclose(got[name], want, atol=1e-4)
        assert got[name].dtype == np.float32


def test_a_record_longer_than_the_clip_counts_as_one_of_its_length() -> None:
    got = audit.without_noise(PrivateRound)(ROWS, memory_loss).run(memory(), patients(1, size=50.0), 200)
    assert math.hypot(*(float(np.linalg.norm(a)) for a in got.values())) == pytest.approx(1, abs=1e-4)


def test_the_noise_of_a_rows_round_is_sigma_times_clip() -> None:
    arrays = PrivateRound(ROWS, memory_loss).run(memory(), [], 200)
    draws = np.concatenate([a.ravel() for a in arrays.values()]) / ROWS.sigma
    assert abs(float(draws.std()) - 1) < 5 / math.sqrt(2 * draws.size)


def test_the_loss_is_never_evaluated_on_a_zero_record() -> None:
    seen = []

    def watched(theta: Parameters, record: Record) -> Tensor:
        seen.append(record)
        return memory_loss(theta, record)

    records = patients(3)
    PrivateRound(ROWS, watched).run(memory(), [records[0], None, records[2]], 200)
    assert len(seen) == 2


@pytest.mark.parametrize("bad", [None, {"x": torch.ones(3), "y": torch.tensor(0)}, {"x": torch.full((16,), math.nan)}])
def test_whatever_one_record_is_no_bit_of_the_other_rows_moves(bad: Record | None) -> None:
    theta, records = audit.start(), audit.world()
    whole = per_record_gradients(audit.loss, theta, records)
    other = per_record_gradients(audit.loss, theta, [bad, *records[1:]])
    for name in theta:
        assert torch.equal(whole[name][1:], other[name][1:])
        assert not other[name][0].any()


def test_randomness_in_the_loss_is_the_same_for_every_record_and_leaves_the_global_state_alone() -> None:
    def dropping(theta: Parameters, record: Record) -> Tensor:
        return (theta["w"] * torch.nn.functional.dropout(record["x"], 0.5)).sum()

    theta, record = {"w": torch.ones(100)}, {"x": torch.ones(100)}
    state = torch.get_rng_state()
    rows = per_record_gradients(dropping, theta, [record, None, record])["w"]
    assert torch.equal(rows[0], rows[2])
    assert torch.equal(state, torch.get_rng_state())


def test_one_number_that_is_not_finite_makes_the_whole_record_zero() -> None:
    rows = {"a": torch.ones(3, 2, dtype=torch.float64), "b": torch.ones(3, dtype=torch.float64)}
    rows["b"][1] = math.inf
    clean = zero_bad_records(rows)
    assert clean["a"].tolist() == [[1, 1], [0, 0], [1, 1]] and clean["b"].tolist() == [1, 0, 1]


def test_float32_gradients_are_refused_because_sums_in_them_move_by_more_than_the_clip() -> None:
    class Float32(PrivateRound):
        def gradients(self, theta: Parameters, records: list[Record | None]) -> Parameters:
            return {n: g.float() for n, g in super().gradients(theta, records).items()}

    with pytest.raises(PrivacyError, match="float64"):
        Float32(ROWS, memory_loss).run(memory(), patients(2), 200)


def test_more_records_than_slots_are_refused_before_one_is_read() -> None:
    class Unreadable(dict[str, Tensor]):
        def __getitem__(self, key: str) -> Tensor:
            raise AssertionError("read")

    with pytest.raises(PrivacyError, match="slots"):
        PrivateRound(ROWS, memory_loss).run(memory(), [Unreadable()] * 4, 3)


@pytest.mark.parametrize("slots", [0, -1, True, 2.0, MAX_SLOTS + 1])
def test_the_number_of_slots_is_a_whole_number_for_which_the_slack_is_proved(slots: int) -> None:
    with pytest.raises(PrivacyError):
        fill_slots([], slots)


def test_slots_without_a_patient_hold_the_zero_record() -> None:
    assert fill_slots(["a"], 3) == ["a", None, None]


@pytest.mark.parametrize(
    "change",
    [{"groups": (("memory.rows",),)}, {"sigma": math.nan}, {"steps": 0}, {"q": 0.0}, {"denominator": 0},
     {"clips": (1.0, 1.0)}, {"groups": (("memory.rows", "memory.counts"), ("memory.rows",))}, {"clips": (math.nan,)}, {"clips": (0.0,)}, {"sigma": 1e8}],
    ids=str,
)  # fmt: skip
def test_terms_that_do_not_fit_raise_before_the_loss_is_called(change: dict[str, object]) -> None:
    called: list[int] = []

    def watched(theta: Parameters, record: Record) -> Tensor:
        called.append(1)
        return memory_loss(theta, record)

    with pytest.raises(PrivacyError):
        PrivateRound(replace(ROWS, **change), watched).run(memory(), patients(1), 200)  # type: ignore[arg-type]
    assert not called


def test_the_loss_computes_in_the_type_that_was_asked_for_and_a_run_keeps_its_own_steps_alone() -> None:
    types: list[torch.dtype] = []

    def watched(theta: Parameters, record: Record) -> Tensor:
        types.append(theta["w"].dtype)
        return audit.loss(theta, record)

    facts = audit.terms(steps=2)
    for compute in (torch.float32, torch.float64):
        work = PrivateRound(facts, watched, compute)
        for _ in range(2):
            work.run(audit.start(), audit.world()[:1], audit.SLOTS)
            assert len(work.noised) == facts.steps
        assert set(types) == {compute}
        types.clear()


def test_a_small_change_of_a_large_parameter_is_not_rounded_away() -> None:
    def linear(theta: Parameters, record: Record) -> Tensor:
        return -(theta["w"] * record["x"]).sum()

    facts, quiet = Terms("episodes", 1.0, 1.0, 1, (1.0,), (("w",),), 1), audit.without_noise(PrivateRound)
    got = quiet(facts, linear).run({"w": torch.full((2,), 1e8)}, [{"x": torch.tensor([0.5, 0.25])}], 1)
    np.testing.assert_allclose(got["w"], [0.5, 0.25], atol=1e-4)


def test_two_runs_of_the_same_records_never_share_noise() -> None:
    first, second = (PrivateRound(ROWS, memory_loss).run(memory(), patients(5), 200) for _ in range(2))
    assert not np.isclose(first["memory.rows"], second["memory.rows"], atol=1e-6).mean() > 0.001


def test_poisson_sampling_draws_zero_records_like_any_other() -> None:
    work = PrivateRound(audit.terms(q=0.5), audit.loss)
    sizes = [len(work.records_of_step([None] * 100)) for _ in range(200)]
    assert abs(np.mean(sizes) - 50) < 5 * 5 / math.sqrt(200)


def test_every_step_of_a_sampled_round_draws_its_patients_anew() -> None:
    """Amplification by sampling counts on it; one draw for all steps would be one sampled step of their joint noise."""
    drawn, records = list[tuple[bool, ...]](), audit.world()

    class Watched(PrivateRound):
        def gradients(self, theta: Parameters, sampled: list[Record | None]) -> Parameters:
            drawn.append(tuple(any(r is one for one in sampled) for r in records))
            return super().gradients(theta, sampled)

    Watched(audit.terms(q=0.5, steps=20), audit.loss).run(audit.start(), records, audit.SLOTS)
    assert len(set(drawn)) > 1  # all twenty alike: once in 2^152


def test_a_patient_named_in_an_exception_appears_nowhere(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def failing(theta: Parameters, record: Record) -> Tensor:
        raise ValueError("cannot read /data/Anna_Muster.dcm")

    caplog.set_level(0)
    facts = {"delta": 1e-5, "cap": 3.0, "numbers": 3900, "code_hash": "c", "plan_hash": "p"}
    arrays = PrivateRound(ROWS, failing).run(memory(), patients(3), 200)
    words = statement(ROWS, [Event(ROWS.sigma, 1.0, 1)], **facts)
    sent = encode(accept(arrays, plan_id="p", code_hash="c", statement=words))
    out = "".join(capfd.readouterr()) + caplog.text
    assert b"Muster" not in sent and "Muster" not in out
