import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from tests.core.networks import Calling
from tests.explainers.paths import Several, near, picture_net, seeded, several, tanh_net
from tests.explainers.paths import X as PICTURES
from tests.oracles import Linear, conv_net, uniform
from torch import Tensor, nn

import pellucid as pl
from pellucid.core.random import Key, normal

X = torch.linspace(-1, 1.4, 9, dtype=torch.float64)[None]
START = pl.Constant(0.3)
PREPARE = pl.ImagePreprocess(size=8, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
BASELINES = [pl.Zeros(), pl.Constant(-0.4), pl.Pixel(1.0), pl.BlackOrZero(), pl.Blur(2.0), pl.FeatureMean()]


class Of(nn.Module):
    """A function of the input. Its one parameter says that it computes in float64."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.unused = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def of(function: Callable[[Tensor], Tensor], *rows: tuple[float, ...], start: float = 0.0) -> list[list[float]]:
    """The map of f, (b,), from a constant."""
    model = pl.TorchModel(Of(lambda x: function(x)[:, None]).eval())
    x = torch.tensor(rows, dtype=torch.float64)
    return pl.DeepLIFT(baseline=pl.Constant(start))(model, x, target=0).scores.tolist()


def test_of_a_linear_network_it_is_the_weight_times_the_way():
    weight, x = uniform(2, 9, dtype=torch.float64), torch.cat([X, 2 * X])
    a = pl.DeepLIFT(baseline=START)(pl.TorchModel(Linear(weight)), x, target=[1, 0])
    torch.testing.assert_close(a.scores, weight[[1, 0]] * (x - 0.3), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(a.residual, torch.zeros(2).double(), rtol=0, atol=1e-14)


def test_a_hidden_unit_shares_its_change_in_the_ratio_of_what_it_was_given():
    """y = v f(w . x + b): M_i = v (f(z) - f(z')) w_i (x_i - x'_i) / (z - z')."""
    for f in (nn.ReLU(), nn.GELU(), nn.Sigmoid(), nn.Tanh()):
        net = nn.Sequential(nn.Linear(9, 1), f, nn.Linear(1, 2)).double().eval()
        a = pl.DeepLIFT(baseline=START)(pl.TorchModel(net), X, target=1)
        with torch.no_grad():
            z, there = (net[0](t)[0, 0] for t in (X, torch.full_like(X, 0.3)))
            expected = net[2].weight[1, 0] * (f(z) - f(there)) * net[0].weight * (X - 0.3) / (z - there)
        torch.testing.assert_close(a.scores, expected, rtol=1e-11, atol=1e-15)


# The examples of the paper


def test_a_saturated_unit_does_not_hide_what_brought_it_there():
    """Figure 1 of the paper: y = 1 - ReLU(1 - x_1 - x_2) is flat at (1, 1)."""

    def y(x: Tensor) -> Tensor:
        return 1 - (1 - x[:, 0] - x[:, 1]).relu()

    assert of(y, (1.0, 1.0)) == [[0.5, 0.5]]
    assert of(y, (1.0, 0.0), (0.25, 0.5), (3.0, 1.0)) == [[1.0, 0.0], [0.25, 0.5], [0.75, 0.25]]
    x = torch.ones(1, 2, dtype=torch.float64, requires_grad=True)
    assert not torch.autograd.grad(y(x).sum(), x)[0].any()


def test_a_threshold_makes_no_jump():
    """Figure 2: y = ReLU(x - 10). The gradient jumps from 0 to 1, and input times gradient from 0 to 10."""
    found = of(lambda x: (x[:, 0] - 10).relu(), (9.99,), (10.0,), (10.01,), (12.0,))
    torch.testing.assert_close(torch.tensor(found), torch.tensor([[0.0], [0.0], [0.01], [2.0]]), rtol=1e-6, atol=0)


def test_the_rescale_rule_gives_a_minimum_to_one_of_both():
    """Section 3.4: min(x_1, x_2) as x_1 - ReLU(x_1 - x_2)."""
    found = of(lambda x: x[:, 0] - (x[:, 0] - x[:, 1]).relu(), (3.0, 1.0), (1.0, 3.0))
    assert found == [[0.0, 1.0], [1.0, 0.0]]


# The whole change

NETWORKS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "norms of batches in evaluation": (lambda: conv_net(dtype=torch.float64), uniform(2, 3, 9, 9, seed=5)),
    "convolutions and pools": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.PReLU(6), nn.MaxPool2d(3, 2, 1), nn.ConvTranspose2d(6, 4, 2, 2), nn.ELU(),
            nn.AvgPool2d(2), nn.Upsample(scale_factor=2, mode="bilinear"), nn.PixelShuffle(2), nn.Hardswish(),
            nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(4, 3),
        ),
        uniform(2, 3, 12, 10, seed=6),
    ),
    "group norm": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.SiLU(), nn.Flatten(), nn.Linear(196, 3)),
        uniform(2, 3, 9, 9, seed=7),
    ),
    "neighbouring channels": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.LocalResponseNorm(2), nn.Mish(), nn.Flatten(), nn.Linear(196, 3)
        ),
        uniform(2, 3, 9, 9, seed=8),
    ),
    "transformer": (
        lambda: nn.Sequential(
            nn.TransformerEncoderLayer(6, 2, 12, batch_first=True, norm_first=True),
            nn.TransformerEncoderLayer(6, 2, 12, batch_first=True, activation="gelu"), nn.Flatten(), nn.Linear(24, 3),
        ),
        uniform(2, 4, 6, seed=9),
    ),
}  # fmt: skip


