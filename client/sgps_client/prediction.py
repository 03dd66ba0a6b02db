"""Pictures, folders, zips and DICOM through a classifier, into one CSV. A picture that cannot be read is named and passed over."""

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sgps.errors import InputError
from sgps.files import write_atomic
from sgps.images import left_out
from sgps_client.data.pictures import open_picture, picture_names, read_picture
from sgps_client.data.sources import escaped, open_source

if TYPE_CHECKING:
    from PIL.Image import Image

    from sgps.classifier import Classifier, Prediction

BATCH, BATCH_PIXELS = 32, 64_000_000  # pictures held decoded at a time
Progress = Callable[[int, int], None]  # done, of how many


@dataclass(frozen=True)
class Item:
    """One picture that is asked about; `load` raises InputError when it cannot be read."""

    name: str
    load: "Callable[[], Image]"


@dataclass(frozen=True)
class Answers:
    """predictions: by place in the items, for those that could be read. faults: one line for each of the others."""

    predictions: "dict[int, Prediction]"
    faults: dict[int, str]

    @property
    def bad(self) -> tuple[str, ...]:
        return tuple(self.faults.values())


def gather(paths: Sequence[Path]) -> list[Item]:
    """Files, and the pictures of folders and zips, in the order given and sorted within each.

    Raises InputError when a path does not exist or a folder or zip holds no picture.
    """
    items: list[Item] = []
    for path in paths:
        if path.is_dir() or path.suffix.lower() == ".zip":
            source = open_source(path)
            names = picture_names(source)
            if not names:
                raise InputError(
                    "; ".join(["holds no picture", *left_out(source.names)]), where=path, do="check the path"
                )
            items += [Item(source.where(name), partial(read_picture, source, name)) for name in names]
        elif path.is_file():
            items.append(Item(str(path), partial(open_picture, path)))
        else:
            raise InputError("does not exist", where=path, do="check the path")
    return items


def unread(paths: Sequence[Path]) -> list[str]:
    """One line for each folder or zip with pictures of kinds that are not read, which `gather` passed over."""
    sources = [open_source(path) for path in paths if path.is_dir() or path.suffix.lower() == ".zip"]
    return [f"{source.path}: {line}" for source in sources for line in left_out(source.names)]


def answer(
    classifier: "Classifier",
    items: Sequence[Item],
    *,
    strict: bool = False,
    progress: Progress = lambda done, total: None,
) -> Answers:
    """strict: the first bad picture is raised as InputError."""
    predictions: dict[int, Prediction] = {}
    faults: dict[int, str] = {}
    for places, images in _batches(items, faults, strict):
        predictions.update(zip(places, classifier.predict(images), strict=True))
        progress(len(predictions) + len(faults), len(items))
    return Answers(predictions, faults)


def _batches(items: Sequence[Item], faults: dict[int, str], strict: bool) -> "Iterator[tuple[list[int], list[Image]]]":
    places: list[int] = []
    images: list[Image] = []
    for place, item in enumerate(items):
        try:
            images.append(item.load())
        except InputError as error:
            if strict:
                raise
            faults[place] = str(error)
            continue
        places.append(place)
        if len(images) == BATCH or sum(i.width * i.height for i in images) > BATCH_PIXELS:
            yield places, images
            places, images = [], []
    if images:
        yield places, images


def write_csv(path: Path, classifier: "Classifier", items: Sequence[Item], answers: Answers) -> None:
    """One line for each picture, in the order given: its answer, or in `fault` why it has none. Mode 0600, whole or not at all.

    Raises InputError when `path` exists.
    """
    if path.exists():
        raise InputError("exists already", where=path, do="choose another name or remove it")
    out = io.StringIO(newline="")
    table = csv.writer(out)
    table.writerow(
        [
            "image",
            "label",
            "probability",
            "accepted",
            "none_of_these",
            "other_kind",
            "p",
            "score",
            *(f"logit {n}" for n in classifier.labels),
            "fault",
        ]
    )
    for place, item in enumerate(items):
        if place in answers.faults:
            table.writerow([_cell(item.name), *[""] * (7 + len(classifier.labels)), _cell(answers.faults[place])])
            continue
        p = answers.predictions[place]
        numbers = [f"{p.scores[n]:.6g}" for n in classifier.labels]
        yes = [str(flag).lower() for flag in (p.accepted, p.none_of_these, p.other_kind)]
        table.writerow(
            [_cell(item.name), p.label, f"{p.probability:.6g}", *yes, f"{p.p:.6g}", f"{p.score:.6g}", *numbers, ""]
        )
    write_atomic(path, escaped(out.getvalue()).encode(), mode=0o600)


def of_what(classifier: "Classifier") -> str:
    """Of what the column `probability` is the probability: with one disease not of what `label` says."""
    if len(classifier.named) == 1:
        return f"that it is {classifier.named[0]}, whatever the label says, if half of the pictures showed it"
    return f"of the label among {', '.join(classifier.named)}, if they were equally frequent"


def _cell(text: str) -> str:
    """A text that begins with a path. A spreadsheet would compute `=1.jpg`; `./=1.jpg` is the same file."""
    return f"./{text}" if text[:1] in "=+-@" else text
