from typing import Any

import pytest
import torch
from tests.explainers.cells import X, enlarged, flat, grad_cam, seeded, taken
from tests.explainers.paths import near
from tests.oracles import uniform
from torch import Tensor, nn

import pellucid as pl


class Guide(torch.autograd.Function):
    """A ReLU whose gradient is cut off below zero, twice: where it was closed, and where it speaks against."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, by: Tensor) -> Tensor:  # type: ignore[override]  # one output
        [x] = ctx.saved_tensors
        return torch.where((x > 0) & (by > 0), by, 0.0)


class Guided(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Guide.apply(x)


def relus() -> nn.Module:
    """Layer "1", 4 x 5 cells of X; layer "3" the last with cells, as many."""
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.Conv2d(6, 5, 3, padding=1), nn.ReLU(), nn.Flatten(),
            nn.Linear(100, 3),
        )
    )  # fmt: skip


def guided(net: nn.Module, x: Tensor, target: int) -> Tensor:
    """Guided backpropagation by a function of its own in place of each ReLU."""
    other = nn.Sequential(*(Guided() if isinstance(module, nn.ReLU) else module for module in net))
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(other(leaf)[:, target].sum(), leaf)[0]


def map_of(net: nn.Module, x: Any = X, target: Any = 0, **settings: Any) -> Tensor:
    return pl.GuidedGradCAM(**settings)(pl.TorchModel(net), x, target=target).scores


@pytest.mark.parametrize("layer", ["1", "3"])
@pytest.mark.parametrize("target", [0, 2])
def test_it_is_guided_backpropagation_times_the_enlarged_map(layer, target):
    net = relus()
    cam = grad_cam(*taken(net, layer, X, lambda out: out[:, target]))
    by = guided(net, X, target)
    expected = by * enlarged(cam, 9, 11)
    assert not near(expected, by, 1e-2)
    assert near(map_of(net, target=target, layer=layer), expected, 1e-12)


def test_by_default_the_layer_is_the_last_with_cells():
    net = relus()
    a = pl.GuidedGradCAM()(pl.TorchModel(net), X, target=1)
    assert a.recipe.notes["layer"] == ["3", "3"]
    assert near(a.scores, map_of(net, target=1, layer="3"), 1e-12)


def test_several_layers_are_fused_as_grad_cam_fuses_them():
    net = relus()
    cam = pl.Upsampled(base=pl.GradCAM(layer=("1", "3")))(pl.TorchModel(net), X, target=1).scores
    assert near(map_of(net, target=1, layer=("1", "3")), guided(net, X, 1) * cam, 1e-12)


def test_it_keeps_the_sign_of_guided_backpropagation():
    found = map_of(relus(), target=1, layer="1")
    assert float(found.min()) < 0 < float(found.max())


def test_each_input_has_its_own_target_and_no_company():
    net = relus()
    whole = pl.GuidedGradCAM()(pl.TorchModel(net, micro_batch=1), X, target=[2, 0]).scores
    for i, target in enumerate([2, 0]):
        assert near(whole[i : i + 1], map_of(net, X[i : i + 1], target), 1e-12)


def test_of_several_inputs_the_one_with_places_is_weighed_and_the_others_are_not():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part, self.own = relus(), seeded(lambda: nn.Sequential(nn.Linear(4, 3), nn.ReLU()))

        def forward(self, vector: Tensor, picture: Tensor) -> Tensor:
            return self.part(picture) + self.own(vector)

    net = Two()
    given = {"vector": uniform(2, 4, seed=5, dtype=torch.float64), "picture": X}
    a = pl.GuidedGradCAM(layer="part.1")(pl.TorchModel(net), given, target=1)
    cam = grad_cam(*taken(net.part, "1", X, lambda out: out[:, 1]))
    assert near(a.parts["picture"], guided(net.part, X, 1) * enlarged(cam, 9, 11), 1e-12)
    assert near(a.parts["vector"], guided(net.own, given["vector"], 1), 1e-12)


@pytest.mark.doors
def test_a_network_without_rectifiers_is_told_so():
    with pytest.raises(pl.RuleError, match=r"executed no rectifier .* it has tanh"):
        map_of(flat(), layer="1")


@pytest.mark.doors
def test_inputs_that_are_no_pictures_are_told_so():
    net = seeded(lambda: nn.Sequential(nn.Conv1d(3, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(28, 2)))
    with pytest.raises(pl.ArgumentError, match=r"Guided Grad-CAM takes maps to the places of the input"):
        map_of(net, uniform(1, 3, 8, dtype=torch.float64))


@pytest.mark.doors
@pytest.mark.parametrize("layer", [(), 3, (None,)])
def test_a_layer_is_named(layer):
    with pytest.raises(pl.ArgumentError, match="`layer` is the name of a module, or a tuple of names"):
        pl.GuidedGradCAM(layer=layer)


def test_its_card_needs_what_both_need():
    needs = pl.GuidedGradCAM().card.needs
    assert needs == pl.GradCAM().card.needs | pl.GuidedBackprop().card.needs
    assert pl.GuidedGradCAM().card.cost == pl.GradCAM().card.cost + pl.GuidedBackprop().card.cost
