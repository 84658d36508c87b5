"""Shapley values of few players against shap's and Captum's: exactly where theirs enumerate, else within their spread.

Of shap: KernelExplainer asks about all sets where there are calls for them; PermutationExplainer takes an order and
its reverse, as ours does, and is exact for games of twos after one. Of Captum: ShapleyValueSampling takes single
orders; KernelShap draws sets with the Shapley kernel's weights, and gives the full and the empty one a weight of a
million in place of the constraint. Both vary around the values.
"""

import warnings
from importlib import import_module
from types import ModuleType

import numpy as np
import pytest
import torch
from tests.oracles import uniform
from torch import Tensor, nn

import pellucid as pl

pytestmark = pytest.mark.peers

PLAYERS, START = 8, 0.25


class Game(nn.Module):
    """Smooth, with what several columns do together."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.first = nn.Parameter(torch.randn(PLAYERS, 6, generator=generator, dtype=torch.float64))
        self.second = nn.Parameter(torch.randn(6, generator=generator, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.first) @ self.second + x[:, 0] * x[:, 3] * x[:, 5]


X = 2 * uniform(1, PLAYERS, seed=6, dtype=torch.float64) - 0.5
BASE = torch.full((1, PLAYERS), START, dtype=torch.float64)


@pytest.fixture(scope="module")
def shap() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its import meets what matplotlib is about to drop
        return import_module("shap")


def on_arrays(rows: np.ndarray) -> np.ndarray:
    return Game()(torch.from_numpy(np.asarray(rows, dtype=np.float64))).detach().numpy()


def twos(rows: np.ndarray) -> np.ndarray:
    return rows[:, 0] * rows[:, 1] + rows[:, 2] * rows[:, 7] - 2 * rows[:, 4] ** 2


def ours(method: type = pl.ShapleySampling, f=on_arrays, **settings) -> pl.Attribution:
    model = pl.FunctionModel(f, output="regression")
    return method(**{"baseline": pl.Constant(START), "budget": 2**PLAYERS + 2} | settings)(model, X)


def exact(f=on_arrays) -> np.ndarray:
    a = ours(f=f)
    assert a.stopped.startswith("exact")
    return a.scores[0].numpy()


def test_exact_values_are_those_of_shaps_kernel_explainer_which_enumerates(shap):
    theirs = shap.KernelExplainer(on_arrays, BASE.numpy()).shap_values(
        X.numpy(), nsamples=2**PLAYERS, l1_reg=False, silent=True
    )[0]
    np.testing.assert_allclose(theirs, exact(), atol=1e-5 * abs(exact()).max())
    kernel = ours(pl.KernelSHAP).scores[0].numpy()
    np.testing.assert_allclose(theirs, kernel, atol=1e-5 * abs(kernel).max())


def permuted(shap: ModuleType, f, orders: int, seed: int) -> np.ndarray:
    masker = shap.maskers.Independent(BASE.numpy(), max_samples=1)
    explainer = shap.PermutationExplainer(f, masker, seed=seed)
    return explainer(X.numpy(), max_evals=orders * (2 * PLAYERS + 1), silent=True).values[0]


def test_of_a_game_of_twos_shaps_permutation_explainer_is_exact_too(shap):
    np.testing.assert_allclose(permuted(shap, twos, 1, 0), exact(twos), atol=1e-9)
    sampled = ours(f=twos, budget=2 + 2 * PLAYERS).scores[0].numpy()
    np.testing.assert_allclose(sampled, exact(twos), atol=1e-9)


def test_shaps_permutation_explainer_and_ours_have_the_same_mean_and_spread(shap):
    """Of one pair of orders: both are draws from the same distribution."""
    theirs = np.stack([permuted(shap, on_arrays, 1, seed) for seed in range(300)])
    each = np.stack([ours(budget=2 + 2 * PLAYERS, seed=seed).scores[0].numpy() for seed in range(300)])
    for found in (theirs, each):
        assert (abs(found.mean(0) - exact()) < 4.5 * found.std(0) / 300**0.5).all()
    np.testing.assert_allclose(each.std(0), theirs.std(0), rtol=5 * 300**-0.5)


def test_captums_shapley_value_sampling_varies_around_the_exact_values(captum_attr):
    """And has more spread at as many calls: its orders have no reverse."""
    explain = captum_attr.ShapleyValueSampling(Game())
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        theirs = np.stack(
            [explain.attribute(X, BASE, n_samples=2, perturbations_per_eval=8)[0].detach().numpy() for _ in range(200)]
        )
    assert (abs(theirs.mean(0) - exact()) < 4.5 * theirs.std(0) / 200**0.5).all()
    each = np.stack([ours(budget=2 + 2 * PLAYERS, seed=seed).scores[0].numpy() for seed in range(200)])
    assert each.var(0).sum() < 0.7 * theirs.var(0).sum()


def test_captums_kernel_shap_varies_around_the_exact_values(captum_attr):
    explain = captum_attr.KernelShap(Game())
    with torch.random.fork_rng([]), pytest.MonkeyPatch.context() as patch:
        torch.manual_seed(0)
        generator = np.random.default_rng(0)
        patch.setattr(np.random, "choice", generator.choice)
        theirs = np.stack(
            [explain.attribute(X, BASE, n_samples=200, perturbations_per_eval=8)[0].detach().numpy() for _ in range(40)]
        )
    error = theirs.std(0, ddof=1) / 40**0.5
    assert (abs(theirs.mean(0) - exact()) < 4.5 * error + 1e-3 * abs(exact()).max()).all()
    assert error.max() < 0.05 * abs(exact()).max()
