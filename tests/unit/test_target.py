import numpy as np
import pytest
import torch

from sgps.target import Coefficients, Target, channel_basis, factors, input_means, layers_of, network

NAME = "tf_efficientnetv2_b0"


@pytest.fixture(scope="module")
def made():
    torch.manual_seed(0)
    net = network(NAME)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    x = torch.randn(16, 3, 64, 64)
    with torch.no_grad():
        net.train()(x)
    net.eval()
    means = input_means(net, [x[:8], x[8:]])
    return net, x, means, Target(NAME, net.state_dict(), factors(net, means))


def random_coefficients(layers, size=0.02):
    g = torch.Generator().manual_seed(3)
    zero = Coefficients.zero(layers)
    return Coefficients(*(size * torch.randn(t.shape, generator=g) for t in (zero.core, zero.chan, zero.tap)))


def test_zero_gives_the_base_bit_for_bit(made):
    net, _, _, target = made
    body = target.materialise(Coefficients.zero(len(target.layers)))
    state = net.state_dict()
    assert body.keys() == {n for n in state if not n.endswith("num_batches_tracked")}
    assert all(torch.equal(t, state[n]) for n, t in body.items())
    head = torch.zeros(3, target.width), torch.zeros(3)
    exported = target.export(body, *head)
    assert all(torch.equal(exported[n], t) for n, t in target.export(None, *head).items())


def test_every_tensor_moves(made):
    target = made[3]
    body = target.materialise(random_coefficients(len(target.layers)))
    still = [n for n, t in body.items() if torch.equal(t, target.base[n])]
    assert still == []


@pytest.mark.parametrize("name", [NAME, "tf_efficientnetv2_b1", "tf_efficientnetv2_s"])
def test_other_sizes_export_to_stock_networks(name):
    net = network(name)
    x = torch.randn(2, 3, 64, 64)
    target = Target(name, net.state_dict(), factors(net, input_means(net, [x])))
    body = target.materialise(random_coefficients(len(target.layers)))
    weight, bias = torch.randn(4, target.width), torch.randn(4)
    stock = network(name, 4)
    assert stock.load_state_dict(target.export(body, weight, bias), strict=True).missing_keys == []
    with torch.no_grad():
        ours, theirs = target.features(x, body) @ weight.T + bias, stock(x)
    assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()


def test_counts_of_the_small_network():
    state = network(NAME, 5).state_dict()
    names = [n for n in state if not n.endswith("num_batches_tracked")]
    assert len(names) == 361 and sum(state[n].numel() for n in names) == 5_925_717
    assert len(layers_of(network(NAME))) == 91


def test_factors_ignore_the_mean_input(made):
    net, _, means, _ = made
    for name, tensor in factors(net, means).items():
        if name.endswith(".V"):
            conv = name.removesuffix(".V")
            m = means[conv].repeat_interleave(tensor.shape[1] // len(means[conv]))
            assert (tensor.float() @ m).abs().max() <= 2e-3 * tensor.float().norm(dim=1).max() * m.norm(), name


def test_the_mean_input_is_that_of_all_images(made):
    net, x, means, _ = made
    stem = means["conv_stem"]
    assert torch.allclose(stem, x.mean((0, 2, 3)), atol=1e-6)
    assert means.keys() == {layer.conv for layer in layers_of(net) if not layer.depthwise}


def test_gradients_reach_every_coefficient(made):
    _, x, _, target = made
    c = random_coefficients(len(target.layers), 0.01)
    parts = [t.requires_grad_() for t in (c.core, c.chan, c.tap)]
    target.features(x[:2], target.materialise(c)).square().sum().backward()
    depthwise = torch.tensor([layer.depthwise for layer in target.layers])
    normed = torch.tensor([layer.norm is not None for layer in target.layers])
    assert (parts[0].grad.flatten(1).abs().sum(1) > 0).equal(~depthwise)
    assert (parts[2].grad.flatten(1).abs().sum(1) > 0).equal(depthwise)
    assert (parts[1].grad[normed].flatten(2).abs().sum(2) > 0).all()


def test_channel_basis_is_orthogonal_and_repeats():
    one, two = (channel_basis(40, np.random.RandomState(7)) for _ in range(2))
    assert torch.equal(one, two)
    assert torch.allclose(one.T @ one, 40 / 16 * torch.eye(16), atol=1e-5)
    narrow = channel_basis(4, np.random.RandomState(7))
    assert torch.allclose(narrow[:, :4].T @ narrow[:, :4], torch.eye(4), atol=1e-5) and not narrow[:, 4:].any()
    r = np.linalg.qr(np.random.RandomState(7).standard_normal((40, 16)))
    assert np.allclose(
        one.numpy(), r[0] * np.sign(np.diag(r[1])) * np.sqrt(2.5), atol=1e-6
    )  # whatever sign LAPACK chose


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnetv2_none", "tf_efficientnet_b0"])
def test_unknown_networks_are_refused(name):
    with pytest.raises(ValueError, match=name):
        network(name)


def test_a_base_of_another_network_is_refused(made):
    net, _, means, _ = made
    fixed = factors(net, means)
    with pytest.raises(ValueError, match="base is not"):
        Target("tf_efficientnetv2_b1", net.state_dict(), fixed)
    fixed["conv_stem.U"] = fixed["conv_stem.U"][:3]
    with pytest.raises(ValueError, match="conv_stem"):
        Target(NAME, net.state_dict(), fixed)


def test_building_a_network_leaves_the_random_state_alone():
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    network(NAME)
    assert torch.equal(torch.randn(3), expected)
