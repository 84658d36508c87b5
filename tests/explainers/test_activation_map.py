"""What the members of the family share: which layer, whose cells, of which targets and inputs."""

import math

import pytest
import torch
from tests.explainers.cells import X, alike, curved, enlarged, flat, grad_cam, seeded, taken
from tests.oracles import uniform
from torch import Tensor, nn

import pellucid as pl

FAMILY = [pl.GradCAM, pl.SignedGradCAM, pl.GradCAMPlusPlus, pl.HiResCAM, pl.XGradCAM, pl.LayerCAM, pl.EigenCAM,
          pl.ScoreCAM, pl.AblationCAM]  # fmt: skip
every = pytest.mark.parametrize("method", FAMILY, ids=lambda method: method.__name__)


# Which layer


@every
def test_by_default_it_is_the_last_layer_of_cells_and_the_recipe_names_it(method):
    model = pl.TorchModel(curved())
    a = method()(model, X, target=1)
    assert a.recipe.notes["layer"] == ["3", "3"]
    assert torch.equal(a.scores, method(layer="3")(model, X, target=1).scores)
    other = method(layer="1")(model, X, target=1)
    assert other.recipe.notes["layer"] == ["1", "1"]
    assert not torch.equal(a.scores, other.scores)


class Shared(nn.Module):
    """One activation module that runs three times."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three, self.head = seeded(
            lambda: nn.ModuleList(
                [nn.Conv2d(3, 6, 3, 2), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 5, 3, 2), nn.Linear(10, 3)]
            )
        )
        self.relu = nn.Softplus()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.one(x))
        x = self.relu(self.two(x))
        return self.head(self.relu(self.three(x)).flatten(1))


class Apart(Shared):
    """The same with a module for each run."""

    def __init__(self) -> None:
        super().__init__()
        self.relus = nn.ModuleList([nn.Softplus() for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        for relu, convolution in zip(self.relus, (self.one, self.two, self.three), strict=True):
            x = relu(convolution(x))
        return self.head(x.flatten(1))


@every
@pytest.mark.parametrize("run", [1, 2, 3])
def test_a_module_that_runs_several_times_is_told_by_the_number_of_the_run(method, run):
    found = method(layer=f"relu:{run}")(pl.TorchModel(Shared().eval()), X, target=0).scores
    expected = method(layer=f"relus.{run - 1}")(pl.TorchModel(Apart().eval()), X, target=0).scores
    assert alike(found, expected)


@every
@pytest.mark.parametrize("named", [True, False], ids=["named", "found"])
def test_what_writes_in_place_after_the_layer_does_not_reach_it(method, named):
    """The convolution's own values, not those that the activation leaves in their place."""

    def net(*, inplace: bool) -> nn.Module:
        made = curved()
        made[1], made[3] = nn.LeakyReLU(0.1, inplace=inplace), nn.LeakyReLU(0.1, inplace=inplace)
        return made

    layer = "2" if named else None
    found = method(layer=layer)(pl.TorchModel(net(inplace=True)), X, target=1).scores
    assert alike(found, method(layer=layer or "3")(pl.TorchModel(net(inplace=False)), X, target=1).scores)


@pytest.mark.doors
@every
@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ("staget", r"no layer 'staget'. Did you mean 'stage'"),
        ("head", r"grid of cells, such as \(B, K, h, w\), for inputs \(3, 9, 11\), but it gave \(1, 3\)"),
        ("relu", r"runs 2 times in one pass.*'relu:1' to 'relu:2'"),
        ("relu:3", r"runs 2 times in one pass, but 'relu:3'"),
        ("unused", r"did not run"),
    ],
)
def test_layers_that_give_no_map_are_refused_with_a_way_out(method, layer, words):
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stage, self.stage2, self.head, self.unused = nn.ModuleList(
                [nn.Conv2d(3, 6, 3, 2), nn.Conv2d(6, 6, 3, 2), nn.Linear(12, 3), nn.Conv2d(3, 6, 3)]
            ).double()
            self.relu = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.relu(self.stage2(self.relu(self.stage(x)))).flatten(1))

    with pytest.raises(pl.LayerError, match=words):
        method(layer=layer)(pl.TorchModel(Named()), X[:1], target=1)


@pytest.mark.doors
@every
def test_a_network_without_cells_is_refused(method):
    net = nn.Sequential(nn.Flatten(), nn.Linear(297, 4), nn.Linear(4, 3)).double()
    with pytest.raises(pl.LayerError, match="grid of cells"):
        method()(pl.TorchModel(net), X, target=1)


