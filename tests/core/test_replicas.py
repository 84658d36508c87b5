"""Two networks on the CPU stand for two GPUs: what is divided, gathered, followed and restored is the same."""

import copy
import threading

import pytest
import torch
from tests.contract.test_methods import assert_same, snapshot
from tests.oracles import Linear, conv_net, uniform
from torch import nn

import pellucid as pl
from pellucid.core.replicas import Replicas, devices_of, divided

CPU = torch.device("cpu")
TWO = ("cpu", "cpu")
X = uniform(5, 3, 9, 9, seed=4)

with torch.random.fork_rng([]):
    torch.manual_seed(0)
    FACTORABLE = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 2, 2), nn.Tanh(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )  # fmt: skip


class Recording(nn.Module):
    """Remembers on which thread, with how many rows and in which modes each pass was made."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.seen: list = Shared()

    def forward(self, x):
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
        self.seen.append((threading.current_thread().name, len(x), modes, self.training, torch.get_num_threads()))
        return self.net(x)


class Shared(list):
    """A list that a network and its copies hold in common."""

    def __deepcopy__(self, memo):
        return self


def assert_close(one: pl.Attribution, other: pl.Attribution) -> None:
    for a, b in ((one.scores, other.scores), (one.outputs, other.outputs)):
        assert float((a - b).abs().max()) <= 1e-5 * float(b.abs().max())
    assert one.cost == other.cost


@pytest.mark.parametrize("rows", [None, 2, 7])
@pytest.mark.parametrize(
    "explain",
    [
        pl.SimpleGradient(),
        pl.SmoothGrad(n_samples=10),
        pl.VarGrad(n_samples=10),
        pl.SmoothGrad(n_samples=3, base=pl.SmoothGrad(n_samples=4)),
    ],
    ids=lambda e: e.card.name,
)
def test_maps_and_counts_are_those_of_one_device(explain, rows):
    net = conv_net()
    one = explain(pl.TorchModel(net, micro_batch=rows), X)
    assert_close(explain(pl.TorchModel(net, device=TWO, micro_batch=rows), X), one)
    assert_close(explain(pl.TorchModel(net, device=(*TWO, "cpu"), micro_batch=rows), X), one)


@pytest.mark.parametrize("estimator", [pl.Factored(group=4), pl.Factored(cuts=("2",), group=2), pl.Combined(group=4)])
def test_whole_groups_go_to_one_device(estimator):
    net, sizes = copy.deepcopy(FACTORABLE), Shared()
    net.sizes = sizes
    net.register_forward_pre_hook(lambda module, args: module.sizes.append(len(args[0])))
    explain, x = pl.SmoothGrad(n_samples=24, estimator=estimator), uniform(2, 3, 16, 16)
    one = explain(pl.TorchModel(net, micro_batch=12), x, 0)
    sizes.clear()
    two = explain(pl.TorchModel(net, micro_batch=12, device=TWO), x, 0)
    assert_close(two, one)
    assert two.recipe.notes == one.recipe.notes
    assert all(size % estimator.group == 0 for size in sizes if size > 2)


def test_the_norms_of_all_networks_are_folded():
    with pl.TorchModel(conv_net(), device=TWO).undisturbed(pl.Key.named("x")) as quiet:
        with quiet.quick(X):
            assert all("forward" in vars(net[1]) for net in quiet.replicas.nets)
        assert not any("forward" in vars(net[1]) for net in quiet.replicas.nets)


def test_rows_grow_by_the_number_of_devices():
    one, two = pl.TorchModel(conv_net()), pl.TorchModel(conv_net(), device=TWO)
    for shape in ((3, 224, 224), (5,)):
        assert two.rows(torch.empty(1, *shape)) == 2 * one.rows(torch.empty(1, *shape))
    assert two.rows(torch.empty(1, 3, 224, 224), together=6) == 12, "a group for each"
    assert pl.TorchModel(conv_net(), device=TWO, micro_batch=3).rows(torch.empty(1, 5)) == 3


def test_chunks_are_neighbours_of_nearly_equal_size():
    assert [(s.start, s.stop) for s in divided(8, 3)] == [(0, 3), (3, 6), (6, 8)]
    assert [(s.start, s.stop) for s in divided(1, 3)] == [(0, 1)]
    assert [(s.start, s.stop) for s in divided(18, 2, 6)] == [(0, 12), (12, 18)]
    assert [(s.start, s.stop) for s in divided(6, 2, 6)] == [(0, 6)]


@pytest.mark.parametrize("precision", [None, "bfloat16"])
def test_each_device_has_a_thread_in_the_modes_of_the_call(precision):
    net = Recording(conv_net())
    model = pl.TorchModel(net, device=TWO, precision=precision)
    with torch.inference_mode():
        pl.SimpleGradient()(model, X, 0)  # tries what can be folded, on one network
        net.seen.clear()
        model.predict(X)
        pl.SimpleGradient()(model, X, 0)
    # A thread that is done with its chunk may take the next one.
    assert {name for name, *_ in net.seen} <= {"pellucid-device_0", "pellucid-device_1"}
    forward, gradient = net.seen[:2], net.seen[2:]
    half = precision is not None
    assert {modes for _, _, modes, *_ in forward} == {(False, False, half)}
    assert {modes for _, _, modes, *_ in gradient} == {(True, False, half)}
    assert sorted(rows for _, rows, *_ in gradient) == [2, 3]
    assert not any(training for *_, training, _ in net.seen)
    assert {threads for *_, threads in net.seen} == {torch.get_num_threads()}


@pytest.mark.doors  # beartype, which executes the shapes, draws from Python's global generator itself
def test_all_networks_are_as_they_were():
    net = conv_net()
    net[4].eval()
    model = pl.TorchModel(net, device=TWO)
    before = [snapshot(one) for one in model.replicas.nets]
    state, threads = torch.get_rng_state(), threading.active_count()
    pl.SmoothGrad(n_samples=9)(model, X)
    for one, was in zip(model.replicas.nets, before, strict=True):
        assert_same(was, snapshot(one))
    assert torch.equal(state, torch.get_rng_state())
    assert threading.active_count() == threads


@pytest.mark.parametrize("which", [0, 1])
def test_an_error_on_any_device_is_named_and_all_is_restored(which):
    class Failing(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(4)
            self.number = 0

        def forward(self, x):
            if self.number == which:
                raise RuntimeError(f"device {self.number} broke")
            return self.norm(x)

    model = pl.TorchModel(Failing(), device=TWO)
    model.replicas.nets[1].number = 1
    with pytest.raises(pl.ModelError, match=f"device {which} broke") as raised:
        pl.SimpleGradient()(model, uniform(4, 4))
    assert isinstance(raised.value.__cause__, RuntimeError)
    assert all(net.training and net.norm.training for net in model.replicas.nets)
    assert all(p.requires_grad for net in model.replicas.nets for p in net.parameters())


def test_weights_that_change_reach_the_copies():
    net = Linear(uniform(2, 3))
    model = pl.TorchModel(net, device=TWO)
    explain, x = pl.SimpleGradient(), uniform(4, 3)
    explain(model, x, 0)
    with torch.no_grad():
        net.linear.weight.mul_(2)
    assert torch.equal(explain(model, x, 0).scores, 2 * uniform(2, 3)[:1].expand(4, 3))
    net.linear.weight.data[0] = 7.0  # which autograd does not see
    found = explain(model, x, 0)
    assert found.scores.tolist() == [[7.0] * 3] * 4
    assert found.recipe.weights == pl.TorchModel(net).fingerprint()


def test_buffers_modes_and_another_structure_reach_the_copies():
    net = conv_net()
    copies = Replicas(net, [CPU, CPU])
    other = copies.nets[1]
    net[1].running_mean += 1
    net.eval()
    copies.follow()
    assert copies.nets[1] is other
    assert torch.equal(other[1].running_mean, net[1].running_mean)
    assert not other[1].training
    net[2] = nn.Tanh()
    copies.follow()
    assert isinstance(copies.nets[1][2], nn.Tanh)
    assert copies.nets[0] is net


def test_what_has_not_changed_is_not_copied_again(monkeypatch):
    copies = Replicas(conv_net(), [CPU, CPU])
    monkeypatch.setattr("pellucid.core.replicas._copy_values", lambda *nets: pytest.fail("nothing has changed"))
    copies.follow()
    copies.follow()


def test_buffers_that_cannot_be_written_are_copied_with_their_network():
    net = conv_net()
    net.register_buffer("odd", torch.tensor(1.0).expand(3))
    copies = Replicas(net, [CPU, CPU])
    with torch.no_grad():
        net[0].weight.mul_(2)
    net.odd = torch.tensor(5.0).expand(3)
    copies.follow()
    assert copies.nets[1].odd.tolist() == [5.0] * 3
    assert torch.equal(copies.nets[1][0].weight, net[0].weight)


def test_the_users_network_is_the_first_on_its_own_device():
    net = conv_net()
    copies = Replicas(net, [CPU, CPU])
    assert copies.nets[0] is net
    assert copies.nets[1] is not net
    assert Replicas(net, []).nets == [net]


def test_a_network_that_cannot_be_copied_says_so():
    net = Linear(uniform(2, 3))
    net.lock = threading.Lock()
    assert pl.TorchModel(net).net is net
    with pytest.raises(pl.ModelError, match="Linear cannot be copied to cpu"):
        pl.TorchModel(net, device=TWO)


def test_the_recipe_names_the_devices_and_runs_again_on_others():
    net = conv_net()
    a = pl.SmoothGrad(n_samples=6)(pl.TorchModel(net, device=TWO), X)
    assert a.recipe.run["device"] == ["cpu", "cpu"]
    assert pl.SimpleGradient()(pl.TorchModel(net), X).recipe.run["device"] == "cpu"
    assert_close(a.reproduce(pl.TorchModel(net), X), a)


def test_memory_counts_the_networks_that_share_it():
    x = uniform(1, 3, 64, 64)
    one, two = (pl.TorchModel(conv_net(), device=device) for device in ("cpu", TWO))
    grown = [model.predicted_peak(x, 64) - model.predicted_peak(x, 32) for model in (one, two)]
    assert grown[0] == pytest.approx(grown[1], rel=0.01)


@pytest.mark.doors
@pytest.mark.parametrize("device", ["tpu7", ("cpu", "tpu7"), (), (None,), 3.5])
def test_devices_that_are_not_there_are_refused_in_words(device):
    with pytest.raises(pl.ArgumentError, match="`device` is one"):
        devices_of(device)
