import math

import pytest
import torch
from tests.explainers.cells import X, alike, curved, enlarged, seeded
from tests.oracles import uniform
from torch import Tensor, nn

import pellucid as pl


class Regions(nn.Module):
    """The layer gives the picture's own channels; score c is the mean of all channels over the left or right half."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Identity()
        self.weight = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        total = self.layer(x * self.weight).sum(1)
        half = total.shape[2] // 2
        return torch.stack([total[:, :, :half].mean((1, 2)), total[:, :, half:].mean((1, 2))], 1)


def test_a_mean_of_a_region_has_weights_in_closed_form():
    """Channel 0 is 1 on the left third of 6 x 6, channel 1 is 3 on the right third: with masks of 0 and 1 the score
    of the left half is 2/3 under the first mask and 0 under the second.
    """
    x = torch.zeros(1, 2, 6, 6, dtype=torch.float64)
    x[0, 0, :, :2], x[0, 1, :, 4:] = 1, 3
    first = math.exp(2 / 3) / (math.exp(2 / 3) + 1)
    expected = (first * x[:, 0] + (1 - first) * x[:, 1])[:, None]
    assert alike(pl.ScoreCAM(layer="layer")(pl.TorchModel(Regions()), x, target=0).scores, expected, 100)
    second = math.exp(2) / (math.exp(2) + 1)  # 3 x 2/3 on the right
    expected = ((1 - second) * x[:, 0] + second * x[:, 1])[:, None]
    assert alike(pl.ScoreCAM(layer="layer")(pl.TorchModel(Regions()), x, target=1).scores, expected, 100)


def test_without_its_features_the_input_is_the_baseline():
    """Where the mask is 0 there is now 1/2 in both channels: of 6 x 3 places on the left a third keeps (1, 0)."""
    x = torch.zeros(1, 2, 6, 6, dtype=torch.float64)
    x[0, 0, :, :2], x[0, 1, :, 4:] = 1, 3
    under_first = (2 * 1 + 1 * (0.5 + 0.5)) / 3
    under_second = 0.5 + 0.5
    first = math.exp(under_first) / (math.exp(under_first) + math.exp(under_second))
    assert first == 0.5, "with this baseline the left half tells nothing"
    expected = (x.sum(1) / 2)[:, None]
    method = pl.ScoreCAM(layer="layer", baseline=pl.Constant(0.5))
    assert alike(method(pl.TorchModel(Regions()), x, target=0).scores, expected, 100)


def by_loop(net: nn.Module, layer: str, x: Tensor, target: int, absent: float = 0.0) -> Tensor:
    """Algorithm 1, one channel and one pass at a time."""
    kept: list[Tensor] = []
    handle = net.get_submodule(layer).register_forward_hook(lambda module, args, out: kept.append(out))
    net(x)
    handle.remove()
    maps = []
    for row, a in zip(x, kept[0].detach(), strict=True):
        scores = []
        for channel in a:
            mask = enlarged(channel, *x.shape[2:])
            level = bool((channel == channel[0, 0]).all())
            mask = torch.zeros_like(mask) if level else (mask - mask.min()) / (mask.max() - mask.min())
            with torch.no_grad():
                scores.append(float(net((absent + (row - absent) * mask)[None])[0, target]))
        weights = torch.softmax(torch.tensor(scores, dtype=torch.float64), 0)
        maps.append(torch.relu((weights.view(-1, 1, 1) * a).sum(0)))
    return torch.stack(maps)[:, None]


def test_it_is_the_loop_over_masked_inputs():
    net = curved()
    with torch.no_grad():
        net[5].weight *= 30  # scores that differ: the softmax must tell
    found = pl.ScoreCAM(layer="1")(pl.TorchModel(net), X, target=2).scores
    assert alike(found, by_loop(net, "1", X, 2))
    a = net[1](net[0](X)).detach()
    assert not alike(found, torch.relu(a.mean(1, keepdim=True)), units=1e13)


class HalfDead(nn.Module):
    """Six channels, of which one is zero everywhere, one 1/2 and one saturated; it counts the rows that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = seeded(lambda: nn.Conv2d(3, 6, 3, 2))
        self.head = seeded(lambda: nn.Linear(120, 3))
        with torch.no_grad():
            self.conv.weight[1:4] = 0
            self.conv.bias[1:4] = torch.tensor([-1.0, 0.5, 7.0])
            self.head.weight *= 10
        self.relu = nn.ReLU6()
        self.rows: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.rows.append(len(x))
        return self.head(self.relu(self.conv(x)).flatten(1))


def test_channels_that_mask_everything_share_one_pass():
    net = HalfDead().eval()
    expected, method = by_loop(net, "relu", X, 1), pl.ScoreCAM(layer="relu")
    model = pl.TorchModel(net)
    assert alike(method(model, X, target=1).scores, expected)
    net.rows.clear()
    a = method(model, X, target=1)
    # Of each of two inputs: the prediction, three live channels and one for three dead ones.
    assert sum(net.rows) == 2 * (1 + 3 + 1)
    assert a.cost == pl.Cost(forward=2 * (1 + 3 + 1))


