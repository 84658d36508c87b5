"""Guided backpropagation and Deconvnet: against loops by the papers' equations, and in each spelling of a rectifier."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.core.networks import Calling, fixed, plain, recurrent, residual, same_state, state_of
from tests.oracles import Constant, Linear, conv_net, uniform
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # as networks write it

import pellucid as pl
from pellucid.core.card import Access, Needs
from pellucid.core.executed import recorded
from pellucid.core.operation import Kind
from pellucid.core.rule import Keep

METHODS = [pl.GuidedBackprop(), pl.Deconvnet()]
PICTURES = uniform(2, 3, 8, 8, dtype=torch.float64)
ROWS = uniform(4, 5, dtype=torch.float64) * 2 - 1
EXACT = {"rtol": 1e-12, "atol": 1e-14}

both = pytest.mark.parametrize("method", METHODS, ids=["guided", "deconvnet"])


def through(method: Any, x: Tensor, message: Tensor) -> Tensor:
    """The papers' way back through a rectifier of x."""
    if isinstance(method, pl.Deconvnet):
        return message.clamp(min=0)
    return message.clamp(min=0) * (x > 0)


# by hand


@both
def test_of_a_perceptron_it_is_the_loop_by_the_papers_equation(method):
    torch.manual_seed(3)
    weights = [torch.randn(7, 5), torch.randn(6, 7), torch.randn(3, 6)]
    weights = [w.double() for w in weights]
    layers = [nn.Linear(w.shape[1], w.shape[0]).double() for w in weights]
    for layer, w in zip(layers, weights, strict=True):
        layer.weight.data = w
    net = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    targets = [0, 1, 2, 1]
    found = method(pl.TorchModel(net), ROWS, target=targets).scores
    for row, target in enumerate(targets):
        first = weights[0] @ ROWS[row] + layers[0].bias.detach()
        second = weights[1] @ first.clamp(min=0) + layers[1].bias.detach()
        message = through(method, second, weights[2][target])
        message = through(method, first, weights[1].T @ message)
        torch.testing.assert_close(found[row], weights[0].T @ message, **EXACT)
    assert float((found.abs() > 1e-3).double().mean()) > 0.5
    gradient = pl.SimpleGradient()(pl.TorchModel(net), ROWS, target=targets).scores
    assert not torch.allclose(found, gradient, rtol=0.1)


