import dataclasses

import pytest
import torch

from sgps.generator import BOUNDS, KNOWN_KIND, PARTS, STRANGE_KIND, ClassInputs, Generator, linear_head, spread_of

LAYERS, WIDTH, ATTRIBUTES = 6, 40, 7


def inputs(n=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    r = lambda *shape: torch.randn(*shape, generator=g)
    return ClassInputs(
        r(n, WIDTH), torch.ones(n), r(n, 64), torch.rand(n, generator=g), r(n, 384), r(n, ATTRIBUTES).sign()
    )


@pytest.fixture
def trained():
    torch.manual_seed(0)
    out = Generator(layers=LAYERS, features=WIDTH, attributes=ATTRIBUTES)
    for p in out.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return out.eval()


def take(c, order):
    return ClassInputs(*(getattr(c, f.name)[order] for f in dataclasses.fields(c)))


def all_of(generator, c, parts=PARTS):
    x = generator.tokens(c, parts)
    k = generator.coefficients(x)
    return (k.core, k.chan, k.tap, *generator.head(c.features, c, x, torch.zeros(WIDTH), 2.0, parts))


def test_an_untrained_generator_changes_nothing():
    torch.manual_seed(0)
    generator, c = Generator(layers=LAYERS, features=WIDTH, attributes=ATTRIBUTES), inputs()
    core, chan, tap, weight, bias = all_of(generator, c)
    assert not core.any() and not chan.any() and not tap.any()
    expected = linear_head(c.features, torch.zeros(WIDTH), 2.0)
    assert torch.equal(weight, expected[0]) and torch.equal(bias, expected[1])


def test_the_head_scores_by_centred_cosine():
    v, f, centre = torch.randn(4, WIDTH), torch.randn(9, WIDTH), torch.randn(WIDTH)
    weight, bias = linear_head(v, centre, 3.0)
    cosine = torch.nn.functional.cosine_similarity((f - centre)[:, None], (v - centre)[None], dim=-1)
    assert torch.allclose(f @ weight.T + bias, 3 * (f - centre).norm(dim=1, keepdim=True) * cosine, atol=1e-4)


@pytest.mark.parametrize("shots", [10, 60])
def test_directions_in_which_exemplars_differ_count_less(shots):
    f, centre = 24, torch.randn(24, dtype=torch.float64)
    nuisance, truth = torch.eye(f, dtype=torch.float64)[:2]
    along = torch.linspace(-8, 10, shots, dtype=torch.float64)[:, None] * nuisance
    groups = [centre + 4 * side * truth + along for side in (1, -1)]
    groups.append(centre + torch.randn(1, f).double())
    spread, v = spread_of(groups, centre), torch.stack([g.mean(0) for g in groups])
    assert len(spread) == 2 * shots and (2 * shots > f) == (shots == 60)  # a class of few shows none
    weight, bias = linear_head(v, centre, 3.0, spread)
    metric = torch.linalg.inv(torch.eye(f, dtype=torch.float64) + spread.T @ spread)
    z = v - centre
    assert torch.allclose(weight, 3 * z @ metric / (z @ metric * z).sum(1, keepdim=True).sqrt(), atol=1e-9)
    assert torch.allclose(bias, -weight @ centre)
    plain = linear_head(v, centre, 3.0)[0]
    for made, before in zip(weight[:2], plain[:2], strict=True):
        assert abs(made @ nuisance) / abs(made @ truth) < abs(before @ nuisance) / abs(before @ truth)
    strange = spread_of(groups, centre, STRANGE_KIND)
    assert torch.allclose(strange, spread / STRANGE_KIND.prior**0.5)
    assert len(spread_of([g[:2] for g in groups], centre, STRANGE_KIND)) == 4
    none = linear_head(v, centre, 3.0, spread_of([g[: KNOWN_KIND.least - 1] for g in groups], centre))
    assert torch.equal(none[0], plain)


def test_another_order_of_classes_only_reorders(trained):
    c, order = inputs(4), [2, 0, 3, 1]
    a, b = all_of(trained, c), all_of(trained, take(c, order))
    for place in range(3):
        assert torch.allclose(a[place], b[place], atol=1e-6)
    assert torch.allclose(a[3][order], b[3], atol=1e-5) and torch.allclose(a[4][order], b[4], atol=1e-5)


def test_exchanged_texts_change_body_and_head(trained):
    c = inputs(2)
    swapped = dataclasses.replace(c, text=c.text.flip(0), attributes=c.attributes.flip(0))
    a, b = all_of(trained, c), all_of(trained, swapped)
    assert all((x - y).abs().max() > 1e-4 * x.abs().max() for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("field", ["row", "worth", "shots", "features"])
def test_memory_and_shots_reach_the_body(trained, field):
    c = inputs(2)
    other = dataclasses.replace(c, **{field: getattr(c, field) + torch.rand(getattr(c, field).shape)})
    assert not torch.allclose(all_of(trained, c)[0], all_of(trained, other)[0], atol=1e-6)


def test_a_row_of_no_worth_is_not_read(trained):
    c = dataclasses.replace(inputs(2), worth=torch.zeros(2))
    other = dataclasses.replace(c, row=c.row + 5)
    assert all(torch.equal(a, b) for a, b in zip(all_of(trained, c), all_of(trained, other), strict=True))


def test_parts_that_are_off_contribute_exactly_zero(trained):
    c = inputs(3)
    expected = linear_head(c.features, torch.zeros(WIDTH), 2.0)
    weight, bias = all_of(trained, c, ("body",))[3:]
    assert torch.equal(weight, expected[0]) and torch.equal(bias, expected[1])
    blind = dataclasses.replace(c, text=c.text + 1, attributes=-c.attributes)
    for parts in (("body",), ("body", "head")):
        assert all(
            torch.equal(a, b) for a, b in zip(all_of(trained, c, parts), all_of(trained, blind, parts), strict=True)
        )
    only_text = all_of(trained, c, ("text",))[3]
    assert not torch.equal(only_text, expected[0])


def test_coefficients_stay_in_their_bounds(trained):
    for head in (trained.core, trained.chan, trained.tap):
        torch.nn.init.normal_(head.weight, std=100.0)
    k = trained.coefficients(trained.tokens(inputs()))
    for tensor, bound in zip((k.core, k.chan, k.tap), BOUNDS, strict=True):
        assert 0.9 * bound < tensor.abs().max() <= bound


def test_stored_tensors_give_the_same_generator(trained):
    c, tensors = inputs(), {n: t.detach() for n, t in trained.state_dict().items()}
    again = Generator.from_tensors(tensors, depth=1)
    # torch takes another path through its attention layers where no gradient is asked for: equal up to rounding
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(all_of(trained, c), all_of(again, c), strict=True))
    for broken in ({n: t for n, t in tensors.items() if n != "norm.weight"}, {**tensors, "core.bias": torch.zeros(3)}):
        with pytest.raises(ValueError, match="do not fit"):
            Generator.from_tensors(broken, depth=1)


def test_every_parameter_gets_a_gradient(trained):
    sum(t.square().sum() for t in all_of(trained, inputs())).backward()
    assert [n for n, p in trained.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_the_shipped_size():
    generator = Generator(layers=91, features=1280, attributes=60)
    assert sum(p.numel() for p in generator.parameters()) < 340_000