@pytest.mark.doors
@every
@pytest.mark.parametrize("layer", [3, (), ("0", 1), ["0"]], ids=repr)
def test_a_layer_is_a_name_or_a_tuple_of_names(method, layer):
    with pytest.raises(pl.ArgumentError, match="`layer` is the name of a module, or a tuple of names"):
        method(layer=layer)


def test_a_layer_that_the_score_does_not_use_has_an_empty_map():
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.idle = curved(), seeded(lambda: nn.Conv2d(3, 4, 3))

        def forward(self, x: Tensor) -> Tensor:
            self.idle(x)
            return self.inner(x)

    a = pl.GradCAM(layer="idle")(pl.TorchModel(Beside()), X, target=1)
    assert a.scores.shape == (2, 1, 7, 9)
    assert not a.scores.any()
    assert "zero-map" in {finding.code for finding in a.findings}


# Several layers


@every
def test_maps_of_several_layers_are_averaged_each_by_its_largest_magnitude_on_the_finest_grid(method):
    """Layers of 9 x 11, 4 x 5 and 2 x 3 cells."""
    net = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 5, 3, 2), nn.Tanh(),
            nn.Conv2d(5, 4, 3, 2, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(24, 3),
        )
    )  # fmt: skip
    model, names = pl.TorchModel(net), ("3", "1", "5")
    a = method(layer=names)(model, X, target=0)
    total = torch.zeros(2, 1, 9, 11, dtype=torch.float64)
    for name in names:
        one = method(layer=name)(model, X, target=0).scores
        total += enlarged(one / one.abs().amax((1, 2, 3), keepdim=True), 9, 11) / 3
    assert alike(a.scores, total)
    assert a.recipe.notes["layer"] == ["3, 1, 5"] * 2


def test_an_empty_map_among_several_stays_empty():
    """One layer's map is cut off everywhere; it is not divided by its largest value, zero."""
    net = flat(positive=True)
    with torch.no_grad():
        net[3].weight[1] = -net[3].weight[1].abs()
    model = pl.TorchModel(net)
    assert not pl.GradCAM(layer="1")(model, X, target=1).scores.any()
    one = pl.GradCAM(layer="0")(model, X, target=1).scores
    expected = one / one.amax((1, 2, 3), keepdim=True) / 2
    assert alike(pl.GradCAM(layer=("1", "0"))(model, X, target=1).scores, expected)


# Targets


@every
def test_inputs_of_a_batch_have_their_own_targets(method):
    model = pl.TorchModel(curved())
    together = method(layer="1")(model, X, target=[2, pl.Margin(0, 1)]).scores
    apart = [method(layer="1")(model, X[:1], target=2), method(layer="1")(model, X[1:], target=pl.Margin(0, 1))]
    assert alike(together, torch.cat([a.scores for a in apart]))


@pytest.mark.parametrize(
    ("target", "score"),
    [
        (pl.Margin(2, 0), lambda out: out[:, 2] - out[:, 0]),
        (pl.Probability(1), lambda out: out.softmax(1)[:, 1]),
        (pl.LogProb(0), lambda out: out.log_softmax(1)[:, 0]),
    ],
    ids=["margin", "probability", "log probability"],
)
def test_any_target_can_be_explained(target, score):
    net = curved()
    found = pl.GradCAM(layer="1")(pl.TorchModel(net), X, target=target).scores
    assert alike(found, grad_cam(*taken(net, "1", X, score)))


def test_a_neuron_of_a_later_layer_can_be_explained():
    net = curved()
    a, g = taken(net[:4], "1", X, lambda out: out[:, 2, 1, 3])
    model, unit = pl.TorchModel(net), pl.Neuron("3", (2, 1, 3))
    assert alike(pl.GradCAM(layer="1")(model, X, target=unit).scores, grad_cam(a, g))
    a, g = taken(net[:4], "1", X, lambda out: out[:, 2].mean((1, 2)))
    assert alike(pl.HiResCAM(layer="1")(model, X, target=pl.Neuron("3", (2,))).scores, (a * g).sum(1, keepdim=True))


def test_a_neurons_map_by_ablation_is_that_of_the_network_which_ends_there():
    net = curved()
    unit = nn.Sequential(*net[:4], nn.Flatten())
    found = pl.AblationCAM(layer="1")(pl.TorchModel(net), X, target=pl.Neuron("3", (2, 1, 3))).scores
    assert alike(found, pl.AblationCAM(layer="1")(pl.TorchModel(unit), X, target=2 * 20 + 1 * 5 + 3).scores)
    found = pl.ScoreCAM(layer="1")(pl.TorchModel(net), X, target=pl.Neuron("3", (2, 1, 3))).scores
    assert alike(found, pl.ScoreCAM(layer="1")(pl.TorchModel(unit), X, target=2 * 20 + 1 * 5 + 3).scores)


