"""LIME against lime 0.2.0.1: the same masks and scores, and its whole explanation of a picture."""

from functools import partial
from importlib import import_module
from types import ModuleType

import numpy as np
import pytest
import torch
from tests.oracles import uniform

import pellucid as pl
from pellucid.core.random import Key
from pellucid.explainers._queried import Place
from pellucid.explainers.lime import surrogate

pytestmark = pytest.mark.peers

EQUAL = 1e-6  # of the largest coefficient
DIFFERENT = 1e-2

PLAYERS, COUNT = 12, 300


@pytest.fixture(scope="module")
def lime_base() -> ModuleType:
    return import_module("lime.lime_base")


def scores_of(masks: np.ndarray) -> np.ndarray:
    z = masks.astype(np.float64)
    return np.tanh(z @ np.linspace(-1, 2, masks.shape[1])) + z[:, 0] * z[:, 3]


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray]:
    one = torch.ones(1, PLAYERS)
    place = Place(one, torch.zeros_like(one), torch.arange(PLAYERS), Key.named("peer").stream(0))
    masks = pl.LIME().question(place, COUNT).masks(range(COUNT))
    return masks, scores_of(masks)


def theirs(lime_base: ModuleType, masks: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, float]:
    """The coefficients and R2 of lime's surrogate, with the kernel and the distances of its LimeImageExplainer."""
    from sklearn.metrics import pairwise_distances

    data = masks.astype(np.int64)
    distances = pairwise_distances(data, data[:1], metric="cosine").ravel()
    root = partial(lambda d, kernel_width: np.sqrt(np.exp(-(d**2) / kernel_width**2)), kernel_width=0.25)
    base = lime_base.LimeBase(root, random_state=0)
    _, pairs, r2, _ = base.explain_instance_with_data(data, scores[:, None], distances, 0, PLAYERS, "none")
    return np.array([value for _, value in sorted(pairs)]), float(r2)


def apart(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_the_convention_is_limes_surrogate(lime_base, drawn):
    masks, scores = drawn
    like = pl.LIME.lime()
    found = surrogate(masks, scores, like.width, like.penalty, whole=True)
    expected, r2 = theirs(lime_base, masks, scores)
    assert apart(found.values, expected) <= EQUAL
    assert found.notes["r2"] == pytest.approx(r2, rel=EQUAL)


def test_the_empty_mask_has_limes_distance_too(lime_base, drawn):
    masks, _ = drawn
    masks = np.concatenate([masks[:60], np.zeros((1, PLAYERS), dtype=bool)])
    like = pl.LIME.lime()
    found = surrogate(masks, scores_of(masks), like.width, like.penalty, whole=True)
    assert apart(found.values, theirs(lime_base, masks, scores_of(masks))[0]) <= EQUAL


def test_the_default_differs_by_the_root_of_the_kernel(lime_base, drawn):
    masks, scores = drawn
    expected, _ = theirs(lime_base, masks, scores)
    own = pl.LIME()
    found = surrogate(masks, scores, own.width, own.penalty, whole=True).values
    assert apart(found, expected) > DIFFERENT
    rooted = surrogate(masks, scores, own.width * np.sqrt(2), own.penalty, whole=True).values
    assert apart(rooted, expected) <= EQUAL


class Given(np.random.RandomState):
    """Chance that hands lime the masks that it is given."""

    def __init__(self, masks: np.ndarray) -> None:
        super().__init__(0)
        self.masks = masks

    def randint(self, low, high=None, size=None, dtype=int):
        return self.masks.astype(dtype).ravel() if size == self.masks.size else super().randint(low, high, size, dtype)


def f(rows: np.ndarray) -> np.ndarray:
    """Two scores of pictures (n, 3, 8, 8)."""
    weights = uniform(3, 8, 8, dtype=torch.float64, seed=2).numpy()
    total = np.tanh((rows * weights).sum((1, 2, 3)) / 20) + rows[:, 0].max((1, 2))
    return np.stack([-total, total], 1)


def test_a_picture_is_explained_as_limes_explainer_does():
    """With its fill, each segment's mean colour, and the segments of a map."""
    lime_image = import_module("lime.lime_image")
    picture = uniform(1, 3, 8, 8, dtype=torch.float64, seed=1)
    labels = torch.arange(4).repeat_interleave(2)[:, None] * 2 + torch.arange(2).repeat_interleave(4)[None]
    segments = pl.SegmentMap.of(labels)
    a = pl.LIME.lime(segments, budget=202)(pl.FunctionModel(f, output="logits"), picture, 1)
    assert a.samples_used == 202  # the prediction, its repetition, and 200 masks
    place = Place(picture, picture, labels, Key.of(picture[0]).stream(0))
    masks = pl.LIME().question(place, 200).masks(range(200))
    explainer = lime_image.LimeImageExplainer(feature_selection="none", random_state=Given(masks))
    told = explainer.explain_instance(
        picture[0].movedim(0, -1).numpy().copy(),
        lambda rows: f(np.moveaxis(rows, -1, 1)),
        labels=(1,), top_labels=None, num_samples=200, segmentation_fn=lambda image: labels.numpy(), random_seed=0,
    )  # fmt: skip
    expected = np.array([value for _, value in sorted(told.local_exp[1])])
    found = np.array([float(a.scores[0, 0][labels == number].mean()) for number in range(8)])
    assert apart(found, expected) <= EQUAL
    assert a.recipe.notes["r2"][0] == pytest.approx(told.score, rel=EQUAL)


def test_with_another_fill_it_is_another_explanation():
    """So that the comparison above tells the fills apart."""
    picture = uniform(1, 3, 8, 8, dtype=torch.float64, seed=1)
    model = pl.FunctionModel(f, output="logits")
    one = pl.LIME.lime(pl.Patches(2), budget=202)(model, picture, 1).scores
    other = pl.LIME(segments=pl.Patches(2), width=0.25 * 2**0.5, budget=202)(model, picture, 1).scores
    assert apart(other.numpy(), one.numpy()) > DIFFERENT
