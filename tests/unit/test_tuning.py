"""Rounds of episodes: what may be trained, the loss of one patient, and how a change enters a release."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from sgps import subset, tuning
from sgps.bank import Bank
from sgps.draw import draw_patient, draw_profile
from sgps.errors import InputError
from sgps.images import batch
from sgps.release import GENERATOR
from sgps_privacy.gradients import per_record_gradients, separable

if TYPE_CHECKING:
    from sgps.release import Release

HEAD = ["generator.gate.weight", "generator.gate.bias", "generator.token_up.core"]
TOKEN = ["generator.image_kind", "generator.shots", "generator.encoder.0.norm1.weight"]
BODY = ["generator.core.weight", "generator.chan.bias", "generator.tap.bias"]
Tensors = dict[str, torch.Tensor]


def features(release: "Release", name: str, count: int, seed: int = 0) -> Any:
    """Of the bank's class, with a little noise."""
    bank, random = Bank.of(release), np.random.default_rng(seed)
    place = [c.id for c in bank.classes].index(name)
    rows = random.choice(np.flatnonzero(bank.label == place), count, replace=False)
    return (bank.features[rows] + 0.1 * random.normal(size=(count, bank.features.shape[1]))).astype(np.float32)


def parameters(release: "Release", names: list[str], spread: float = 0.0) -> Tensors:
    make = torch.Generator().manual_seed(0)
    begun = {n: torch.from_numpy(a) for n, a in tuning.start(release, names).items()}
    return {n: p + spread * torch.randn(p.shape, generator=make) for n, p in begun.items()}


def gradient(loss: Callable[..., torch.Tensor], at: Tensors, record: Mapping[str, torch.Tensor]) -> Tensors:
    leaves = {n: p.clone().requires_grad_() for n, p in at.items()}
    found = torch.autograd.grad(loss(leaves, record), tuple(leaves.values()))
    return dict(zip(leaves, found, strict=True))


def assert_slope(loss: tuning.EpisodeLoss, at: Tensors, record: Tensors, step: float, tolerance: float) -> None:
    """The gradient along a random direction is the central difference, in float64."""
    loss.module.double()
    if "body" in loss.parts:
        t = loss.module.target
        t.net.double()
        t.base = {n: b.double() if b.is_floating_point() else b for n, b in t.base.items()}
        t._fixed = {n: (u.double(), v.double()) for n, (u, v) in t._fixed.items()}
        t._bias_basis = [b.double() for b in t._bias_basis]
        t._kernel_basis = {n: b.double() for n, b in t._kernel_basis.items()}
    at, record = {n: p.double() for n, p in at.items()}, {n: r.double() for n, r in record.items()}
    make = torch.Generator().manual_seed(3)
    slopes = gradient(loss, at, record)
    for name, slope in slopes.items():
        way = torch.randn(slope.shape, generator=make, dtype=torch.float64)
        ends = [float(loss({**at, name: at[name] + side * step * way}, record)) for side in (1, -1)]
        want, got = (ends[0] - ends[1]) / (2 * step), float((slope * way).sum())
        assert abs(got) > 1e-12, name
        assert got == pytest.approx(want, rel=tolerance), name


def test_the_coordinators_part_needs_no_torch() -> None:
    program = "import sys, sgps.subset; sys.exit('torch' in sys.modules)"
    environment = {"PYTHONPATH": ":".join(sys.path)}
    assert subprocess.run([sys.executable, "-c", program], env=environment, check=False).returncode == 0


def test_what_may_be_trained_is_small_and_never_the_space_of_the_rows(release: "Release") -> None:
    shapes = tuning.allowed(release)
    assert max(int(np.prod(s)) for s in shapes.values()) <= 5000
    for part in (
        "core.weight",
        "chan.weight",
        "tap.bias",
        "gate.weight",
        "token_up.core",
        "text_up.core",
        "image_kind",
    ):
        assert f"generator.{part}" in shapes  # parts that ship at zero too
    assert all(n.startswith("generator.") for n in shapes)
    for name, begun in tuning.start(release, shapes).items():
        assert begun.shape == shapes[name] and begun.dtype == np.float32 and np.isfinite(begun).all()


