import pytest
import torch
from tests.explainers import encoders
from tests.explainers.encoders import TEXTS, THERE, FromEmbeddings, TextEncoder, TextLSTM
from tests.explainers.paths import Several, X, exactly, gradient, near, picture_net, seeded, several, tanh_net
from tests.oracles import Linear, conv_net, uniform
from torch import Tensor, nn

import pellucid as pl
from pellucid.core.card import Per
from pellucid.core.random import Key, normal

V = torch.linspace(-1, 1.4, 9, dtype=torch.float64)[None]


@pytest.mark.parametrize("layer", ["0", "1", "2", "4", "6", "7"])
def test_the_gradient_at_a_layer_is_that_of_autograd(layer):
    net, k = conv_net(dtype=torch.float64).eval(), int(layer) + 1
    x = uniform(4, 3, 9, 9, dtype=torch.float64)
    targets = [0, 1, 2, 1]
    a = pl.AtLayer(base=pl.SimpleGradient(), layer=layer)(pl.TorchModel(net), x, target=targets)
    activation = net[:k](x).detach()
    expected = gradient(lambda u: net[k:](u)[torch.arange(4), targets], activation)
    assert a.scores.shape == activation.shape
    assert near(a.scores, expected, 1e-12)
    assert a.recipe.notes["layer"] == [layer] * 4


def test_integrated_gradients_at_a_layer_go_from_a_value_of_its_activation():
    net = picture_net()
    for baseline, start in ((pl.Zeros(), 0.0), (pl.BlackOrZero(), 0.0), (pl.Constant(0.3), 0.3)):
        prepare = pl.ImagePreprocess(size=(9, 11), mean=0.5, std=0.5)
        explain = pl.AtLayer(base=pl.IntegratedGradients(baseline=baseline), layer="1")
        a = explain(pl.TorchModel(net, preprocess=prepare), X, target=1)
        units = net[:2](X).detach()
        expected = exactly(lambda u: net[2:](u)[:, 1], units, torch.full_like(units, start))
        assert near(a.scores, expected, 1e-9)
        whole = (net(X) - net[2:](torch.full_like(units, start)))[:, 1].detach()
        torch.testing.assert_close(a.residual, a.scores.flatten(1).sum(1) - whole, rtol=0, atol=1e-12)
        assert float(a.residual.abs().max()) < 1e-9


def test_activation_times_gradient_of_a_linear_head_is_what_each_unit_adds():
    net = tanh_net(9)
    a = pl.AtLayer(base=pl.InputXGradient(), layer="1")(pl.TorchModel(net), V, target=1)
    assert near(a.scores, net[:2](V).detach() * net[2].weight[1].detach(), 1e-12)


class Around(nn.Module):
    """relu(A x) * (B x): a path leads around the layer `inner`."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.other = nn.Linear(9, 5), nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.inner(x)) * self.other(x)


def test_what_leads_around_the_layer_keeps_what_the_input_gave():
    net = seeded(Around)
    x = torch.cat([V, 1 - V])
    explain = pl.AtLayer(base=pl.IntegratedGradients(n_steps=400), layer="inner")
    a = explain(pl.TorchModel(net, micro_batch=7), x, target=2)
    units = net.inner(x).detach()
    expected = torch.zeros_like(units)
    expected[:, 2] = (units.clamp(min=0) * net.other(x).detach())[:, 2]
    torch.testing.assert_close(a.scores, expected, rtol=1e-9, atol=1e-12)
    assert float(expected.abs().max()) > 0.05


@pytest.mark.parametrize(
    "base", [pl.SimpleGradient(), pl.IntegratedGradients(n_steps=4), pl.GuidedIntegratedGradients(n_steps=4)], ids=repr
)
def test_at_a_first_layer_that_does_nothing_it_is_the_base(base):
    inner = picture_net()
    net = nn.Sequential(nn.Identity(), inner)
    found = pl.AtLayer(base=base, layer="0")(pl.TorchModel(net), X, target=2)
    plain = base(pl.TorchModel(inner), X, target=2)
    assert near(found.scores, plain.scores, 1e-12)
    if plain.residual is not None:
        torch.testing.assert_close(found.residual, plain.residual, rtol=0, atol=1e-12)


def test_the_default_is_the_last_layer_of_cells_before_pooling():
    net = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 6, 2), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
    )
    a = pl.AtLayer()(pl.TorchModel(net), X, target=0)
    assert a.recipe.notes["layer"] == ["3"] * 3
    assert a.scores.shape == (3, 6, 3, 4)


@pytest.mark.parametrize("rows", [1, 2, 7, 64])
@pytest.mark.parametrize(
    "base", [pl.SimpleGradient(), pl.IntegratedGradients(n_steps=5), pl.SmoothGrad(n_samples=5)], ids=repr
)
def test_neither_the_micro_batch_nor_the_company_changes_a_map(base, rows):
    net, explain = picture_net(), pl.AtLayer(base=base, layer="2")
    whole = explain(pl.TorchModel(net), X, target=[0, 1, 2])
    split = explain(pl.TorchModel(net, micro_batch=rows), X, target=[0, 1, 2])
    assert near(split.scores, whole.scores, 1e-12)
    for i in range(3):
        alone = explain(pl.TorchModel(net), X[i : i + 1], target=i)
        assert near(alone.scores[0], whole.scores[i], 1e-12)


def test_smooth_grad_at_a_layer_disturbs_its_activation():
    """Sigma is a share of the activation's own range, and the noise that of the input's key. tanh' = 1 - tanh^2."""
    net = tanh_net(9)
    explain = pl.AtLayer(base=pl.SmoothGrad(n_samples=5, noise_level=0.2, seed=4), layer="0")
    a = explain(pl.TorchModel(net), V, target=1)
    units = net[0](V).detach()
    sigma = 0.2 * (units.max() - units.min())
    stream = Key.of(V[0]).stream(4)
    maps = []
    for i in range(5):
        noise = torch.from_numpy(normal(stream, i, (7,))).double()[:6]  # behind them stands the input's number
        maps.append(net[2].weight[1].detach() * (1 - torch.tanh(units + sigma * noise) ** 2))
    assert near(a.scores, torch.stack(maps).mean(0), 1e-12)
    assert near(a.standard_error, torch.stack(maps).std(0) / 5**0.5, 1e-9)
    assert a.samples_used == 5