class Segments(nn.Module):
    """Class scores of each cell, at the input's resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.body = seeded(lambda: nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.Tanh(), nn.Conv2d(6, 2, 3, padding=1)))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(self.body(x).tanh(), size=x.shape[2:], mode="nearest")


@every
def test_a_region_of_a_segmentation_can_be_explained(method):
    """The mean score over the region, as a network of its own would give it."""
    inside = torch.zeros(9, 11, dtype=torch.bool)
    inside[2:5, 3:7] = True

    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Segments()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)[:, :, inside].mean(2)

    model = pl.TorchModel(Segments(), output="segmentation")
    found = method(layer="body.1")(model, X, target=pl.RegionMean(1, pl.Region.of(inside))).scores
    assert alike(found, method(layer="net.body.1")(pl.TorchModel(Mean()), X, target=1).scores)


class Boxes(nn.Module):
    """A detector of four boxes that hang on the picture as their scores of two classes do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = seeded(lambda: nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(120, 24)))

    def forward(self, x: Tensor) -> Tensor:
        raw = self.body(x).view(len(x), 4, 6)
        left, top = raw[..., 0].sigmoid() * 4, raw[..., 1].sigmoid() * 4
        sides = 3 + raw[..., 2:4].sigmoid()
        corner = torch.stack([left, top], -1)
        return torch.cat([corner, corner + sides, raw[..., 4:].sigmoid()], -1)


def overlap_times_score(out: Tensor, box: tuple[float, ...], index: int) -> Tensor:
    """max_j IoU(box, b_j) s_j, box by box."""
    rows = []
    for row in out:
        values = []
        for left, top, right, bottom, *scores in row:
            wide = torch.clamp(torch.minimum(right, right.new_tensor(box[2])) - torch.clamp(left, min=box[0]), min=0)
            high = torch.clamp(torch.minimum(bottom, bottom.new_tensor(box[3])) - torch.clamp(top, min=box[1]), min=0)
            both = (right - left) * (bottom - top) + (box[2] - box[0]) * (box[3] - box[1]) - wide * high
            values.append(wide * high / both * scores[index])
        rows.append(torch.stack(values).max())
    return torch.stack(rows)


