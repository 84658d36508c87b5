"""The kernels' Shapley values, against the definition over all sets of a few players."""

import itertools

import numpy as np
import pytest
import torch
from tests.explainers.games import brute_force

import pellucid as pl
from pellucid.explainers import _shapley_process
from pellucid.explainers._shapley_process import Linear, Product, neighbourhood, no_neighbours, parts, shapley_fit

PLAYERS = 6
SETS = np.array(list(itertools.product([-1.0, 1.0], repeat=PLAYERS)))
RNG = np.random.default_rng(0)
SOME = SETS[RNG.choice(len(SETS), 5, replace=False)]
ROOT = RNG.normal(size=(PLAYERS, PLAYERS))
PARTS = {
    "identity": Linear(np.eye(PLAYERS)),
    "linear": Linear(ROOT @ ROOT.T),
    "whole": Product((np.arange(PLAYERS),), 0.7),
    "windows": Product((np.array([0, 1]), np.array([1, 2, 4]), np.array([3, 5])), 0.4),
}
each = pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)


def definition(game):
    """Shapley values of a game over all sets in the order of SETS."""
    number = {tuple(row): i for i, row in enumerate(SETS)}

    def value(present):
        signs = np.full(PLAYERS, -1.0)
        signs[list(present)] = 1
        return game[number[tuple(signs)]]

    return brute_force(value, PLAYERS)


@each
def test_a_kernel_is_odd(part):
    gram = part.gram(SETS)
    assert np.allclose(gram, gram.T)
    assert np.allclose(part.gram(np.concatenate([SETS, -SETS]))[: len(SETS), len(SETS) :], -gram)


@each
def test_a_kernel_is_positive(part):
    assert np.linalg.eigvalsh(part.gram(SETS)).min() > -1e-9


@each
def test_its_values_are_those_of_the_definition(part):
    both = part.gram(np.concatenate([SETS, SOME]))[: len(SETS), len(SETS) :]
    expected = np.stack([definition(game) for game in both.T], 1)
    assert np.allclose(part.values(SOME)[0], expected, atol=1e-10)


@each
def test_its_prior_variance_is_that_of_the_definition(part):
    """Var phi = a' K a, with a the weights of the definition."""
    gram = part.gram(SETS)
    weights = np.stack([definition(one) for one in np.eye(len(SETS))], 1)
    assert np.allclose(part.values(SOME)[1], np.einsum("ps,st,pt->p", weights, gram, weights), atol=1e-9)


def test_products_of_many_players_are_exact_too():
    """Twenty points suffice for a polynomial of degree 38: the values of all players sum to what the sets differ by."""
    players = 40
    part = Product((np.arange(players),), 0.2)
    some = np.random.default_rng(1).choice([-1.0, 1.0], (3, players))
    ends = np.concatenate([np.ones((1, players)), some])
    change = 2 * part.gram(ends)[0, 1:]  # k(all, x) - k(none, x), and k is odd
    assert np.allclose(part.values(some)[0].sum(0), change, rtol=1e-9)


def signs_of(pairs, players, seed=0):
    rng = np.random.default_rng(seed)
    return np.concatenate([np.ones((1, players)), rng.choice([-1.0, 1.0], (pairs - 1, players))])


def test_a_linear_game_is_found():
    weights = np.linspace(-2, 3, 16)
    signs = signs_of(60, 16)
    fit = shapley_fit(signs, signs @ weights / 2, neighbourhood(np.arange(16).reshape(4, 4)))
    assert np.abs(fit.values - weights).max() < 0.02
    assert fit.notes["r2"] > 0.99
    assert fit.values.sum() == pytest.approx(fit.change)


