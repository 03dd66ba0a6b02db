"""Meta-training: zero parts change nothing, what may not be read stays unread, a stopped run goes on, and the gate's rule."""

import copy
import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "simulators"))
import small_encoders

from sgps.attributes import NAMES, vector
from sgps.episodes import Interval
from sgps.errors import ConfigError, InputError, StateError
from sgps.generator import PARTS, Generator, linear_head
from sgps.open_encoders import Spec
from sgps.pretrain import loop
from sgps.pretrain.meta import pack, run
from sgps.pretrain.meta_episode import Episode, Space, head, inputs, sample
from sgps.pretrain.meta_gate import Finding, Judge, choose, exemplar_tasks, judge_body, judge_head, passes
from sgps.pretrain.meta_pool import DRAWN, MetaClass, MetaPool, one_each
from sgps.pretrain.meta_recipe import MetaRecipe, read_meta_recipe
from sgps.pretrain.meta_train import body_loss, fit_text, new_generator, readable, train_body, train_head
from sgps.pretrain.networks import base_network, save_state
from sgps.pretrain.progress import Stop, silent
from sgps.settings import dump, parse
from sgps.target import Target, factors, input_means

WIDE, SIDE, SIGNS = 1280, 32, len(NAMES)


def _class(name: str, group: str, mean: Tensor, seed: int) -> MetaClass:
    random = torch.Generator().manual_seed(seed)
    rows = mean + torch.randn(14, WIDE, generator=random)
    colour = torch.rand(3, 1, 1, generator=random) * 2 - 1
    images = (colour + 0.5 * torch.randn(14, 3, SIDE, SIDE, generator=random)).clamp(-1, 1)
    signs = np.zeros(SIGNS, np.float32)
    signs[seed % 7] = 1
    return MetaClass(
        name,
        group,
        rows,
        rows.clone(),
        torch.nn.functional.normalize(torch.randn(1, 384, generator=random), dim=-1),
        torch.from_numpy(signs[None]),
        lambda at: images[torch.from_numpy(np.asarray(at))],
    )


def _group(name: str, labels: list[str], first: int) -> tuple[MetaClass, ...]:
    """Classes whose means depend on the one attribute that their text states, beside noise of their own."""
    directions = 0.15 * torch.randn(7, WIDE, generator=torch.Generator().manual_seed(99))
    return tuple(_class(label, name, directions[(first + i) % 7], first + i) for i, label in enumerate(labels))


@pytest.fixture(scope="module")
def pool() -> MetaPool:
    train = {
        "ham10000": _group("ham10000", ["nv", "mel", "bkl", "bcc"], 0),
        "cxr": _group("cxr", ["normal", "bacteria"], 10),
        DRAWN: _group(DRAWN, [f"drawn-{i}" for i in range(40)], 20),
    }
    held = _group("held", ["nv", "mel", "bkl", "bcc"], 70)
    return MetaPool("ham10000", train, held, _group("judged", [f"j{i}" for i in range(7)], 77), ())


@pytest.fixture(scope="module")
def space() -> Space:
    directions = torch.linalg.qr(torch.randn(WIDE, 8, generator=torch.Generator().manual_seed(5)))[0].T.contiguous()
    return Space(torch.zeros(WIDE), 10 / 80, directions, 40.0, 8.0)


@pytest.fixture(scope="module")
def target(pool: MetaPool) -> Target:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = base_network().eval()
    means = input_means(net, [pool.held[0].picture(np.arange(8))])
    return Target("tf_efficientnetv2_b0", net.state_dict(), factors(net, means))


@pytest.fixture(scope="module")
def recipe() -> MetaRecipe:
    shipped = read_meta_recipe(None)
    stage = shipped.head.model_copy(update={"steps": 12, "episodes": 2, "rate": 1e-2})
    body = shipped.body.model_copy(update={"steps": 2, "episodes": 1, "queries": 1, "judged_episodes": 10})
    return shipped.model_copy(update={"head": stage, "body": body, "stated": 5})


@pytest.fixture
def start(target: Target) -> Generator:
    return new_generator(len(target.layers), WIDE, 8, 0)


def _episode(pool: MetaPool, shots: int = 1, ways: int = 3) -> Episode:
    return sample(pool.judged, ways, shots, 4, np.random.default_rng(3))


