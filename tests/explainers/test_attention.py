"""What both methods of attention share: which attentions are found, of which tokens, and what is refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.core.networks import Calling, same_state, state_of
from tests.explainers.encoders import (
    TEXTS,
    THERE,
    TOKENS,
    WAYS,
    WIDTH,
    FromEmbeddings,
    TextEncoder,
    attentions,
    encoder,
    read,
    rolled,
    seeded,
    spoken_for,
)  # fmt: skip
from tests.explainers.paths import near
from tests.oracles import Constant, Linear, uniform
from torch import Tensor, nn

import pellucid as pl

ROLLOUT, GRADIENT = pl.AttentionRollout(), pl.GradientXAttention()
PICTURES = 2 * uniform(2, 3, 8, 6, seed=4, dtype=torch.float64) - 1
"""Of patches of 2 x 2 pixels, 4 x 3; their number, 12, is that of a grid 3 x 4 too."""

both = pytest.mark.parametrize("explain", [ROLLOUT, GRADIENT], ids=["rollout", "gradient"])


def expected(explain: pl.Explainer, net: nn.Module, x: Tensor, target: int = 0) -> Any:
    """The flow (B, T, T), by loops, of an encoder whose attention is written with the heads apart."""
    layers, gradients = attentions(net, x, target)
    return rolled(layers) if explain == ROLLOUT else spoken_for(layers, gradients)


def map_of(explain: pl.Explainer, net: nn.Module, x: Tensor = TOKENS, target: int = 0, **settings: Any) -> Tensor:
    return explain(pl.TorchModel(net, **settings), x, target=target).scores


def looking(forward: Any, **parts: nn.Module) -> nn.Module:
    """A network with layers for queries, keys and values besides."""
    return seeded(
        lambda: Calling(forward, **{n: nn.Linear(WIDTH, WIDTH) for n in "qkv"}, head=nn.Linear(WIDTH, 3), **parts)
    )


def weights(net: Any, x: Tensor) -> Tensor:
    return torch.softmax(net.q(x) @ net.k(x).mT, -1)


# However it is written


@both
@pytest.mark.parametrize("way", WAYS)
def test_attention_has_one_map_however_it_is_written(explain, way):
    flow = expected(explain, encoder(), TOKENS, 1)
    found = map_of(explain, encoder(way), target=1)
    assert near(found, read(flow, 0, (5,)), 1e-11)
    assert len(attentions(encoder(), TOKENS)[0]) == 3, "so that the order of layers shows"


@both
@pytest.mark.parametrize("way", WAYS)
def test_what_a_mask_hides_is_seen_by_nobody(explain, way):
    """A mask of -inf: of a token that only the first may look at, nothing comes but by the first and by itself."""
    mask = torch.zeros(5, 5, dtype=torch.float64).masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    flow = expected(explain, encoder(mask=mask), TOKENS, 1)
    assert not flow[:, 0, 1:].any(), "the first token looks at nobody else"
    assert near(map_of(explain, encoder(way, mask=mask), target=1), read(flow, 0, (5,)), 1e-11)


@both
@pytest.mark.parametrize("first", [True, False])
def test_torchs_own_encoder_is_its_attention_modules(explain, first):
    """The weights that nn.MultiheadAttention returns, layer by layer, and autograd's gradients by them."""

    def build() -> nn.Module:
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 9, batch_first=True, norm_first=first)
        net = nn.Sequential(
            nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Flatten(), nn.Linear(5 * WIDTH, 3)
        )
        with torch.no_grad():
            for each in net[0].layers:
                each.self_attn.in_proj_weight.mul_(torch.rand(()) * 4 + 2)
        return net

    net, x, kept = seeded(build), TOKENS, []
    y = x
    for layer in net[0].layers:
        given = layer.norm1(y) if first else y
        attend = layer.self_attn
        q, k, v = nn.functional.linear(given, attend.in_proj_weight, attend.in_proj_bias).chunk(3, -1)
        q, k, v = (t.unflatten(-1, (2, 3)).transpose(1, 2) for t in (q, k, v))
        kept.append(torch.softmax(q @ k.mT / 3**0.5, -1))
        made = attend.out_proj((kept[-1] @ v).transpose(1, 2).flatten(2))
        if first:
            y = y + made
            y = y + layer.linear2(torch.relu(layer.linear1(layer.norm2(y))))
        else:
            y = layer.norm1(y + made)
            y = layer.norm2(y + layer.linear2(torch.relu(layer.linear1(y))))
    score = net[1:](y)[:, 2]
    torch.testing.assert_close(score, net(x)[:, 2], rtol=1e-10, atol=1e-12)
    gradients = [g.numpy() for g in torch.autograd.grad(score.sum(), kept)]
    layers = [a.detach().numpy() for a in kept]
    flow = rolled(layers) if explain == ROLLOUT else spoken_for(layers, gradients)
    assert near(map_of(explain, net, target=2), read(flow, 0, (5,)), 1e-11)