def test_weights_of_the_first_pairs_serve_for_all(monkeypatch):
    """Nearly the map and the error that weights of all pairs give, on a smooth game."""
    near = neighbourhood(np.arange(16).reshape(4, 4))
    signs = signs_of(200, 16)
    halves = np.tanh(signs @ np.linspace(-1, 1, 16)) + 0.1 * signs[:, 0] * signs[:, 1] * signs[:, 4]
    whole = shapley_fit(signs, halves, near)
    monkeypatch.setattr(_shapley_process, "_WEIGHED", 100)
    part = shapley_fit(signs, halves, near)
    assert not np.array_equal(part.values, whole.values)
    assert np.abs(part.values - whole.values).max() < 3 * np.sqrt(whole.variance.mean())
    assert 0.5 < part.variance.mean() / whole.variance.mean() < 2


def test_a_game_of_chance_shows_no_error():
    signs = signs_of(60, 16)
    fit = shapley_fit(signs, np.random.default_rng(2).standard_normal(60), neighbourhood(np.arange(16).reshape(4, 4)))
    assert fit.variance is None
    assert "no error is shown" in fit.findings[0]


def test_the_predicted_error_is_the_true_one_where_the_game_is_of_the_kind():
    """Games drawn from the kernels themselves: posterior variance against squared error, over many games."""
    near = neighbourhood(np.arange(9).reshape(3, 3))
    kernels = parts(near)
    sets = np.array(list(itertools.product([-1.0, 1.0], repeat=9)))
    gram = sum(kernel.gram(sets) / np.trace(kernel.gram(sets)) * len(sets) for kernel in kernels)
    root = np.linalg.cholesky(gram + 1e-8 * np.eye(len(sets)))
    number = {tuple(row): i for i, row in enumerate(sets)}
    true, predicted = [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        game = root @ rng.standard_normal(len(sets))

        def value(present, game=game):
            signs = np.full(9, -1.0)
            signs[list(present)] = 1
            return game[number[tuple(signs)]]

        phi = brute_force(value, 9)
        signs = signs_of(25, 9, seed)
        halves = np.array([game[number[tuple(row)]] for row in signs])
        fit = shapley_fit(signs, halves, near)
        if fit.variance is not None:
            true.append(((fit.values - phi) ** 2).mean())
            predicted.append(fit.variance.mean())
    assert len(true) > 50
    # Twenty-five pairs say little of a dozen weights, so that single predictions are rough.
    assert 0.7 < np.mean(true) / np.mean(predicted) < 1.4


def test_patches_are_a_lattice_with_windows():
    labels = pl.Patches(4).labels(torch.zeros(1, 1, 8, 8))[0].numpy()
    near = neighbourhood(labels)
    assert near.squared[0, 1] == near.squared[0, 4] == 1
    assert near.squared[0, 5] == 2
    assert [len(windows) for windows in near.windows] == [9, 4, 1]
    assert near.windows[0][0].tolist() == [0, 1, 4, 5]


def test_steps_of_a_signal_are_a_lattice_of_one_axis():
    near = neighbourhood(np.repeat(np.arange(5), 3))
    assert [windows[0].tolist() for windows in near.windows] == [[0, 1], [0, 1, 2], [0, 1, 2, 3]]


def test_superpixels_go_together_where_they_touch():
    labels = np.array([[0, 0, 0, 1], [2, 2, 0, 1], [2, 2, 3, 3]])
    near = neighbourhood(labels)
    assert {tuple(pair) for pair in near.windows[0]} == {(0, 1), (0, 2), (0, 3), (1, 3), (2, 3)}
    assert [0, 1, 2, 3] in [window.tolist() for window in near.windows[1]]
    assert (0, 1, 3) in {tuple(window) for window in near.windows[1]}


def test_segments_that_touch_across_held_places_do_not():
    labels = np.array([[0, -1, 1, 1], [0, -1, 1, 2]])
    assert {tuple(pair) for pair in neighbourhood(labels).windows[0]} == {(1, 2)}


def test_columns_of_a_table_are_not_near_each_other():
    near = no_neighbours(6)
    assert not any(near.windows)
    assert len(parts(near)) == 5  # single columns, and products of all
