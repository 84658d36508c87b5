"""Occlusion of segments and of sliding windows against Captum's FeatureAblation and Occlusion.

Theirs can take the channels away one by one; here their masks and windows cover all channels, as ours do, and each
channel of their map is the same.
"""

from types import ModuleType

import pytest
import torch
from tests.peers.case import Case, difference, real_case, small_case
from torch import Tensor

import pellucid as pl

pytestmark = pytest.mark.peers

TOLERANCE = 1e-5
START = 0.3


@pytest.fixture(scope="module", params=["small", "real"])
def case(request: pytest.FixtureRequest) -> Case:
    if request.param == "small":
        return small_case()
    return real_case(request.getfixturevalue("lite0").net, request.getfixturevalue("chelsea"))


def one_channel(theirs: Tensor) -> Tensor:
    assert torch.equal(theirs, theirs[:, :1].expand_as(theirs))
    return theirs[:, :1]


@pytest.mark.parametrize("cells", [2, 3])
def test_occlusion_of_segments_is_captums_feature_ablation(case, cells, captum_attr: ModuleType):
    segments = pl.Patches(cells)
    mask = segments.labels(case.x)[:, None]
    theirs = captum_attr.FeatureAblation(case.net).attribute(
        case.x, torch.full_like(case.x, START), target=case.target, feature_mask=mask
    )
    ours = case.map(pl.Occlusion(segments=segments, baseline=pl.Constant(START)))
    assert difference(ours, one_channel(theirs.detach())) <= TOLERANCE


SMALL = [(3, 2), (4, 4), ((2, 5), (1, 3)), ((9, 11), (1, 1))]
REAL = [(100, 50), ((64, 90), (60, 45))]
WINDOWS = [("small", *each) for each in SMALL] + [("real", *each) for each in REAL]


@pytest.mark.parametrize(("case", "window", "stride"), WINDOWS, indirect=["case"])
def test_sliding_occlusion_is_captums_occlusion(case, window, stride, captum_attr: ModuleType):
    """Also where the last window reaches over the edge."""
    sides = [side if isinstance(side, tuple) else (side, side) for side in (window, stride)]
    theirs = captum_attr.Occlusion(case.net).attribute(
        case.x, (3, *sides[0]), strides=(3, *sides[1]), baselines=START, target=case.target
    )
    ours = case.map(pl.SlidingOcclusion(window=window, stride=stride, baseline=pl.Constant(START)))
    assert difference(ours, one_channel(theirs.detach())) <= TOLERANCE
