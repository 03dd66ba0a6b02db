"""Gradients of one loss for each record: alone, or many at once where that is the same promise.

Claim. A row depends, bit for bit, on its record and public data only. It holds record by record, because each is evaluated
alone and from the same random state. In a batch, the failure, the shape or the absence of one record would move the last
bits of the others (ADR 5). So records go through `torch.func.vmap` only where none of these can happen:

* the loss declares `shapes`, the form of every record (name -> shape); a record of another form is the zero record before
  anything is computed;
* all chunks have the same number of places; a place without a record is filled with zeros and its row dropped;
* `separable` saw, on public numbers, that on this machine whatever stands in a place moves no bit of the other rows.

No program under vmap branches on content, so a chunk cannot fail for what a record holds, if no number of a record is used
as an index: a loss that does that may not declare shapes. What then still fails is the machine; such a chunk is evaluated
record by record."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import product

import torch
from torch import Tensor
from torch.func import grad, vmap

Parameters = dict[str, Tensor]
Record = Mapping[str, Tensor]
Loss = Callable[[Parameters, Record], Tensor]
Shapes = Mapping[str, tuple[int, ...]]
CHUNK = 32  # places of a chunk: five times as fast as one by one; 64 are no faster
_ODD = (0.0, 1e4, 1e-30, math.nan, math.inf)  # what `separable` puts into other places


def per_record_gradients(loss: Loss, theta: Parameters, records: Sequence[Record | None]) -> Parameters:
    """Gradient of `loss(theta, record)` of each record: name -> (records, *shape), float64, on the CPU.

    The row of a zero record (None) is zero; one by one, the loss is not evaluated on it. A record that fails, or whose
    gradient is not finite, is the zero record. Nothing about a record is raised. loss.shapes: see the module's text."""
    shapes: Shapes | None = getattr(loss, "shapes", None)
    rows = {name: torch.zeros((len(records), *p.shape), dtype=torch.float64) for name, p in theta.items()}
    leaves = {name: p.detach().clone().requires_grad_() for name, p in theta.items()}
    if shapes:
        records = [record if _has(record, shapes) else None for record in records]
    size = CHUNK if shapes and _separable(loss, theta, shapes) else 1
    state = torch.get_rng_state()
    try:
        for first in range(0, len(records), size):
            chunk = records[first : first + size]
            found = _rows(loss, theta, chunk, shapes) if shapes and size > 1 else None
            for place, record in enumerate(chunk):
                if record is None:
                    continue
                torch.default_generator.manual_seed(0)
                row = _row(loss, leaves, record) if found is None else {name: g[place] for name, g in found.items()}
                for name, g in row.items():
                    rows[name][first + place] = g
    finally:
        torch.set_rng_state(state)
    return zero_bad_records(rows)


def _row(loss: Loss, leaves: Parameters, record: Record) -> Parameters:
    try:
        found = torch.autograd.grad(loss(dict(leaves), record), tuple(leaves.values()), materialize_grads=True)
        return {name: g.detach().double().cpu() for name, g in zip(leaves, found, strict=True)}
    except Exception:  # noqa: BLE001  a message may name a patient, and raising would be an answer about one
        return {}


def _rows(loss: Loss, theta: Parameters, chunk: Sequence[Record | None], shapes: Shapes) -> Parameters | None:
    """Rows of a chunk, padded to `CHUNK` places; those of places without a record mean nothing. None: it failed."""
    try:
        like = next(iter(theta.values()))
        places = [*chunk, *[None] * (CHUNK - len(chunk))]
        columns = {
            n: torch.stack([like.new_zeros(s) if r is None else r[n].to(like.device, like.dtype) for r in places])
            for n, s in shapes.items()
        }
        found = vmap(grad(loss), in_dims=(None, 0))({n: p.detach() for n, p in theta.items()}, columns)
        return {name: g.detach().double().cpu() for name, g in found.items()}
    except Exception:  # noqa: BLE001  as above
        return None


def _has(record: Record | None, shapes: Shapes) -> bool:
    """Whether a record has the declared form. A matter of the record alone."""
    try:
        return (
            record is not None
            and set(record) == set(shapes)
            and all(record[n].shape == s and record[n].is_floating_point() for n, s in shapes.items())
        )
    except Exception:  # noqa: BLE001  as above
        return False


def _separable(loss: Loss, theta: Parameters, shapes: Shapes) -> bool:
    like = next(iter(theta.values()))
    forms = [
        tuple((n, tuple(s)) for n, s in sorted(of.items())) for of in ({n: p.shape for n, p in theta.items()}, shapes)
    ]
    return separable(loss, forms[0], forms[1], like.dtype, like.device, torch.get_num_threads())


Form = tuple[tuple[str, tuple[int, ...]], ...]


@lru_cache(maxsize=4)
def separable(loss: Loss, theta: Form, record: Form, dtype: torch.dtype, device: torch.device, threads: int) -> bool:
    """Whether rows of a chunk are independent of each other, to the bit, for this loss on this machine. Public numbers only.

    A chunk of random records, then ten times half of the places hold something else (zeros, huge and tiny numbers, NaN, infinity): any
    two places differ in one binary digit, so every place stands once beside any other that changed. No bit of a row whose record stayed
    may move.
    """
    make = torch.Generator().manual_seed(0)
    parameters = {n: (torch.rand(s, generator=make) / 10).to(device, dtype) for n, s in theta}
    shapes = dict(record)
    public: list[Record] = [
        {n: torch.rand(s, generator=make).to(device, dtype) for n, s in record} for _ in range(CHUNK)
    ]
    odd: list[Record] = [{n: torch.full(s, _ODD[i % len(_ODD)]) for n, s in record} for i in range(CHUNK)]
    whole = _rows(loss, parameters, public, shapes)
    if whole is None or not all(g.isfinite().all() for g in whole.values()):
        return False
    for digit, value in product(range((CHUNK - 1).bit_length()), (0, 1)):
        kept = [i for i in range(CHUNK) if i >> digit & 1 == value]
        moved = _rows(loss, parameters, [public[i] if i in kept else odd[i] for i in range(CHUNK)], shapes)
        if moved is None or not all(torch.equal(whole[n][kept], g[kept]) for n, g in moved.items()):
            return False
    return True


def zero_bad_records(rows: Parameters) -> Parameters:
    """A record with one NaN or infinity anywhere becomes zero everywhere. It keeps its row; nobody is told."""
    flat = [g.reshape(len(g), math.prod(g.shape[1:])) for g in rows.values()]  # -1 would fail for an empty batch
    good = torch.stack([g.isfinite().all(1) for g in flat]).all(0)
    return {name: torch.where(good.view(-1, *[1] * (g.dim() - 1)), g, torch.zeros_like(g)) for name, g in rows.items()}
