import threading

import pytest
import torch
from tests.oracles import Constant, Linear, Recorder, conv_net, uniform
from torch import nn

import pellucid as pl


def test_prediction_runs_in_evaluation_mode_and_restores():
    net = Recorder(4).train()
    pl.TorchModel(net).predict(uniform(3, 4))
    assert net.modes == [False]
    assert net.training


def test_as_is_keeps_the_training_mode_and_still_leaves_no_trace():
    net = conv_net()
    mean = net[1].running_mean.clone()
    model = pl.TorchModel(net, mode="as-is")
    one = model.predict(uniform(4, 3, 9, 9)).outputs
    assert torch.equal(net[1].running_mean, mean)
    assert int(net[1].num_batches_tracked) == 0
    assert not torch.equal(one, pl.TorchModel(net).predict(uniform(4, 3, 9, 9)).outputs)
    assert torch.equal(one, model.predict(uniform(4, 3, 9, 9)).outputs), "its dropout is keyed by the input"


def test_a_buffer_that_the_network_replaces_comes_back():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls = self.calls + 1
            return x[:, :2]

    net = Counting()
    buffer = net.calls
    pl.TorchModel(net).predict(uniform(2, 3))
    assert net.calls is buffer
    assert float(buffer) == 0


def test_micro_batch_follows_a_rule_of_the_shape():
    model = pl.TorchModel(Constant())
    assert model.rows(torch.empty(1, 3, 224, 224)) == 6
    assert model.rows(torch.empty(1, 3, 112, 112)) == 24
    assert model.rows(torch.empty(1, 3, 2000, 2000)) == 2
    assert model.rows(torch.empty(1, 3, 224, 224).double()) == 3, "as many bytes"
    assert pl.TorchModel(Constant(), precision="bfloat16").rows(torch.empty(1, 3, 224, 224)) == 12
    assert model.rows(torch.empty(1, 5)) == 512
    assert pl.TorchModel(Constant(), micro_batch=1).rows(torch.empty(1, 5)) == 1


def test_one_network_serves_one_call_at_a_time():
    """Were two calls to overlap, the first to end would put the network back into training mode under the second."""
    inside, overlaps = [], []

    class Slow(nn.Module):
        def forward(self, x):
            inside.append(1)
            overlaps.append(len(inside))
            threading.Event().wait(0.02)
            inside.pop()
            return x[:, :2] * (2 if self.training else 1)

    net = Slow().train()
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(pl.TorchModel(net).predict(torch.ones(1, 3)).outputs))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(overlaps) == 1
    assert all(torch.equal(r, torch.ones(1, 2)) for r in results)
    assert net.training


@pytest.mark.parametrize("select", ["logits", 1])
def test_a_tensor_is_picked_out_of_a_dict_or_tuple(select):
    class Wrapped(nn.Module):
        def forward(self, x):
            return {"aux": x * 0, "logits": x} if select == "logits" else (x * 0, x)

    x = uniform(2, 3)
    assert torch.equal(pl.TorchModel(Wrapped(), select=select).predict(x).outputs, x)
    with pytest.raises(pl.ModelError, match=r"select='aux'|select=0"):
        pl.TorchModel(Wrapped()).predict(x)
    with pytest.raises(pl.ModelError, match=r"no tensor at 'nope'"):
        pl.TorchModel(Wrapped(), select="nope").predict(x)


def test_single_outputs_may_come_without_an_axis():
    model = pl.TorchModel(nn.Flatten(0), output="regression")
    assert model.predict(torch.tensor([[1.0], [2.0]])).outputs.tolist() == [[1.0], [2.0]]


def test_outputs_without_one_row_for_each_input_are_refused():
    with pytest.raises(pl.ModelError, match=r"Expected outputs \(B, K\) for 2 inputs, but Flatten returned \(6,\)"):
        pl.TorchModel(nn.Flatten(0)).predict(uniform(2, 3))


