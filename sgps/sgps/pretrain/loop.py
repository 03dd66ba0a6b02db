"""A training loop that continues where it was killed: checkpoints of weights, optimizer and step, written whole or not at all."""

import json
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from sgps.errors import StateError
from sgps.files import write_atomic
from sgps.pretrain.networks import load_state, save_state
from sgps.pretrain.progress import Report, Stop

EVERY = 100  # steps between checkpoints
RECENT = 100  # steps over which shown losses are averaged


@dataclass
class Record:
    """How far a stage is: steps done, seconds of wall and processor time over all attempts, latest losses.

    arithmetic: device and number format, and the last step done with them, in the order of use.
    """

    step: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    recent: dict[str, list[float]] = field(default_factory=dict)
    arithmetic: dict[str, int] = field(default_factory=dict)

    def means(self) -> dict[str, float]:
        return {k: sum(v) / len(v) for k, v in self.recent.items() if v}


def save_checkpoint(
    path: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, record: Record
) -> None:
    """One safetensors file: every module's and the optimizer's tensors; the record as JSON in its header."""
    tensors = {f"{name}/{k}": v.detach() for name, m in modules.items() for k, v in m.state_dict().items()}
    for place, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{place}/{k}": v for k, v in state.items()}
    data = {k: v.cpu().contiguous().clone() for k, v in tensors.items()}
    write_atomic(path, safetensors.torch.save(data, {"record": json.dumps(record.__dict__)}))


def load_checkpoint(path: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> Record:
    """Put a checkpoint's tensors into modules and optimizer; a new Record when there is no file. Raises StateError."""
    if not path.exists():
        return Record()
    tensors = load_state(path)
    with safetensors.safe_open(path, "pt") as file:
        record = Record(**json.loads(file.metadata()["record"]))
    try:
        for name, module in modules.items():
            prefix = f"{name}/"
            module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    except RuntimeError as error:
        raise StateError("was made by other code", where=path, do="remove the work folder") from error
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            _, place, name = key.split("/")
            like = parameters[int(place)]
            # the memory layout of a moment must be its parameter's, or every step takes a slow path
            states.setdefault(int(place), {})[name] = torch.empty_like(like).copy_(value) if value.ndim else value
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    return record


@dataclass(frozen=True)
class Stage:
    """One training run. `result`: the module whose weights are kept after the steps in `keep`."""

    name: str
    steps: int
    keep: tuple[int, ...]
    folder: Path

    def kept(self, step: int) -> Path:
        return self.folder / f"{self.name}-{step}.safetensors"

    @property
    def summary(self) -> Path:
        return self.folder / f"{self.name}.json"

    def done(self) -> bool:
        return self.summary.is_file() and all(self.kept(s).is_file() for s in self.keep)


def run_stage(
    stage: Stage,
    modules: Mapping[str, nn.Module],
    result: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: Callable[[int], Mapping[str, float]],
    report: Report,
    stop: Stop,
    arithmetic: str,
) -> None:
    """Call `step(number)` until the stage is done. Raises KeyboardInterrupt, after a checkpoint, when asked to stop.

    arithmetic: device and number format. A stage may go on with others than it began with: that is reported, and kept in its summary.
    """
    checkpoint = stage.folder / f"{stage.name}.checkpoint.safetensors"
    record = load_checkpoint(checkpoint, modules, optimizer)
    used = record.arithmetic
    if used and (before := max(used, key=used.__getitem__)) != arithmetic:
        report(f"{stage.name} goes on with {arithmetic}, until here {before}", record.step, stage.steps, {})
    wall, cpu = time.monotonic() - record.seconds, time.process_time() - record.cpu_seconds
    recent = {k: deque(v, RECENT) for k, v in record.recent.items()}

    def now(done: int) -> Record:
        losses = {k: list(v) for k, v in recent.items()}
        return Record(done, time.monotonic() - wall, time.process_time() - cpu, losses, used | {arithmetic: done})

    report(stage.name, record.step, stage.steps, record.means())
    for number in range(record.step, stage.steps):
        for key, value in step(number).items():
            recent.setdefault(key, deque(maxlen=RECENT)).append(value)
        done = number + 1
        if done in stage.keep:
            save_state(stage.kept(done), result.state_dict())
        asked = stop.asked  # read once: a stop asked for later must wait for the next step's checkpoint
        if done % EVERY == 0 or asked:
            save_checkpoint(checkpoint, modules, optimizer, now(done))
        report(stage.name, done, stage.steps, now(done).means())
        if asked and done < stage.steps:
            raise KeyboardInterrupt
    summary: dict[str, object] = {"steps": stage.steps, **{k: round(v, 4) for k, v in now(stage.steps).means().items()}}
    summary |= {"seconds": round(now(stage.steps).seconds), "cpu_seconds": round(now(stage.steps).cpu_seconds)}
    summary |= {"arithmetic": used | {arithmetic: stage.steps}}
    write_atomic(stage.summary, json.dumps(summary).encode())
    checkpoint.unlink(missing_ok=True)