def test_noise_on_the_input_may_stand_before_the_layer():
    """SmoothGrad over AtLayer disturbs the input, AtLayer over SmoothGrad the activation."""
    net, base = tanh_net(9), pl.AtLayer(layer="0")
    model = pl.TorchModel(net)
    a = pl.SmoothGrad(base=base, n_samples=4, noise_level=0.1)(model, V, target=0)
    stream = Key.of(V[0]).stream(0)
    copies = [V + 0.1 * 2.4 * torch.from_numpy(normal(stream, i, (9,))).double() for i in range(4)]
    assert near(a.scores, torch.stack([base(model, c, target=0).scores for c in copies]).mean(0), 1e-12)
    assert a.recipe.notes["layer"] == ["0"]


def test_expected_gradients_at_a_layer_take_baselines_of_its_activation():
    net = seeded(lambda: nn.Sequential(nn.Linear(9, 6), Linear(uniform(2, 6, dtype=torch.float64))))
    base = pl.ExpectedGradients(baselines=(pl.Constant(0.5),), n_samples=3)
    a = pl.AtLayer(base=base, layer="0")(pl.TorchModel(net), V, target=1)
    assert near(a.scores, net[1].linear.weight[1].detach() * (net[0](V).detach() - 0.5), 1e-12)


def test_a_layer_of_a_network_of_several_inputs():
    net, parts = seeded(Several), several()
    a = pl.AtLayer(base=pl.IntegratedGradients(), layer="known")(pl.TorchModel(net), parts, target=1)
    units = net.known(parts["vector"]).detach()
    seen = net.seen(parts["picture"]).mean((2, 3)).detach()
    group = net.group(parts["group"]).sum(1).detach()
    expected = exactly(lambda u: net.head(torch.tanh(u * seen + group))[:, 1], units, torch.zeros_like(units))
    assert near(a.scores, expected, 1e-9)


def test_its_card_is_that_of_its_base_at_a_layer():
    card = pl.AtLayer(base=pl.IntegratedGradients(n_steps=8)).card
    assert card.name == "at-layer-integrated-gradients"
    assert card.per is Per.UNIT
    assert card.cost == pl.Cost(11, 8)
    assert pl.AtLayer().card.unit == "score per unit of activation"


@pytest.mark.doors
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"base": pl.FullGrad()}, "with a number for each feature, such as pl.IntegratedGradients"),
        ({"base": pl.AtLayer()}, "with a number for each feature"),
        ({"base": pl.GradCAM()}, "with a number for each feature"),
        ({"base": pl.SimpleGradient}, "with a number for each feature"),
        ({"layer": 3}, "`layer` is the name of a module. Got 3"),
    ],
)
def test_wrong_settings_say_what_to_write(settings, words):
    with pytest.raises(pl.ArgumentError, match=words):
        pl.AtLayer(**settings)


@pytest.mark.doors
def test_a_layer_that_there_is_not_is_named_with_its_neighbours():
    with pytest.raises(pl.LayerError, match=r"The network has no layer 'iner'\. Did you mean 'inner'"):
        pl.AtLayer(layer="iner")(pl.TorchModel(seeded(Around)), V)


