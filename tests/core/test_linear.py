import pytest
import torch
from tests.oracles import Linear, uniform
from torch import nn

import pellucid as pl
from pellucid.core.linear import linear_map


def test_the_weights_are_copies():
    net = Linear(uniform(2, 3), torch.tensor([1.0, 2.0]))
    weight, bias = linear_map(net.linear, "net", lambda x: net.linear(x).detach())
    assert torch.equal(weight, uniform(2, 3))
    assert bias.tolist() == [1, 2]
    weight += 1
    assert torch.equal(net.linear.weight, uniform(2, 3))


def test_what_forward_does_besides_is_found():
    class Squared(nn.Linear):
        def forward(self, x):
            return super().forward(x) ** 2

    net = Squared(3, 2)
    with pytest.raises(pl.MissingNeed, match=r"outputs are not W x \+ b"):
        linear_map(net, "net", lambda x: net(x).detach())


def test_other_layers_are_named():
    with pytest.raises(pl.MissingNeed, match="net has Linear, Linear"):
        linear_map(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "net", nn.Identity())
