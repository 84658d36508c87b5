"""The game of Shapley values: its sets, and its values where all of them are known."""

import numpy as np
import pytest
import torch
from tests.explainers.games import as_model, brute_force, random_game

import pellucid as pl
from pellucid.core.random import Key
from pellucid.explainers._queried import Place
from pellucid.explainers._shapley import AllSets, all_fit, paired_sets

PLAYERS = 5
EXACT = pl.KernelSHAP(baseline=pl.Zeros(), budget=2000)


def values_of(game, players=PLAYERS):
    a = EXACT(as_model(game), torch.ones(1, players, dtype=torch.float64))
    assert "exact" in a.stopped
    return a.scores[0].numpy()


@pytest.mark.parametrize("seed", range(5))
def test_all_sets_give_the_values_of_the_definition(seed):
    game = random_game(PLAYERS, seed)

    def value(present):
        return game[sum(1 << p for p in present)]

    assert np.allclose(values_of(game), brute_force(value, PLAYERS), atol=1e-12)


def test_efficiency_the_values_divide_the_change():
    game = random_game(PLAYERS, 0) + 7  # worth something without any player
    a = EXACT(as_model(game), torch.ones(1, PLAYERS, dtype=torch.float64))
    assert float(a.scores.sum()) == pytest.approx(game[-1] - game[0], abs=1e-12)
    assert a.recipe.notes["change"] == pytest.approx([game[-1] - game[0]], abs=1e-12)
    assert float(a.estimate.residual) == pytest.approx(0, abs=1e-12)


def test_a_change_of_nothing_is_divided_without_a_rest():
    """|s - 3| of a sum s from 0 to 6: odd in no part, so that values, change and rest are rounding alone."""
    model = pl.FunctionModel(lambda rows: np.abs(rows @ [1.0, 2.0, 3.0] - 3.0), output="regression")
    for budget in (2000, 1000):
        a = pl.KernelSHAP(baseline=pl.Zeros(), budget=budget)(model, torch.ones(1, 3, dtype=torch.float64))
        assert float(a.scores.abs().max()) < 1e-14
        assert float(a.estimate.residual) == 0
        assert not [f for f in a.findings if f.code == "residual"]


def test_symmetry_players_that_do_the_same_get_the_same():
    sets = np.arange(2**PLAYERS)
    game = random_game(3, 1)[(sets & 1) + (sets >> 1 & 1)] + (sets >> 3 & 1)  # players 0 and 1 count alike
    phi = values_of(game)
    assert phi[0] == pytest.approx(phi[1], abs=1e-12)


def test_a_player_that_does_nothing_gets_nothing():
    sets = np.arange(2**PLAYERS)
    assert values_of(random_game(PLAYERS - 1, 2)[sets >> 1])[0] == pytest.approx(0, abs=1e-12)


def test_values_of_a_sum_of_games_are_sums():
    one, other = random_game(PLAYERS, 3), random_game(PLAYERS, 4)
    assert np.allclose(values_of(2 * one + other), 2 * values_of(one) + values_of(other), atol=1e-12)


def test_values_do_not_depend_on_the_value_of_the_empty_set_but_by_the_change():
    game = random_game(PLAYERS, 5)
    assert np.allclose(values_of(game + 7), values_of(game), atol=1e-12)


def test_a_single_segment_gets_the_whole_change():
    model = pl.FunctionModel(lambda rows: rows.sum((1, 2)), output="regression")
    a = pl.KernelSHAP(segments=pl.Patches(1), baseline=pl.Zeros())(model, torch.ones(1, 6, 1))
    assert a.by_segment.tolist() == [6.0]


def place_of(players, rows=1):
    x = torch.ones(1, players)
    return Place(x, torch.zeros(rows, players), torch.arange(players), Key.named("x"))


@pytest.mark.parametrize(("players", "calls", "fits"), [(10, 1024, True), (10, 1023, False), (21, 2**30, False)])
def test_games_are_exact_where_all_sets_can_be_asked(players, calls, fits):
    assert all_fit(place_of(players), calls) is fits


def test_each_row_of_a_background_is_a_call():
    assert all_fit(place_of(5, rows=3), 96)
    assert not all_fit(place_of(5, rows=3), 95)


def test_a_missing_set_of_an_exact_game_is_an_error():
    with pytest.raises(pl.ModelError, match="scores of all 8 sets, but the model failed on 1"):
        AllSets(place_of(3)).fit(np.array([0, 1, 2, np.nan, 4, 5, 6, 7.0]))


def test_the_first_set_is_the_full_one_and_sizes_are_spread_evenly():
    sets = paired_sets(Key.named("x"), range(241), 9)
    assert sets[0].all()
    counts = np.bincount(sets[1:].sum(1), minlength=10)
    assert counts[0] == counts[9] == 0
    assert counts[1:9].min() >= 28  # 30 of each of the 8 sizes; a golden-ratio sequence misses by less than 2
    assert counts[1:9].max() <= 32


def test_every_player_is_as_often_present():
    share = paired_sets(Key.named("x"), range(1, 4001), 9).mean(0)
    # Sizes 1 .. 8 in equal numbers: half of the players on average.
    assert np.abs(share - 0.5).max() < 4 * 0.5 / np.sqrt(4000)


def test_sets_are_keyed_by_their_number():
    stream = Key.named("x")
    assert np.array_equal(paired_sets(stream, [7, 3], 9), paired_sets(stream, range(10), 9)[[7, 3]])
    assert not np.array_equal(paired_sets(stream, [7], 9), paired_sets(Key.named("y"), [7], 9))
