"""RISE and its debiased form against xaitk-saliency, fed the very same masks.

What differs in xaitk-saliency 0.15, each shown below:
- the map is divided by its largest magnitude, so that its unit is lost and maps of two classes cannot be compared; nor
  is it divided by N p;
- `RISEStack` is the debiased form unless `debiased=False`; no error is given, and scores are not centred;
- the enlargement mirrors the grid outside of its outermost middles, as the authors' code does: there a mask turns back
  towards the second cell, where pellucid's (and torch's) bilinear enlargement stays at the first. So masks differ
  within half a cell of the grid's rim;
- one generator with the same seed draws the grids and, begun anew, the shifts, which so are not independent of them;
- masks are float32, and all are held at once.
"""

from collections.abc import Iterator
from importlib import import_module

import numpy as np
import pytest
import torch
from tests.oracles import uniform

import pellucid as pl
from pellucid.explainers import _rise
from pellucid.explainers._rise import Grid, Masks

pytestmark = pytest.mark.peers

SIDES, CELLS, COUNT, SEED = (22, 30), 5, 80, 3
FLOAT32 = 2e-6
X = uniform(1, 3, *SIDES, seed=2, dtype=torch.float64)
WEIGHT = uniform(4, 3, *SIDES, seed=5, dtype=torch.float64).numpy() - 0.5


def probabilities(rows: np.ndarray) -> np.ndarray:
    logits = np.tanh(np.einsum("nchw,kchw->nk", rows, WEIGHT) / 20) * 2
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


class Classifier:
    """xaitk's view of the model."""

    def get_labels(self) -> list[int]:
        return [0, 1, 2, 3]

    def classify_images(self, images) -> Iterator[dict[int, float]]:
        for image in images:
            yield dict(enumerate(probabilities(np.moveaxis(image, -1, 0)[None])[0]))


@pytest.fixture(scope="module")
def rise_grid() -> type:
    return import_module("xaitk_saliency.impls.perturb_image.rise").RISEGrid


@pytest.fixture(scope="module")
def rise_stack() -> type:
    return import_module("xaitk_saliency.impls.gen_image_classifier_blackbox_sal.rise").RISEStack


@pytest.fixture(scope="module")
def rise_scoring() -> type:
    return import_module("xaitk_saliency.impls.gen_classifier_conf_sal.rise_scoring").RISEScoring


def same_draws(p: float) -> Masks:
    """The bits and shifts that RISEGrid draws."""
    bits = np.random.default_rng(SEED).random((COUNT, CELLS, CELLS)) < p
    again, cells = np.random.default_rng(SEED), [-(-side // CELLS) for side in SIDES]
    shifts = [[again.integers(0, cell) for cell in cells] for _ in range(COUNT)]
    return Masks(Grid.of(SIDES, CELLS), p, bits, np.array(shifts))


def mirrored(side: int, cells: int) -> np.ndarray:
    """The enlargement of one axis with the grid mirrored at its outermost middles."""
    cell = -(-side // cells)
    at = (np.arange((cells + 1) * cell) + 0.5) * cells / ((cells + 1) * cell) - 0.5
    at = np.where(at < 0, -at, np.where(at > cells - 1, 2 * (cells - 1) - at, at))
    matrix = np.clip(1 - abs(at[:, None] - np.arange(cells)), 0, None)
    return np.stack([matrix[shift : shift + side] for shift in range(cell)])


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch):
    """Feeds pellucid the masks of RISEGrid, the mirrored rim among them."""

    def feed(p: float) -> None:
        masks = same_draws(p)
        monkeypatch.setattr(_rise, "_enlarged", mirrored)
        monkeypatch.setattr(_rise, "drawn", lambda stream, indices, grid, p: masks[np.asarray(indices)])

    return feed


def scaled(found: np.ndarray) -> np.ndarray:
    return found / abs(found).max()


def picture() -> np.ndarray:
    return X[0].movedim(0, -1).contiguous().numpy()


@pytest.mark.parametrize("p", [0.5, 0.3])
def test_masks_are_equal_but_at_the_rim_of_the_grid(rise_grid, p):
    theirs = rise_grid(n=COUNT, s=CELLS, p1=p, seed=SEED, threads=0).perturb(picture())
    masks = same_draws(p)
    ours = masks.values()
    inside = np.ones(ours.shape, dtype=bool)
    for axis, side in enumerate(SIDES):
        cell = -(-side // CELLS)
        at = (np.arange((CELLS + 1) * cell) + 0.5) * CELLS / ((CELLS + 1) * cell) - 0.5
        within = (at >= 0) & (at <= CELLS - 1)
        own = np.stack([within[shift : shift + side] for shift in masks.shifts[:, axis]])
        inside &= own[:, :, None] if axis == 0 else own[:, None]
    assert 0.5 < inside.mean() < 0.95
    np.testing.assert_allclose(ours[inside], theirs[inside], atol=FLOAT32)
    assert abs(ours - theirs)[~inside].max() > 0.1


@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize("p", [0.5, 0.3])
def test_maps_of_the_same_masks_are_equal_up_to_its_scale(rise_stack, fed, p, debiased):
    theirs = rise_stack(n=COUNT, s=CELLS, p1=p, seed=SEED, debiased=debiased).generate(picture(), Classifier())
    fed(p)
    settings = {"baseline": pl.Zeros(), "cells": CELLS, "p": p, "budget": COUNT + 2}
    explain = pl.DebiasedRISE(estimator=pl.Plain(), **settings) if debiased else pl.RISE(**settings)
    model = pl.FunctionModel(probabilities, output="probabilities")
    for target in range(4):
        ours = explain(model, X, target).scores[0, 0].numpy()
        np.testing.assert_allclose(scaled(ours), theirs[target], atol=10 * FLOAT32)
        assert abs(theirs[target]).max() == pytest.approx(1, rel=1e-6)
        assert abs(ours).max() < 0.95


@pytest.mark.parametrize("debias", [0.0, 0.5])
def test_its_scoring_of_pellucids_own_masks_is_the_same_formula(rise_scoring, debias):
    masks = _rise.drawn(pl.Key.of(X[0]).stream(0), range(COUNT), Grid.of(SIDES, CELLS), 0.5).values()
    scores = probabilities(masks[:, None] * X[0].numpy())
    theirs = rise_scoring(p1=debias).generate(scores[0], scores, masks)
    settings = {"baseline": pl.Zeros(), "cells": CELLS, "budget": COUNT + 2}
    explain = pl.DebiasedRISE(estimator=pl.Plain(), **settings) if debias else pl.RISE(**settings)
    ours = explain(pl.FunctionModel(probabilities, output="probabilities"), X, 2).scores[0, 0].numpy()
    np.testing.assert_allclose(scaled(ours), theirs[2], atol=1e-12)
    np.testing.assert_allclose(ours.max() / ours.min(), theirs[2].max() / theirs[2].min(), rtol=1e-9)