@both
def test_weights_that_are_scaled_and_moved_before_they_are_used_are_still_attention(explain):
    def plain(net: Any, x: Tensor) -> Tensor:
        return net.head((x + weights(net, x) @ net.v(x)).mean(1))

    def moved(net: Any, x: Tensor) -> Tensor:
        a = weights(net, x).mT.contiguous().mT.unsqueeze(1) * 2.0
        return net.head((x + (a @ net.v(x).unsqueeze(1)).squeeze(1) / 2).mean(1))

    assert near(map_of(explain, looking(moved)), map_of(explain, looking(plain)), 1e-11)


@both
def test_attention_with_only_one_head_needs_no_axis_for_it(explain):
    kept = []

    def forward(net: Any, x: Tensor) -> Tensor:
        kept.append(weights(net, x))
        return net.head((x + kept[-1] @ net.v(x)).mean(1))

    net = looking(forward)
    score = net(TOKENS)[:, 1].sum()
    a, g = kept[-1].detach()[:, None].numpy(), torch.autograd.grad(score, kept[-1])[0][:, None].numpy()
    flow = rolled([a]) if explain == ROLLOUT else spoken_for([a], [g])
    assert near(map_of(explain, net, target=1), read(flow, 0, (5,)), 1e-11)


@both
def test_a_block_that_runs_twice_counts_twice(explain):
    once, twice, apart = encoder(layers=1), encoder(layers=1), encoder(layers=2)
    twice.blocks.append(twice.blocks[0])
    apart.load_state_dict(twice.state_dict())
    assert near(map_of(explain, twice), read(expected(explain, apart, TOKENS), 0, (5,)), 1e-11)
    assert not near(map_of(explain, once), map_of(explain, twice), 1e-2)


# What is no attention


@both
def test_the_softmax_of_a_classifier_is_no_attention(explain):
    """Nor where what it gives is weighed by numbers: class embeddings, a mixture of constants."""
    net = encoder()
    flow = expected(explain, net, TOKENS)
    mixture = seeded(lambda: nn.Linear(3, 3, bias=False))
    with torch.no_grad():
        mixture.weight.copy_(torch.eye(3))
    for head in (nn.Softmax(1), nn.Sequential(nn.Softmax(1), mixture), nn.LogSoftmax(1)):
        whole = Calling(lambda net, x: net.after(net.net(x)), net=net, after=head).eval()
        found = map_of(explain, whole)
        if explain == ROLLOUT:
            assert near(found, read(flow, 0, (5,)), 1e-11)
        assert found.shape == (3, 1, 5)
    lone = nn.Sequential(Linear(uniform(3, 30, dtype=torch.float64)), nn.Softmax(1), mixture)
    with pytest.raises(pl.RuleError, match="executed no attention on the way to the target"):
        map_of(explain, lone)


@both
def test_an_attention_that_does_not_lead_to_the_target_does_not_count(explain):
    def forward(net: Any, x: Tensor) -> Tensor:
        aside = weights(net, x[:, :2]) @ net.v(x[:, :2])
        return (net.net(x), aside)[0]

    net = encoder()
    whole = looking(forward, net=net)
    whole.net.load_state_dict(net.state_dict())
    assert near(map_of(explain, whole), read(expected(explain, net, TOKENS), 0, (5,)), 1e-11)


# Of which tokens