@both
def test_of_a_convolutional_network_it_is_the_loop_by_the_papers_equation(method):
    """Convolution, rectifier, largest of 2 x 2, convolution, rectifier, mean, class; one number after the other."""
    first = nn.Conv2d(1, 2, 3, padding=1).double()
    second = nn.Conv2d(2, 2, 3, bias=False).double()
    head = nn.Linear(2, 2).double()
    net = nn.Sequential(
        first, nn.ReLU(), nn.MaxPool2d(2), second, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head
    )
    head.weight.data = torch.tensor([[0.5, -0.3], [0.7, 0.4]], dtype=torch.float64)
    x = uniform(1, 1, 8, 8, dtype=torch.float64) * 2 - 1
    found = method(pl.TorchModel(net), x, target=1).scores[0, 0]
    with torch.no_grad():
        a = first(x)[0]
        pooled = F.max_pool2d(a.relu(), 2)
        b = second(pooled[None])[0]
    message = torch.zeros_like(b)
    for k in range(2):
        message[k] = head.weight[1, k].detach() / 4
    message = through(method, b, message)
    at_pooled = torch.zeros_like(pooled)
    for o in range(2):
        for i in range(2):
            for u in range(2):
                for v in range(2):
                    at_pooled[i, u : u + 3, v : v + 3] += second.weight[o, i].detach() * message[o, u, v]
    at_first = torch.zeros_like(a)
    for i in range(2):
        for u in range(4):
            for v in range(4):
                cell = a[i, 2 * u : 2 * u + 2, 2 * v : 2 * v + 2].relu()
                largest = int(cell.argmax())
                at_first[i, 2 * u + largest // 2, 2 * v + largest % 2] = at_pooled[i, u, v]
    at_first = through(method, a, at_first)
    expected = torch.zeros(10, 10, dtype=torch.float64)
    for o in range(2):
        for u in range(8):
            for v in range(8):
                expected[u : u + 3, v : v + 3] += first.weight[o, 0].detach() * at_first[o, u, v]
    torch.testing.assert_close(found, expected[1:-1, 1:-1], **EXACT)
    assert found.any()


class Rectifier(torch.autograd.Function):
    """The same equations in autograd's own words, for networks that no loop should be written for."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, method: Any) -> Tensor:
        ctx.save_for_backward(x)
        ctx.method = method
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, message: Tensor) -> tuple[Tensor, None]:
        [x] = ctx.saved_tensors
        return through(ctx.method, x, message), None


def by_autograd(net: nn.Module, x: Tensor, target: int, method: Any, monkeypatch: Any) -> Tensor:
    leaf = x.clone().requires_grad_()
    with monkeypatch.context() as patch:
        patch.setattr(F, "relu", lambda x, inplace=False: Rectifier.apply(x, method))
        [found] = torch.autograd.grad(net(leaf)[:, target].sum(), leaf)
    return found


@both
@pytest.mark.parametrize("make", [plain, residual, lambda: conv_net(dtype=torch.float64).eval()],
                         ids=["plain", "residual", "statistics"])  # fmt: skip
def test_of_networks_it_is_what_autograd_makes_of_such_rectifiers(method, make, monkeypatch):
    """Residual sums (the message is whole before it is cut), batch norms."""
    net, x = make(), uniform(2, 3, 9, 9, dtype=torch.float64) if make not in (plain, residual) else PICTURES
    for target in (0, 2):
        expected = by_autograd(net, x, target, method, monkeypatch)
        torch.testing.assert_close(method(pl.TorchModel(net), x, target=target).scores, expected, **EXACT)
        assert bool(expected.any())


@both
def test_the_way_back_begins_with_the_target(method, monkeypatch):
    """A rectifier at the output cuts a negative weight of the target: the margin's second class gives nothing."""
    weight = uniform(3, 5, dtype=torch.float64) - 0.2
    net = nn.Sequential(Linear(weight), nn.ReLU())
    x = torch.ones(1, 5, dtype=torch.float64)
    margin = method(pl.TorchModel(net), x, target=pl.Margin(0, 1)).scores
    torch.testing.assert_close(margin, weight[:1], **EXACT)


def test_deconvnet_lets_through_what_rectifiers_had_cut_and_guided_backprop_does_not():
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    net = nn.Sequential(Linear(weight, torch.tensor([-10.0, 0.0], dtype=torch.float64)), nn.ReLU(),
                        Linear(torch.tensor([[0.5, 2.0], [0.5, -2.0]], dtype=torch.float64)))  # fmt: skip
    model, x = pl.TorchModel(net), torch.ones(1, 2, dtype=torch.float64)
    found = {
        (type(m).__name__, target): m(model, x, target=target).scores[0].tolist() for m in METHODS for target in (0, 1)
    }
    assert found == {
        ("GuidedBackprop", 0): [6.0, 8.0], ("GuidedBackprop", 1): [0.0, 0.0],
        ("Deconvnet", 0): [6.5, 9.0], ("Deconvnet", 1): [0.5, 1.0],
    }  # fmt: skip


# spelled in all ways


def scripted(x: Tensor) -> Tensor:
    return torch.relu(x)


RECTIFIERS: dict[str, Callable[[Tensor], Tensor]] = {
    "nn.ReLU": nn.ReLU(), "nn.ReLU in place": nn.ReLU(inplace=True), "F.relu": F.relu, "F.relu in place":
    lambda x: F.relu(x, inplace=True), "F.relu_": F.relu_, "torch.relu": torch.relu, "torch.relu_": torch.relu_,
    "x.relu": Tensor.relu, "x.relu_": Tensor.relu_, "clamp": lambda x: x.clamp(min=0), "clamp_": lambda x:
    x.clamp_(min=0), "torch.clamp": lambda x: torch.clamp(x, 0), "clamp 0.0": lambda x: x.clamp(0.0), "clamp_min":
    lambda x: x.clamp_min(0), "clamp_min_": lambda x: x.clamp_min_(0), "clip": lambda x: x.clip(0), "F.threshold":
    lambda x: F.threshold(x, 0, 0), "nn.Threshold": nn.Threshold(0, 0), "F.threshold_": lambda x:
    F.threshold_(x, 0, 0), "rrelu": lambda x: F.relu(input=x), "hardtanh": lambda x: F.hardtanh(x, 0, 1e9),
    "clamp to": lambda x: x.clamp(0, 1e9), "on a view": lambda x: x.view_as(x).relu(), "where": lambda x:
    torch.where(x > 0, x, 0), "where not": lambda x: torch.where(x <= 0, 0, x), "x * (x > 0)": lambda x: x * (x > 0),
    "times a mask": lambda x: (x > 0).to(x) * x,
}  # fmt: skip
SIX: dict[str, Callable[[Tensor], Tensor]] = {
    "F.relu6": F.relu6, "nn.ReLU6": nn.ReLU6(), "nn.ReLU6 in place": nn.ReLU6(inplace=True), "clamp":
    lambda x: x.clamp(0, 6), "hardtanh": lambda x: F.hardtanh(x, 0.0, 6.0), "nn.Hardtanh": nn.Hardtanh(0, 6),
    "clip_": lambda x: x.clip_(0, 6), "of relu": lambda x: F.relu(x).clamp(0, 6),
}  # fmt: skip


@fixed
def rectified(act: Callable[[Tensor], Tensor], scale: float = 1.0) -> nn.Module:
    """Rectifiers after a convolution, a sum and a linear layer."""

    def forward(net: Any, x: Tensor) -> Tensor:
        y = act(net.one(x) * scale)
        y = act(net.two(y) + y.flip(1))
        return net.head(act(net.mix(y.mean((2, 3)))))

    return Calling(forward, one=nn.Conv2d(3, 4, 3), two=nn.Conv2d(4, 4, 3, padding=1), mix=nn.Linear(4, 8),
                   head=nn.Linear(8, 3))  # fmt: skip


def kinds(net: nn.Module, x: Tensor = PICTURES) -> list[tuple[Kind, str]]:
    with recorded(net, Keep()) as executed:
        net.requires_grad_(False)(x.clone().requires_grad_())
    return [(one.kind, one.module) for one in executed.operations]


@pytest.mark.parametrize("act", RECTIFIERS.values(), ids=RECTIFIERS)
def test_each_spelling_of_a_rectifier_gives_the_same_map(act):
    for method in METHODS:
        found, expected = (method(pl.TorchModel(rectified(one)), PICTURES, target=1).scores for one in (act, nn.ReLU()))
        assert torch.equal(found, expected)
        assert bool(expected.any())
    assert [kind for kind, _ in kinds(rectified(act))].count(Kind.RECTIFIER) == 3


@pytest.mark.parametrize("act", SIX.values(), ids=SIX)
def test_each_spelling_of_a_bounded_rectifier_gives_the_same_map(act):
    """The bound is met: the convolution's outputs are multiplied. Beyond it the derivative is zero."""
    for method in METHODS:
        found, expected = (
            method(pl.TorchModel(rectified(one, 20.0)), PICTURES, target=1).scores for one in (act, nn.ReLU6())
        )
        assert torch.equal(found, expected)
    unbounded, bounded = (
        pl.GuidedBackprop()(pl.TorchModel(rectified(one, 20.0)), PICTURES, target=1).scores for one in (F.relu, act)
    )
    assert not torch.equal(unbounded, bounded)


@both
def test_a_shared_rectifier_is_as_several(method):
    act = nn.ReLU(inplace=True)
    torch.manual_seed(0)
    layers = [nn.Linear(5, 6).double(), nn.Linear(6, 6).double(), nn.Linear(6, 2).double()]
    shared = nn.Sequential(layers[0], act, layers[1], act, layers[2])
    several = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    found, expected = (method(pl.TorchModel(net), ROWS, target=0).scores for net in (shared, several))
    assert torch.equal(found, expected)


@both
def test_a_scripted_function_is_seen_too(method):
    with pytest.warns(DeprecationWarning, match="torch.jit.script"):
        act = torch.jit.script(scripted)
    for _ in range(3):  # torch.jit optimises from the second run on
        found, expected = (method(pl.TorchModel(rectified(one)), PICTURES, target=1).scores for one in (act, F.relu))
        assert torch.equal(found, expected)


SUMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "+": lambda x, y: x + y, "torch.add": torch.add, "x.add": Tensor.add, "x.add_": Tensor.add_, "+=":
    lambda x, y: x.__iadd__(y), "alpha": lambda x, y: torch.add(x, y, alpha=1), "minus": lambda x, y: x - -y,
}  # fmt: skip


