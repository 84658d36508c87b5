import pytest
import torch
from tests.explainers.cells import X, alike, curved, enlarged, seeded, tent
from tests.oracles import Linear, uniform
from torch import Tensor, nn

import pellucid as pl


def cells_of(x: Tensor, cells: torch.Size) -> tuple[pl.Explainer, pl.TorchModel]:
    """A method and a network for which the map is three times the mean of the input over each of so many cells."""
    pool = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}[len(cells)]
    convolution = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[len(cells)]
    head = nn.Linear(3 * cells.numel(), 1, bias=False)
    net = nn.Sequential(pool(cells), convolution(1, 3, 1, bias=False), nn.Flatten(), head).double()
    for weight in net.parameters():
        nn.init.ones_(weight)
    return pl.HiResCAM(layer="1"), pl.TorchModel(net)


@pytest.mark.parametrize(
    ("shape", "cells"),
    [((12,), (4,)), ((9, 10), (3, 4)), ((8, 12), (8, 3)), ((6, 4, 9), (3, 2, 4))],
    ids=["signal", "picture", "one axis", "volume"],
)
def test_cells_are_enlarged_by_lines_between_their_centres_along_each_axis(shape, cells):
    x = uniform(2, 1, *shape, dtype=torch.float64)
    method, model = cells_of(x, torch.Size(cells))
    expected = method(model, x, target=0).scores
    for axis, (size, count) in enumerate(zip(shape, cells, strict=True), start=2):
        along = torch.from_numpy(tent(size, count))
        expected = torch.tensordot(along, expected, dims=([1], [axis])).movedim(0, axis)
    a = pl.Upsampled(base=method)(model, x, target=0)
    assert a.scores.shape == (2, 1, *shape)
    assert alike(a.scores, expected)


def test_its_card_speaks_of_pixels_and_its_recipe_of_the_layer():
    method = pl.Upsampled(base=pl.GradCAM())
    assert method.card.per is pl.Per.PIXEL
    assert method.card.name == "upsampled-grad-cam"
    assert method(pl.TorchModel(curved()), X, target=0).recipe.notes["layer"] == ["3", "3"]


@pytest.mark.parametrize("base", [pl.SimpleGradient(), pl.AtLayer(layer="1")], ids=["features", "units"])
def test_a_map_of_anything_else_than_cells_stays_as_it_is(base):
    model = pl.TorchModel(curved())
    a, plain = pl.Upsampled(base=base)(model, X, target=0), base(model, X, target=0)
    assert torch.equal(a.scores, plain.scores)
    assert pl.Upsampled(base=base).card.per is base.card.per


def test_its_mean_over_noise_is_the_mean_enlarged():
    model, base = pl.TorchModel(curved()), pl.GradCAM(layer="1")
    found = pl.SmoothGrad(base=pl.Upsampled(base=base), n_samples=5)(model, X, target=0).scores
    assert alike(found, enlarged(pl.SmoothGrad(base=base, n_samples=5)(model, X, target=0).scores, 9, 11))


def test_of_several_inputs_it_is_enlarged_to_the_picture():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part, self.own = curved(), seeded(lambda: nn.Linear(4, 3))

        def forward(self, vector: Tensor, picture: Tensor) -> Tensor:
            return self.part(picture) * self.own(vector)

    given, base = {"vector": X[:, 0, 0, :4].contiguous(), "picture": X}, pl.HiResCAM(layer="part.1")
    found = pl.Upsampled(base=base)(pl.TorchModel(Two()), given, target=0).scores
    assert alike(found, enlarged(base(pl.TorchModel(Two()), given, target=0).scores, 9, 11))


def test_each_map_is_stretched_from_its_own_least_to_its_own_greatest():
    base, model = pl.HiResCAM(layer="1"), pl.TorchModel(curved())
    plain = base(model, X, target=0).scores
    a = pl.MinMax(base=base)(model, X, target=0)
    for found, given in zip(a.scores, plain, strict=True):
        span = float(given.max() - given.min())
        assert alike(found, (given - float(given.min())) / (span + 1e-7))
        assert float(found.min()) == 0
        assert float(found.max()) == pytest.approx(span / (span + 1e-7), rel=1e-12)
    assert a.recipe.notes["layer"] == ["1", "1"]
    assert pl.MinMax(base=base).card.unit == "share of the range"


def test_a_level_map_becomes_zero_and_one_that_is_nearly_so_does_not_fill_the_range():
    level = pl.MinMax()(pl.TorchModel(Linear(torch.ones(1, 4, dtype=torch.float64))), torch.ones(1, 4), 0).scores
    assert torch.equal(level, torch.zeros(1, 4, dtype=level.dtype))
    tiny = torch.tensor([[1.0, 1.0, 1.0, 1.0 + 1e-9]], dtype=torch.float64)
    found = pl.MinMax()(pl.TorchModel(Linear(tiny)), torch.ones(1, 4, dtype=torch.float64), 0).scores
    assert float(found.max()) == pytest.approx(1e-9 / (1e-9 + 1e-7), rel=1e-6)


@pytest.mark.doors
@pytest.mark.parametrize("wrap", [pl.Upsampled, pl.MinMax])
def test_a_sampled_base_would_lose_its_error_and_is_refused(wrap):
    with pytest.raises(pl.ArgumentError, match="put SmoothGrad around it"):
        wrap(base=pl.SmoothGrad(base=pl.GradCAM()))