def test_episode_has_no_lesion_twice(pool: MetaPool) -> None:
    episode = _episode(pool, 5)
    assert len({c.id for c in episode.classes}) == 3
    for support, query in zip(episode.support, episode.query, strict=True):
        assert len({*support, *query}) == 9
    assert episode.truth.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_episode_needs_classes_and_lesions(pool: MetaPool) -> None:
    random = np.random.default_rng(0)
    with pytest.raises(InputError, match="3 classes are needed, 2 are there"):
        sample(pool.train["cxr"], 3, 1, 1, random)
    with pytest.raises(InputError, match="has fewer than 20 lesions"):
        sample(pool.judged, 2, 5, 15, random)


def test_new_generator_changes_nothing(pool: MetaPool, space: Space, target: Target, start: Generator) -> None:
    given = inputs(_episode(pool), space)
    tokens = start.tokens(given)
    weight, bias = start.head(given.features, given, tokens, space.centre, space.scale)
    plain, plain_bias = linear_head(given.features, space.centre, space.scale)
    assert torch.equal(weight, plain) and torch.equal(bias, plain_bias)
    body = target.materialise(start.coefficients(tokens))
    assert all(torch.equal(t, target.base[n]) for n, t in body.items())


def test_rows_of_the_memory_help(pool: MetaPool, space: Space) -> None:
    episode = _episode(pool)
    alone = inputs(episode, space)
    remembered = inputs(episode, space, np.random.default_rng(0))
    truth = torch.stack([c.eight.mean(0) for c in episode.classes])
    basis = space.directions
    error, plain = ((g.features - truth) @ basis.T for g in (remembered, alone))
    assert (remembered.worth >= 1).all() and not alone.worth.any()
    assert error.norm() < plain.norm()


def test_settled_class_is_the_mean_of_all_but_its_queries(pool: MetaPool, space: Space) -> None:
    episode = dataclasses.replace(_episode(pool), settled=frozenset({1, 2}))
    prototypes, shots = episode.prototypes()
    assert shots.tolist() == [1, 10, 10]
    rest = np.setdiff1d(np.arange(14), episode.query[1])
    assert torch.allclose(prototypes[1], episode.classes[1].eight[rest].mean(0))
    assert torch.equal(inputs(episode, space).shots, shots)


def test_exchanged_texts_move_on_by_one(pool: MetaPool, space: Space) -> None:
    episode = _episode(pool)
    right, wrong = inputs(episode, space), inputs(episode, space, exchanged=True)
    assert torch.equal(wrong.attributes, right.attributes.roll(-1, 0))
    assert torch.equal(wrong.text, right.text.roll(-1, 0))
    assert torch.equal(wrong.features, right.features)


def test_training_gains_on_new_classes(
    pool: MetaPool, space: Space, recipe: MetaRecipe, start: Generator, tmp_path: Path
) -> None:
    longer = recipe.model_copy(update={"head": recipe.head.model_copy(update={"steps": 40, "rate": 1e-3})})
    fitted = fit_text(start, pool, space, recipe)
    trained = train_head(pool, longer, space, fitted, "head", tmp_path, 0, silent, Stop())
    assert not torch.equal(trained.text_up.weight, fitted.text_up.weight)
    for generator in (fitted, trained):
        judge = Judge("new", pool.judged, generator, 3, pool.train[DRAWN])
        one, five, exemplar = judge_head([judge], space, [("text",)], 5, 60, 0)
        assert one.lower > 0, one.record()
        assert exemplar.lower > 0, exemplar.record()
        exchanged, *_ = judge_head([judge], space, [("text",)], 5, 60, 0, exchanged=True)
        assert exchanged.gain.mean < one.gain.mean - 0.05
        assert abs(five.gain.mean) < one.gain.mean, "the text counts as one patient beside five"


