import numpy as np
import pytest
import torch
from tests.explainers.toy_runs import covered, place_of, stopped
from tests.oracles import conv_net, uniform

import pellucid as pl
from pellucid.core.random import Key, normal
from pellucid.core.recipe import decode, encode
from pellucid.explainers.stochastic_gradient import _Pairs

BOTH = [pl.PlainMean(), pl.ControlVariate()]
either = pytest.mark.parametrize("estimator", BOTH, ids=repr)

W = uniform(3, 6, 6, seed=1, dtype=torch.float64) - 0.3
PICTURE = uniform(1, 3, 6, 6, seed=2, dtype=torch.float64)
QUARTERS = pl.Patches(2)
TABLE = torch.tensor([[1.0, 3.0, 2.0, -1.0, 0.5]], dtype=torch.float64)


def sums(values: torch.Tensor) -> torch.Tensor:
    """Over the channels and places of each quarter of a picture (C, 6, 6)."""
    return values.sum(0).unfold(0, 3, 3).unfold(1, 3, 3).sum((2, 3)).flatten()


def model(f, **settings) -> pl.FunctionModel:
    return pl.FunctionModel(f, output="regression", takes="torch", **settings)


def linear(rows: torch.Tensor) -> torch.Tensor:
    return (rows * W).sum((1, 2, 3))


def explain(**settings) -> pl.StochasticGradient:
    absolute = {"segments": QUARTERS, "noise_level": pl.NoiseLevel.absolute(0.5), "budget": 2002}
    return pl.StochasticGradient(**absolute | settings)


def sure(a: pl.Attribution, truth: torch.Tensor) -> bool:
    """Within 4.5 standard errors, which are a tenth of the largest value or less."""
    labels = a.segments[0].long()
    error = torch.stack([a.standard_error[0, 0][labels == j][0] for j in range(len(truth))])
    assert float(error.max()) < 0.1 * float(truth.abs().max())
    return bool(((a.by_segment - truth).abs() < 4.5 * error).all())


# ------------------------------------------------------------------ what is estimated
@either
def test_of_a_linear_score_it_is_the_sum_of_the_weights_over_each_segment(estimator):
    assert sure(explain(estimator=estimator, budget=8002)(model(linear), PICTURE), sums(W))


@either
def test_of_a_cubic_it_is_the_smoothed_slope(estimator):
    """E of 3 w (x + sigma z)^2 is 3 w (x^2 + sigma^2), which tells sigma from its square and from a multiple."""
    a = explain(estimator=estimator, budget=20002)(model(lambda rows: (rows**3 * W).sum((1, 2, 3))), PICTURE)
    assert sure(a, sums(3 * W * (PICTURE[0] ** 2 + 0.25)))


def test_noise_is_the_same_all_over_a_segment():
    """Of a product of two places of one segment the noise adds sigma^2 to what is smoothed; of two segments nothing."""
    fits = []
    for other in (1, 5):
        f = model(lambda rows, other=other: rows[:, 0, 0, 0] * rows[:, 0, 0, other] * rows[:, 0, 5, 0])
        x, y, z = PICTURE[0, 0, 0, 0], PICTURE[0, 0, 0, other], PICTURE[0, 0, 5, 0]
        expected = {1: [(x + y) * z, 0, x * y + 0.25, 0], 5: [y * z, x * z, x * y, 0]}[other]
        fits.append(sure(explain(budget=20002)(f, PICTURE), torch.tensor(expected, dtype=torch.float64)))
    assert fits == [True, True]