@pytest.mark.parametrize(
    "name",
    ["base.conv_stem.weight", "fixed.conv_stem.U", "head.scale", "generator.image.weight", "generator.token_up.weight",
     "gate.weight", "generator.encoder.0.linear1.bias", "generator.encoder.1.norm1.bias", "memory.rows", ""],
)  # fmt: skip
def test_another_name_is_refused_before_a_round_and_after_it(release: "Release", name: str) -> None:
    with pytest.raises(InputError, match="may not be trained"):
        tuning.start(release, [name])
    with pytest.raises(InputError):
        tuning.episode_loss(release, [name])
    tensors = release.tensors(GENERATOR)
    with pytest.raises(ValueError, match="no part that may be trained"):
        tuning.apply(
            tensors, {name: np.ones(tensors[name].shape if name in tensors else 1)}, release.memory().coordinates
        )


@pytest.mark.parametrize("change", [np.zeros(65), np.full((3, 64), np.nan)], ids=["shape", "NaN"])
def test_a_change_that_does_not_fit_is_refused(release: "Release", change: Any) -> None:
    with pytest.raises(ValueError, match=r"generator\.gate\.weight"):
        tuning.apply(release.tensors(GENERATOR), {"generator.gate.weight": change}, release.memory().coordinates)


def test_no_change_is_the_shipped_generator_bit_for_bit(release: "Release") -> None:
    nothing = {n: np.zeros(s, np.float32) for n, s in tuning.allowed(release).items()}
    assert subset.generator_bytes(release, nothing) == (release.folder / GENERATOR).read_bytes()


def test_a_change_moves_its_tensor_alone_and_small_changes_add_up(release: "Release") -> None:
    before, coordinates = release.tensors(GENERATOR), release.memory().coordinates
    name, after = "generator.norm.weight", before
    for _ in range(100):  # each is a hundredth of what float16 can tell apart near one
        after = tuning.apply(after, {name: np.full(64, 1e-5, np.float32)}, coordinates)
    assert after[name] == pytest.approx(before[name].astype(np.float64) + 1e-3, abs=1e-5)
    assert all(after[n] is before[n] for n in before if n != name)


def test_a_core_moves_the_map_that_it_stands_for_along_the_public_coordinates(release: "Release") -> None:
    before, coordinates = release.tensors(GENERATOR), release.memory().coordinates
    core = np.zeros((16, 32), np.float32)
    core[2, 5] = 0.5
    moved = tuning.apply(before, {"generator.token_up.core": core}, coordinates)["generator.token_up.weight"]
    assert moved[:, 5] == pytest.approx(0.5 * coordinates.radius * coordinates.directions[2], abs=1e-5)
    assert not np.delete(moved, 5, axis=1).any()
    assert "generator.token_up.core" not in tuning.apply(before, {"generator.token_up.core": core}, coordinates)


def test_a_part_is_on_when_a_name_of_it_is_trained(release: "Release") -> None:
    assert tuning.learned(release, HEAD) == ("head", "text")
    assert tuning.learned(release, BODY) == ("body", "text")
    assert tuning.learned(release, ["generator.text_up.core"]) == ("text",)
    assert tuning.needs_pictures(release, BODY) and not tuning.needs_pictures(release, HEAD)


def test_tokens_that_nobody_reads_are_not_trained(release: "Release") -> None:
    with pytest.raises(InputError, match="reads a token"):
        tuning.learned(release, TOKEN)
    assert tuning.learned(release, [*TOKEN, *HEAD]) == ("head", "text")


def test_a_record_has_the_declared_form_whatever_the_patient_has(release: "Release") -> None:
    loss = tuning.episode_loss(release, HEAD)
    for name, images in (("nv", 1), ("mel", 2), ("nv", 12), ("cxr-normal", 3), ("df", 2)):
        record = tuning.record(release, [name] * images, features(release, "bcc" if name == "df" else name, images))
        assert {n: tuple(r.shape) for n, r in record.items()} == loss.shapes
        own, theirs = float(record["weight"][:8].sum()), float(record["weight"][8:].sum())
        assert (own, theirs) == (pytest.approx(1 / 6), pytest.approx(5 / 6))
        assert all(r.dtype == torch.float32 and r.isfinite().all() for r in record.values())


def test_the_class_of_most_images_is_the_episode_and_other_images_do_not_enter(release: "Release") -> None:
    x = features(release, "mel", 3)
    mixed = tuning.record(release, ["nv", "mel", "mel", "mel"], np.concatenate([x[:1] + 5, x]))
    alone = tuning.record(release, ["mel"] * 3, x)
    assert all(torch.equal(mixed[n], alone[n]) for n in alone)


