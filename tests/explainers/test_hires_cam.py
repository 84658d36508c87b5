import pytest
import torch
from tests.explainers.cells import X, alike, curved, flat, pooled, taken

import pellucid as pl


@pytest.mark.parametrize("net", [flat(), curved()], ids=["flat", "curved"])
def test_it_is_the_activation_times_the_gradient_cell_by_cell(net):
    a, g = taken(net, "1", X, lambda out: out[:, 0])
    found = pl.HiResCAM(layer="1")(pl.TorchModel(net), X, target=0).scores
    assert alike(found, (a * g).sum(1, keepdim=True))
    assert float(found.min()) < 0 < float(found.max())


@pytest.mark.parametrize("net", [flat(), pooled()], ids=["flat", "pooled"])
def test_before_a_linear_head_it_sums_to_the_score_less_its_bias(net):
    a = pl.HiResCAM()(pl.TorchModel(net), X, target=[2, 1])
    bias = net[-1].bias.detach()[[2, 1]]
    torch.testing.assert_close(a.scores.sum((1, 2, 3)) + bias, a.outputs[[0, 1], [2, 1]], rtol=1e-12, atol=1e-12)


def test_after_a_global_pool_it_is_grad_cam_before_its_relu():
    model = pl.TorchModel(pooled())
    hires, grad = (method(model, X, target=1).scores for method in (pl.HiResCAM(), pl.SignedGradCAM()))
    assert alike(hires, grad)


def test_where_the_score_reads_one_cell_only_that_cell_is_lit():
    """Grad-CAM spreads such a cell's weight over all cells of the channel."""
    net = flat()
    with torch.no_grad():
        net[3].weight.view(3, 6, 4, 5)[:, :, torch.arange(20).view(4, 5) != 7] = 0
    lit = pl.HiResCAM()(pl.TorchModel(net), X, target=0).scores[:, 0] != 0
    assert lit.nonzero().tolist() == [[0, 1, 2], [1, 1, 2]]
    assert int((pl.SignedGradCAM()(pl.TorchModel(net), X, target=0).scores != 0).sum()) > 2
