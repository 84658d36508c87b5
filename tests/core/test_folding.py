from contextlib import AbstractContextManager

import pytest
import torch
from tests.oracles import uniform
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # its usual name

import pellucid as pl
from pellucid.core.folding import Pair, find_pairs, folded, together, unfolded
from pellucid.core.prediction import OutputKind
from pellucid.core.target import Targets


class Net(nn.Module):
    """A stem, a block with a shortcut, and a norm that follows no convolution."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False), nn.BatchNorm2d(4)
        self.conv3, self.norm3 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, affine=False)
        self.norm4 = nn.BatchNorm2d(4)
        self.to(dtype).eval().requires_grad_(False)
        generator = torch.Generator().manual_seed(0)
        for tensor in (*self.parameters(), *self.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) + 0.2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        z = self.norm3(self.conv3(self.norm2(self.conv2(y)).sin()))
        return self.norm4(y + z).tanh().mean((2, 3))


X = uniform(2, 3, 9, 9, dtype=torch.float64)


def pairs_of(net: nn.Module, x: Tensor = X) -> tuple:
    return find_pairs(net, lambda: net(x.clone().requires_grad_()))


def gradient(net: nn.Module, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(net(leaf)[:, 0].sum(), leaf)[0]


def fold(pairs: tuple[Pair, ...]) -> AbstractContextManager[None]:
    return folded(pairs, [together(*pair) for pair in pairs])


def test_each_norm_after_a_convolution_is_found_and_no_other():
    net = Net()
    assert set(pairs_of(net)) == {(net.conv1, net.norm1), (net.conv2, net.norm2), (net.conv3, net.norm3)}


def test_folded_pairs_compute_the_same():
    net = Net()
    pairs, outputs, gradients = pairs_of(net), net(X), gradient(net, X)
    with fold(pairs):
        torch.testing.assert_close(net(X), outputs, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(gradient(net, X), gradients, rtol=1e-10, atol=1e-14)


def test_the_norms_do_nothing_within():
    net = Net()
    with fold(pairs_of(net)):
        assert net.norm1(X) is X


@pytest.mark.parametrize("error", [False, True])
def test_afterwards_all_is_as_before(error):
    net = Net()
    pairs = pairs_of(net)
    values = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    identities = {name: id(p) for name, p in net.named_parameters()}
    names = [sorted(vars(module)) for module in net.modules()]
    try:
        with fold(pairs):
            if error:
                raise ValueError("broke")
    except ValueError:
        assert error
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in values.items())
    assert {name: id(p) for name, p in net.named_parameters()} == identities
    assert [sorted(vars(module)) for module in net.modules()] == names
    assert not any(module._forward_hooks for module in net.modules())


def test_weights_that_changed_since_are_those_that_are_folded():
    net = Net()
    pairs = pairs_of(net)
    net.norm1.weight.mul_(3)
    expected = net(X)
    with fold(pairs):
        torch.testing.assert_close(net(X), expected, rtol=1e-12, atol=1e-14)


def sharing(net: Net, x: Tensor) -> Tensor:
    """The network, with what the first convolution gives also in its outputs, where it is too small to be noticed."""
    made = net.conv1(x)
    y = F.relu(net.norm1(made))
    z = net.norm3(net.conv3(net.norm2(net.conv2(y)).sin()))
    return net.norm4(y + z).tanh().mean((2, 3)) + 1e-30 * made.mean((2, 3))


def variant(change: str) -> nn.Module:
    net = Net()
    if change == "training":
        net.norm1.train()
    elif change == "no statistics":
        net.norm1.track_running_stats, net.norm1.running_mean, net.norm1.running_var = False, None, None
    elif change == "runs twice":
        whole, conv, norm = net.forward, net.conv1, net.norm1
        net.forward = lambda x: whole(x) + norm(conv(x)).mean((2, 3))
    elif change == "taken by another":
        net.forward = lambda x: sharing(net, x)
    elif change == "hooked":
        net.conv1.register_forward_hook(lambda module, args, output: 2 * output)
    elif change == "parametrised":
        torch.nn.utils.parametrizations.weight_norm(net.conv1)
    elif change == "activated between":
        net.norm1.forward = lambda x, run=net.norm1.forward: run(x.exp())
    return net


@pytest.mark.parametrize(
    "change",
    ["training", "no statistics", "runs twice", "taken by another", "hooked", "parametrised", "activated between"],
)
def test_a_pair_that_is_more_than_a_pair_is_left_alone(change):
    net = variant(change)
    found = pairs_of(net)
    assert net.norm1 not in {norm for _, norm in found}
    assert net.norm2 in {norm for _, norm in found}


def test_a_convolution_whose_weight_is_used_elsewhere_is_noticed_by_the_result():
    net = Net()
    whole = net.forward
    net.forward = lambda x: whole(x) + net.conv1.weight.sum()
    assert pairs_of(net) == ()


def test_functional_networks_and_constants_have_no_pairs():
    assert find_pairs(nn.Identity(), lambda: torch.ones(2, requires_grad=True) * 2) == ()
    assert find_pairs(nn.Identity(), lambda: torch.ones(2)) == ()


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_signals_and_volumes_fold_as_pictures_do(dimensions):
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1](2, 3, 3)
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dimensions - 1](3)
    net = nn.Sequential(convolution, norm, nn.Tanh()).double().eval().requires_grad_(False)
    norm.running_mean.fill_(0.3)
    norm.running_var.fill_(2.0)
    x = uniform(2, 2, *[5] * dimensions, dtype=torch.float64)
    pairs = pairs_of(net, x)
    assert pairs == ((convolution, norm),)
    expected = net(x)
    with fold(pairs):
        torch.testing.assert_close(net(x), expected, rtol=1e-12, atol=1e-14)


def test_rounding_in_bfloat16_hides_no_pair():
    """Autocast rounds the outputs by far more than folding changes them."""
    # Many channels: a mean rounded to eight bits may well be the same with and without folding.
    net = nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net[1].running_mean.fill_(0.3)
    net[1].running_var.fill_(2.0)
    x = uniform(1, 3, 9, 9)
    for precision in (None, "bfloat16"):
        a = pl.SmoothGrad(n_samples=2)(pl.TorchModel(net, precision=precision), x, 0)
        assert a.recipe.run["folded"] == 1


def test_where_outputs_are_too_rough_to_be_compared_nothing_is_folded():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()).bfloat16()
    a = pl.SmoothGrad(n_samples=2)(pl.TorchModel(net), uniform(1, 3, 9, 9), 0)
    assert a.recipe.run["folded"] == 0


def normed() -> nn.Sequential:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    net[1].running_mean.fill_(0.3)
    net[1].running_var.fill_(2.0)
    return net


def train(net: nn.Sequential) -> None:
    net.train()


def hook(net: nn.Sequential) -> None:
    net[0].register_forward_hook(lambda module, args, output: 2 * output)


def double(net: nn.Sequential) -> None:
    net.double()


@pytest.mark.parametrize("change", [train, hook, double])
def test_what_changes_after_the_first_call_is_seen_by_the_second(change):
    """Modes, hooks and types are no part of the structure by which pairs are known."""
    net, x = normed(), uniform(2, 3, 9, 9)
    model, explain = pl.TorchModel(net, mode="as-is"), pl.SmoothGrad(n_samples=4)
    assert explain(model, x, 0).recipe.run["folded"] == 1
    change(net)
    found, expected = explain(model, x, 0), explain(pl.TorchModel(net, mode="as-is"), x, 0)
    assert found.recipe.run["folded"] == expected.recipe.run["folded"] == (change is double)
    assert torch.equal(found.scores, expected.scores)


@pytest.mark.parametrize("change", ["in place", "past autograd", "replaced"])
def test_folded_weights_serve_the_next_call_while_nothing_changes(change):
    net, x = normed().double(), uniform(2, 3, 9, 9, dtype=torch.float64)
    model, explain = pl.TorchModel(net), pl.SimpleGradient()
    explain(model, x, 0)
    [kept] = model.folds.values()
    explain(model, x[:, :, 1:], 0)  # another shape folds the same pairs
    assert list(model.folds.values()) == [kept]
    with torch.no_grad():
        if change == "in place":
            net[1].running_var.mul_(3)
        elif change == "past autograd":
            net[1].weight.data[2] = -4
        else:
            net[0].weight = nn.Parameter(net[0].weight * 2)
    torch.testing.assert_close(explain(model, x, 0).scores, explain(pl.TorchModel(net), x, 0).scores)
    assert len(model.folds) == 1
    assert next(iter(model.folds.values())) is not kept


def test_under_a_memory_limit_nothing_stays():
    model = pl.TorchModel(normed(), memory_limit="1GiB")
    a = pl.SimpleGradient()(model, uniform(2, 3, 9, 9), 0)
    assert a.recipe.run["folded"] == 1
    assert model.folds == {}


@pytest.mark.parametrize("method", [pl.SimpleGradient, pl.InputXGradient, pl.GradCAM, pl.FullGrad])
def test_methods_of_one_pass_fold_too_and_find_the_same(method):
    net, x = normed().double(), uniform(2, 3, 9, 9, dtype=torch.float64)
    a = method()(pl.TorchModel(net), x, 0)
    assert a.recipe.run["folded"] == 1
    net[1].register_forward_hook(lambda module, args, output: None)  # which keeps it from being folded
    b = method()(pl.TorchModel(net), x, 0)
    assert b.recipe.run["folded"] == 0
    torch.testing.assert_close(a.scores, b.scores, rtol=1e-11, atol=1e-13)


def frozen(net: nn.Module) -> tuple:
    """What `folded` changes, as it stands now: the parameters and the forward of each module."""
    return tuple((dict(module._parameters), vars(module).get("forward")) for module in net.modules())


@pytest.mark.parametrize("error", [False, True])
def test_norms_that_are_asked_for_are_as_before_and_afterwards_folded_again(error):
    net = Net()
    pairs, (conv, norm), other = pairs_of(net), (net.conv1, net.norm1), net.norm2
    between, after = net.conv1(X), net.norm1(net.conv1(X))
    before = frozen(net)
    with fold(pairs):
        within = frozen(net)
        try:
            with unfolded([norm, net.norm4]):
                assert torch.equal(conv(X), between)
                assert torch.equal(norm(conv(X)), after)
                assert other(between) is between, "the others stay folded"
                if error:
                    raise ValueError("broke")
        except ValueError:
            assert error
        assert frozen(net) == within
        torch.testing.assert_close(norm(conv(X)), after, rtol=1e-12, atol=1e-14)
    assert frozen(net) == before


def test_of_all_norms_those_are_as_before_whose_convolution_is_asked_for():
    net = Net()
    expected, other = net.conv2(net.conv1(X)), net.conv1(X)
    with fold(pairs_of(net)):
        with unfolded(net.modules(), [net.conv1, net.norm4]):
            assert torch.equal(net.conv1(X), other)
            assert not torch.equal(net.conv2(other), expected)
        assert not torch.equal(net.conv1(X), other)


def test_where_nothing_is_folded_there_is_nothing_to_unfold():
    net = Net()
    before = frozen(net)
    with unfolded(net.modules()):
        assert frozen(net) == before
    assert frozen(net) == before


@pytest.mark.parametrize("error", [False, True])
@pytest.mark.parametrize("layer", ["conv1", "conv2", "norm1", "block", "block.0"])
def test_a_layer_gives_its_own_activation_within_a_quick_call(layer, error):
    """Folded, the convolution would give what its norm gives; so would a block that ends with it."""
    net = Net()
    if layer.startswith("block"):
        net.conv1 = net.block = nn.Sequential(net.conv1)
    targets = Targets((pl.ClassScore(0),) * 2, OutputKind.LOGITS)
    model = pl.TorchModel(net)
    with model.undisturbed(pl.Key.named("x")) as quiet:
        expected = quiet.layer_pass(X, targets, [layer], gradients=True)
        with quiet.quick(X):
            assert quiet.folded_bytes
            within = frozen(net)
            if error:
                with pytest.raises(pl.LayerError):
                    quiet.layer_pass(X, targets, [layer, "norm4:2"], gradients=True)
            found = quiet.layer_pass(X, targets, [layer], gradients=True)
            assert frozen(net) == within
    torch.testing.assert_close(found.activations[0], expected.activations[0], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found.gradients[0], expected.gradients[0], rtol=1e-10, atol=1e-14)