def test_the_kind_of_outputs_is_recognised():
    assert pl.TorchModel(nn.Softmax(1)).predict(uniform(2, 3)).kind == "probabilities"
    assert pl.TorchModel(nn.Identity()).predict(uniform(2, 3)).kind == "logits"
    assert pl.TorchModel(nn.Linear(3, 1)).predict(uniform(2, 3)).kind == "regression"
    assert pl.TorchModel(nn.Softmax(1), output="logits").predict(uniform(2, 3)).kind == "logits"


def test_probabilities_are_not_squashed_twice():
    x = torch.tensor([[0.0, 2.0]])
    label, p, index = pl.TorchModel(nn.Softmax(1)).predict(x).top(1)[0]
    assert (label, index) == ("class 1", 1)
    assert p == pytest.approx(float(torch.softmax(x, 1)[0, 1]))


def test_the_fingerprint_follows_the_weights():
    net = Linear(uniform(2, 3))
    model = pl.TorchModel(net)
    before = model.fingerprint()
    assert before == pl.TorchModel(Linear(uniform(2, 3))).fingerprint()
    net.linear.weight.data[0, 0] += 1
    assert model.fingerprint() != before


def test_bfloat16_is_autocast_and_recorded():
    weight = uniform(2, 9)
    a = pl.SimpleGradient()(pl.TorchModel(Linear(weight), precision="bfloat16"), uniform(1, 9), target=0)
    difference = (a.scores[0] - weight[0]).abs() / weight[0]
    assert 0 < float(difference.max()) <= 2**-8  # the weights are rounded to 8 bits
    assert a.recipe.run["precision"] == "bfloat16"
    assert a.scores.dtype == torch.float32


def without_kinks() -> nn.Module:
    """Smooth, so that rounding to bfloat16 throws no gates; steep, so that gradients vary by more than it rounds."""
    net = conv_net()
    net[2], net[4] = nn.Tanh(), nn.Tanh()
    with torch.no_grad():
        net[0].weight.mul_(3)
        net[3].weight.mul_(3)
    return net


def off(one: pl.Attribution, other: pl.Attribution) -> float:
    """The RMS difference of two maps, in RMS standard errors of the second."""
    difference = (one.scores - other.scores).square().mean().sqrt()
    return float(difference / other.standard_error.square().mean().sqrt())


EXPLAIN = pl.SmoothGrad(n_samples=20)


def test_bfloat16_moves_a_smooth_networks_map_by_less_than_its_noise():
    net, x = without_kinks(), uniform(2, 3, 33, 33)
    half = EXPLAIN(pl.TorchModel(net, precision="bfloat16"), x)
    assert 0 < off(half, EXPLAIN(pl.TorchModel(net), x)) < 0.1


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("net", "settings"),
    [
        (conv_net(), {"device": "cuda"}),
        (conv_net(), {"device": ("cuda", "cuda")}),
        (conv_net(), {"device": "cuda", "memory_limit": "1GiB"}),
        (without_kinks(), {"device": "cuda", "precision": "bfloat16"}),
        (without_kinks(), {"device": "cuda", "precision": "auto"}),
    ],
)
def test_cuda_agrees_with_cpu_and_leaves_the_network_where_it_was(net, settings):
    x = uniform(2, 3, 33, 33)
    on_cpu, on_gpu = EXPLAIN(pl.TorchModel(net), x), EXPLAIN(pl.TorchModel(net, **settings), x)
    assert next(net.parameters()).device.type == "cpu"
    assert on_gpu.scores.device.type == "cpu"
    assert off(on_gpu, on_cpu) < 0.1
    if on_gpu.memory is not None:
        assert 0 < on_gpu.memory.measured <= on_gpu.memory.predicted


def test_a_copy_on_another_device_follows_the_users_network():
    """The meta device has no values, but every other fact of a copy."""
    net = conv_net()
    model = pl.TorchModel(net, device="meta")
    before = model.fingerprint()
    assert model.net is not net
    assert {p.device.type for p in model.net.parameters()} == {"meta"}
    net[0].weight.data += 1
    assert model.fingerprint() != before
    net[2] = nn.Tanh()
    model.replicas.follow()
    assert isinstance(model.net[2], nn.Tanh)