@pytest.mark.parametrize("add", SUMS.values(), ids=SUMS)
def test_each_spelling_of_a_sum_gives_the_same_map(add):
    def made(add: Callable[[Tensor, Tensor], Tensor]) -> nn.Module:
        return fixed(
            lambda: Calling(
                lambda net, x: net.head(F.relu(add(net.b(y := F.relu(net.a(x))), y))),
                a=nn.Linear(5, 6), b=nn.Linear(6, 6), head=nn.Linear(6, 2),
            )
        )()  # fmt: skip

    for method in METHODS:
        found, expected = (method(pl.TorchModel(made(one)), ROWS, target=0).scores for one in (add, torch.add))
        assert torch.equal(found, expected)
    assert Kind.ADD in [kind for kind, _ in kinds(made(add), ROWS)]


CONVOLUTIONS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "module": lambda net, x: net.conv(x), "function": lambda net, x: F.conv2d(x, net.conv.weight, net.conv.bias),
    "bias apart": lambda net, x: F.conv2d(x, net.conv.weight) + net.conv.bias.view(-1, 1, 1),
    "torch": lambda net, x: torch.conv2d(x, net.conv.weight, net.conv.bias),
    "convolution": lambda net, x: torch.convolution(x, net.conv.weight, net.conv.bias, [1, 1], [0, 0], [1, 1], False,
                                                    [0, 0], 1),
}  # fmt: skip