@both
@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
def test_the_cells_of_a_picture_are_its_patches(explain, prefix):
    """Of a class token and registers the first counts, and they are no cells; of none before them the mean counts."""
    net = encoder(prefix=prefix)
    flow = expected(explain, net, PICTURES, 2)
    assert near(map_of(explain, net, PICTURES, 2), read(flow, prefix, (4, 3)), 1e-11)


@both
@pytest.mark.parametrize("shape", [(6, 6), (4, 12)], ids=["square", "wide"])
def test_cells_have_the_pictures_proportions(explain, shape):
    net, x = encoder(prefix=1), uniform(1, 3, *shape, dtype=torch.float64)
    cells = (shape[0] // 2, shape[1] // 2)
    assert near(map_of(explain, net, x), read(expected(explain, net, x), 1, cells), 1e-11)


@both
@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_a_sequence_has_a_number_for_each_step(explain, prefix):
    net = encoder(prefix=prefix)
    a = explain(pl.TorchModel(net), TOKENS, target=1)
    assert near(a.scores, read(expected(explain, net, TOKENS, 1), prefix, (5,)), 1e-11)


@both
def test_of_several_inputs_it_is_a_map_of_the_tokens(explain):
    inner = encoder(prefix=1)
    net = Calling(lambda net, vector, picture: net.net(picture) * vector, net=inner).eval()
    vector = uniform(2, 3, seed=3, dtype=torch.float64) + 0.5
    found = explain(pl.TorchModel(net), (vector, PICTURES), target=1).scores
    by_hand = rolled(attentions(inner, PICTURES)[0])
    if explain == GRADIENT:  # the gradient of each input is multiplied by its vector
        layers, gradients = attentions(inner, PICTURES, 1)
        factor = vector[:, 1].numpy()[:, None, None, None]
        by_hand = spoken_for(layers, [g * factor for g in gradients])
    assert near(found, read(by_hand, 1, (4, 3)), 1e-11)


# Company


@both
@pytest.mark.parametrize("way", ["apart", "joined", "fused", "module"])
@pytest.mark.parametrize("rows", [None, 1, 2])
def test_neither_the_micro_batch_nor_the_company_changes_a_map(explain, way, rows):
    net = encoder(way)
    whole = explain(pl.TorchModel(net, micro_batch=rows), TOKENS, target=[0, 2, 1]).scores
    for i, target in enumerate([0, 2, 1]):
        alone = map_of(explain, net, TOKENS[i : i + 1], target)
        assert near(whole[i : i + 1], alone, 1e-11)


@both
def test_in_single_precision_it_is_the_same_to_its_digits(explain):
    """Three layers of sums of five: some hundred roundings of the largest number, and exponentials of some tens."""
    found = map_of(explain, encoder("module").float(), TOKENS.float(), 1)
    assert found.dtype == torch.float32
    assert near(found.double(), read(expected(explain, encoder(), TOKENS, 1), 0, (5,)), 2000 * 2**-24)


@both
def test_the_network_is_afterwards_as_before(explain):
    net = encoder("module").train()
    before = state_of(net)
    map_of(explain, net)
    assert same_state(state_of(net), before)


@both
def test_dropout_does_nothing_in_a_network_that_was_in_training(explain):
    net = encoder("dropout").train()
    assert near(map_of(explain, net), read(expected(explain, encoder(), TOKENS), 0, (5,)), 1e-11)


@both
def test_a_stored_result_runs_again(explain, tmp_path):
    model = pl.TorchModel(encoder(prefix=1))
    a = explain(model, PICTURES, target=[0, 2])
    loaded = pl.Attribution.load(a.save(tmp_path / "a.safetensors"))
    assert torch.equal(loaded.reproduce(model, PICTURES).scores, a.scores)


# What is refused


@pytest.mark.doors
@both
def test_a_network_without_attention_is_told_so(explain):
    for net in (Linear(uniform(2, 30, dtype=torch.float64)), Constant()):
        with pytest.raises(pl.RuleError, match=r"executed no attention on the way to the target: .*pl\.methods"):
            map_of(explain, net)


@pytest.mark.doors
@both
def test_attention_to_other_tokens_is_named_by_its_module(explain):
    class Latent(nn.Module):
        """Two learnt queries look at the tokens."""

        def __init__(self) -> None:
            super().__init__()
            self.queries, self.k = nn.Parameter(torch.randn(2, WIDTH)), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            return torch.softmax(self.queries @ self.k(x).mT, -1) @ x

    net = seeded(lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), Latent(), nn.Flatten(), nn.Linear(2 * WIDTH, 3)))
    with pytest.raises(pl.RuleError, match=r"attend to each other, \(\.\.\., T, T\), but .* is \(1, 2, 5\)"):
        map_of(explain, net)
    with pytest.raises(pl.RuleError, match=r"the attention of the module '1' is \(1, 2, 5\)"):
        explain.operations(pl.TorchModel(net), TOKENS, 0)


