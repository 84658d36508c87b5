import pytest
import torch
from tests.explainers.cells import X, alike, curved, flat, taken

import pellucid as pl


@pytest.mark.parametrize("net", [flat(), curved()], ids=["flat", "curved"])
def test_the_gradient_counts_where_the_channel_is_active(net):
    a, g = taken(net, "1", X, lambda out: out[:, 1])
    shares = a / a.sum((2, 3), keepdim=True)
    expected = torch.relu(((shares * g).sum((2, 3), keepdim=True) * a).sum(1, keepdim=True))
    found = pl.XGradCAM(layer="1")(pl.TorchModel(net), X, target=1).scores
    assert alike(found, expected)
    assert float((found == 0).double().mean()) > 0, "what speaks against the target is cut off"


def test_before_a_linear_head_of_positive_weights_it_sums_to_the_score_less_its_bias():
    """The paper's conservation: sum_k w_k sum_ij A_k = sum_k sum_ij A_k dS/dA_k."""
    net = flat(positive=True)
    with torch.no_grad():
        net[3].weight.abs_()
    a = pl.XGradCAM()(pl.TorchModel(net), X, target=2)
    torch.testing.assert_close(a.scores.sum((1, 2, 3)) + net[3].bias[2].detach(), a.outputs[:, 2])


def test_a_channel_that_is_nowhere_active_weighs_nothing():
    net = flat(positive=True)
    net[1] = torch.nn.ReLU()
    with torch.no_grad():
        net[0].bias[:3] = -100
    a, g = (part[:, 3:] for part in taken(net, "1", X, lambda out: out[:, 0]))
    expected = torch.relu(((g * a).sum((2, 3), keepdim=True) / a.sum((2, 3), keepdim=True) * a).sum(1, keepdim=True))
    assert alike(pl.XGradCAM()(pl.TorchModel(net), X, target=0).scores, expected)
