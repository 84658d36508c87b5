"""The activation maps against Captum and the grad-cam package, which enlarges and stretches what it hands out."""

import copy
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.oracles import uniform
from torch import Tensor, nn

import pellucid as pl

pytestmark = pytest.mark.peers

DOUBLE = 1e-12  # a share of the map's maximum, where all is in float64
SINGLE = 16 * torch.finfo(torch.float32).eps  # grad-cam enlarges in float32, whatever the type of its input
DIFFERENT = 1e-2


@dataclass(frozen=True, eq=False)
class Case:
    """A network, one input and a layer."""

    net: nn.Module
    x: Tensor
    target: int
    layer: str

    @property
    def module(self) -> nn.Module:
        return self.net.get_submodule(self.layer)

    def ours(self, method: pl.Explainer) -> Tensor:
        return method(pl.TorchModel(self.net), self.x, target=self.target).scores

    def grad_cams(self, package: ModuleType, name: str) -> Tensor:
        """The package's map (1, 1, H, W). It needs parameters that ask for gradients, and leaves them there."""
        net = copy.deepcopy(self.net).requires_grad_()
        targets = [package.utils.model_targets.ClassifierOutputTarget(self.target)]
        explain: Any = getattr(package, name)(model=net, target_layers=[net.get_submodule(self.layer)])
        return torch.from_numpy(explain(input_tensor=self.x.clone(), targets=targets))[:, None]


def small_case(*, stride: int = 2, activation: type[nn.Module] = nn.Softplus, gain: float = 50) -> Case:
    """A head that weighs each unit, so that the gradient varies over the cells; of unequal height and width."""
    cells = 9 * 11 if stride == 1 else 4 * 5
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        first = nn.Conv2d(3, 6, 3, stride, padding=1 if stride == 1 else 0)
        net = nn.Sequential(first, activation(), nn.Flatten(), nn.Linear(6 * cells, 8), nn.Tanh(), nn.Linear(8, 4))
    with torch.no_grad():
        net[5].weight *= gain
    x = 3 * uniform(1, 3, 9, 11, dtype=torch.float64) - 1
    return Case(net.double().eval(), x, target=0, layer="1")


def real_case(net: nn.Module, photo: np.ndarray, layer: str) -> Case:
    pixels = np.asarray(Image.fromarray(photo).resize((224, 224)), dtype=np.float64)
    x = torch.from_numpy((pixels - 127) / 128).movedim(-1, 0)[None].contiguous()
    return Case(copy.deepcopy(net).double().eval(), x, target=285, layer=layer)  # 285: Egyptian cat


@pytest.fixture(scope="module", params=["small", "head", "stages.4"])
def case(request: pytest.FixtureRequest) -> Case:
    if request.param == "small":
        return small_case()
    return real_case(request.getfixturevalue("lite0").net, request.getfixturevalue("chelsea"), request.param)


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the expected map's maximum."""
    assert found.shape == expected.shape
    assert float(expected.abs().max()) > 0
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


def handed_out(maps: Tensor, size: torch.Size) -> Tensor:
    """What grad-cam does to any map: cut off, stretched, enlarged, stretched again."""

    def stretched(one: Tensor) -> Tensor:
        return (one - one.min()) / (1e-7 + one.max() - one.min())

    cut = stretched(maps.clamp(min=0))
    return stretched(nn.functional.interpolate(cut, size=tuple(size), mode="bilinear", align_corners=False))


def test_captum_convention_is_captums_layer_grad_cam(case, captum_attr):
    expected = captum_attr.LayerGradCam(case.net, case.module).attribute(case.x.clone(), target=case.target).detach()
    assert difference(case.ours(pl.GradCAM.captum(case.layer)), expected) <= DOUBLE


def test_captums_relu_makes_it_our_map(case, captum_attr):
    explain = captum_attr.LayerGradCam(case.net, case.module)
    expected = explain.attribute(case.x.clone(), target=case.target, relu_attributions=True).detach()
    assert difference(case.ours(pl.GradCAM(layer=case.layer)), expected) <= DOUBLE