@pytest.mark.doors
@both
def test_attentions_among_other_numbers_of_tokens_are_told(explain):
    """A pyramid: five tokens first, then three; and heads of other numbers."""

    def pyramid(net: Any, x: Tensor) -> Tensor:
        y = x + weights(net, x) @ net.v(x)
        y = y[:, ::2]
        return net.head((y + weights(net, y) @ net.v(y)).mean(1))

    with pytest.raises(pl.RuleError, match=r"\(1, 3, 3\) and \(1, 5, 5\).*SimpleGradient\(\)"):
        map_of(explain, looking(pyramid))

    def windows(net: Any, x: Tensor) -> Tensor:
        y = x[:, :4]
        y = y + weights(net, y) @ net.v(y)
        y = y.reshape(-1, 2, WIDTH)
        return net.head((y + weights(net, y) @ net.v(y)).reshape(-1, 4, WIDTH).mean(1))

    with pytest.raises(pl.RuleError, match=r"\(1, 4, 4\) and \(2, 2, 2\)"):
        map_of(explain, looking(windows))

    def as_many_tokens(net: Any, x: Tensor) -> Tensor:
        y = x + weights(net, x) @ net.v(x)
        y = torch.cat([y, y])
        return net.head((y + weights(net, y) @ net.v(y)).reshape(2, -1, 5, WIDTH).mean((0, 2)))

    with pytest.raises(pl.RuleError, match=r"\(1, 5, 5\) and \(2, 5, 5\)"):
        map_of(explain, looking(as_many_tokens))


@pytest.mark.doors
@both
def test_tokens_that_are_no_places_are_told(explain):
    """Fewer tokens than steps; and a picture's tokens whose number is that of no grid: 14 patches of 9 x 23 pixels."""

    def fewer(net: Any, x: Tensor) -> Tensor:
        y = x[:, :4]
        return net.head((y + weights(net, y) @ net.v(y)).mean(1))

    with pytest.raises(pl.LayerError, match=r"Expected the 4 tokens to be places of inputs \(5, 6\)"):
        map_of(explain, looking(fewer))

    def rows(net: Any, x: Tensor) -> Tensor:
        y = x.flatten(1)[:, : 3 * WIDTH].unflatten(1, (3, WIDTH))
        return net.head((y + weights(net, y) @ net.v(y)).mean(1))

    with pytest.raises(pl.LayerError, match=r"Expected the 3 tokens to be places of inputs \(3, 4, 40\)"):
        map_of(explain, looking(rows), uniform(2, 3, 4, 40, dtype=torch.float64))


@both
@pytest.mark.parametrize("way", ["apart", "fused"])
def test_whole_numbers_have_the_map_of_their_embeddings(explain, way):
    net = seeded(lambda: TextEncoder(way))
    given = explain(pl.TorchModel(net), {"tokens": TEXTS}, target=1)
    expected = explain(pl.TorchModel(FromEmbeddings(net)), net.embedding(TEXTS).detach(), target=1)
    assert given.scores.shape == (3, 1, 5)
    torch.testing.assert_close(given.scores, expected.scores, rtol=1e-10, atol=1e-12)
    hidden = explain(pl.TorchModel(net), {"tokens": TEXTS, "there": THERE}, target=1)
    short = explain(pl.TorchModel(net), {"tokens": TEXTS[2:, :3]}, target=1)
    assert not hidden.scores[2, 0, 3:].any()
    torch.testing.assert_close(hidden.scores[2:, :, :3], short.scores, rtol=1e-10, atol=1e-12)


