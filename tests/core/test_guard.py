"""What networks do to themselves and to the random state does not outlast a call; all can be explained."""

import copy
import threading

import numpy as np
import pytest
import torch
from tests.oracles import conv_net, uniform
from torch import nn

import pellucid as pl

GRADIENT = pl.SimpleGradient()
X = uniform(2, 3, 9, 9)


def conv(*more: nn.Module) -> nn.Sequential:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(*more, nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(196, 2))


def by_hand(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(copy.deepcopy(net).eval()(leaf.clone())[:, 0].sum(), leaf)[0]


class Viewing(nn.Module):
    """The form of many tutorials: view() after a convolution, which channels_last does not allow."""

    def __init__(self):
        super().__init__()
        self.conv, _, self.head = conv()

    def forward(self, x):
        return self.head(self.conv(x).view(x.size(0), -1))


class Subtracting(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = conv()

    def forward(self, x):
        x -= 0.5
        return self.net(x)


@pytest.mark.parametrize(
    "net",
    [Viewing(), conv(nn.ReLU(inplace=True)), Subtracting()],
    ids=["view", "in-place first layer", "writes into x"],
)
def test_common_networks_are_explained_as_by_hand(net):
    x = X - 0.3
    given = x.clone()
    a = GRADIENT(pl.TorchModel(net), given, target=0)
    torch.testing.assert_close(a.scores, by_hand(net, x))
    assert torch.equal(given, x)


def test_the_layout_is_recorded():
    assert GRADIENT(pl.TorchModel(Viewing()), X).recipe.run["layout"] == "contiguous"
    assert GRADIENT(pl.TorchModel(conv()), X).recipe.run["layout"] == "channels_last"


class Habits(nn.Module):
    """Counts, caches, registers, replaces and renormalises in forward."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(uniform(2, 3) * 9)
        self.calls = 0
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        self.last = x
        self.seen = self.seen + 1
        if "late" not in self._buffers:
            self.register_buffer("late", torch.ones(()))
        self.weight.grad = None
        self.weight.data = torch.renorm(self.weight.data, 2, 0, 1.0)
        return x @ self.weight.T


def test_what_forward_does_to_the_module_is_undone():
    net = Habits()
    before = {name: value for name, value in vars(net).items() if not name.startswith("_")}
    net.weight.grad = torch.ones(2, 3)
    seen, weight, grad = net.seen, net.weight.detach().clone(), net.weight.grad
    GRADIENT(pl.TorchModel(net), uniform(2, 3))
    assert {name: value for name, value in vars(net).items() if not name.startswith("_")} == before
    assert net.seen is seen
    assert float(seen) == 0
    assert "late" not in net._buffers
    assert torch.equal(net.weight, weight)
    assert net.weight.grad is grad


# torch says so of the old style, which many networks still use
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_old_style_weight_norm_keeps_its_graph():
    with torch.random.fork_rng([]):
        net = nn.utils.weight_norm(nn.Linear(3, 2))
    weight = net.weight
    GRADIENT(pl.TorchModel(net), uniform(2, 3))
    assert net.weight is weight
    assert net.weight.requires_grad


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch would rather export, users still script
@pytest.mark.parametrize("make", [torch.jit.script, lambda net: torch.jit.trace(net, X)], ids=["script", "trace"])
def test_scripted_networks_are_explained_and_restored(make):
    net = conv_net()
    scripted = make(net.eval()).train()
    before = {name: t.clone() for name, t in scripted.state_dict().items()}
    a = GRADIENT(pl.TorchModel(scripted), X, target=0)
    torch.testing.assert_close(a.scores, by_hand(net, X))
    assert scripted.training
    assert all(torch.equal(t, before[name]) for name, t in scripted.state_dict().items())


def test_a_buffer_that_cannot_be_written_keeps_nothing_else_from_being_restored():
    net = conv_net()
    net.register_buffer("odd", torch.tensor(float("nan")).expand(3))
    GRADIENT(pl.TorchModel(net), X)
    assert net.training
    assert all(p.requires_grad for p in net.parameters())


def test_a_network_built_under_inference_mode_is_refused_by_name():
    with torch.inference_mode():
        net = conv_net()
    with pytest.raises(pl.ModelError, match=r"built under torch.inference_mode"):
        GRADIENT(pl.TorchModel(net), X)
    assert net.training


def test_an_error_in_the_backward_pass_is_named():
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            raise RuntimeError("no way back")

    class Net(nn.Module):
        def forward(self, x):
            return Broken.apply(x)

    net = Net()
    with pytest.raises(pl.ModelError, match="no way back"):
        GRADIENT(pl.TorchModel(net), uniform(1, 3))


def test_calls_on_networks_that_share_modules_wait_for_each_other():
    shared = conv_net()
    nets = [shared, nn.Sequential(shared, nn.Identity())]
    state = torch.get_rng_state()
    threads = [threading.Thread(target=lambda n=n: GRADIENT(pl.TorchModel(n), X)) for n in nets * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shared.training
    assert all(p.requires_grad for p in shared.parameters())
    assert torch.equal(state, torch.get_rng_state())


def test_a_seed_meant_for_an_accelerator_is_left_alone(monkeypatch):
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    GRADIENT(pl.TorchModel(conv_net()), X)
    assert seeded == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_networks_in_half_precision_get_maps_in_single(dtype):
    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor([1e-4], dtype=dtype))

        def forward(self, x):
            return x * self.scale

    net = Small()
    a = pl.SmoothGradSquared(n_samples=3)(pl.TorchModel(net), uniform(1, 3), target=0)
    assert a.scores.dtype == torch.float32
    assert float(a.scores[0, 0]) == pytest.approx(1e-8, rel=0.02)  # squares of 1e-4 would vanish in float16


@pytest.mark.doors
def test_a_method_cannot_take_more_than_the_model_offers():
    model = pl.TorchModel(conv_net())
    model.offers = pl.Needs.SCORES
    with model.undisturbed(pl.Key.named("x")) as quiet, pytest.raises(pl.MissingNeed, match="no gradients"):
        quiet.gradient(X, None)
    with pytest.raises(pl.MissingNeed, match="no weights"):
        model.coefficients()


def test_numpy_integers_and_arrays_are_targets():
    model = pl.TorchModel(conv_net())
    for target in (np.int64(1), torch.tensor(1), np.array([1, 1]), [np.int64(1), 1]):
        assert [d.target for d in GRADIENT(model, X, target).decisions] == [pl.ClassScore(1)] * 2
