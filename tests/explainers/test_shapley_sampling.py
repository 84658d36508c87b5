import itertools

import numpy as np
import pytest
import torch
from tests.explainers.toy_runs import covered, place_of, stopped
from tests.oracles import conv_net, uniform

import pellucid as pl
from pellucid.explainers.shapley_sampling import _Orders

S = 6
RNG = np.random.default_rng(1)
SETS = np.arange(2**S)[:, None] >> np.arange(S) & 1  # which a binary number names
GAME = np.tanh(SETS @ RNG.normal(0.5, 1, S) - 0.5) + 0.3 * RNG.normal(size=2**S)
X = torch.tensor([[1.0, 3.0, 2.0, -1.0, 0.5, 4.0]], dtype=torch.float64)


def by_orders(game: np.ndarray, players: int) -> np.ndarray:
    """The definition: what each adds, the mean over all orders there are."""
    values = np.zeros(players)
    orders = list(itertools.permutations(range(players)))
    for order in orders:
        before = 0
        for player in order:
            values[player] += game[before | 1 << player] - game[before]
            before |= 1 << player
    return values / len(orders)


TRUTH = by_orders(GAME, S)


def codes(masks: np.ndarray) -> np.ndarray:
    return masks @ (1 << np.arange(masks.shape[1]))


class Remembered(_Orders):
    """Draws each order once only, for tests of thousands of runs."""

    def __init__(self, seed: int, most: int) -> None:
        super().__init__(place_of(S, seed))
        self.drawn = super().ranks(range(most))

    def ranks(self, draws):
        return self.drawn[list(draws)]


def orders(seed: int = 0) -> _Orders:
    return _Orders(place_of(S, seed))


def score(question: _Orders, game: np.ndarray = GAME):
    return lambda queries: game[codes(question.masks(queries))]


def fit(question: _Orders, draws: int, game: np.ndarray = GAME):
    return question.fit(score(question, game)(range(draws * question.size)))


def explain(**settings) -> pl.ShapleySampling:
    return pl.ShapleySampling(**{"baseline": pl.Zeros(), "budget": 2 + 2 * 6 * 3} | settings)


def model(f, **settings) -> pl.FunctionModel:
    return pl.FunctionModel(f, output="regression", **settings)


def game_model(rows: np.ndarray) -> np.ndarray:
    return GAME[codes(rows == X.numpy())]


def twos(rows: np.ndarray) -> np.ndarray:
    return rows[:, 0] * rows[:, 1] + rows[:, 2] * rows[:, 5] - 2 * rows[:, 4]


# ------------------------------------------------------------------ values
def test_all_orders_are_the_exact_values():
    a = explain(budget=2**S + 2)(model(game_model), X)
    np.testing.assert_allclose(a.scores[0], TRUTH, rtol=1e-12)
    assert a.stopped == "exact after all 64 calls that there are"
    assert not a.standard_error.any()


def test_of_an_additive_game_one_pair_is_exact():
    weights = np.random.default_rng(0).normal(size=S)
    np.testing.assert_allclose(fit(orders(), 1, SETS @ weights).values, weights, rtol=1e-12)


def test_of_a_game_of_twos_one_pair_is_exact_and_two_say_so():
    """The reverse puts the other of the two first: each gets half of what they do together."""
    a = explain(budget=2 + 2 * 2 * S)(model(twos), X)
    x = X[0]
    together = x[0] * x[1] / 2, x[2] * x[5] / 2
    expected = torch.stack([together[0], together[0], together[1], torch.zeros(()), -2 * x[4], together[1]])
    torch.testing.assert_close(a.scores[0], expected.double(), rtol=0, atol=1e-12)
    assert float(a.standard_error.max()) < 1e-12


def test_each_pair_sums_to_the_change_from_nothing_to_all():
    question = orders()
    scores = score(question)(range(7 * question.size)).reshape(7, -1)
    np.testing.assert_allclose(question._added(scores).sum(1), GAME[-1] - GAME[0], rtol=1e-12)
    found = fit(question, 7)
    assert found.change == GAME[-1] - GAME[0]
    assert found.values.sum() == pytest.approx(found.change, rel=1e-12)


