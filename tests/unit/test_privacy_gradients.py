"""Gradients in chunks: the same promise as one by one, or the loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from sgps_privacy import audit, gradients
from sgps_privacy.engine import Parameters, PrivateRound, Record
from sgps_privacy.gradients import CHUNK, per_record_gradients, separable

WIDTH = 16


class Chunked:
    """Softmax regression with a hidden layer that declares the form of its records."""

    shapes = {"x": (3, WIDTH), "y": (5,)}

    def __init__(self) -> None:
        self.seen: list[bool] = []

    def __call__(self, theta: Parameters, record: Record) -> Tensor:
        self.seen.append(bool(torch._C._functorch.is_functorch_wrapped_tensor(record["x"])))  # type: ignore[attr-defined]
        hidden = torch.tanh(record["x"] @ theta["w"].T).mean(0)
        return -(record["y"] * (hidden + theta["b"]).log_softmax(0)).sum()


class Alone(Chunked):
    shapes = None  # type: ignore[assignment]


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    separable.cache_clear()
    yield
    separable.cache_clear()


def theta() -> Parameters:
    make = torch.Generator().manual_seed(0)
    return {"w": torch.randn(5, WIDTH, generator=make), "b": torch.randn(5, generator=make)}


def people(count: int) -> list[Record | None]:
    make = torch.Generator().manual_seed(1)
    return [
        {"x": torch.randn(3, WIDTH, generator=make), "y": torch.eye(5)[i % 5]} if i % 7 != 3 else None
        for i in range(count)
    ]


def test_chunks_give_the_gradients_of_the_loop() -> None:
    records = people(2 * CHUNK + 5)
    many, one = (per_record_gradients(loss, theta(), records) for loss in (Chunked(), Alone()))
    for name in many:
        torch.testing.assert_close(many[name], one[name], rtol=1e-4, atol=1e-6)
        assert many[name].dtype == torch.float64
        assert not many[name][3].any()


def test_the_loss_sees_chunks_when_it_declares_shapes_and_single_records_when_not() -> None:
    for loss, wanted in ((Chunked(), True), (Alone(), False)):
        per_record_gradients(loss, theta(), people(4))
        assert set(loss.seen) == {wanted}


BAD: dict[str, Any] = {
    "absent": None,
    "zeros": {"x": torch.zeros(3, WIDTH), "y": torch.zeros(5)},
    "huge": {"x": torch.full((3, WIDTH), 1e30), "y": torch.ones(5)},
    "NaN": {"x": torch.full((3, WIDTH), math.nan), "y": torch.ones(5)},
    "infinite": {"x": torch.full((3, WIDTH), math.inf), "y": torch.ones(5)},
    "of another shape": {"x": torch.ones(2, WIDTH), "y": torch.ones(5)},
    "of whole numbers": {"x": torch.ones(3, WIDTH, dtype=torch.int64), "y": torch.ones(5)},
    "with a name too many": {"x": torch.ones(3, WIDTH), "y": torch.ones(5), "z": torch.ones(1)},
    "short of a name": {"x": torch.ones(3, WIDTH)},
    "no mapping": 3,
}


@pytest.mark.parametrize("place", [0, 1, CHUNK - 1, CHUNK + 2])
@pytest.mark.parametrize("kind", BAD)
def test_whatever_one_record_of_a_chunk_is_no_bit_of_the_others_moves(kind: str, place: int) -> None:
    records = people(CHUNK + 9)
    whole = per_record_gradients(Chunked(), theta(), records)
    other = per_record_gradients(Chunked(), theta(), [*records[:place], BAD[kind], *records[place + 1 :]])
    for name in whole:
        rest = torch.arange(len(records)) != place
        assert torch.equal(whole[name][rest], other[name][rest])
        if kind not in ("zeros", "huge"):
            assert not other[name][place].any()


def leaking(size: float) -> Callable[..., Any]:
    """A vmap that lets a trace of every other record into each row."""

    def faulty(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        whole = torch.func.vmap(function, **options)

        def run(parameters: Parameters, columns: Parameters) -> Parameters:
            trace = size * sum(c.nan_to_num(0, 0, 0).double().mean() for c in columns.values())
            return {n: (g.double() + trace).to(g.dtype) for n, g in whole(parameters, columns).items()}

        return run

    return faulty


def test_a_machine_on_which_rows_of_a_chunk_move_each_other_goes_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "vmap", leaking(1e-6))
    records, loss = people(5), Chunked()
    found = per_record_gradients(loss, theta(), records)
    want = per_record_gradients(Alone(), theta(), records)
    assert all(torch.equal(found[n], want[n]) for n in want)
    assert loss.seen[-4:] == [False] * 4


@pytest.mark.parametrize(("source", "into"), [(1, 0), (0, 1), (18, 16), (2, 0), (31, 3), (0, 31)])
def test_a_leak_from_any_place_into_any_other_is_seen(monkeypatch: pytest.MonkeyPatch, source: int, into: int) -> None:
    def faulty(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        whole = torch.func.vmap(function, **options)

        def run(parameters: Parameters, columns: Parameters) -> Parameters:
            found = whole(parameters, columns)
            found["b"][into] += 1e-5 * columns["y"][source].nan_to_num(0, 0, 0)
            return found

        return run

    monkeypatch.setattr(gradients, "vmap", faulty)
    loss = Chunked()
    per_record_gradients(loss, theta(), people(5))
    assert loss.seen[-1] is False


def test_a_loss_that_no_chunk_can_hold_goes_one_by_one() -> None:
    class Branching(Chunked):
        def __call__(self, theta: Parameters, record: Record) -> Tensor:
            return super().__call__(theta, record) * (2.0 if record["x"].sum().item() > 0 else 1.0)

    class Random(Chunked):
        def __call__(self, theta: Parameters, record: Record) -> Tensor:
            return super().__call__(theta, record) * torch.nn.functional.dropout(record["y"] + 1, 0.5).sum()

    for loss in (Branching(), Random()):
        rows = per_record_gradients(loss, theta(), people(3))
        assert rows["w"][:3].any(2).any(1).all()
        assert loss.seen[-1] is False


def test_a_loss_whose_gradients_cannot_be_compared_goes_one_by_one() -> None:
    class Endless(Chunked):
        def __call__(self, theta: Parameters, record: Record) -> Tensor:
            return super().__call__(theta, record) * math.inf

    loss = Endless()
    assert not any(g.any() for g in per_record_gradients(loss, theta(), people(2)).values())
    assert loss.seen[-1] is False


def test_every_chunk_has_the_same_number_of_places(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: set[int] = set()

    def watched(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        def run(parameters: Parameters, columns: Parameters) -> Any:
            sizes.update(len(c) for c in columns.values())
            return torch.func.vmap(function, **options)(parameters, columns)

        return run

    monkeypatch.setattr(gradients, "vmap", watched)
    for count in (1, 3, CHUNK, CHUNK + 1):
        per_record_gradients(Chunked(), theta(), people(count))
    assert sizes == {CHUNK}


@pytest.mark.parametrize("kind", [Chunked, Alone])
def test_a_parameter_that_the_loss_does_not_read_has_no_gradient_and_the_others_keep_theirs(
    kind: type[Chunked],
) -> None:
    rows = per_record_gradients(kind(), {**theta(), "unread": torch.ones(2)}, people(2))
    assert not rows["unread"].any() and rows["w"].any()


def test_one_number_of_many_that_is_not_finite_makes_the_whole_record_zero() -> None:
    rows = {"w": torch.ones(2, 5, 3, dtype=torch.float64), "b": torch.ones(2, 5, dtype=torch.float64)}
    rows["w"][1, 4, 2] = math.nan
    clean = gradients.zero_bad_records(rows)
    assert clean["w"][0].all() and clean["b"][0].all() and not clean["w"][1].any() and not clean["b"][1].any()


def test_a_chunk_that_fails_on_the_machine_is_evaluated_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    loss, records = Chunked(), people(3)
    per_record_gradients(loss, theta(), records)

    def full(*_: Any, **__: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(gradients, "vmap", full)
    found, want = per_record_gradients(loss, theta(), records), per_record_gradients(Alone(), theta(), records)
    assert all(torch.equal(found[n], want[n]) for n in want)


def test_a_whole_round_in_chunks_releases_what_the_loop_releases() -> None:
    facts = audit.terms((2.0,))
    start = {"w": theta()["w"], "b": theta()["b"]}
    quiet = audit.without_noise(PrivateRound)
    many, one = (quiet(facts, loss).run(start, people(8), 8) for loss in (Chunked(), Alone()))
    for name in many:
        torch.testing.assert_close(torch.from_numpy(many[name]), torch.from_numpy(one[name]), rtol=1e-4, atol=1e-6)


def largest_move() -> float:
    """Of the clipped sum, in clips, when the zero record takes the place of one record."""
    quiet, facts, records = audit.without_noise(PrivateRound), audit.terms((0.5,)), people(8)

    def total(given: list[Record | None]) -> Any:
        work = quiet(facts, Chunked())
        work.run(theta(), given, 8)
        return work.noised[0] * facts.denominator

    whole = total(records)
    moves = [whole - total([*records[:i], None, *records[i + 1 :]]) for i in range(8)]
    return max(float((m**2).sum() ** 0.5) for m in moves) / facts.clip


def test_no_record_of_a_chunk_moves_the_clipped_sum_by_more_than_the_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    assert largest_move() <= 1 + 1e-6
    monkeypatch.setattr(gradients, "vmap", leaking(10.0))
    assert largest_move() <= 1 + 1e-6
    monkeypatch.setattr(gradients, "separable", lambda *_: True)  # the planted fault: nobody looks
    assert largest_move() > 1.01