def test_a_sampled_map_at_a_layer_is_drawn_and_says_that_it_cannot_be_extended():
    model, x = pl.TorchModel(conv_net()), uniform(1, 3, 9, 9)
    a = pl.AtLayer(base=pl.SmoothGrad(n_samples=4), layer="2")(model, x, 0)
    assert pl.heatmap(a).pixels.ndim == 3
    with pytest.raises(pl.ArgumentError, match="no state is kept"):
        a.extend(model, x, 4)


def test_a_background_is_of_the_layers_activations():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    model, x = pl.TorchModel(net), uniform(2, 3, dtype=torch.float64)
    rows = uniform(1, 4, seed=3, dtype=torch.float64)
    base = pl.ExpectedGradients(baselines=pl.Background.of(rows), n_samples=3)
    a = pl.AtLayer(base=base, layer="1")(model, x, 1)
    expected = (torch.tanh(net[0](x)) - rows) * net[2].weight[1]  # linear from there on: exact with any samples
    assert torch.allclose(a.scores, expected.detach(), rtol=1e-10)


# Tokens: whole numbers, which something embeds

TEXT_NETS = {
    **{way: lambda way=way: TextEncoder(way) for way in ("apart", "joined", "fused")},
    "lstm": TextLSTM,
}
BASES = [pl.SimpleGradient(), pl.LRP(), pl.LRP.attn_lrp(), pl.LRP.epsilon(0.0), pl.DeepLIFT()]


@pytest.mark.parametrize("build", TEXT_NETS.values(), ids=TEXT_NETS)
@pytest.mark.parametrize("base", BASES, ids=repr)
def test_tokens_are_explained_where_they_are_embedded_as_if_embeddings_were_given(base, build):
    net = encoders.seeded(build)
    a = pl.AtLayer(base=base, layer="embedding")(pl.TorchModel(net), {"tokens": TEXTS[:2]}, target=1)
    expected = base(pl.TorchModel(FromEmbeddings(net)), net.embedding(TEXTS[:2]).detach(), target=1)
    assert a.scores.shape == (2, 5, encoders.WIDTH)
    assert near(a.scores, expected.scores, 1e-12)
    assert not a.findings
    assert float(a.decisions[0].score) == pytest.approx(net(TEXTS[:1])[0, 1].item(), rel=1e-12)


@pytest.mark.parametrize("build", TEXT_NETS.values(), ids=TEXT_NETS)
def test_deep_lift_towards_embeddings_divides_all_that_they_change(build):
    net = encoders.seeded(build)
    a = pl.AtLayer(base=pl.DeepLIFT(), layer="embedding")(pl.TorchModel(net), (TEXTS,), target=2)
    whole = net(TEXTS) - net.embedded(torch.zeros(3, 5, encoders.WIDTH, dtype=torch.float64))
    torch.testing.assert_close(a.scores.flatten(1).sum(1), whole[:, 2].detach(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("base", [pl.LRP.attn_lrp(), pl.DeepLIFT(), pl.SimpleGradient()], ids=repr)
@pytest.mark.parametrize("way", ["apart", "fused"])
def test_tokens_that_a_mask_hides_get_nothing(base, way):
    net = encoders.seeded(lambda: TextEncoder(way))
    given = {"tokens": TEXTS, "there": THERE}
    a = pl.AtLayer(base=base, layer="embedding")(pl.TorchModel(net), given, target=0)
    assert not a.scores[2, 3:].any()
    assert a.scores[:2].abs().amax(-1).min() > 0
    short = pl.AtLayer(base=base, layer="embedding")(pl.TorchModel(net), {"tokens": TEXTS[2:, :3]}, target=0)
    assert near(a.scores[2:, :3], short.scores, 1e-10)


def test_samples_are_drawn_around_embeddings():
    net = encoders.seeded(TextEncoder)
    explain = pl.AtLayer(base=pl.SmoothGrad(base=pl.LRP.attn_lrp(), n_samples=4), layer="embedding")
    a = explain(pl.TorchModel(net), (TEXTS,), target=0)
    assert float(a.standard_error.max()) > 0


@pytest.mark.doors
@pytest.mark.parametrize("explain", [pl.SimpleGradient(), pl.IntegratedGradients(), pl.LRP(), pl.DeepLIFT()], ids=repr)
def test_tokens_themselves_are_refused_with_the_layer_that_embeds_them(explain):
    model = pl.TorchModel(encoders.seeded(TextEncoder))
    with pytest.raises(pl.ArgumentError, match=r"whole numbers.*AtLayer\(base=\.\.\., layer='embedding'\)"):
        explain(model, {"tokens": TEXTS})
    with pytest.raises(pl.ArgumentError, match=r"AtLayer\(base=\.\.\., layer=\.\.\.\)"):
        explain(model, TEXTS)
