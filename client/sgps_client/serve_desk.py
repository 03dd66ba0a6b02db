"""What lies on the clinician's desk: one classifier, its exemplars and the last pictures that it was asked about. In memory only."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from PIL.Image import Image

from sgps.catalogue import Catalogue
from sgps.demo.report import picture
from sgps.errors import ConfigError, InputError
from sgps.release import CATALOGUE, Release
from sgps_client import making, prediction
from sgps_client.data import decode_picture
from sgps_client.serve_form import Upload

if TYPE_CHECKING:
    import torch

    from sgps.classifier import Classifier, Prediction
    from sgps.open_encoders import Spec

THUMBNAIL = 140  # pixels
NAME_LIMIT = 200  # characters of a disease's name
EXEMPLARS_LIMIT = 20  # all are decoded at once
_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class Made:
    """exemplars: data addresses."""

    classifier: "Classifier"
    notes: Sequence[str]
    exemplars: list[str]


@dataclass(frozen=True)
class Row:
    """One picture of the last question: its answer, or the fault that kept it from being read."""

    name: str
    thumbnail: str
    answer: "Prediction | None"
    fault: str


@dataclass
class Desk:
    """models: where classifiers are saved; None: nowhere. device: of synthesis and answers; None is the processor."""

    release: Release
    models: Path | None
    false_alarms: float
    device: "torch.device | None" = None
    encoders: "Spec | None" = None
    made: Made | None = None
    rows: list[Row] = field(default_factory=list)
    saved: Path | None = None

    def catalogue(self) -> Catalogue:
        """That of the release."""
        return Catalogue.load(self.release.folder / CATALOGUE)

    def make(self, uploads: Sequence[Upload], disease: str, text: str) -> None:
        """Put a new classifier on the desk in place of the last one. Raises SgpsError; the last one stays then."""
        if not uploads or not disease:
            raise InputError("needs a picture and the name of the disease", where="classifier", do="give both")
        if len(uploads) > EXEMPLARS_LIMIT:
            raise InputError(f"has more than {EXEMPLARS_LIMIT} pictures", where="classifier", do="choose fewer")
        if len(disease) > NAME_LIMIT or len(text) > making.TEXT_LIMIT:
            what = f"has more than {NAME_LIMIT} characters, or its text more than {making.TEXT_LIMIT:,}"
            raise InputError(what, where="disease", do="shorten it")
        images = [decode_picture(u.data, u.name) for u in uploads]
        asked = making.Asked({disease: images}, {disease: text} if text else {})
        classifier, notes = making.make(asked, self.release, None, False, self.false_alarms, self.encoders, self.device)
        if self.device is not None:
            classifier = replace(classifier, device=self.device)
        self.forget()
        self.made = Made(classifier, notes, [picture(image, THUMBNAIL) for image in images])

    def ask(self, uploads: Sequence[Upload]) -> None:
        """Answers for these pictures, in place of the last ones. Raises InputError without a classifier or a picture."""
        if self.made is None or not uploads:
            raise InputError("needs a classifier and pictures", where="question", do="choose pictures first")
        thumbnails: dict[int, str] = {}
        items = [prediction.Item(u.name, partial(_load, u, place, thumbnails)) for place, u in enumerate(uploads)]
        found = prediction.answer(self.made.classifier, items)
        self.rows = [
            Row(item.name, thumbnails.get(i, ""), found.predictions.get(i), found.faults.get(i, ""))
            for i, item in enumerate(items)
        ]

    def save(self, name: str) -> None:
        """Write the classifier to a new folder below `models`. Raises ConfigError without one, InputError for a name that is no folder's."""
        if self.models is None:
            raise ConfigError("no folder for classifiers was given", where="save", do="start with --models DIR")
        if self.made is None or not _FOLDER.fullmatch(name):
            do = "use letters, digits, - and _, at most 64, the first a letter or digit"
            raise InputError("is not a name for a folder", where="name", do=do)
        making.check_target(self.models / name)
        self.made.classifier.save(self.models / name)
        self.saved = self.models / name

    def forget(self) -> None:
        """Nothing of a patient stays in the program; what was saved stays where it is."""
        self.made, self.rows, self.saved = None, [], None


def _load(upload: Upload, place: int, thumbnails: dict[int, str]) -> Image:
    image = decode_picture(upload.data, upload.name)
    thumbnails[place] = picture(image, THUMBNAIL)
    return image
