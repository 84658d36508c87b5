"""A map shows things where the input has them, swept over the catalogue; enlarged cells lie in their places."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from tests.contract.test_methods import attends
from tests.oracles import MeanToken, Tokens, uniform
from torch import Tensor, nn

import pellucid as pl
from pellucid.catalogue import registered
from pellucid.core.explainer import Explainer
from pellucid.core.input import View
from pellucid.modalities.image.draw import overlay_pixels
from pellucid.modalities.image.heatmap import spread, to_heatmap

LOCAL = [m for m in registered().values() if issubclass(m, Explainer)]
# Deconvnet's map depends on the input through the switches of max pools alone, of which there are none here.
# A set that flips the class need not be where the object is; RISE's map stands on a constant whose noise hides a small
# object (DebiasedRISE has the same masks).
NOWHERE = (pl.Deconvnet, pl.SmallestChange, pl.RISE)
PLACED = [m for m in LOCAL if m().card.modalities & {pl.Modality.IMAGE} and m not in NOWHERE]
SIDES = (48, 40)
STRIDE = 4


def detector() -> nn.Module:
    """It sees bright squares: positive weights, and thresholds that an empty place does not reach. So nothing happens
    where nothing is, not at the borders either, and a picture moved by whole strides gives all layers moved.
    """
    net = nn.Sequential(
        nn.Conv2d(3, 6, 5, 2, 2), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2),
    ).double()  # fmt: skip
    with torch.no_grad():
        for i, parameter in enumerate(net.parameters()):
            parameter.copy_(uniform(*parameter.shape, seed=i, dtype=torch.float64))
        net[0].weight /= 20
        net[2].weight /= 20
        net[0].bias.fill_(-0.5)
        net[2].bias.fill_(-0.1)
    return net


def attentive() -> nn.Module:
    """Its tokens are squares of 4 x 4 pixels that know nothing of where they are."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.Sequential(nn.Conv2d(3, 8, 4, 4), Tokens(), layer, MeanToken(), nn.Linear(8, 2)).double()


def picture(top: int, left: int) -> Tensor:
    """A bright square, brighter towards one of its corners."""
    x = torch.zeros(1, 3, *SIDES, dtype=torch.float64)
    down, along = torch.meshgrid(torch.linspace(1, 1.5, 8), torch.linspace(0, 0.5, 8), indexing="ij")
    x[:, :, top : top + 8, left : left + 8] = (down + along).double()
    return x