def test_text_is_taught_by_drawn_classes_alone(
    pool: MetaPool, space: Space, recipe: MetaRecipe, start: Generator, tmp_path: Path
) -> None:
    def changed(c: MetaClass) -> MetaClass:
        return dataclasses.replace(c, attributes=c.attributes.roll(1, 1), sentences=-c.sentences)

    other = {n: cs if n == DRAWN else tuple(map(changed, cs)) for n, cs in pool.train.items()}
    results = []
    for name, train in (("a", pool.train), ("b", other)):
        (tmp_path / name).mkdir()
        varied = dataclasses.replace(pool, train=train)
        mask = readable(varied, recipe.stated)
        assert torch.equal(mask, readable(pool, recipe.stated))
        fitted = fit_text(start, varied, space, recipe)
        results.append(train_head(varied, recipe, space, fitted, "head", tmp_path / name, 0, silent, Stop()))
    for n in ("text_up.weight", "text_down.weight"):
        torch.testing.assert_close(results[0].state_dict()[n], results[1].state_dict()[n], msg=n)


def test_judge_hears_only_parts_that_never_saw_its_classes(pool: MetaPool, space: Space, start: Generator) -> None:
    judges = [Judge("a", pool.judged, start, 3, of=(("text",),)), Judge("b", pool.judged, start, 3)]
    found = judge_head(judges, space, [("head",), ("text",)], 3, 10, 0)
    assert {(f.judge, f.parts) for f in found} == {("a", ("text",)), ("b", ("head",)), ("b", ("text",))}
    assert all(f.gain.mean == 0 for f in found)


def test_disease_is_no_rival_of_itself(pool: MetaPool, space: Space, start: Generator) -> None:
    skin = pool.train["ham10000"]
    for task in exemplar_tasks(Judge("skin", pool.held, start, 3, skin), space, 20, 0):
        disease, *rivals = (c.id for c in task.episode.classes)
        assert len(rivals) == 3 and disease not in rivals
        assert task.positive.sum() == len(task.positive) / 4


def test_rare_attributes_and_sentences_stay_unread(
    pool: MetaPool, space: Space, recipe: MetaRecipe, start: Generator, tmp_path: Path
) -> None:
    rare = dataclasses.replace(
        pool.train["cxr"][0], attributes=torch.from_numpy(vector({"chest signs: hyperinflation": 1}))[None]
    )
    odd = dataclasses.replace(pool, train={**pool.train, "cxr": (rare, pool.train["cxr"][1])})
    mask = readable(odd, recipe.stated)
    place = NAMES.index("chest signs: hyperinflation")
    assert mask[place] == 0 and mask[:7].all() and mask.sum() == 7
    trained = train_head(odd, recipe, space, start, "head", tmp_path, 0, silent, Stop())
    assert trained.text_down.weight[:, 384:391].any()
    given = inputs(_episode(odd), space)
    signs = torch.zeros_like(given.attributes)
    signs[:, place] = 1
    changed = dataclasses.replace(given, attributes=given.attributes + signs, text=torch.randn(3, 384))
    assert torch.equal(trained.tokens(given), trained.tokens(changed))
    heads = [trained.head(g.features, g, trained.tokens(g), space.centre, space.scale)[0] for g in (given, changed)]
    assert torch.equal(*heads)


def test_stopped_training_goes_on_as_if_it_had_not_stopped(
    pool: MetaPool, space: Space, recipe: MetaRecipe, start: Generator, tmp_path: Path
) -> None:
    folders = [tmp_path / "whole", tmp_path / "parts"]
    for folder in folders:
        folder.mkdir()
    whole = train_head(pool, recipe, space, start, "head", folders[0], 0, silent, Stop())
    stop = Stop()

    def ask(stage: str, done: int, total: int, values: object) -> None:
        stop.asked = done == 5

    with pytest.raises(KeyboardInterrupt):
        train_head(pool, recipe, space, start, "head", folders[1], 0, ask, stop)
    assert list(folders[1].glob("*.checkpoint.safetensors"))
    again = train_head(pool, recipe, space, start, "head", folders[1], 0, silent, Stop())
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, msg=name)
    assert loop.EVERY > 12, "the stop itself must have written the checkpoint"


def test_body_training_moves_the_body_alone(
    pool: MetaPool, space: Space, recipe: MetaRecipe, start: Generator, target: Target, tmp_path: Path
) -> None:
    trained = train_body(pool, recipe, space, target, start, (), "body", tmp_path, 0, silent, Stop())
    moved = {n for n, v in trained.state_dict().items() if not torch.equal(v, start.state_dict()[n])}
    assert {"core.weight", "chan.weight", "tap.weight"} <= moved
    assert all(n.startswith(("decoder.", "norm.", "layer", "core.", "chan.", "tap.")) for n in moved)
    judge = Judge("new", pool.judged, trained, 3)
    found, cosine = judge_body(judge, target, space, (), 1, 2, 10, 0)
    assert found.parts == ("body",) and -1 <= cosine <= 1