def test_one_baseline_for_all_dead_channels():
    net = HalfDead().eval()
    found = pl.ScoreCAM(layer="relu", baseline=pl.Constant(0.3))(pl.TorchModel(net), X, target=1).scores
    assert alike(found, by_loop(net, "relu", X, 1, absent=0.3))


def test_scores_too_large_for_exp_are_no_trouble():
    net = curved()
    with torch.no_grad():
        net[5].weight *= 1e6
    found = pl.ScoreCAM(layer="1")(pl.TorchModel(net), X, target=2).scores
    assert torch.isfinite(found).all()
    assert alike(found, by_loop(net, "1", X, 2))


def test_black_is_black_in_the_units_of_the_model():
    prepare = pl.ImagePreprocess(size=(9, 11), mean=0.5, std=0.25)
    net = HalfDead().eval()
    model = pl.TorchModel(net, preprocess=prepare)
    found = pl.ScoreCAM(layer="relu", baseline=pl.Pixel(0.0))(model, X, target=1).scores
    assert alike(found, by_loop(net, "relu", X, 1, absent=-2.0))


def test_a_layer_finer_than_the_input_may_be_level_at_its_places():
    """Masks are made by interpolation, at which a fine pattern may vanish: its channel then masks everything."""

    class Finer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fine = nn.ConvTranspose2d(1, 2, 2, 2, bias=False).double()
            with torch.no_grad():
                self.fine.weight[0, 0] = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])  # level once each tile is averaged
                self.fine.weight[0, 1] = 1

        def forward(self, x: Tensor) -> Tensor:
            return self.fine(x).square().mean((2, 3))

    x = torch.ones(1, 1, 4, 4, dtype=torch.float64)
    x[..., :2] = 0.5
    net = Finer()
    found = pl.ScoreCAM(layer="fine")(pl.TorchModel(net), x, target=0).scores
    assert torch.isfinite(found).all()
    under = torch.tensor([0.0, float(net(torch.where(x == 1, 1.0, 0.0).double())[0, 0].detach())])
    weights = torch.softmax(under.double(), 0)
    expected = torch.relu((weights.view(1, 2, 1, 1) * net.fine(x).detach()).sum(1, keepdim=True))
    assert alike(found, expected)


class Two(nn.Module):
    """A picture and a vector: the vector scales the head."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.own = curved(), seeded(lambda: nn.Linear(4, 3))

    def forward(self, picture: Tensor, vector: Tensor) -> Tensor:
        return self.part(picture) * 10 * self.own(vector)


@pytest.mark.parametrize("order", [("picture", "vector"), ("vector", "picture")], ids=" first, then ".join)
def test_of_several_inputs_the_picture_is_masked_and_the_others_stay(order):
    net, parts = Two(), {"picture": X, "vector": X[:, 0, 0, :4].contiguous()}
    given = {name: parts[name] for name in order}
    found = pl.ScoreCAM(layer="part.1")(pl.TorchModel(net), given, target=0).scores
    rows = [Beside(net, parts["vector"][i : i + 1]) for i in range(len(X))]
    expected = [by_loop(row, "net.part.1", X[i : i + 1], 0) for i, row in enumerate(rows)]
    assert alike(found, torch.cat(expected))


class Beside(nn.Module):
    """The network of a picture and a vector as one of the picture."""

    def __init__(self, net: nn.Module, vector: Tensor) -> None:
        super().__init__()
        self.net, self.vector = net, vector

    def forward(self, picture: Tensor) -> Tensor:
        return self.net(picture, self.vector)


@pytest.mark.doors
def test_a_baseline_is_a_baseline():
    with pytest.raises(pl.ArgumentError, match="`baseline` is one such as"):
        pl.ScoreCAM(baseline=0)


@pytest.mark.doors
def test_black_needs_to_be_known():
    with pytest.raises(pl.ArgumentError, match="preprocess"):
        pl.ScoreCAM(baseline=pl.Pixel(0.0))(pl.TorchModel(curved()), X, target=0)


def test_of_several_inputs_a_held_part_of_the_pictures_shape_is_not_masked():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3)

        def forward(self, picture, mask):
            return (self.conv(picture).relu().mean((2, 3)) * (1 + mask.float().mean((1, 2, 3)))[:, None])[:, :2]

    picture, mask = uniform(1, 1, 12, 12), torch.ones(1, 1, 12, 12, dtype=torch.int64)
    model = pl.TorchModel(Two())
    one = pl.ScoreCAM(layer="conv")(model, {"mask": mask, "picture": picture}, 0).scores
    other = pl.ScoreCAM(layer="conv")(model, {"picture": picture, "mask": mask}, 0).scores
    assert torch.equal(one, other)
