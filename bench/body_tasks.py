"""Few-shot tasks of classes whose labelled pictures are plenty, so that a body can be fitted to them: drawn and real."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bench.pictures import Pictures
from sgps.attributes import parse, vector
from sgps.catalogue import Catalogue
from sgps.draw import clinical_text, draw_patient, draw_profile
from sgps.images import batch
from sgps.pretrain.pool import held_out
from sgps.pretrain.recipe import read_recipe
from sgps.release import Release

Array = NDArray[Any]
Images = tuple[tuple[Image.Image, ...], ...]
FRAME = 160  # pixels a side of the pictures that are turned, cut and coloured anew in each step
WAYS = 3  # of drawn tasks; those of real classes are pairs, so that one can borrow from a pair that shares no class with it


@dataclass(frozen=True)
class Task:
    """known, again, shown: pictures of each class that share no patient. The first two may be learned from, the last is tested.

    attributes [N, a]: what the clinical text of each class states. make: pictures of a part, read or drawn when they are asked for.
    """

    name: str
    classes: tuple[str, ...]
    attributes: Tensor
    make: Callable[[str], Images]

    @cached_property
    def known(self) -> Images:
        return self.make("known")

    @cached_property
    def again(self) -> Images:
        """Empty where a class has too few patients."""
        return self.make("again")

    @cached_property
    def shown(self) -> Images:
        return self.make("shown")

    @cached_property
    def frames(self) -> list[Array]:
        return [frames(x) for x in self.known]

    def tensor(self, part: Sequence[Sequence[Image.Image]], release: Release) -> Tensor:
        """Pictures of all classes, class by class, as the base takes them."""
        return plain([image for own in part for image in own], release)


def plain(images: Sequence[Image.Image], release: Release) -> Tensor:
    """[n, 3, s, s], channels last."""
    a = release.manifest.architecture
    return batch(images, a.size, a.mean, a.std).contiguous(memory_format=torch.channels_last)


def frames(images: Sequence[Image.Image]) -> Array:
    """uint8 [n, 160, 160, 3]: the middle squares."""
    out = []
    for image in images:
        side, (width, height) = min(image.size), image.size
        left, top = (width - side) // 2, (height - side) // 2
        square = image.crop((left, top, left + side, top + side))
        out.append(np.asarray(square.resize((FRAME, FRAME), Image.Resampling.BICUBIC)))
    return np.stack(out)


def drawn(profile: int, numbers: range) -> tuple[Image.Image, ...]:
    """One picture of each of these patients of a profile."""
    made = draw_profile(profile)
    return tuple(Image.fromarray(draw_patient(made, n)[0]) for n in numbers)


def drawn_task(first: int, known: int, shown: int) -> Task:
    """Three drawn classes, from profile `first` on."""
    profiles = range(first, first + WAYS)
    said = [vector(parse(clinical_text(draw_profile(p)), "drawn"), "drawn") for p in profiles]
    numbers = {"known": range(known), "again": range(known, 2 * known), "shown": range(2 * known, 2 * known + shown)}
    return Task(
        f"drawn-{first}",
        tuple(f"drawn-{p}" for p in profiles),
        torch.from_numpy(np.stack(said)),
        lambda part: tuple(drawn(p, numbers[part]) for p in profiles),
    )


def real_tasks(
    pictures: Pictures, classes: Sequence[str], rows: Array, known: int, shown: int, draws: int, seed: int
) -> list[Task]:
    """Every pair of the classes, so many times: one picture a lesion, of these rows, divided anew each time.

    A class of few lesions keeps 25 of them, or half, to be tested.
    """
    catalogue, out = Catalogue.load(), []
    for draw in range(draws):
        random, chosen = np.random.default_rng([seed, draw]), dict[str, dict[str, Array]]()
        for name in classes:
            own = random.permutation(pictures.one_each(rows[pictures.label[rows] == name], random))
            many = min(known, len(own) - min(25, len(own) // 2))
            chosen[name] = {"known": own[:many], "again": own[:0], "shown": own[many : many + shown]}
        for pair in itertools.combinations(classes, 2):
            entries = [catalogue.find(name) for name in pair]
            said = [vector(e.attributes, e.domain) if e else vector({}) for e in entries]

            def make(part: str, pair: tuple[str, ...] = pair, chosen: dict[str, dict[str, Array]] = chosen) -> Images:
                return tuple(tuple(pictures.image(int(r)) for r in chosen[n][part]) for n in pair)

            out.append(Task(f"{'-'.join(pair)}-{draw}", pair, torch.from_numpy(np.stack(said)), make))
    return out


@dataclass(frozen=True)
class Kind:
    """tasks; lenders: for each of them the names of tasks of `lending` whose body it borrows, none of which has a class of its.

    common: frames of other classes or lesions, by class, from which one body for all tasks is made; none is made for the test classes.
    public: pictures on which features before and after are compared.
    """

    name: str
    tasks: tuple[Task, ...]
    lending: tuple[Task, ...]
    common: Callable[[], Sequence[Array]] | None = None
    public: tuple[Image.Image, ...] = ()

    def lenders(self, task: Task, most: int) -> list[str]:
        place = next((i for i, t in enumerate(self.lending) if t.name == task.name), -1)
        turned = [*self.lending[place + 1 :], *self.lending[: place + 1]]
        return [t.name for t in turned if not set(t.classes) & set(task.classes)][:most]

    def twin(self, task: Task) -> Task | None:
        """The task of the same classes and other pictures."""
        return next((t for t in self.tasks if t.classes == task.classes and t.name != task.name), None)


def drawn_kind(tasks: Sequence[Task], trained: range, patients: int, public: int) -> Kind:
    """trained: profiles of the common body."""
    return Kind(
        "drawn",
        tuple(tasks),
        tuple(tasks),
        lambda: [frames(drawn(p, range(patients))) for p in trained],
        tuple(drawn(p, range(1))[0] for p in trained[:public]),
    )


def skin_kinds(
    pictures: Pictures, test: Sequence[str], known: int, shown: int, draws: int, lesions: int, public: int, seed: int
) -> list[Kind]:
    """Held-out lesions of the classes that the base was trained on, with trained lesions of them in common; then the test classes,
    which borrow from the former."""
    recipe, held = read_recipe(None), held_out(pictures.lesion, pictures.label, read_recipe(None))
    classes = [c for c in recipe.base_classes if (pictures.label[held] == c).any()]
    tasks = tuple(real_tasks(pictures, classes, np.flatnonzero(held), known, shown, draws, seed))
    random, trained = np.random.default_rng([seed, 9]), list[Array]()
    for name in classes:
        rows = pictures.one_each(np.flatnonzero((pictures.label == name) & ~held), random)
        trained.append(random.permutation(rows)[:lesions])
    out = [
        Kind(
            "skin",
            tasks,
            tasks,
            lambda: [frames([pictures.image(int(r)) for r in rows]) for rows in trained],
            tuple(pictures.image(int(r)) for rows in trained for r in rows[: -(-public // len(classes))]),
        )
    ]
    if test:
        tested = real_tasks(pictures, test, pictures.of(test), known, shown, draws, seed)
        out.append(Kind("test", tuple(tested), tasks))
    return out
