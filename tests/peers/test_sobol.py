"""Total indices against SALib 1.6, on the same scores.

SALib serves as a reference only: its designs cannot be drawn one by one from a key, so that a run could not be extended
or stopped at an error; its intervals are bootstraps; and it knows no scores that could not be had.
"""

from importlib import import_module

import numpy as np
import pytest
import torch

import pellucid as pl
from pellucid.core.random import Key
from pellucid.explainers._queried import Place
from pellucid.explainers.sobol_indices import total_indices

pytestmark = pytest.mark.peers

PLAYERS, DRAWS = 5, 64
ROUNDING = 1e-12


def scores() -> np.ndarray:
    one = torch.ones(1, PLAYERS)
    place = Place(one, torch.zeros_like(one), torch.arange(PLAYERS), Key.named("peer").stream(0))
    asked = pl.SobolIndices().question(place, 0)
    masks = asked.masks(range(DRAWS * asked.size))
    return np.tanh(3 * masks @ np.linspace(-1, 2, PLAYERS) - 2).reshape(DRAWS, -1)


def test_the_indices_are_salibs_but_for_the_unbiased_variance():
    """SALib divides the squares about the mean by 2n, and not by 2n - 1."""
    sobol, found = import_module("SALib.analyze.sobol"), scores()
    expected = [sobol.total_order(found[:, 0], found[:, 2 + j], found[:, 1]) for j in range(PLAYERS)]
    assert np.allclose(total_indices(found)[0] / (1 - 1 / (2 * DRAWS)), expected, rtol=ROUNDING)


def test_the_errors_are_of_the_size_of_salibs_bootstrap():
    """Its intervals are 1.96 standard deviations of indices of resampled draws; here of 2000."""
    sobol, found = import_module("SALib.analyze.sobol"), scores()
    rng = np.random.default_rng(0).integers
    errors = np.sqrt(total_indices(found)[1])
    resampled = rng(DRAWS, size=(DRAWS, 2000))
    for j in range(PLAYERS):
        each = sobol.total_order(found[:, 0][resampled], found[:, 2 + j][resampled], found[:, 1][resampled])
        assert errors[j] == pytest.approx(each.std(ddof=1), rel=0.15)