def test_the_mean_over_many_pairs_is_the_value():
    found = fit(orders(), 4000)
    error = np.sqrt(found.variance)
    assert (abs(found.values - TRUTH) < 4.5 * error).all()
    assert error.max() < 0.05 * abs(TRUTH).max()


def test_a_draw_grows_two_sets_one_in_the_reverse_order_of_the_other():
    masks = orders().masks(range(2 * S))
    assert masks[0].all()
    assert not masks[1].any()
    there, back = masks[2 : S + 1], masks[S + 1 :]
    assert [row.sum() for row in (*there, *back)] == [*range(1, S), *range(1, S)]
    assert (there[1:] >= there[:-1]).all()
    assert (back[1:] >= back[:-1]).all()
    assert np.array_equal(there, ~back[::-1])


def test_every_segment_comes_at_every_place():
    ranks = orders().ranks(range(3000))
    for place in range(S):
        seen = (ranks == place).mean(0)
        assert (abs(seen - 1 / S) < 4.5 * np.sqrt(1 / S / 3000)).all()


# ------------------------------------------------------------------ errors
def test_the_error_is_that_of_the_mean_of_pairs():
    question = orders()
    each = np.stack([fit_one(question, draw) for draw in range(9)])
    found = fit(question, 9)
    np.testing.assert_allclose(found.values, each.mean(0), rtol=1e-12)
    np.testing.assert_allclose(np.sqrt(found.variance), each.std(0, ddof=1) / 3, rtol=1e-12)


def fit_one(question: _Orders, draw: int) -> np.ndarray:
    """What each adds in one order and in its reverse, by walking along them."""
    order = question.ranks([draw])[0].argsort()
    values = np.zeros(S)
    for way in (order, order[::-1]):
        before = 0
        for player in way:
            values[player] += (GAME[before | 1 << player] - GAME[before]) / 2
            before |= 1 << player
    return values


@pytest.mark.parametrize("draws", [10, 40])
def test_intervals_hold_the_truth_in_95_of_100(draws):
    hits = [covered(fit(Remembered(seed, draws), draws), TRUTH, draws) for seed in range(1000)]
    assert 0.93 <= np.mean(hits) <= 0.97


@pytest.mark.parametrize("error", [0.2, 0.25])
def test_they_do_after_stopping_early(error):
    hits, counts = [], set()
    for seed in range(1000):
        question = Remembered(seed, 40)
        run = stopped(question, score(question), pl.Until(error=error, at_most=40 * question.size))
        hits.append(covered(run.fitted, TRUTH, run.draws))
        counts.add(run.draws)
    assert len(counts) > 2, "so that stopping is seen to depend on chance"
    assert 0.93 <= np.mean(hits) <= 0.97


def test_one_pair_has_no_error():
    a = explain(budget=2 + 2 * S)(model(game_model), X)
    assert a.standard_error is None
    assert a.scores.sum() == pytest.approx(GAME[-1] - GAME[0], rel=1e-12)


# ------------------------------------------------------------------ calls
def test_the_full_and_the_empty_set_are_asked_once():
    asked = []
    a = explain(budget=2 + 4 * 12)(model(lambda rows: asked.extend(rows) or game_model(rows)), X)
    sets = codes(np.array(asked[2:]) == X.numpy())  # behind the prediction and its repetition
    assert (sets == 0).sum() == (sets == 2**S - 1).sum() == 1
    assert len(set(sets)) == len(sets)
    assert a.cost.forward + a.diagnosis_cost.forward == len(asked) <= 2 + 4 * 12