@both
@pytest.mark.parametrize("run", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_each_spelling_of_a_convolution_gives_the_same_map(method, run):
    def made(run: Callable[[Any, Tensor], Tensor]) -> nn.Module:
        return fixed(lambda: Calling(lambda net, x: net.head(F.relu(run(net, x)).mean((2, 3))), conv=nn.Conv2d(3, 4, 3),
                                     head=nn.Linear(4, 2)))()  # fmt: skip

    found, expected = (
        method(pl.TorchModel(made(one)), PICTURES, target=0).scores for one in (run, CONVOLUTIONS["module"])
    )
    torch.testing.assert_close(found, expected, **EXACT)
    assert Kind.AFFINE in [kind for kind, _ in kinds(made(run))]


# where there is no rectifier


@both
@pytest.mark.doors
@pytest.mark.parametrize(
    ("net", "words"),
    [
        (nn.Linear(5, 2), "it has no activation at all"),
        (nn.Sequential(nn.Linear(5, 4), nn.GELU(), nn.Linear(4, 2)), "it has gelu"),
        (nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4), nn.SiLU(), nn.Tanh()), "it has silu and tanh"),
        (nn.Sequential(nn.Linear(5, 4), nn.Hardtanh(), nn.Linear(4, 2)), "it has hardtanh"),
        (nn.Sequential(nn.Linear(5, 4), nn.Threshold(0.1, 0)), "it has threshold"),
    ],
    ids=["linear", "gelu", "two", "hardtanh", "threshold"],
)
def test_a_network_without_a_rectifier_is_refused_and_told_what_it_has(method, net, words):
    with pytest.raises(pl.RuleError, match=rf"executed no rectifier .*{words}\. Take SimpleGradient\(\)\."):
        method(pl.TorchModel(net.double()), ROWS, target=0)


