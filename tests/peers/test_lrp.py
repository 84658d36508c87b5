"""Relevance propagation, guided backpropagation and Deconvnet against Zennit and Captum.

Zennit begins with a one at the target, so that its relevance is a share of the score: it is multiplied by the score.
"""

import copy
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest
import torch
from tests.networks import Fire, as_squeezenet_takes, photos, squeezenet, without_sdist
from tests.oracles import uniform
from tests.peers.case import Case, difference, one_hot
from torch import Tensor, nn

import pellucid as pl

pytestmark = pytest.mark.peers

DIFFERENT = 1e-2


def small_case() -> Case:
    """All that the composites know; of unequal height and width, so that a wrong layout shows."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2, 1), nn.Conv2d(8, 8, 3, 2, groups=2), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4),
        )  # fmt: skip
    return Case(net.double().eval(), 3 * uniform(1, 3, 11, 13, dtype=torch.float64) - 1, target=2, tolerance=1e-5)


def norm_case() -> Case:
    """Batch norms behind convolutions, of either sign, and one behind a transposed convolution."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, 2, bias=False), nn.BatchNorm2d(6),
            nn.ReLU(), nn.ConvTranspose2d(6, 5, 2, 2), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(400, 4),
        )  # fmt: skip
        with torch.no_grad():
            for module in net.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eps = 1e-9  # Zennit divides by sqrt(1 + eps) once more, after it has merged the norm
                    module.running_mean.normal_(0, 0.3)
                    module.running_var.uniform_(0.2, 2)
                    module.weight.uniform_(-1, 2)
                    module.bias.normal_(0, 0.3)
    return Case(net.double().eval(), 3 * uniform(1, 3, 11, 13, dtype=torch.float64) - 1, target=1, tolerance=1e-5)


def squeezenet_case() -> Case:
    if reason := without_sdist():
        pytest.skip(reason)
    net = copy.deepcopy(squeezenet().net).double().eval()
    x = as_squeezenet_takes(photos(224))[:1].double()
    return Case(net, x, target=285, tolerance=1e-5)  # 285: Egyptian cat


CASES = {"small": small_case, "norms": norm_case, "SqueezeNet": squeezenet_case}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]()


only_on = lambda *names: pytest.mark.parametrize("case", names, indirect=True)  # noqa: E731  # a mark with arguments


@pytest.fixture(scope="module")
def zennit(zennit_attribution: ModuleType) -> Callable[..., Tensor]:
    """The map of one of Zennit's composites, in units of the score if it is relevance."""
    composites, canonizers = import_module("zennit.composites"), import_module("zennit.canonizers")

    def explain(case: Case, name: str, *, relevance: bool = True, **settings: Any) -> Tensor:
        net = apart(case.net)
        merge = {"canonizers": [canonizers.SequentialMergeBatchNorm()]} if relevance else {}
        composite = getattr(composites, name)(**settings, **merge)
        with zennit_attribution.Gradient(net, composite) as attributor:
            output, found = attributor(case.x.clone(), one_hot(case))
        return found.detach() * (output[0, case.target].detach() if relevance else 1)

    return explain


class Apart(nn.Module):
    """A fire whose shared ReLU is three: a module's hooks know one call of it."""

    def __init__(self, fire: Fire) -> None:
        super().__init__()
        self.squeeze = nn.Sequential(fire.squeeze, nn.ReLU())
        self.expand1, self.expand3 = (nn.Sequential(one, nn.ReLU()) for one in (fire.expand1, fire.expand3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x)
        return torch.cat([self.expand1(x), self.expand3(x)], 1)


def apart(net: nn.Module) -> nn.Module:
    """A copy in which each module runs once."""
    net = copy.deepcopy(net)
    for name, module in net.named_children():
        if isinstance(module, Fire):
            setattr(net, name, Apart(module))
    return net


LOW, HIGH = -150.0, 160.0
COMPOSITES = {
    "EpsilonPlus": (pl.LRP.epsilon_plus(), {}),
    "EpsilonPlusFlat": (pl.LRP(), {}),
    "EpsilonAlpha2Beta1": (pl.LRP.epsilon_alpha2_beta1(), {}),
    "EpsilonAlpha2Beta1Flat": (pl.LRP.epsilon_alpha2_beta1_flat(), {}),
    "EpsilonGammaBox": (pl.LRP.epsilon_gamma_box(LOW, HIGH), {"low": LOW, "high": HIGH}),
}


@pytest.mark.parametrize("name", COMPOSITES)
def test_each_convention_is_zennits_composite(name, case, zennit):
    explain, settings = COMPOSITES[name]
    if settings:
        settings = {key: torch.full_like(case.x, value) for key, value in settings.items()}
    assert difference(case.map(explain), zennit(case, name, **settings)) <= case.tolerance


def test_the_composites_differ_from_one_another(zennit):
    """So that none of the comparisons above is of two maps that are alike anyway."""
    case = small_case()
    maps = [case.map(explain) for explain, _ in COMPOSITES.values()]
    assert min(difference(a, b) for i, a in enumerate(maps) for b in maps[:i]) > DIFFERENT


@only_on("norms")
def test_without_its_canonizer_zennits_map_of_a_network_with_norms_is_another(case, zennit_attribution):
    """There each batch norm passes relevance on as it is, and what it multiplies counts nowhere."""
    composite = import_module("zennit.composites").EpsilonPlus()
    with zennit_attribution.Gradient(copy.deepcopy(case.net), composite) as attributor:
        output, found = attributor(case.x.clone(), one_hot(case))
    expected = found.detach() * output[0, case.target].detach()
    assert difference(case.map(pl.LRP.epsilon_plus()), expected) > DIFFERENT


@pytest.mark.parametrize(("name", "explain"), [("GuidedBackprop", pl.GuidedBackprop()), ("DeconvNet", pl.Deconvnet())])
def test_guided_backpropagation_and_deconvnet_are_zennits(name, explain, case, zennit):
    assert difference(case.map(explain), zennit(case, name, relevance=False)) <= case.tolerance


@pytest.mark.parametrize(
    ("name", "explain"), [("GuidedBackprop", pl.GuidedBackprop()), ("Deconvolution", pl.Deconvnet())]
)
def test_guided_backpropagation_and_deconvnet_are_captums(name, explain, case, captum_attr):
    with pytest.warns(UserWarning, match="hooks"):
        found = getattr(captum_attr, name)(apart(case.net)).attribute(case.x.clone().requires_grad_(), case.target)
    assert difference(case.map(explain), found.detach()) <= case.tolerance


@only_on("small", "SqueezeNet")
def test_captums_lrp_is_the_epsilon_rule(case, captum_attr):
    """Its default rule, which adds 1e-9 to each sum. What it does not know here moves numbers only: any rule does."""
    rules = import_module("captum.attr._utils.lrp_rules")
    net = apart(case.net)
    for module in net.modules():
        if isinstance(module, nn.Flatten):
            module.rule = rules.EpsilonRule()
    found = captum_attr.LRP(net).attribute(case.x.clone().requires_grad_(), target=case.target)
    assert difference(case.map(pl.LRP.epsilon(1e-9)), found.detach()) <= case.tolerance
