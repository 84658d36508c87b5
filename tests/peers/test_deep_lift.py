"""DeepLIFT against Captum's, which patches modules: where both see the same network, and where Captum sees another."""

import copy
import warnings
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
from tests.networks import Fire, as_squeezenet_takes, photos, squeezenet, without_sdist
from tests.oracles import uniform
from tests.peers.case import difference
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # its usual name

import pellucid as pl

pytestmark = pytest.mark.peers

EQUAL = 1e-5  # of the map's maximum: Captum takes the derivative where inputs differ by less than 1e-10
LARGE = 0.05  # of the change of the score: what Captum leaves where it fell back to the gradient
NIL = 1e-9


class Unshared(nn.Module):
    """A Fire module with one rectifier for each use: Captum needs it."""

    def __init__(self, fire: Fire) -> None:
        super().__init__()
        self.squeeze, self.expand1, self.expand3 = fire.squeeze, fire.expand1, fire.expand3
        self.relus = nn.ModuleList(nn.ReLU() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.relus[0](self.squeeze(x))
        return torch.cat([self.relus[1](self.expand1(x)), self.relus[2](self.expand3(x))], 1)


def unshared(net: nn.Sequential) -> nn.Sequential:
    net = copy.deepcopy(net)
    return nn.Sequential(*(Unshared(m) if isinstance(m, Fire) else m for m in net))


def of_captum(
    captum_attr: ModuleType, net: nn.Module, x: Tensor, target: int, start: Tensor | None = None
) -> tuple[Tensor, float]:
    """Its map, from zero if not told otherwise, and its convergence delta: what it leaves of the score's change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it sets hooks
        found, delta = captum_attr.DeepLift(net).attribute(
            x.clone(), start, target=target, return_convergence_delta=True
        )
    return found.detach(), float(delta.abs().max())


def change(net: nn.Module, x: Tensor, target: int) -> float:
    with torch.no_grad():
        return float((net(x) - net(torch.zeros_like(x)))[:, target].abs().min())


def ours(net: nn.Module, x: Tensor, target: int) -> pl.Attribution:
    return pl.DeepLIFT.captum()(pl.TorchModel(net), x, target=target)


class Apart(nn.Module):
    """A copy. Of two modules of which one takes the very tensor that the other gives, Captum's hooks see the first's
    gradient before the second has replaced it.
    """

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


def real(pool: Any = None) -> nn.Sequential:
    """SqueezeNet in float64, with another pool if one is given."""
    if (missing := without_sdist()) is not None:
        pytest.skip(missing)
    net = copy.deepcopy(squeezenet().net).double().eval()
    for i, module in enumerate(net):
        if pool is not None and isinstance(module, nn.MaxPool2d):
            net[i] = nn.Sequential(Apart(), pool())
    return net


@pytest.fixture(params=[0, 1])
def photo(request: pytest.FixtureRequest) -> Tensor:
    return as_squeezenet_takes(photos(67)[request.param][None]).double()


@pytest.mark.parametrize("pool", [partial(nn.AvgPool2d, 3, 2), partial(nn.MaxPool2d, 2)], ids=["means", "maxima"])
def test_of_squeezenet_whose_windows_do_not_overlap_it_is_captums_map(photo, pool, captum_attr):
    """From a blur: of the equal numbers that a baseline of one value gives rounding would decide which is larger."""
    net, start = real(pool), pl.Blur(10.0).values(photo, None)
    target = int(net(photo).argmax())
    expected, delta = of_captum(captum_attr, unshared(net), photo, target, start)
    a = pl.DeepLIFT(baseline=pl.Blur(10.0))(pl.TorchModel(net), photo, target=target)
    [whole] = a.recipe.notes["change"]
    assert difference(a.scores, expected) <= EQUAL
    assert delta <= NIL * abs(whole)
    assert float(a.residual.abs()) <= NIL * abs(whole)


def test_of_squeezenet_as_it_is_captum_loses_where_windows_overlap(photo, captum_attr):
    """It puts what windows give back with max_unpool, which keeps one of several for the same place."""
    net = real()
    target = int(net(photo).argmax())
    found, delta = of_captum(captum_attr, unshared(net), photo, target)
    a = ours(net, photo, target)
    assert delta > LARGE * change(net, photo, target)
    assert float(a.residual.abs()) <= NIL * change(net, photo, target)
    assert difference(a.scores, found) > LARGE


def small(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers).double().eval()


NETWORKS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "relu": (lambda: small(nn.Linear(9, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3)), (9,)),
    "sigmoid": (lambda: small(nn.Linear(9, 12), nn.Sigmoid(), nn.Linear(12, 3)), (9,)),
    "tanh": (lambda: small(nn.Linear(9, 12), nn.Tanh(), nn.Linear(12, 3)), (9,)),
    "softplus": (lambda: small(nn.Linear(9, 12), nn.Softplus(), nn.Linear(12, 3)), (9,)),
    "elu": (lambda: small(nn.Linear(9, 12), nn.ELU(), nn.Linear(12, 3)), (9,)),
    "leaky relu": (lambda: small(nn.Linear(9, 12), nn.LeakyReLU(0.2), nn.Linear(12, 3)), (9,)),
    "max-pool": (
        lambda: small(
            nn.Linear(11, 12), nn.ReLU(), Apart(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 2), nn.Tanh(), nn.Flatten(),
            nn.Linear(60, 3),
        ),
        (3, 8, 11),
    ),
    "max-pool of one axis": (
        lambda: small(nn.Linear(10, 10), nn.Softplus(), Apart(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(15, 3)),
        (3, 10),
    ),
    "max-pool of three axes": (
        lambda: small(nn.Linear(4, 4), nn.Sigmoid(), Apart(), nn.MaxPool3d(2), nn.Flatten(), nn.Linear(16, 3)),
        (2, 4, 4, 4),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_of_small_networks_it_is_captums_map(name, captum_attr):
    """Before each maximum weights that differ from place to place: of equal numbers rounding decides which is larger.
    And its windows do not overlap.
    """
    build, shape = NETWORKS[name]
    net, x = build(), 3 * uniform(3, *shape, dtype=torch.float64) - 1
    expected, delta = of_captum(captum_attr, net, x, 1)
    assert difference(ours(net, x, 1).scores, expected) <= EQUAL
    assert delta < NIL


@pytest.mark.parametrize(("stride", "same"), [(3, True), (2, False), (1, False)])
def test_where_windows_overlap_captum_forgets_what_one_of_them_gave(stride, same, captum_attr):
    cells = {1: 10, 2: 5, 3: 4}[stride]
    net = small(nn.Linear(12, 12), nn.ReLU(), Apart(), nn.MaxPool1d(3, stride), nn.Flatten(), nn.Linear(3 * cells, 3))
    x = 3 * uniform(1, 3, 12, dtype=torch.float64) - 1
    found, delta = of_captum(captum_attr, net, x, 1)
    a = ours(net, x, 1)
    assert (delta < NIL) == same
    assert (difference(a.scores, found) <= EQUAL) == same
    assert float(a.residual.abs()) < NIL


def test_a_pool_right_after_a_rectifier_is_a_plain_gradient_for_captum(captum_attr):
    """The same network with a copy between both has another map for Captum, and for us the same."""
    layers = [nn.Linear(12, 12), nn.Softplus(), Apart(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(18, 3)]
    apart, together = small(*layers), small(*layers[:2], *layers[3:])
    x = 3 * uniform(1, 3, 12, dtype=torch.float64) - 1
    right, _ = of_captum(captum_attr, apart, x, 1)
    wrong, delta = of_captum(captum_attr, together, x, 1)
    assert delta > LARGE * change(together, x, 1)
    assert difference(wrong, right) > LARGE
    for net in (apart, together):
        assert difference(ours(net, x, 1).scores, right) <= EQUAL


class Body(nn.Module):
    """Three linear layers with rectifiers between: modules, functions, or one module twice."""

    def __init__(self, rectify: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(9, 12), nn.Linear(12, 12), nn.Linear(12, 3)])
        made = {"relu": nn.ReLU, "relu6": nn.ReLU6}.get(rectify)
        self.own = nn.ModuleList([made(), made()] if made else [])
        self.shared = nn.ReLU()
        self.rectify = rectify

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i < 2:
                x = self.own[i](x) if self.own else F.relu(x) if self.rectify == "function" else self.shared(x)
        return x


def bodies(*kinds: str) -> list[Body]:
    found = [Body(kind).double().eval() for kind in kinds]
    for other in found[1:]:
        other.layers.load_state_dict(found[0].layers.state_dict())
    return found


def test_a_functional_relu_is_a_plain_gradient_for_captum_without_a_word(captum_attr):
    """The same function as with modules. Captum's map becomes input times gradient, and leaves a part of the change."""
    modules, function = bodies("relu", "function")
    x = 3 * uniform(1, 9, dtype=torch.float64) - 1
    right, _ = of_captum(captum_attr, modules, x, 1)
    wrong, delta = of_captum(captum_attr, function, x, 1)
    leaf = x.clone().requires_grad_()
    gradient = torch.autograd.grad(function(leaf)[:, 1].sum(), leaf)[0]
    assert difference(wrong, x * gradient) < 1e-12
    assert delta > LARGE * change(function, x, 1)
    a = ours(function, x, 1)
    assert difference(a.scores, right) <= EQUAL
    assert float(a.residual.abs()) < NIL * change(function, x, 1)


def test_relu6_is_a_plain_gradient_for_captum_without_a_word(captum_attr):
    [net] = bodies("relu6")
    x = 30 * uniform(1, 9, dtype=torch.float64) - 10
    wrong, delta = of_captum(captum_attr, net, x, 1)
    leaf = x.clone().requires_grad_()
    gradient = torch.autograd.grad(net(leaf)[:, 1].sum(), leaf)[0]
    assert difference(wrong, x * gradient) < 1e-12
    assert delta > LARGE * change(net, x, 1)
    assert float(ours(net, x, 1).residual.abs()) < NIL * change(net, x, 1)


def test_a_relu_that_runs_twice_stops_captum(captum_attr):
    modules, shared = bodies("relu", "shared")
    x = 3 * uniform(1, 9, dtype=torch.float64) - 1
    with pytest.raises(RuntimeError, match="module is being used more than once"):
        of_captum(captum_attr, shared, x, 1)
    right, _ = of_captum(captum_attr, modules, x, 1)
    a = ours(shared, x, 1)
    assert difference(a.scores, right) <= EQUAL
    assert float(a.residual.abs()) < NIL * change(shared, x, 1)