@both
def test_where_the_head_reads_the_first_of_a_text_its_row_counts(explain):
    """It reads no other, so that what the others have of each token says nothing of the decision."""
    net = seeded(TextEncoder)
    x = net.embedding(TEXTS).detach()
    whole = FromEmbeddings(net)
    kept: list[Tensor] = []
    for block in net.blocks:
        block.kept = kept
    gradients = torch.autograd.grad(whole(x.requires_grad_())[:, 1].sum(), kept)
    for block in net.blocks:
        block.kept = None
    layers, by = ([t.detach().numpy() for t in each] for each in (kept, gradients))
    flow = rolled(layers) if explain == ROLLOUT else spoken_for(layers, by)
    found = map_of(explain, whole, x.detach(), target=1)
    torch.testing.assert_close(found[:, 0], torch.from_numpy(flow[:, 0]), rtol=1e-9, atol=1e-12)


# What is no grid of rows and heads


def written(forward: Callable[[nn.Module, Tensor], Tensor], **parts: nn.Module) -> pl.TorchModel:
    net = nn.Module()
    for name, part in parts.items():
        net.add_module(name, part.double())
    net.forward = lambda x: forward(net, x)  # type: ignore[method-assign]
    return pl.TorchModel(net)


def heads_first(net: nn.Module, x: Tensor) -> Tensor:
    q, k, v = (one(x).unflatten(-1, (2, 3)).permute(2, 0, 1, 3).flatten(0, 1) for one in (net.q, net.k, net.v))
    y = torch.softmax(q @ k.mT, -1) @ v
    return net.head(y.unflatten(0, (2, -1)).permute(1, 2, 0, 3).flatten(2).mean(1))


def linear_attention(net: nn.Module, x: Tensor) -> Tensor:
    q, k, v = (one(x) for one in (net.q, net.k, net.v))
    return net.head((q @ (torch.softmax(k, 1).mT @ v)).mean(1))


def projections(width: int) -> dict[str, nn.Module]:
    return {name: nn.Linear(width, width) for name in ("q", "k", "v")} | {"head": nn.Linear(width, 2)}


@pytest.mark.parametrize("method", [pl.AttentionRollout(), pl.GradientXAttention()], ids=lambda m: m.card.name)
def test_heads_that_come_before_the_rows_are_not_taken_for_rows(method):
    model, x = written(heads_first, **projections(6)), uniform(3, 5, 6, dtype=torch.float64)
    together = method(model, x, target=0).scores
    alone = torch.cat([method(model, x[i : i + 1], target=0).scores for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-14)


def test_attention_in_windows_apart_from_heads_is_refused():
    def apart(net: nn.Module, x: Tensor) -> Tensor:
        tokens = net.p(x).unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 4, 5, 1).flatten(1, 2).flatten(2, 3)
        q, k, v = (one(tokens).unflatten(-1, (2, 3)).transpose(-3, -2) for one in (net.q, net.k, net.v))
        y = (torch.softmax(q @ k.mT, -1).flatten(0, 1) @ v.flatten(0, 1)).unflatten(0, (len(x), -1))
        return net.head(y.transpose(-3, -2).flatten(-2).flatten(1, 2).mean(1))

    model = written(apart, p=nn.Conv2d(3, 6, 2, 2), **projections(6))
    with pytest.raises(pl.RuleError, match="windows"):
        pl.AttentionRollout()(model, uniform(1, 3, 8, 8, dtype=torch.float64), target=0)


@pytest.mark.parametrize("channels", [1, 2])
def test_the_patches_of_a_signal_are_not_taken_for_the_steps_of_a_sequence(channels):
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        tokens = net.p(x).transpose(1, 2)
        return net.head((torch.softmax(net.q(tokens) @ net.k(tokens).mT, -1) @ net.v(tokens)).mean(1))

    model = written(forward, p=nn.Conv1d(channels, 6, 4, 4), **projections(6))
    with pytest.raises(pl.LayerError, match="no grid"):
        pl.AttentionRollout()(model, uniform(2, channels, 40, dtype=torch.float64), target=0)


def test_a_softmax_over_another_axis_is_no_attention():
    model = written(linear_attention, **projections(6))
    with pytest.raises(pl.RuleError, match="no attention"):
        pl.AttentionRollout()(model, uniform(2, 6, 6, dtype=torch.float64), target=0)
