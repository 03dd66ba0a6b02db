"""`bench.sturdy`: weighted sums of weights, queries that are shifted alone, and the rule by which a network is taken."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from bench import networks, sturdy
from bench.sturdy import CLEAN, LITE0, SHIFTS, SHIPPED, read_sum, run, shown, verdict
from sgps.episodes import Episodes, accuracy
from sgps.errors import InputError


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    out = []
    for place, value in enumerate((1.0, 3.0)):
        out.append(tmp_path / f"{place}.safetensors")
        state = {"w": torch.full((2, 2), value), "bn.running_var": torch.tensor([value * 1e-6]), "n": torch.tensor(7)}
        safetensors.torch.save_file(state, out[-1])
    return out[0], out[1]


def test_a_sum_of_weights_is_theirs_and_statistics_keep_their_digits(files: tuple[Path, Path]) -> None:
    found = read_sum(f"3/4*{files[0]}+0.25*{files[1]}")
    assert torch.equal(found["w"], torch.full((2, 2), 1.5).half())
    assert found["bn.running_var"].dtype == torch.float32 and found["bn.running_var"].item() == pytest.approx(1.5e-6)
    assert found["n"].item() == 7
    assert torch.equal(read_sum(str(files[1]))["w"], torch.full((2, 2), 3.0).half())
    with pytest.raises(InputError, match="half is no number"):
        read_sum(f"half*{files[0]}")


def test_queries_are_those_of_the_shifted_pictures_and_support_is_not() -> None:
    random = np.random.default_rng(0)
    clean = np.eye(4)[np.repeat([0, 1], 6)] + 0.01 * random.normal(size=(12, 4))
    index = np.array([[[0, 1, 2, 3], [6, 7, 8, 9]]])
    episodes = Episodes(2, 1, index)
    assert shown(clean, clean, episodes) == accuracy(clean, episodes) == 1
    exchanged = clean[[*range(6, 12), *range(6)]]
    assert shown(clean, exchanged, episodes) == 0
    exchanged[[0, 6]] = np.nan  # the support of the shifted pictures is never read
    assert shown(clean, exchanged, episodes) == 0


def judged(mri: float, clean: float, hair: float, blur: float) -> dict[str, dict[str, object]]:
    def one(**by: float) -> dict[str, object]:
        return {k: {"all": {"minus": {"mean": v, "half": 0.004}}} for k, v in by.items()}

    two = one(clean=clean, hair=hair, blur=blur)
    return {"MRI": one(clean=mri), "drawn": two, "skin": two}


@pytest.mark.parametrize(
    ("given", "passes"),
    [
        ((0.0, 0.0, 0.02, 0.02), True),
        ((-0.004, -0.004, 0.02, 0.02), True),
        ((-0.006, 0.0, 0.02, 0.02), False),  # loses on MRI
        ((0.0, -0.006, 0.02, 0.02), False),  # loses on clean pictures
        ((0.0, 0.0, 0.002, 0.02), False),  # gains nothing under hair
    ],
)
def test_the_rule(given: tuple[float, float, float, float], passes: bool) -> None:
    found = verdict(judged(*given))
    assert found["passes"] is passes
    assert found["gain"]["mean"] == pytest.approx((given[2] + given[3]) / 2)


@pytest.mark.slow
def test_judges_ask_the_same_episodes_clean_and_shifted(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Colour(sturdy.Network):
        """Mean colour, or nothing."""

        def features(self, pictures, rows, count, out):  # type: ignore[no-untyped-def]
            def colour(images):  # type: ignore[no-untyped-def]
                found = np.stack([np.asarray(i.resize((8, 8)), np.float32).mean((0, 1)) for i in images])
                return found if self.key == SHIPPED else found[:, :1] ** 0

            return sturdy.kept(self.key, colour, pictures, rows, out)

    given = {title: Colour(title, None, 8) for title in (SHIPPED, "nothing")}
    monkeypatch.setattr(sturdy, "networks", lambda _: given)
    monkeypatch.setattr(sturdy, "EPISODES", 10)
    monkeypatch.setattr(networks, "DRAWN", range(7000, 7004))
    r = run(shared_data, tmp_path, [])
    assert {j: list(by) for j, by in r["networks"][SHIPPED].items()} == {
        "MRI": [CLEAN],
        "drawn": [CLEAN, *SHIFTS],
        "skin": [CLEAN, *SHIFTS],
    }
    assert r["networks"][SHIPPED]["skin"][CLEAN]["all"]["minus"] == {"mean": 0.0, "half": 0.0}
    assert r["networks"]["nothing"]["drawn"][CLEAN]["2w1s"]["mean"] == pytest.approx(0.5)
    assert not r["rule"]["nothing"]["passes"]
    assert LITE0 not in r["rule"]
    assert (tmp_path / "results.md").read_text().count("| nothing |") == 3
    with pytest.raises(InputError, match="other is unknown"):
        run(shared_data, tmp_path, [], test="other")
