"""Gradient x attention by its equations. How attention is written, and of which tokens, is in test_attention.py."""

from typing import Any

import pytest
import torch
from tests.core.networks import Calling
from tests.explainers.encoders import TOKENS, WIDTH, attentions, encoder, read, seeded, spoken_for
from tests.explainers.paths import near
from torch import Tensor, nn

import pellucid as pl


def map_of(net: nn.Module, x: Tensor = TOKENS, target: Any = 0) -> Tensor:
    return pl.GradientXAttention()(pl.TorchModel(net), x, target=target).scores


@pytest.mark.parametrize("layers", [1, 2, 4])
@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize("target", [0, 2])
def test_it_is_the_equations_sum_by_sum(layers, prefix, target):
    net = encoder(layers=layers, prefix=prefix)
    flow = spoken_for(*attentions(net, TOKENS, target))
    # Gradients come through the layers in two ways, and many of their products are cut off at zero: of 1e-15.
    assert near(map_of(net, target=target), read(flow, prefix, (5,)), 1e-11)


def one_layer(net: Any, x: Tensor) -> Tensor:
    """Attention given by the tokens' first number, of what their others are, read by weights."""
    y = torch.softmax(x[..., 0][:, None, :].expand(-1, x.shape[1], -1), -1) @ x[..., 1:]
    return net.head(y.mean(1))


def test_of_one_layer_without_a_way_around_it_is_what_each_token_gives():
    """S = mean_t sum_s A_ts w . x_s, so that A_ts dS/dA_ts = A_ts w . x_s / T; of all rows alike its mean is that."""
    net = Calling(one_layer, head=seeded(lambda: nn.Linear(WIDTH - 1, 2)))
    a = torch.softmax(TOKENS[..., 0], -1)
    gives = a * (TOKENS[..., 1:] @ net.head.weight[1].detach()) / 5
    assert bool((gives < 0).any(1).all()), "and something speaks against it"
    assert bool((gives > 0).any(1).all())
    assert near(map_of(net, target=1), gives.clamp(min=0)[:, None], 1e-12)


def test_what_speaks_against_the_target_counts_for_its_opposite():
    net = Calling(one_layer, head=seeded(lambda: nn.Linear(WIDTH - 1, 2)))
    with torch.no_grad():
        net.head.weight[0] = -net.head.weight[1]
    one, other = map_of(net, target=0), map_of(net, target=1)
    assert bool(((one > 0) ^ (other > 0)).all())


def test_products_are_cut_off_before_heads_are_averaged():
    net = encoder(layers=1)
    [a], [g] = attentions(net, TOKENS)
    product = torch.from_numpy(a * g)
    cut = product.clamp(min=0).mean(1).mean(1, keepdim=True)
    after = product.mean(1).clamp(min=0).mean(1, keepdim=True)
    assert not near(after, cut, 1e-2)
    assert near(map_of(net), cut, 1e-11)


def test_it_is_in_units_of_the_score_when_there_is_one_layer():
    net = encoder(layers=1)
    first = map_of(net)
    with torch.no_grad():
        net.head.weight.mul_(3)
    assert near(map_of(net), 3 * first, 1e-11)


def test_what_a_token_has_of_itself_from_the_residual_path_is_left_out():
    """A score that no attention changes has a map of zeros, not of ones."""
    net = encoder(layers=2)
    with torch.no_grad():
        for block in net.blocks:
            block.attend.out_proj.weight.zero_()
    assert not map_of(net).any()


def test_a_target_that_is_no_class_has_gradients_of_its_own():
    net = encoder()
    layers, one = attentions(net, TOKENS, 0)
    _, other = attentions(net, TOKENS, 2)
    flow = spoken_for(layers, [a - b for a, b in zip(one, other, strict=True)])
    assert near(map_of(net, target=pl.Margin(0, 2)), read(flow, 0, (5,)), 1e-11)