def test_a_box_of_a_detector_can_be_explained():
    net, box = Boxes(), (2.0, 2.0, 5.5, 6.0)
    model, target = pl.TorchModel(net, output="detection"), pl.BoxScore(1, box)
    a, g = taken(net, "body.1", X, lambda out: overlap_times_score(out, box, 1))
    assert alike(pl.GradCAM(layer="body.1")(model, X, target=target).scores, grad_cam(a, g))

    class Score(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return overlap_times_score(self.net(x), box, 1)[:, None]

    scored = pl.TorchModel(Score(), output="regression")
    for method in (pl.ScoreCAM, pl.AblationCAM):
        found = method(layer="body.1")(model, X, target=target).scores
        assert alike(found, method(layer="net.body.1")(scored, X, target=0).scores)


# Inputs and cells


class Two(nn.Module):
    """A picture and a vector, by name; the vector scales what follows the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.own = curved(), seeded(lambda: nn.Linear(4, 100))

    def forward(self, picture: Tensor, vector: Tensor) -> Tensor:
        return self.part[5](self.part[:5](picture) * self.own(vector))


@pytest.mark.parametrize("order", [("picture", "vector"), ("vector", "picture")], ids=" first, then ".join)
def test_of_several_inputs_the_cells_are_the_pictures(order):
    net, parts = Two(), {"picture": X, "vector": X[:, 0, 0, :4].contiguous()}
    given = {name: parts[name] for name in order}
    kept: list[Tensor] = []
    net.part[1].register_forward_hook(lambda module, args, out: kept.append(out))
    score = net(**parts)[:, 2].sum()
    expected = grad_cam(kept[0].detach(), torch.autograd.grad(score, kept[0])[0])
    a = pl.GradCAM()(pl.TorchModel(net), given, target=2)
    assert a.recipe.notes["layer"] == ["part.3"] * 2
    assert alike(pl.GradCAM(layer="part.1")(pl.TorchModel(net), given, target=2).scores, expected)
    with pytest.raises(pl.ArgumentError, match="Read `scores`"):
        _ = a.parts


class Patches(nn.Module):
    """A transformer whose score reads one patch of 3 x 4 alone; `prefix` tokens of no place stand before the patches.

    Its blocks let each patch see itself only, as attention does that is certain of it.
    """

    def __init__(self, row: int, column: int, *, prefix: int) -> None:
        super().__init__()
        self.patch, self.block, self.head = seeded(
            lambda: nn.ModuleList([nn.Conv2d(3, 8, 3, 3), nn.Linear(8, 8), nn.Linear(8, 3)])
        )
        self.tokens = nn.Parameter(torch.full((1, prefix, 8), 0.3, dtype=torch.float64))
        self.place = prefix + 4 * row + column

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch(x).flatten(2).transpose(1, 2)
        tokens = torch.tanh(self.block(torch.cat([self.tokens.expand(len(x), -1, -1), patches], 1)))
        return self.head(tokens[:, self.place])


@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 3), (2, 0), (1, 2)])
def test_the_cell_of_a_token_is_its_patch(row, column, prefix):
    """The score, and so the input's own gradient, hangs on one patch: only its cell is lit."""
    model, x = pl.TorchModel(Patches(row, column, prefix=prefix)), pictures(2, 9, 12)
    of_pixels = pl.SimpleGradient()(model, x, target=1).scores.abs().sum(1)
    lit = nn.functional.avg_pool2d(of_pixels, 3) > 0
    assert lit.nonzero().tolist() == [[0, row, column], [1, row, column]]
    assert torch.equal(pl.HiResCAM(layer="block")(model, x, target=1).scores[:, 0] != 0, lit)


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_tokens_are_weighed_as_the_same_cells_would_be(prefix):
    """Means are over the cells: class tokens have a gradient and a value, and count in neither."""

    class Mean(Patches):
        def forward(self, x: Tensor) -> Tensor:
            patches = self.patch(x).flatten(2).transpose(1, 2)
            tokens = self.block(torch.cat([self.tokens.expand(len(x), -1, -1), patches], 1))
            return self.head(torch.tanh(tokens).sum(1)).tanh()

    net, x = Mean(0, 0, prefix=prefix), pictures(2, 9, 12)
    a, g = (part[:, prefix:].transpose(1, 2).unflatten(2, (3, 4)) for part in taken(net, "block", x, first_class))
    expected = (g.mean((2, 3), keepdim=True) * a).sum(1, keepdim=True)
    assert alike(pl.SignedGradCAM(layer="block")(pl.TorchModel(net), x, target=0).scores, expected)


@pytest.mark.parametrize("method", [pl.GradCAM, pl.XGradCAM, pl.GradCAMPlusPlus, pl.EigenCAM, pl.ScoreCAM])
def test_channels_may_come_last(method):
    """The same network with its cells' axes before or behind the channels."""

    class Order(nn.Module):
        def __init__(self, *, last: bool) -> None:
            super().__init__()
            self.stem, self.head = seeded(lambda: nn.ModuleList([nn.Conv2d(3, 16, 3, 2), nn.Linear(320, 3)]))
            self.last, self.layer = last, nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            y = torch.tanh(self.stem(x))
            y = self.layer(y.movedim(1, -1)).movedim(-1, 1) if self.last else self.layer(y)
            return self.head(y.flatten(1)).tanh()

    first, last = (method(layer="layer")(pl.TorchModel(Order(last=last)), X, target=1).scores for last in (False, True))
    assert first.shape == (2, 1, 4, 5)
    assert alike(last, first)


@pytest.mark.parametrize(
    ("shape", "convolution", "cells"),
    [((1, 12), nn.Conv1d, (5,)), ((2, 6, 7, 8), nn.Conv3d, (2, 3, 3))],
    ids=["signal", "volume"],
)
def test_signals_and_volumes_have_cells_too(shape, convolution, cells):
    count = 4 * math.prod(cells)
    net = seeded(lambda: nn.Sequential(convolution(shape[0], 4, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(count, 3)))
    x = uniform(2, *shape, dtype=torch.float64) - 0.5
    a, g = taken(net, "1", x, first_class)
    places = tuple(range(2, a.ndim))
    expected = torch.relu((g.mean(places, keepdim=True) * a).sum(1, keepdim=True))
    found = pl.GradCAM()(pl.TorchModel(net), x, target=0).scores
    assert found.shape == (2, 1, *cells)
    assert alike(found, expected)
    for method in FAMILY:
        maps = method(layer=("1", "0"))(pl.TorchModel(net), x, target=0).scores
        assert maps.shape == (2, 1, *cells)
        assert torch.isfinite(maps).all()


def first_class(out: Tensor) -> Tensor:
    return out[:, 0]


def pictures(count: int, high: int, wide: int) -> Tensor:
    return 3 * uniform(count, 3, high, wide, seed=5, dtype=torch.float64) - 1
