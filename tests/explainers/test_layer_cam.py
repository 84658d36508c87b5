import pytest
import torch
from tests.explainers.cells import X, alike, curved, flat, taken

import pellucid as pl


@pytest.mark.parametrize("net", [flat(positive=True), flat(), curved()], ids=["positive", "flat", "curved"])
def test_it_is_the_activation_where_the_gradient_is_positive(net):
    a, g = taken(net, "1", X, lambda out: out[:, 1])
    expected = torch.relu(torch.where(g > 0, g * a, 0.0).sum(1, keepdim=True))
    assert alike(pl.LayerCAM(layer="1")(pl.TorchModel(net), X, target=1).scores, expected)


def test_negative_gradients_do_not_outweigh_positive_ones():
    """With the gradient's sign the map is HiResCAM's, which is zero or less here and there."""
    model = pl.TorchModel(flat(positive=True))
    layer, hires = (method(model, X, target=1).scores for method in (pl.LayerCAM(), pl.HiResCAM()))
    assert float(hires.min()) < 0 <= float((layer - hires).min())