def test_body_loss_reaches_every_head(pool: MetaPool, space: Space, start: Generator, target: Target) -> None:
    generator = copy.deepcopy(start)
    loss, drift, _ = body_loss(generator, target, _episode(pool, 1, 2), space, (), False, np.random.default_rng(0))
    assert abs(float(drift.detach())) < 1e-3
    loss.backward()
    for layer in (generator.core, generator.chan, generator.tap):
        assert layer.weight.grad is not None and layer.weight.grad.abs().sum() > 0


def test_copy_leaves_out_what_it_is_told(pool: MetaPool) -> None:
    left = pool.without(["cxr"], ["nv", "bcc"])
    assert "cxr" not in left.train and [c.id for c in left.train["ham10000"]] == ["mel", "bkl"]
    with pytest.raises(ConfigError, match="moon is not in the pool"):
        pool.without(["moon"], [])
    with pytest.raises(ConfigError, match="df is not in the pool"):
        pool.without([], ["df"])


def test_one_image_of_each_lesion() -> None:
    label = np.array(["a", "a", "a", "b", "a"])
    lesion = np.array(["1", "1", "2", "3", "4"])
    rows = one_each(label, lesion, np.arange(5), "a", 10, 0)
    assert sorted(lesion[rows]) == ["1", "2", "4"]
    assert len(one_each(label, lesion, np.arange(5), "a", 2, 0)) == 2


def _finding(gain: float, half: float, parts: tuple[str, ...] = ("head",), judge: str = "j") -> Finding:
    return Finding(judge, "3w1s", parts, Interval(0.6, 0.01), Interval(0.6 - gain, 0.01), Interval(gain, half))


def test_gate() -> None:
    assert passes([_finding(0.01, 0.012), _finding(-0.001, 0.002)], -0.005)
    assert not passes([_finding(0.05, 0.01), _finding(-0.003, 0.003)], -0.005), "one judge's lower bound is too low"
    assert not passes([_finding(0.0, 0.001), _finding(-0.001, 0.001)], -0.005), "nothing gained"
    assert not passes([], -0.005)
    good, better, bad = _finding(0.01, 0.001), _finding(0.02, 0.001, ("text",)), _finding(0.1, 0.2, ("head", "text"))
    assert choose([good, better, bad], -0.005) == ("text",)
    assert choose([bad], -0.005) == ()


@pytest.mark.parametrize("learned", [(), ("text",), ("body", "head"), PARTS])
def test_parts_that_are_off_are_stored_as_zero(
    pool: MetaPool, space: Space, target: Target, start: Generator, learned: tuple[str, ...]
) -> None:
    generator = copy.deepcopy(start)
    with torch.no_grad():
        for p in generator.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    stored = safetensors.torch.load(pack(generator, learned, {}, 0.5))
    tensors = {n.removeprefix("generator."): t for n, t in stored.items() if n.startswith("generator.")}
    read = Generator.from_tensors(tensors, 1)
    assert float(stored["head.scale"]) == 0.5 and all(t.dtype == torch.float16 for t in tensors.values())
    given = inputs(_episode(pool), space)
    tokens = read.tokens(given)
    all_on = read.head(given.features, given, tokens, space.centre, space.scale)[0]
    some_on = head(read, given.features, given, read.tokens(given, learned), space, learned)[0]
    assert torch.allclose(all_on, some_on, atol=1e-6)
    still = all(not c.any() for c in vars(read.coefficients(tokens)).values())
    assert still == ("body" not in learned)