@pytest.mark.parametrize("budget", [14, 25, 26, 37])
def test_as_many_pairs_as_the_budget_allows(budget):
    a = explain(budget=budget)(model(game_model), X)
    assert a.estimate.state["draws"].tolist() == [(budget - 2) // 12]
    assert a.recipe.notes["orders"] == [2.0 * ((budget - 2) // 12)]


def test_a_budget_under_one_pair_is_refused():
    with pytest.raises(pl.ArgumentError, match="14 model calls or more"):
        explain(budget=13)(model(game_model), X)


@pytest.mark.parametrize("rows", [1, 2, 5, 500])
def test_the_rows_at_once_change_nothing(rows):
    assert torch.equal(explain()(model(game_model, micro_batch=rows), X).scores, explain()(model(game_model), X).scores)


def test_seeds_and_inputs_have_orders_of_their_own():
    f = model(lambda rows: rows.prod(1))
    one, other = explain()(f, X), explain(seed=1)(f, X)
    assert not torch.equal(one.scores, other.scores)
    both = explain()(f, torch.cat([X, X + 1]))
    assert torch.equal(both.scores[0], one.scores[0])
    assert torch.equal(both.scores[1], explain()(f, X + 1).scores[0])


# ------------------------------------------------------------------ what cannot be had
def broken(at: set[int]):
    def f(rows: np.ndarray) -> np.ndarray:
        found = codes(rows == X.numpy())
        return np.where(np.isin(found, list(at)), np.nan, GAME[found])

    return f


def test_a_pair_that_meets_a_set_without_a_score_is_left_out():
    question = orders()
    sets = codes(question.masks(range(5 * question.size))).reshape(5, -1)
    lost = next(code for code in sets[1, 2:] if sum(code in row for row in sets) == 1)
    scores = np.where(sets == lost, np.nan, GAME[sets])
    found = question.fit(scores.ravel())
    expected = question._added(GAME[sets])[[0, 2, 3, 4]]
    np.testing.assert_allclose(found.values, expected.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.variance, expected.var(0, ddof=1) / 4, rtol=1e-12)
    assert found.findings == ("1 of 5 pairs of orders met a set without a score and were left out.",)


@pytest.mark.parametrize("at", [0, 2**S - 1])
def test_without_a_score_of_nothing_or_of_all_there_are_no_values(at):
    with pytest.raises(pl.ModelError, match="no score for one of the two"):
        explain()(model(broken({at} - {2**S - 1})), X) if at == 0 else orders().fit(np.full(2 * S, np.nan))


def test_without_a_whole_pair_there_are_no_values():
    question = orders()
    scores = GAME[codes(question.masks(range(2 * question.size)))]
    scores[[3, question.size + 4]] = np.nan
    with pytest.raises(pl.ModelError, match="Each of the 2 pairs"):
        question.fit(scores)


# ------------------------------------------------------------------ inputs
def test_a_background_is_averaged_over():
    background = pl.Background.of(uniform(4, S, seed=2, dtype=torch.float64))
    weights = torch.arange(1.0, S + 1, dtype=torch.float64)
    a = explain(baseline=background, budget=2 + 4 * 4 * S)(model(lambda rows: rows @ weights.numpy()), X)
    torch.testing.assert_close(a.scores[0], weights * (X[0] - background.rows.mean(0)))


@pytest.mark.parametrize(
    ("shape", "shown"), [((2, 30), (2, 30)), ((2, 3, 40), (2, 1, 40)), ((2, 3, 8, 9), (2, 1, 8, 9))]
)
def test_tables_signals_and_pictures_have_a_number_for_each_segment(shape, shown):
    x = uniform(*shape)
    a = explain(budget=1000, segments=pl.PatchesOrColumns(5))(model(lambda rows: rows.reshape(len(rows), -1).sum(1)), x)
    assert a.scores.shape == shown
    for row in range(2):
        change = x[row].sum()
        assert a[row].by_segment.sum() == pytest.approx(float(change), rel=1e-4)
    assert a.residual.abs().max() < 1e-4


def test_a_networks_values_are_explained():
    a = pl.ShapleySampling(segments=pl.Patches(4), budget=200)(pl.TorchModel(conv_net()), uniform(2, 3, 9, 9))
    assert a.scores.shape == (2, 1, 9, 9)
    assert float(a.standard_error.max()) > 0
    assert a[0].samples_used == 1 + 6 * 32