def test_what_was_learnt_of_a_network_is_forgotten_with_its_structure():
    net, x = conv_net(), uniform(1, 3, 9, 9)
    model = pl.TorchModel(net)
    assert EXPLAIN(model, x).recipe.run["folded"] == 1
    net[1] = nn.Identity()
    after = EXPLAIN(model, x)
    assert after.recipe.run["folded"] == 0
    assert torch.equal(after.scores, EXPLAIN(pl.TorchModel(net), x).scores)


@pytest.mark.doors
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: pl.TorchModel(lambda x: x), "takes a torch.nn.Module. Got function"),
        (lambda: pl.TorchModel(nn.LazyLinear(2)), "lazy modules"),
        (lambda: pl.TorchModel(nn.Identity(), preprocess=lambda p: p), "`preprocess` says how originals"),
        (lambda: pl.TorchModel(nn.Identity(), output="softmax"), "`output` is one of 'logits'"),
        (lambda: pl.TorchModel(nn.Identity(), mode="train"), "`mode` is one of 'eval', 'as-is'"),
        (lambda: pl.TorchModel(nn.Identity(), micro_batch=0), "`micro_batch` is a whole number, 1 or more"),
        (lambda: pl.TorchModel(nn.Identity(), labels="cat"), "a list with one name per class"),
        (lambda: pl.TorchModel(nn.Identity(), device="tpu7"), "`device` is one of"),
        (lambda: pl.TorchModel(nn.Identity(), device=("cpu", "tpu7")), "`device` is one of"),
        (lambda: pl.TorchModel(nn.Identity(), device=()), "Got none of them"),
        (lambda: pl.TorchModel(nn.Identity(), precision="int8"), "`precision` is one of 'bfloat16', 'auto'"),
        (lambda: pl.TorchModel(nn.Identity(), memory_limit="2 gigs"), "`memory_limit` is a text such as '2GiB'"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")  # torch says so of LazyLinear
def test_wrong_models_are_refused_in_words(make, words):
    with pytest.raises(pl.PellucidError, match=words):
        make()


@pytest.mark.doors
def test_labels_that_do_not_fit_are_counted():
    with pytest.raises(pl.ArgumentError, match=r"one label for each of the model's 3 outputs, but got 2"):
        pl.TorchModel(nn.Identity(), labels=["a", "b"]).predict(uniform(1, 3))


@pytest.mark.doors
def test_a_model_without_preprocessing_reads_nothing():
    with pytest.raises(pl.ModelError, match=r"preprocess=pl.ImagePreprocess"):
        pl.TorchModel(nn.Identity()).read("cat.jpg")


@pytest.mark.doors
@pytest.mark.parametrize(
    ("x", "words"),
    [
        ("cat.jpg", "become inputs with model.read"),
        (torch.ones(3), r"x\[None\]"),
        (torch.ones(0, 3), "at least one row"),
        (torch.ones(1, 3, dtype=torch.uint8), "floating-point tensor. Got torch.uint8"),
    ],
)
def test_wrong_inputs_are_refused_in_words(x, words):
    with pytest.raises(pl.ArgumentError, match=words):
        pl.SimpleGradient()(pl.TorchModel(nn.Identity()), x)


def test_coefficients_are_those_of_a_single_linear_layer():
    weight, bias = pl.TorchModel(nn.Sequential(nn.Flatten(), Linear(uniform(2, 6)).linear)).coefficients()
    assert torch.equal(weight, uniform(2, 6))
    assert bias.tolist() == [0, 0]


def test_other_networks_have_no_coefficients():
    with pytest.raises(pl.MissingNeed, match=r"It|has Linear, ReLU|Linear, ReLU"):
        pl.TorchModel(nn.Sequential(nn.Linear(2, 2), nn.ReLU())).coefficients()


class TwoInputs(nn.Module):
    """Takes (B, 3, 4, 4) and whole numbers, in an order of memory that channels_last does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3, padding=1)
        self.seen: list[torch.Tensor] = []

    def forward(self, picture: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
        self.seen.append(number)
        return self.conv(picture).view(len(picture), -1)[:, :4] * number


def test_of_several_inputs_whole_numbers_stay_exact_in_half_precision():
    net = TwoInputs().to(torch.bfloat16)
    parts = {"picture": uniform(1, 3, 4, 4), "number": torch.tensor([[257]])}
    pl.SimpleGradient()(pl.TorchModel(net), parts, 0)
    assert {int(number) for number in net.seen} == {257}


def test_a_network_of_several_inputs_that_needs_the_plain_layout_gets_it():
    net = TwoInputs()
    parts = {"picture": uniform(2, 3, 4, 4), "number": torch.tensor([[2], [3]])}
    a = pl.SimpleGradient()(pl.TorchModel(net), parts, 0)
    x = parts["picture"].clone().requires_grad_()
    net(x, parts["number"])[:, 0].sum().backward()
    assert float((a.parts["picture"] - x.grad).abs().max()) <= 1e-6 * float(x.grad.abs().max())


def test_a_tail_follows_the_precision_that_is_asked_for():
    model, x = pl.TorchModel(conv_net()), uniform(2, 3, 9, 9)
    with model.undisturbed(pl.Key.named("x")) as quiet, quiet.tail(quiet.place(x), "0") as (rest, rows):
        single = rest.outputs(rows)
        half = rest.in_precision("bfloat16").outputs(rows)
    assert not torch.equal(single, half)
    assert float((single - half).abs().max()) < 0.05 * float(single.abs().max())


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = [0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls[0] += 1
        return torch.stack([(x**2).sum(1), (x**3).sum(1)], 1)


@pytest.mark.parametrize(
    "explain", [pl.SimpleGradient(), pl.InputXGradient(), pl.Absolute()], ids=lambda e: e.card.name
)
def test_the_clean_pass_serves_for_the_gradient_too(explain):
    net = Counting()
    model, x = pl.TorchModel(net), uniform(3, 4)
    first = explain(model, x)
    net.calls[0] = 0
    again = explain(model, x)
    assert net.calls == [1]
    assert torch.equal(first.scores, again.scores)
    assert again.cost == pl.Cost(3, 3)


def test_a_target_within_the_network_has_a_pass_of_its_own():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    a = pl.SimpleGradient()(pl.TorchModel(net), uniform(2, 3), pl.Neuron("0", (1,)))
    assert torch.allclose(a.scores, net[0].weight[1].detach().expand(2, 3))


def test_more_inputs_than_fit_one_pass_are_predicted_apart():
    model, x = pl.TorchModel(conv_net(), micro_batch=2), uniform(5, 3, 9, 9)
    expected = pl.SimpleGradient()(pl.TorchModel(conv_net()), x).scores
    a = pl.SimpleGradient()(model, x)
    assert a.cost == pl.Cost(10, 5)
    assert float((a.scores - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_norms_in_training_mode_are_not_run_between_a_pass_and_its_gradient():
    model, x = pl.TorchModel(conv_net(), mode="as-is"), uniform(5, 3, 9, 9)
    assert torch.isfinite(pl.SimpleGradient()(model, x).scores).all()


class Writing(nn.Module):
    """Counts its passes in place, in a buffer that the gradient needs."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        return (x * self.count).sum(1, keepdim=True)


def test_a_network_that_writes_into_what_its_graph_needs_has_a_pass_of_its_own():
    a = pl.SimpleGradient()(pl.TorchModel(Writing()), uniform(2, 3))
    assert a.scores.unique().tolist() in ([2.0], [3.0])  # of its second or third pass
    assert {f.code for f in a.findings} <= {"train-mode"}


class Noisy(nn.Module):
    """Draws a dropout in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(nn.functional.dropout(x, 0.5, training=True))


def test_a_network_that_draws_has_one_map_whether_or_not_the_predictions_pass_serves():
    net, x = Noisy(), uniform(2, 8)
    shared = pl.SimpleGradient()(pl.TorchModel(net), x, 0)
    apart = pl.SimpleGradient()(pl.TorchModel(net, memory_limit="1GiB"), x, 0)
    assert torch.equal(shared.scores, apart.scores)
    assert torch.equal(apart.reproduce(pl.TorchModel(net), x).scores, apart.scores)
