"""Attention rollout by its equation. How attention is written, and of which tokens, is in test_attention.py."""

from typing import Any

import pytest
import torch
from tests.core.networks import Calling
from tests.explainers.encoders import TOKENS, WIDTH, attentions, encoder, read, rolled, seeded
from tests.explainers.paths import near
from tests.oracles import uniform
from torch import Tensor, nn

import pellucid as pl

PICTURES = 2 * uniform(2, 3, 8, 6, seed=4, dtype=torch.float64) - 1


def map_of(net: nn.Module, x: Tensor = TOKENS, target: int = 0) -> Tensor:
    return pl.AttentionRollout()(pl.TorchModel(net), x, target=target).scores


@pytest.mark.parametrize("layers", [1, 2, 4])
@pytest.mark.parametrize("prefix", [0, 1])
def test_it_is_the_equation_sum_by_sum(layers, prefix):
    net = encoder(layers=layers, prefix=prefix)
    flow = rolled(attentions(net, TOKENS)[0])
    assert near(map_of(net), read(flow, prefix, (5,)), 1e-12)


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_of_uniform_attention_it_is_known(layers):
    """All look at all alike: on what differs from the mean, each layer's (J / T + I) / 2 halves. So of another token
    the class token has (1 - 2^-L) / T after L layers.
    """
    net = encoder(layers=layers, prefix=1)
    with torch.no_grad():
        for block in net.blocks:
            block.attend.in_proj_weight.zero_()
            block.attend.in_proj_bias[: 2 * WIDTH] = 0
    found = map_of(net, PICTURES)
    torch.testing.assert_close(found, torch.full((2, 1, 4, 3), (1 - 0.5**layers) / 13, dtype=torch.float64))


def test_later_layers_stand_to_the_left():
    """By permutations, which do not commute: each token takes all from the next, then token 0 from token 2 and so on.
    A class token before three steps; layer by layer 0 <- 1 <- 2 <- 3 <- 0, then the tokens 0 and 3 from each other.
    """
    one = torch.eye(4, dtype=torch.float64).roll(1, 1)
    two = torch.eye(4, dtype=torch.float64)[[3, 1, 2, 0]]

    def forward(net: Any, x: Tensor) -> Tensor:
        y = torch.cat([net.start.expand(len(x), 1, WIDTH), x], 1)
        for permutation in (one, two):
            y = torch.softmax(0 * (y @ y.mT) + 1000 * permutation, -1) @ y
        return net.head(y[:, 0])

    net = Calling(forward, head=seeded(lambda: nn.Linear(WIDTH, 2)))
    net.start = nn.Parameter(torch.zeros(1, 1, WIDTH, dtype=torch.float64))
    # (two + 1) / 2 (one + 1) / 2 from token 0: half from 0, half from 3; these from 0 and 1, and from 3 and 0.
    assert map_of(net, TOKENS[:, :3])[0, 0].tolist() == [0.25, 0.0, 0.25]


def test_of_all_tokens_the_shares_sum_to_one():
    torch.testing.assert_close(map_of(encoder()).sum((1, 2)), torch.ones(3, dtype=torch.float64), rtol=1e-12, atol=0)
    assert bool((map_of(encoder()) >= 0).all())


def test_behind_a_class_token_its_own_share_is_missing():
    """It keeps half of what it has in each layer at the least."""
    net = encoder(prefix=1)
    own = torch.from_numpy(rolled(attentions(net, PICTURES)[0])[:, 0, 0].copy())
    assert bool((own >= 0.5**3).all())
    torch.testing.assert_close(map_of(net, PICTURES).sum((1, 2, 3)), 1 - own, rtol=1e-12, atol=0)


def test_heads_count_alike_by_their_mean():
    """Each head is another attention, of which the mean is the one of which the other heads know nothing."""
    net = encoder(layers=1)
    [a], _ = attentions(net, TOKENS)
    assert float(abs(a[:, 0] - a[:, 1]).max()) > 0.1
    mean = torch.from_numpy(a.mean(1))
    expected = ((mean + torch.eye(5)) / 2).mean(1, keepdim=True)
    assert near(map_of(net), expected, 1e-12)


def test_it_is_the_same_for_every_target():
    net = encoder()
    first = map_of(net)
    assert near(map_of(net, target=2), first, 1e-12)
    found = pl.AttentionRollout()(pl.TorchModel(net), TOKENS, target=pl.Margin(0, 1)).scores
    assert near(found, first, 1e-12)


def test_its_card_says_so():
    card = pl.AttentionRollout().card
    assert "the same for every target" in card.caveats
    assert card.per is pl.Per.CELL
    assert str(card.access) == "white-box"