def test_one_image_of_a_class_that_nobody_has_shown_is_no_episode(release: "Release") -> None:
    with pytest.raises(InputError, match="one image"):
        tuning.record(release, ["df"], features(release, "nv", 1))


def test_one_image_is_the_query_of_a_class_that_the_memory_knows(small_release: Callable[..., "Release"]) -> None:
    known = small_release((), 20)
    memory = known.memory()
    row = memory.row(memory.ids.index("df"))
    x = memory.coordinates.lift(row)[None].astype(np.float32)
    record = tuning.record(known, ["df"], x)
    assert float(record["shots"][0]) == 0 and float(record["worth"][0]) > 0
    torch.testing.assert_close(record["features"][0], record["queries"][0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ids", [[], ["unheard-of"], ["nv", "nv"]])
def test_what_is_no_patient_of_this_release_is_refused(release: "Release", ids: list[str]) -> None:
    with pytest.raises(InputError):
        tuning.record(release, ids, features(release, "nv", 1))


def test_the_prototype_and_the_rivals_are_those_of_synthesis(release: "Release") -> None:
    from sgps.synthesis import Synthesizer

    made = Synthesizer(release)
    x = features(release, "bkl", 2)
    made.encoder.features = lambda images, **_: x[: len(images)]  # type: ignore[method-assign]
    whole = made.compose({"df": [object()]}, {})  # type: ignore[list-item]
    loss, record = tuning.episode_loss(release, HEAD), tuning.record(release, ["df"] * 2, x)
    with torch.no_grad():
        given = tuning.ClassInputs(*(record[n] for n in ("features", "shots", "row", "worth", "text", "attributes")))
        module = loss.module
        tokens = module.generator.tokens(given, loss.parts)
        weight, bias = module.generator.head(given.features, given, tokens, module.centre, module.scale, loss.parts)
    torch.testing.assert_close(weight[0], whole.weight[0])  # its part head is on, at zero
    torch.testing.assert_close(bias[0], whole.bias[0])
    rivals = {made.bank.classes[i].id for i in whole.beside}
    domain = [c.id for c in made.bank.classes if c.domain == "dermoscopy"]
    assert (
        rivals <= set(domain) and len(rivals) == 4
    )  # the bank has no fifth of the kind; an episode takes one of another


def test_switching_parts_on_at_zero_changes_no_bit_of_a_classifier(release: "Release") -> None:
    from dataclasses import replace

    from sgps.synthesis import Synthesizer

    x, weights = features(release, "bkl", 1), []
    for parts in (release.manifest.architecture.learned, tuning.learned(release, HEAD)):
        a = release.manifest.architecture.model_copy(update={"learned": parts})
        made = Synthesizer(replace(release, manifest=release.manifest.model_copy(update={"architecture": a})))
        made.encoder.features = lambda images, **_: x  # type: ignore[method-assign]
        c = made.compose({"df": [object()]}, {})  # type: ignore[list-item]
        weights.append((c.weight, c.bias))
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_the_gradient_of_the_loss_is_its_slope(release: "Release") -> None:
    names = [*HEAD, *TOKEN, "generator.token_down.weight"]
    record = tuning.record(release, ["mel"] * 3, features(release, "mel", 3))
    assert_slope(tuning.episode_loss(release, names), parameters(release, names, 0.05), record, 1e-5, 1e-5)


def test_the_slope_of_the_memorys_part_of_a_token_is_right_where_a_row_is_used(
    small_release: Callable[..., "Release"],
) -> None:
    known, names = small_release(("head",), 20), ["generator.memory.weight"]
    record = tuning.record(known, ["df"] * 2, features(known, "drawn-0500", 2))
    assert_slope(tuning.episode_loss(known, names), parameters(known, names, 0.05), record, 1e-5, 1e-5)


def test_the_slope_of_a_text_is_right_where_texts_are_read(release: "Release") -> None:
    names = ["generator.text_up.core"]
    record = tuning.record(release, ["drawn-coral-squamoma"] * 3, features(release, "drawn-1003", 3))
    assert_slope(tuning.episode_loss(release, names), parameters(release, names, 0.05), record, 1e-5, 1e-5)


def test_the_loss_is_pure(release: "Release") -> None:
    loss, at = tuning.episode_loss(release, [*HEAD, *TOKEN]), parameters(release, [*HEAD, *TOKEN], 0.05)
    one, other = (tuning.record(release, [n] * 3, features(release, n, 3)) for n in ("mel", "nv"))
    before = {n: t.clone() for n, t in loss.module.state_dict().items()}
    kept = {n: t.clone() for n, t in one.items()}
    torch.manual_seed(1)
    first = gradient(loss, at, one)
    torch.manual_seed(2)
    gradient(loss, at, other)
    assert all(torch.equal(first[n], g) for n, g in gradient(loss, at, one).items())
    assert all(torch.equal(before[n], t) for n, t in loss.module.state_dict().items())
    assert all(torch.equal(kept[n], t) for n, t in one.items())


def test_many_patients_at_once_get_the_gradients_that_each_gets_alone(release: "Release") -> None:
    names = [*HEAD, *TOKEN]
    loss, at = tuning.episode_loss(release, names), parameters(release, names, 0.05)
    records = [tuning.record(release, [n] * 3, features(release, n, 3)) for n in ("mel", "nv", "cxr-normal", "drawn-1003")
               if n != "drawn-1003"]  # fmt: skip
    separable.cache_clear()
    found = per_record_gradients(loss, at, [*records, None])
    assert separable.cache_info().currsize == 1
    shapes = tuple(tuple(sorted((n, tuple(s)) for n, s in of.items())) for of in (
        {n: p.shape for n, p in at.items()}, loss.shapes or {}))  # fmt: skip
    assert separable(loss, *shapes, torch.float32, torch.device("cpu"), torch.get_num_threads())
    assert separable.cache_info().hits == 1
    for place, record in enumerate(records):
        for name, g in gradient(loss, at, record).items():
            torch.testing.assert_close(found[name][place].float(), g, rtol=1e-3, atol=1e-5)


def test_a_step_along_the_gradients_of_some_patients_lowers_their_loss(release: "Release") -> None:
    names = HEAD
    loss, at = tuning.episode_loss(release, names), parameters(release, names)
    records = [tuning.record(release, [n] * 3, features(release, n, 3, s)) for n in ("mel", "nv") for s in range(4)]

    def mean(p: Tensors) -> float:
        return float(np.mean([float(loss(p, r)) for r in records]))

    slope = {n: g.mean(0).float() for n, g in per_record_gradients(loss, at, records).items()}
    length = float(sum((g**2).sum() for g in slope.values()) ** 0.5)
    assert mean({n: p - 0.01 * slope[n] / length for n, p in at.items()}) < mean(at) - 0.003 * length


def pictures(release: "Release", profile: int, count: int) -> torch.Tensor:
    from PIL import Image

    a = release.manifest.architecture
    drawn = draw_patient(draw_profile(profile), 0, views=count)
    return batch([Image.fromarray(p) for p in drawn], a.size, a.mean, a.std)


@pytest.mark.slow
def test_a_body_is_trained_through_the_network_that_it_generates(release: "Release") -> None:
    from sgps.encoders import target_of, view_means

    target = target_of(release)
    for count, name in ((3, "drawn-coral-squamoma"), (1, "nv")):
        x = pictures(release, 1003, count)
        with torch.no_grad():
            own = view_means(target, x, 8).numpy()
        record = tuning.record(release, [name] * count, own, x)
        loss, at = tuning.episode_loss(release, BODY), parameters(release, BODY, 0.02)
        assert loss.shapes is None
        assert torch.equal(loss(at, record), loss(at, record))
        assert_slope(loss, at, record, 1e-4, 1e-4)


@pytest.mark.slow
def test_a_body_at_zero_gives_the_loss_without_a_body(release: "Release") -> None:
    x = pictures(release, 1003, 3)
    own = features(release, "drawn-1003", 3)
    record = tuning.record(release, ["drawn-coral-squamoma"] * 3, own, x)
    with_body, without = tuning.episode_loss(release, BODY), tuning.episode_loss(release, ["generator.text_up.core"])
    plain = without(parameters(release, ["generator.text_up.core"]), record)
    torch.testing.assert_close(with_body(parameters(release, BODY), record), plain, rtol=1e-4, atol=1e-4)


def test_a_release_whose_texts_nobody_here_can_read_is_an_error_and_no_zero_record(release: "Release") -> None:
    from dataclasses import replace

    from sgps.errors import SgpsError
    from sgps.release import TextEncoder

    other = TextEncoder(name="another", kind="transformers", sha256="0" * 64)
    manifest = release.manifest.model_copy(update={"text_encoder": other})
    tuning.ready(release)
    with pytest.raises(SgpsError, match="another"):
        tuning._Public(replace(release, manifest=manifest), None)