class Last(nn.Module):
    """The last step of a recurrent layer."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


for _name, _layer in {
    "lstm both ways": lambda: Last(nn.LSTM(6, 4, 2, batch_first=True, bidirectional=True), 8),
    "gru": lambda: Last(nn.GRU(6, 4, batch_first=True), 4),
    "rnn": lambda: Last(nn.RNN(6, 4, batch_first=True), 4),
}.items():
    NETWORKS[_name] = _layer, uniform(2, 5, 6, seed=10)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_scores_sum_to_the_change_of_the_score(name):
    """Summation-to-delta, equation 1. In float64 what is left is rounding."""
    build, x = NETWORKS[name]
    net, x = seeded(build), 2 * x.double() - 0.4
    a = pl.DeepLIFT(baseline=START)(pl.TorchModel(net), x, target=[0, 2])
    with torch.no_grad():
        change = (net(x) - net(torch.full_like(x, 0.3)))[[0, 1], [0, 2]]
    assert float(change.abs().min()) > 1e-4
    torch.testing.assert_close(a.scores.flatten(1).sum(1), change, rtol=1e-9, atol=0)
    torch.testing.assert_close(torch.tensor(a.recipe.notes["change"], dtype=torch.float64), change, rtol=1e-9, atol=0)
    assert float((a.residual / change).abs().max()) < 1e-9


def test_in_single_precision_what_is_left_is_rounding_too():
    net = conv_net().eval()
    a = pl.DeepLIFT(baseline=START)(pl.TorchModel(net), uniform(4, 3, 9, 9), target=1)
    assert a.scores.dtype == torch.float32
    change = torch.tensor(a.recipe.notes["change"], dtype=torch.float64)
    assert float((a.residual / change).abs().max()) < 1e-4
    exact = pl.DeepLIFT(baseline=START)(pl.TorchModel(net.double()), uniform(4, 3, 9, 9).double(), target=1)
    assert near(a.scores.double(), exact.scores, 1e-3)


def test_what_equals_the_baseline_gets_nothing():
    x = X.clone()
    x[0, [2, 5]] = 0.3
    a = pl.DeepLIFT(baseline=START)(pl.TorchModel(tanh_net(9)), x, target=0)
    assert (a.scores == 0).tolist() == [[i in (2, 5) for i in range(9)]]
    nowhere = pl.DeepLIFT(baseline=START)(pl.TorchModel(tanh_net(9)), torch.full_like(x, 0.3), target=0)
    assert not nowhere.scores.any()
    assert nowhere.residual.tolist() == [0.0]


def test_swapping_the_input_and_the_baseline_turns_the_sign():
    """Every multiplier is the same both ways."""
    model, there = pl.TorchModel(picture_net()), 0.7
    x = torch.full_like(PICTURES[:1], there)
    forth = pl.DeepLIFT(baseline=pl.Constant(-0.2))(model, x, target=1).scores
    back = pl.DeepLIFT(baseline=pl.Constant(there))(model, torch.full_like(x, -0.2), target=1).scores
    assert near(forth, -back, 1e-10)


# Targets


@pytest.mark.parametrize("target", [pl.LogProb(1), pl.Probability(1)], ids=repr)
def test_a_target_that_is_no_linear_function_of_the_outputs_leaves_what_its_derivative_misses(target):
    """It is differentiated at the input: sum_k dT/ds_k (s_k - s'_k) is what is divided; both are known exactly."""
    net = tanh_net(9, classes=3)
    with torch.no_grad():
        net[2].weight.mul_(4)  # so that the probability bends
    a = pl.DeepLIFT(baseline=START)(pl.TorchModel(net), X, target=target)
    with torch.no_grad():
        here, there = net(X)[0], net(torch.full_like(X, 0.3))[0]
    f = torch.log_softmax if isinstance(target, pl.LogProb) else torch.softmax
    slope = torch.autograd.functional.jacobian(lambda s: f(s, 0)[1], here)
    change = (f(here, 0) - f(there, 0))[1]
    left = (slope * (here - there)).sum() - change
    assert abs(float(left / change)) > 1e-3
    torch.testing.assert_close(a.residual[0], left, rtol=1e-9, atol=1e-13)
    classes = torch.cat([pl.DeepLIFT(baseline=START)(pl.TorchModel(net), X, target=k).scores for k in range(3)])
    assert near(a.scores, (slope @ classes)[None], 1e-11)
    assert any("What is divided among the features sums to" in str(finding) for finding in a.findings)


def test_a_margin_is_the_difference_of_two_maps_and_leaves_nothing():
    model, explain = pl.TorchModel(picture_net()), pl.DeepLIFT()
    one, two = (explain(model, PICTURES, target=t).scores for t in (0, 2))
    a = explain(model, PICTURES, target=pl.Margin(0, 2))
    assert near(a.scores, one - two)
    assert float(a.residual.abs().max()) < 1e-12


def test_a_neuron_is_explained_by_what_its_layer_gives():
    net = picture_net()
    a = pl.DeepLIFT(baseline=START)(pl.TorchModel(net), PICTURES, target=pl.Neuron("1", (1, 2, 0)))
    with torch.no_grad():
        z, there = (net[0](t)[:, 1, 2, 0] for t in (PICTURES, torch.full_like(PICTURES, 0.3)))
        slope = (nn.functional.softplus(z) - nn.functional.softplus(there)) / (z - there)
    expected = torch.zeros_like(PICTURES)
    expected[:, :, 4:7, 0:3] = net[0].weight[1].detach()
    expected = expected * slope.view(-1, 1, 1, 1) * (PICTURES - 0.3)
    assert near(a.scores, expected, 1e-10)


# Baselines


@pytest.mark.parametrize("baseline", BASELINES, ids=repr)
def test_the_way_begins_at_the_baseline(baseline):
    """Of a linear network the weight times the way; of a squared one the change, with every number its own."""
    weight, x = uniform(2, 192, dtype=torch.float64), 2 * uniform(2, 3, 8, 8, dtype=torch.float64)
    start = baseline.values(x, PREPARE)
    a = pl.DeepLIFT(baseline=baseline)(pl.TorchModel(Linear(weight), preprocess=PREPARE), x, target=1)
    torch.testing.assert_close(a.scores, weight[1].view(3, 8, 8) * (x - start), rtol=1e-11, atol=1e-14)
    squared = pl.TorchModel(Of(lambda x: x.square().flatten(1) @ weight.T).eval(), preprocess=PREPARE)
    a = pl.DeepLIFT(baseline=baseline)(squared, x, target=1)
    torch.testing.assert_close(a.scores, weight[1].view(3, 8, 8) * (x**2 - start**2), rtol=1e-10, atol=1e-13)


def test_black_is_the_default_where_it_is_known_and_captum_begins_at_the_models_zero():
    weight, x = uniform(1, 192, dtype=torch.float64), uniform(1, 3, 8, 8, dtype=torch.float64)
    black = torch.tensor([-0.5 / 0.2, -0.4 / 0.25, -0.3 / 0.3], dtype=torch.float64).view(3, 1, 1)
    for explain, start in ((pl.DeepLIFT(), black), (pl.DeepLIFT.captum(), 0.0)):
        a = explain(pl.TorchModel(Linear(weight), preprocess=PREPARE), x, target=0)
        torch.testing.assert_close(a.scores, weight.view(1, 3, 8, 8) * (x - start), rtol=1e-6, atol=1e-6)
    assert pl.DeepLIFT.captum() == pl.DeepLIFT(baseline=pl.Zeros())


@pytest.mark.doors
@pytest.mark.parametrize("baseline", [0.0, pl.Zeros, (pl.Zeros(), pl.Blur()), None])
def test_wrong_baselines_say_what_to_write(baseline):
    with pytest.raises(pl.ArgumentError, match=r"`baseline` is one such as pl.Pixel\(0.0\)"):
        pl.DeepLIFT(baseline=baseline)


@pytest.mark.doors
def test_a_pixel_needs_to_know_what_inputs_are_made_of():
    with pytest.raises(pl.ArgumentError, match=r"preprocess=\.\.\."):
        pl.DeepLIFT(baseline=pl.Pixel(0.0))(pl.TorchModel(tanh_net(9)), X, target=0)


# Company, size and means


@pytest.mark.parametrize("rows", [1, 2, 64])
def test_neither_the_micro_batch_nor_the_company_changes_a_map(rows):
    whole = pl.DeepLIFT()(pl.TorchModel(picture_net()), PICTURES, target=[0, 1, 2])
    divided = pl.DeepLIFT()(pl.TorchModel(picture_net(), micro_batch=rows), PICTURES, target=[0, 1, 2])
    assert near(divided.scores, whole.scores, 1e-12)
    torch.testing.assert_close(torch.tensor(divided.recipe.notes["change"]), torch.tensor(whole.recipe.notes["change"]))
    for i in range(3):
        alone = pl.DeepLIFT()(pl.TorchModel(picture_net(), micro_batch=rows), PICTURES[i : i + 1], target=i)
        assert near(alone.scores[0], whole.scores[i], 1e-12)


def test_in_parts_of_the_batch_each_row_keeps_its_own_baseline():
    """A blur differs from row to row, so that the parts must be of the same rows."""
    explain = pl.DeepLIFT(baseline=pl.Blur(1.5))
    whole = explain(pl.TorchModel(picture_net()), PICTURES, target=1)
    divided = explain(pl.TorchModel(picture_net(), micro_batch=2), PICTURES, target=1)
    assert near(divided.scores, whole.scores, 1e-12)
    assert float(divided.residual.abs().max()) < 1e-12


@pytest.mark.parametrize("by_name", [True, False])
def test_several_inputs_share_the_change_among_those_that_are_not_held(by_name):
    net, given = seeded(Several), several()
    x = given if by_name else tuple(given.values())
    a = pl.DeepLIFT(baseline=pl.Constant(0.2))(pl.TorchModel(net), x, target=1)
    names = ["vector", "picture"] if by_name else ["0", "1"]
    assert list(a.parts) == names
    vector, picture, group = given.values()
    with torch.no_grad():  # known(v) * mean(seen(p)) + group, tanh, head: by hand
        known = [net.known(v) for v in (vector, torch.full_like(vector, 0.2))]
        seen = [net.seen(p).mean((2, 3)) for p in (picture, torch.full_like(picture, 0.2))]
        inner = [k * s + net.group(group).sum(1) for k, s in zip(known, seen, strict=True)]
        outer = net.head.weight[1] * (inner[0].tanh() - inner[1].tanh()) / (inner[0] - inner[1])
        by_known, by_seen = outer * (seen[0] + seen[1]) / 2, outer * (known[0] + known[1]) / 2
        of_vector = by_known @ net.known.weight * (vector - 0.2)
        kernel = by_seen @ net.seen.weight.flatten(1) / 6  # of 2 x 3 places
        spread = torch.zeros_like(picture)
        for i in range(2):
            for j in range(3):
                spread[:, 0, i : i + 3, j : j + 3] += kernel.view(-1, 3, 3)
        of_picture = spread * (picture - 0.2)
    assert near(a.parts[names[0]], of_vector, 1e-11)
    assert near(a.parts[names[1]], of_picture, 1e-11)
    assert not a.scores[:, -2:].any(), "the groups are held"


def test_over_noisy_copies_it_is_the_mean_of_its_maps():
    model, base = pl.TorchModel(tanh_net(9)), pl.DeepLIFT(baseline=START)
    a = pl.SmoothGrad(base=base, n_samples=4, seed=2, noise_level=0.1)(model, X, target=1)
    stream = Key.of(X[0]).stream(2)
    copies = [X + 0.1 * 2.4 * torch.from_numpy(normal(stream, i, (9,))).double() for i in range(4)]
    maps = torch.stack([base(model, copy, target=1).scores for copy in copies])
    assert near(a.scores, maps.mean(0), 1e-12)
    assert near(a.standard_error, maps.std(0) / 2, 1e-9)


def test_it_costs_two_passes_and_one_back():
    a = pl.DeepLIFT()(pl.TorchModel(picture_net()), PICTURES, target=0)
    assert (a.cost.forward, a.cost.backward) == (6, 3)
    card = pl.DeepLIFT().card
    assert (card.cost.forward, card.cost.backward, card.applicability) == (2, 1, pl.Applicability.MODEL_SPECIFIC)


# What it leaves behind


class Writing(nn.Module):
    """Writes into its input and into what it made, as networks for small machines do."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(9, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(0.5)
        y = self.one(x)
        return self.two(nn.functional.relu_(y) + 1)


def test_the_network_and_the_input_are_as_before():
    net = seeded(Writing).train()
    net.one.weight.grad = torch.ones_like(net.one.weight)
    net.two.bias.requires_grad_(False)
    before, x = copy.deepcopy(net.state_dict()), X.clone()
    random, grad = torch.get_rng_state(), torch.is_grad_enabled()
    a = pl.DeepLIFT(baseline=START)(pl.TorchModel(net), x, target=1)
    assert float(a.residual.abs()) < 1e-13
    assert torch.equal(x, X)
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in before.items())
    assert net.training
    assert torch.equal(net.one.weight.grad, torch.ones_like(net.one.weight))
    assert net.two.weight.grad is None
    assert [p.requires_grad for p in net.parameters()] == [True, True, True, False]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.is_grad_enabled() == grad


@pytest.mark.doors
def test_after_a_refusal_all_is_as_before_and_works():
    net = nn.Sequential(nn.Linear(9, 6), Of(lambda z: z.sort(1).values), nn.Linear(6, 2)).double().eval()
    model = pl.TorchModel(net)
    with pytest.raises(pl.RuleError, match="'sort'"):
        pl.DeepLIFT()(model, X, target=0)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert near(pl.SimpleGradient()(model, X, target=0).scores, pl.SimpleGradient()(model, X, target=0).scores)


@pytest.mark.doors
def test_a_function_offers_no_operations():
    with pytest.raises(pl.MissingNeed, match=r"DeepLIFT needs gradients and operations, but .* offers scores"):
        pl.DeepLIFT()(pl.FunctionModel(lambda x: x[:, :2]), X, target=0)


def test_a_stored_result_keeps_its_residual_and_runs_again(tmp_path):
    model = pl.TorchModel(picture_net())
    explain = pl.DeepLIFT(baseline=pl.Blur(1.5))
    a = explain(model, PICTURES, target=[0, 1, 2])
    loaded = pl.Attribution.load(a.save(tmp_path / "a.safetensors"))
    again = loaded.reproduce(model, PICTURES)
    assert torch.equal(loaded.residual, a.residual)
    assert torch.equal(again.scores, a.scores)
    assert torch.equal(again.residual, a.residual)
    assert pickle.loads(pickle.dumps(explain)) == explain
    assert hash(explain) == hash(pl.DeepLIFT(baseline=pl.Blur(1.5)))


def test_a_memory_limit_divides_the_rows_and_changes_no_map():
    net = seeded(lambda: nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 62 * 62, 3)))
    x = 2 * uniform(12, 3, 64, 64, dtype=torch.float64) - 0.6
    whole = pl.DeepLIFT(baseline=START)(pl.TorchModel(net, micro_batch=12), x, target=1)
    limited = pl.DeepLIFT(baseline=START)(pl.TorchModel(net, memory_limit="120MiB"), x, target=1)
    assert limited.recipe.run["micro_batch"] < 12
    assert near(limited.scores, whole.scores, 1e-11)
    assert float((limited.residual / torch.tensor(limited.recipe.notes["change"])).abs().max()) < 1e-9


@pytest.mark.parametrize(
    "f", [lambda x: torch.where(x > 0, x, 0), lambda x: x * (x > 0), lambda x: x.masked_fill(x <= 0, 0)]
)
def test_rectifiers_that_are_written_with_masks_are_rescaled_too(f):
    """The gradient of a mask is nothing, so that a product with it would leave a residual."""
    nets = {}
    for name, act in (("relu", torch.relu), ("mask", f)):
        nets[name] = seeded(lambda act=act: Calling(lambda net, x: net.two(act(net.one(x))), one=nn.Linear(9, 6),
                                                     two=nn.Linear(6, 2)))  # fmt: skip
    maps = {name: pl.DeepLIFT(baseline=START)(pl.TorchModel(net), X, target=1) for name, net in nets.items()}
    assert near(maps["mask"].scores, maps["relu"].scores, 1e-12)
    assert float(maps["mask"].residual.abs()) < 1e-12