def found_shift(one: Tensor, other: Tensor) -> tuple[int, int]:
    """By how much the second map is the first one moved: where their circular correlation is greatest."""
    spectra = [torch.fft.fft2(part.flatten(0, 1).double()) for part in (one, other)]
    correlation = torch.fft.ifft2(spectra[0].conj() * spectra[1]).real.sum(0)
    best, wide = int(correlation.argmax()), correlation.shape[1]
    high = correlation.shape[0]
    down, along = best // wide, best % wide
    return (down - high if down > high // 2 else down), (along - wide if along > wide // 2 else along)


def quick(method: type) -> pl.Explainer:
    """The method with few samples and steps. At the last layer the gradient is alike everywhere, so times the units."""
    if method is pl.AtLayer:
        return pl.AtLayer(base=pl.InputXGradient())
    names = {f.name for f in fields(method)}
    few: dict = {"n_samples": 12, "n_steps": 12}
    if method().card.access == "black-box":  # squares of 4 x 4 pixels, by which objects are moved
        few = {"budget": 1500, "segments": pl.Patches((12, 10)), "baseline": pl.Zeros(), "window": 8, "stride": 4}
        few["cells"] = 10
    return method(**{name: value for name, value in few.items() if name in names and not fixed(method, name)})


def fixed(method: type, name: str) -> bool:
    """Whether it is no setting of this method, though one of its bases has it."""
    return not next(f for f in fields(method) if f.name == name).init


@pytest.mark.parametrize("method", PLACED, ids=lambda m: m().card.name)
@pytest.mark.parametrize(("down", "along"), [(8, -4), (-4, 8)])
def test_a_moved_object_moves_the_map_by_as_much(method, down, along):
    explain = quick(method)
    model = pl.TorchModel(attentive() if attends(explain) else detector())
    a = explain(model, picture(16, 14), target=1)
    b = explain(model, picture(16 + down, 14 + along), target=1)
    step = SIDES[0] // a.scores.shape[2]
    assert step == SIDES[1] // a.scores.shape[3]
    assert step in (1, STRIDE)
    assert a.scores.any()
    assert found_shift(a.scores, b.scores) == (down // step, along // step)
    if not explain.card.sampled:
        expected = a.scores.roll((down // step, along // step), (2, 3))
        slack = 1e4 * torch.finfo(expected.dtype).eps * float(expected.abs().max())
        assert float((b.scores - expected).abs().max()) <= slack


# Pictures of cells


def cells(values: Tensor) -> tuple[pl.Explainer, pl.TorchModel, Tensor]:
    """A method, a model and an input of 7 pixels to a cell, for which the map is these values."""
    net = nn.Sequential(nn.AvgPool2d(7), nn.Flatten(), nn.Linear(values.numel(), 1, bias=False)).double()
    nn.init.ones_(net[2].weight)
    x = torch.kron(values, torch.ones(7, 7))[None, None].double()
    return pl.HiResCAM(layer="0"), pl.TorchModel(net), x


def enlarged_by_method(values: Tensor) -> np.ndarray:
    method, model, x = cells(values)
    return pl.Upsampled(base=method)(model, x, target=0).scores[0, 0].numpy()


def enlarged_by_drawing(values: Tensor) -> np.ndarray:
    method, model, x = cells(values)
    return to_heatmap(method(model, x, target=0), channels="sum").values


def enlarged_on_a_photo(values: Tensor) -> np.ndarray:
    """As an overlay spreads it over a photo of the input's size."""
    high, wide = values.shape
    return spread(7 * high, 0, 7 * high, high) @ values.double().numpy() @ spread(7 * wide, 0, 7 * wide, wide).T


paths = pytest.mark.parametrize(
    "enlarged", [enlarged_by_method, enlarged_by_drawing, enlarged_on_a_photo], ids=["method", "drawing", "photo"]
)


@paths
def test_an_enlarged_map_is_flipped_with_its_cells(enlarged):
    values = uniform(4, 5, seed=2)
    slack = 100 * np.finfo(np.float64).eps
    for axis in (0, 1):
        np.testing.assert_allclose(enlarged(values.flip(axis)), np.flip(enlarged(values), axis), atol=slack)
    symmetric = values + values.flip(1)
    np.testing.assert_allclose(enlarged(symmetric), np.flip(enlarged(symmetric), 1), atol=slack)


@paths
def test_a_single_lit_cell_lies_in_the_middle_of_its_tile(enlarged):
    values = torch.zeros(4, 5)
    values[1, 3] = 1
    found = enlarged(values)
    assert np.unravel_index(found.argmax(), found.shape) == (7 * 1 + 3, 7 * 3 + 3)
    down, along = ((found.sum(1 - axis) * np.arange(found.shape[axis])).sum() / found.sum() for axis in (0, 1))
    np.testing.assert_allclose((down, along), (7 * 1 + 3, 7 * 3 + 3), rtol=100 * np.finfo(np.float64).eps)


def test_in_an_overlay_a_lit_cell_is_brightest_in_the_middle_of_its_tile():
    values = torch.zeros(4, 5)
    values[1, 3] = 1
    method, model, x = cells(values)
    photo = torch.zeros(28, 35, 3, dtype=torch.uint8)
    view = View("image", {"box": [0, 0, 35, 28], "size": [28, 35]}, photo)
    pixels = overlay_pixels(view, to_heatmap(method(model, x, target=0), limit=2.0)).sum(2, dtype=int)
    assert np.unravel_index(pixels.argmax(), pixels.shape) == (7 * 1 + 3, 7 * 3 + 3)
    around = pixels[7 - 3 : 14 + 3, 21 - 3 : 28 + 3]  # the lines fall to zero in the neighbours' centres
    np.testing.assert_array_equal(around, around[::-1, ::-1])
    assert around.min() < around.max()


def test_on_a_photo_the_map_lies_in_the_crop_that_the_model_saw():
    """Five cells from 20 to 55 of 100 pixels: the fourth is centred at 44.5, between two pixels."""
    along = spread(100, 20, 55, 5)[:, 3]
    assert along[44] == along.max() == 1
    np.testing.assert_allclose((along * (np.arange(100) + 0.5)).sum() / along.sum(), 20 + 3.5 * 7, rtol=1e-12)