@both
@pytest.mark.doors
def test_a_rectifier_that_does_not_lead_to_the_target_does_not_count(method):
    net = Calling(lambda net, x: (net.act(x), net.body(x).tanh())[1], act=nn.ReLU(), body=nn.Linear(5, 2))
    with pytest.raises(pl.RuleError, match="it has tanh"):
        method(pl.TorchModel(net.double()), ROWS, target=0)


@both
@pytest.mark.doors
def test_recurrent_layers_have_no_rectifier_but_their_gates(method):
    with pytest.raises(pl.RuleError, match="it has sigmoid and tanh"):
        method(pl.TorchModel(recurrent()), uniform(2, 4, 3, dtype=torch.float64), target=0)


@both
@pytest.mark.doors
def test_a_prediction_function_has_no_operations(method):
    with pytest.raises(pl.MissingNeed):
        method(pl.FunctionModel(lambda x: x[:, :2]), ROWS.float().numpy(), target=0)


@both
def test_of_constant_outputs_it_is_zero(method):
    assert not method(pl.TorchModel(Constant()), ROWS, target=0).scores.any()


# as a call


@both
def test_a_map_does_not_depend_on_its_company(method):
    model = pl.TorchModel(residual())
    together = method(model, PICTURES, target=[0, 2]).scores
    apart = [method(model, PICTURES[i : i + 1], target=t).scores for i, t in enumerate((0, 2))]
    torch.testing.assert_close(together, torch.cat(apart), **EXACT)


@both
@pytest.mark.parametrize("settings", [{"micro_batch": 1}, {"device": ("cpu", "cpu")}, {"memory_limit": "1GiB"}],
                         ids=["parts", "devices", "limit"])  # fmt: skip
def test_it_is_the_same_however_it_is_run(method, settings):
    found, expected = (method(pl.TorchModel(residual(), **s), PICTURES, target=1).scores for s in (settings, {}))
    torch.testing.assert_close(found, expected, **EXACT)


@both
def test_it_costs_one_pass_forward_and_one_back_and_leaves_the_network_as_it_was(method):
    net = residual().train()
    before = state_of(net)
    a = method(pl.TorchModel(net), PICTURES, target=1)
    assert (a.cost.forward, a.cost.backward) == (2, 2)
    assert same_state(state_of(net), before)
    assert a.scores.shape == PICTURES.shape


@both
def test_the_card_says_what_it_needs(method):
    card = method.card
    assert card.access is Access.WHITE_BOX
    assert card.needs == Needs.SCORES | Needs.GRADIENTS | Needs.OPERATIONS
    assert card.name == ("deconvnet" if isinstance(method, pl.Deconvnet) else "guided-backprop")


@both
def test_means_over_noise_are_means_of_such_maps(method):
    """One input, two samples: each map by itself, through SmoothGrad."""
    net = plain()
    a = pl.SmoothGrad(base=method, n_samples=2, noise_level=0.1)(pl.TorchModel(net), PICTURES[:1], target=0)
    assert a.scores.shape == (1, 3, 8, 8)
    assert a.standard_error is not None
    clean = method(pl.TorchModel(net), PICTURES[:1], target=0).scores
    assert not torch.equal(a.scores, clean)