def test_it_is_the_sum_of_gradients_under_the_same_noise():
    """White-box and black-box estimates of the same numbers, from the same pairs, where the signal is clear."""
    net, x, pairs = conv_net(dtype=torch.float64).eval(), uniform(1, 3, 9, 9, seed=3, dtype=torch.float64), 3000
    patches = pl.Patches(3)
    labels, sigma = patches.labels(x)[0], 0.1 * float(x.max() - x.min())
    method = pl.StochasticGradient(segments=patches, noise_level=0.1, budget=1 + 2 * pairs)
    z = torch.from_numpy(np.stack([normal(Key.of(x[0]).stream(0), i, (9,)) for i in range(pairs)])).double()
    slopes, products = 0, 0
    for sign in (1, -1):
        rows = (x + sign * sigma * z[:, labels][:, None]).requires_grad_()
        scores = net(rows)[:, 1]
        gradient = torch.autograd.grad(scores.sum(), rows)[0].sum(1)
        slopes = slopes + torch.stack([gradient[:, labels == j].sum(1) for j in range(9)], 1) / 2
        products = products + sign * z * scores.detach()[:, None] / (2 * sigma)
    a = method(pl.TorchModel(net), x, target=1)
    torch.testing.assert_close(a.by_segment, products.mean(0), rtol=1e-9, atol=1e-12)
    left = products - slopes
    clear = products.mean(0).abs() > 3 * products.std(0) / pairs**0.5
    assert clear.sum() >= 5
    assert (left.mean(0).abs() < 3.5 * left.std(0) / pairs**0.5)[clear].all()


def test_the_noise_level_is_a_fraction_of_each_inputs_range():
    f = model(lambda rows: (rows**3).sum(1))
    both = torch.cat([TABLE, 3 * TABLE])
    a = explain(noise_level=0.2, segments=pl.Columns())(f, both)
    assert a.recipe.notes["sigma"] == pytest.approx([0.8, 2.4])
    absolute = explain(noise_level=pl.NoiseLevel.absolute(0.8), segments=pl.Columns())(f, TABLE)
    torch.testing.assert_close(a.scores[:1], absolute.scores, rtol=1e-6, atol=0)


# ------------------------------------------------------------------ estimators
S, SIGMA = 30, 0.5
RNG = np.random.default_rng(0)
SLOPES, AT = 2 * RNG.normal(size=S) / S**0.5, 0.5 * RNG.normal(size=S)


def bent(shifts: np.ndarray) -> np.ndarray:
    """2 tanh(w x) + x0 x1 x2 at AT + shift."""
    x = AT + shifts
    return 2 * np.tanh(x @ SLOPES) + x[:, 0] * x[:, 1] * x[:, 2]