def test_recipe_errors_name_the_key(tmp_path: Path) -> None:
    text = (Path(loop.__file__).parent / "meta_recipe.yaml").read_text()
    file = tmp_path / "recipe.yaml"
    file.write_text(text.replace("first: 3000", "first: 2100"))
    with pytest.raises(ConfigError, match="drawn and judged share profiles"):
        read_meta_recipe(file)
    file.write_text(text.replace("stated: 20", "stated: 0"))
    with pytest.raises(ConfigError, match="stated"):
        read_meta_recipe(file)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "size", "mean", "own_texts"),
    [("tf_efficientnetv2_b0", 48, [0.5] * 3, False), ("tf_efficientnetv2_b1", 48, [0.485, 0.456, 0.406], True)],
)
def test_run_from_images_to_result(
    tmp_path: Path, recipe: MetaRecipe, architecture: str, size: int, mean: list[float], own_texts: bool
) -> None:
    """own_texts: they are read by an encoder from a folder, of another width than the installed one's."""
    texts = Spec.parse(f"transformers:{small_encoders.transformers_text(tmp_path / 'bert')}") if own_texts else None
    data, base = tmp_path / "data", tmp_path / "base"
    labels = {
        "ham10000_200x150": ["nv", "mel", "bkl", "bcc", "akiec", "df", "vasc"],
        "cxr_224": ["normal", "bacteria", "virus"],
        "busi_224": ["benign", "malignant", "normal"],
        "lc25000_lung_dedup_224": ["lung_aca", "lung_n", "lung_scc"],
    }
    random, table = np.random.default_rng(0), ["lesion_id,image_id,dx,localization"]
    for name, classes in labels.items():
        for label in classes:
            (data / name / label).mkdir(parents=True)
            count = 50 if label in ("nv", "mel", "bkl", "bcc") else 20
            for i in range(count):
                pixels = random.integers(0, 256, (8, 8, 3), np.uint8)
                Image.fromarray(pixels).resize((160, 160)).save(data / name / label / f"{label}{i}.jpg")
                table.append(f"L{label}{i},{label}{i},{label},back")
    (data / "ham10000_200x150" / "HAM10000_metadata.csv").write_text("\n".join(table))
    base.mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_state(base / "base.safetensors", base_network(architecture=architecture).state_dict())
    directions = torch.linalg.qr(torch.randn(WIDE, 8))[0].T.contiguous()
    save_state(base / "statistics.safetensors", {"mean": torch.zeros(WIDE), "directions": directions})
    (base / "statistics.json").write_text('{"radius": 1.0, "within": 1.0}')
    network = {"architecture": architecture, "size": size, "mean": mean, "std": [0.5] * 3}
    (base / "base.yaml").write_text(dump({"network": network, "images": [{"name": "cxr"}]}))
    with pytest.raises(InputError, match="was made without ham10000, from which the generator learns"):
        run(data, base, tmp_path / "out", encoders=texts)
    sets = [{"name": n} for n in ("ham10000", "cxr", "busi", "lung")]
    (base / "base.yaml").write_text(dump({"network": network, "images": sets}))
    tiny = recipe.model_copy(
        update={
            "drawn": recipe.drawn.model_copy(update={"profiles": 6, "patients": 10}),
            "judged": recipe.judged.model_copy(update={"profiles": 4, "patients": 10}),
            "lesions": 10,
            "head": recipe.head.model_copy(update={"steps": 2}),
            "judge": recipe.judge.model_copy(update={"episodes": 10}),
        }
    )
    file, out = tmp_path / "recipe.yaml", tmp_path / "out"
    file.write_text(dump(tiny.model_dump(mode="json")))
    run(data, base, out, file, encoders=texts)
    figures = parse(out.joinpath("meta.yaml").read_text(), "meta.yaml")
    assert set(figures["learned"]) <= set(PARTS)
    assert figures["classes"]["ham10000"] == "4" and figures["meta_test"]["head_and_text"]
    stored = safetensors.torch.load_file(out / "generator.safetensors")
    assert {n.split(".")[0] for n in stored} == {"generator", "fixed", "head"}
    assert stored["generator.sentence.weight"].shape[1] == (32 if own_texts else 384)
    run(data, base, out, file, encoders=texts)
    again = safetensors.torch.load_file(out / "generator.safetensors")
    assert all(torch.equal(stored[n], again[n]) for n in stored)
    other = tmp_path / "other.yaml"
    other.write_text(file.read_text().replace("stated: 5", "stated: 6"))
    with pytest.raises(StateError, match="belongs to another recipe, seed, base or text encoder"):
        run(data, base, out, other, encoders=texts)
    if own_texts:
        with pytest.raises(StateError, match="belongs to another recipe, seed, base or text encoder"):
            run(data, base, out, file)