def test_grad_cam_convention_is_the_packages_map(case, pytorch_grad_cam):
    expected = case.grad_cams(pytorch_grad_cam, "GradCAM")
    assert difference(case.ours(pl.GradCAM.grad_cam(case.layer)), expected) <= SINGLE


@pytest.mark.parametrize("name", ["GradCAM", "GradCAMPlusPlus", "XGradCAM", "LayerCAM", "HiResCAM"])
def test_the_formula_is_the_packages(name, pytorch_grad_cam):
    # Grad-CAM++ has 1e-6 below, beside the squared gradient.
    case = small_case(gain=5000 if name == "GradCAMPlusPlus" else 50)
    found = case.ours(getattr(pl, name)(layer="1"))
    assert difference(handed_out(found, case.x.shape[2:]), case.grad_cams(pytorch_grad_cam, name)) <= SINGLE


@pytest.mark.parametrize("name", ["XGradCAM", "LayerCAM", "HiResCAM"])
@pytest.mark.parametrize("layer", ["head", "stages.4"])
def test_the_formula_is_the_packages_on_a_photo(name, layer, pytorch_grad_cam, lite0, chelsea):
    case = real_case(lite0.net, chelsea, layer)
    found = case.ours(getattr(pl, name)(layer=layer))
    assert difference(handed_out(found, case.x.shape[2:]), case.grad_cams(pytorch_grad_cam, name)) <= SINGLE


def test_the_packages_maps_differ_from_one_another(pytorch_grad_cam):
    """So that none of the comparisons above is of two maps that are alike anyway."""
    case, names = small_case(), ["GradCAM", "GradCAMPlusPlus", "XGradCAM", "LayerCAM", "HiResCAM", "EigenCAM"]
    maps = [case.grad_cams(pytorch_grad_cam, name) for name in names]
    assert min(difference(a, b) for i, a in enumerate(maps) for b in maps[:i]) > DIFFERENT


def test_ablation_cam_is_the_packages_for_a_positive_score(pytorch_grad_cam):
    """The package divides by the score, and ablates by zero only where the layer's least value is zero."""
    case = small_case(activation=nn.ReLU)
    score = float(case.net(case.x)[0, case.target].detach())
    assert score > 0
    found = case.ours(pl.AblationCAM(layer="1"))
    expected = case.grad_cams(pytorch_grad_cam, "AblationCAM")
    assert difference(handed_out(found, case.x.shape[2:]), expected) <= SINGLE


def test_score_cam_is_the_packages_where_the_layer_has_the_inputs_resolution(pytorch_grad_cam):
    case = small_case(stride=1)
    found = case.ours(pl.ScoreCAM(layer="1"))
    assert difference(handed_out(found, case.x.shape[2:]), case.grad_cams(pytorch_grad_cam, "ScoreCAM")) <= SINGLE


def test_score_cams_masks_are_not_the_packages_on_a_coarse_layer(pytorch_grad_cam):
    """Its masks are enlarged with the corners' centres put into the corners of the input: a third of a cell aside."""
    case = small_case()
    found = case.ours(pl.ScoreCAM(layer="1"))
    assert difference(handed_out(found, case.x.shape[2:]), case.grad_cams(pytorch_grad_cam, "ScoreCAM")) > DIFFERENT


def test_the_packages_eigen_cam_is_centred_and_of_either_sign(pytorch_grad_cam):
    case = small_case()
    a = case.net[1](case.net[0](case.x)).detach()[0].flatten(1).T
    centred = a - a.mean(0)
    component = centred @ torch.linalg.svd(centred, full_matrices=False)[2][0]
    maps = [handed_out(sign * component.view(1, 1, 4, 5), case.x.shape[2:]) for sign in (1, -1)]
    expected = case.grad_cams(pytorch_grad_cam, "EigenCAM")
    assert min(difference(one, expected) for one in maps) <= SINGLE
    ours = handed_out(case.ours(pl.EigenCAM(layer="1")), case.x.shape[2:])
    assert difference(ours, expected) > DIFFERENT