def bent_truth() -> np.ndarray:
    """w x under the noise is normal, of which the mean slope of tanh is an integral."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    slope = (weights / weights.sum()) @ (1 / np.cosh(AT @ SLOPES + SIGMA * np.linalg.norm(SLOPES) * nodes) ** 2)
    return 2 * slope * SLOPES + np.concatenate([[AT[1] * AT[2], AT[0] * AT[2], AT[0] * AT[1]], np.zeros(S - 3)])


TRUTH = bent_truth()


class Remembered(_Pairs):
    """Shifts of another generator, all at once, for tests of thousands of runs."""

    def __init__(self, estimator: pl.SteinEstimator, seed: int, most: int, players: int = S) -> None:
        place = place_of(players, seed)
        place.absent[:] = SIGMA
        super().__init__(place, estimator)
        self.drawn = np.random.default_rng(seed).normal(size=(most, players))

    def shifts(self, draws):
        return self.drawn[list(draws)]

    def scores(self, f=bent):
        z = self.drawn
        both = np.stack([f(SIGMA * z), f(-SIGMA * z)], 1).ravel()
        return lambda queries: both[: len(queries)]


def fit(estimator: pl.SteinEstimator, seed: int, pairs: int, f=bent, players: int = S):
    question = Remembered(estimator, seed, pairs, players)
    return question.fit(question.scores(f)(range(2 * pairs)))


def test_of_a_linear_score_the_error_of_the_plain_mean_is_known():
    """z_j y has the variance g_j^2 + |g|^2, of y = g z."""
    g, pairs = np.array([1.0, -2.0, 0.0, 0.5]), 20
    fits = [fit(pl.PlainMean(), seed, pairs, lambda shifts: shifts @ g, 4) for seed in range(2000)]
    expected = (g**2 + g @ g) / pairs
    found = np.array([each.values for each in fits])
    np.testing.assert_allclose(found.var(0), expected, rtol=5 * (2 / 2000) ** 0.5)
    np.testing.assert_allclose(np.mean([each.variance for each in fits], 0), expected, rtol=0.1)


@either
@pytest.mark.parametrize("pairs", [3, 12, 60])
def test_it_is_unbiased_for_any_number_of_pairs(estimator, pairs):
    found = np.array([fit(estimator, seed, pairs).values for seed in range(800)])
    error = found.std(0, ddof=1) / len(found) ** 0.5
    assert (abs(found.mean(0) - TRUTH) < 4.5 * error).all()
    assert error.mean() < 0.6 * abs(TRUTH).mean(), "so that a bias of that size would be seen"


def test_the_control_leaves_each_pair_out_of_its_own_regression():
    question = Remembered(pl.ControlVariate(), 0, 9)
    z, y = question.drawn, RNG.normal(size=9)
    for pair, found in enumerate(pl.ControlVariate().terms(z, y)):
        others, left = np.delete(z, pair, 0), np.delete(y, pair)
        b = np.linalg.solve(others.T @ others + S * np.eye(S), others.T @ left)
        np.testing.assert_allclose(found, b + z[pair] * (y[pair] - z[pair] @ b), rtol=1e-9)


def test_the_control_takes_away_the_error_of_what_is_linear():
    g = RNG.normal(size=S)
    plain, controlled = (fit(e, 0, 600, lambda shifts: shifts @ g) for e in BOTH)
    assert ((controlled.values - g) ** 2).sum() < 0.01 * ((plain.values - g) ** 2).sum()
    assert controlled.variance.sum() < 0.01 * plain.variance.sum()


@either
@pytest.mark.parametrize("pairs", [50, 100])
def test_intervals_hold_the_truth_in_95_of_100(estimator, pairs):
    hits = [covered(fit(estimator, seed, pairs), TRUTH, pairs) for seed in range(1000)]
    assert 0.93 <= np.mean(hits) <= 0.97


@either
def test_they_do_after_stopping_early(estimator):
    hits, counts = [], set()
    for seed in range(1000):
        question = Remembered(estimator, seed, 205)
        run = stopped(question, question.scores(), pl.Until(error=0.5, at_most=410))
        hits.append(covered(run.fitted, TRUTH, run.draws))
        counts.add(run.draws)
    assert len(counts) > 2, "so that stopping is seen to depend on chance"
    assert 0.93 <= np.mean(hits) <= 0.97


def test_it_never_stops_by_the_spread_of_fewer_than_48_pairs():
    question = Remembered(pl.ControlVariate(), 0, 310)
    run = stopped(question, question.scores(lambda shifts: shifts @ SLOPES), pl.Until(error=0.9, at_most=620))
    assert run.draws == 61


def test_one_pair_has_no_error():
    assert explain(budget=4)(model(linear), PICTURE).standard_error is None


def test_a_caption_names_the_estimator_that_is_not_the_usual_one():
    assert [estimator.words for estimator in BOTH] == ["", "control variate"]


# ------------------------------------------------------------------ segments
def test_a_picture_has_196_segments_and_a_table_its_columns():
    picture = pl.StochasticGradient(budget=4)(model(lambda rows: rows.sum((1, 2, 3))), uniform(1, 3, 28, 30))
    assert int(picture.segments.max()) == 195
    assert pl.StochasticGradient(budget=4)(model(lambda rows: rows.sum(1)), TABLE).segments[0].tolist() == [
        0,
        1,
        2,
        3,
        4,
    ]


def test_more_segments_are_refused():
    with pytest.raises(pl.ArgumentError, match=r"196 segments at most.*Got 225\. Take fewer"):
        explain(segments=pl.Patches(15))(model(lambda rows: rows.sum((1, 2, 3))), uniform(1, 3, 28, 28))


def test_held_places_have_no_noise_and_no_value():
    labels = torch.full((6, 6), -1)
    labels[:3, :3], labels[3:, 3:] = 0, 1
    seen = []
    f = model(lambda rows: seen.append(rows) or linear(rows))
    a = explain(segments=pl.SegmentMap.of(labels), budget=22)(f, PICTURE)
    rows = torch.cat(seen)
    assert torch.equal(rows[:, :, labels < 0], PICTURE[:, :, labels < 0].expand(len(rows), 3, -1))
    assert float((rows - PICTURE)[2:, :, labels >= 0].abs().min()) > 0
    assert not a.scores[0, 0][labels < 0].any()


def test_a_pair_lies_on_both_sides_of_the_input():
    seen = []
    explain(budget=12)(model(lambda rows: seen.append(rows) or linear(rows)), PICTURE)
    rows = torch.cat(seen)[2:]  # behind the prediction and its repetition
    torch.testing.assert_close((rows[::2] + rows[1::2]) / 2, PICTURE.expand(5, 3, 6, 6))
    shifts = (rows[::2] - PICTURE).flatten(1)
    assert {len(set(shift.tolist())) for shift in shifts.round(decimals=9)} == {4}


def test_parts_of_several_inputs_have_noise_of_their_own_range():
    small, large = uniform(1, 3, seed=4), 100 * uniform(1, 3, seed=5)
    seen = []
    f = model(lambda a, b: seen.append((a, b)) or a.sum(1) + b.sum(1))
    a = pl.StochasticGradient(budget=4002)(f, {"a": small, "b": large})
    for part, whole in enumerate((small, large)):
        shifts = torch.cat([rows[part] for rows in seen])[2:] - whole
        assert float(shifts.std()) == pytest.approx(0.15 * float(whole.max() - whole.min()), rel=0.05)
    values = a.scores.flatten()
    assert ((values - 1).abs() < 5 * a.standard_error.flatten()).all()


# ------------------------------------------------------------------ calls
def test_a_budget_is_of_model_calls():
    calls = []
    a = explain(budget=31)(model(lambda rows: calls.append(len(rows)) or linear(rows)), PICTURE)
    assert sum(calls) == 30
    assert a.samples_used == 30


@pytest.mark.parametrize("rows", [1, 2, 5, 500])
def test_the_rows_at_once_change_nothing(rows):
    one = explain(budget=102)(model(linear), PICTURE).scores
    torch.testing.assert_close(explain(budget=102)(model(linear, micro_batch=rows), PICTURE).scores, one)


def test_an_input_has_noise_of_its_own():
    both = torch.cat([PICTURE, PICTURE + 1])
    a = explain(budget=102)(model(linear), both).scores
    for row in range(2):
        alone = explain(budget=102)(model(linear), both[row : row + 1]).scores
        torch.testing.assert_close(a[row : row + 1], alone)
    assert float((a[0] - a[1]).abs().min()) > 1e-6
    assert not torch.equal(explain(budget=102, seed=1)(model(linear), both).scores, a)


def test_pairs_without_two_scores_are_left_out():
    question = Remembered(pl.PlainMean(), 0, 30)
    scores = question.scores()(range(60)).copy()
    scores[[4, 13, 12]] = np.nan
    found = question.fit(scores)
    kept = [pair for pair in range(30) if pair not in (2, 6)]
    halves = ((scores[::2] - scores[1::2]) / 2)[kept]
    np.testing.assert_allclose(found.values, (question.drawn[kept] * halves[:, None]).mean(0) / SIGMA, rtol=1e-6)
    assert found.findings == ("2 of 30 pairs had no two scores and were left out.",)
    with pytest.raises(pl.ModelError, match="None of 30 pairs"):
        question.fit(np.full(60, np.nan))


# ------------------------------------------------------------------ doors
@pytest.mark.doors
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"noise_level": 25}, "NoiseLevel.absolute"),
        ({"noise_level": pl.NoiseLevel(0.1, clean_copy=True)}, "without a clean copy"),
        ({"estimator": pl.ControlVariate}, "with its parentheses"),
        ({"budget": 0}, "model calls"),
        ({"segments": 14}, "pl.Patches"),
    ],
)
def test_wrong_settings_are_named(settings, said):
    with pytest.raises(pl.ArgumentError, match=said):
        pl.StochasticGradient(**settings)


def test_nothing_is_absent_so_there_is_no_baseline():
    with pytest.raises(TypeError, match="baseline"):
        pl.StochasticGradient(baseline=pl.Zeros())
    method = explain(estimator=pl.ControlVariate())
    assert decode(encode(method)) == method
    assert "baseline" not in repr(method)


def test_a_fraction_of_no_range_is_refused():
    flat = torch.ones(1, 3, 6, 6, dtype=torch.float64)
    with pytest.raises(pl.ArgumentError, match=r"NoiseLevel\.absolute"):
        explain(noise_level=0.15)(model(linear), flat)
    assert explain(budget=22)(model(linear), flat).scores.any()
