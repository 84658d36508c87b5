"""What every black-box method has from the engine: budgets, extension, masks, failures, interruptions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.explainers.games import quadratic
from tests.oracles import conv_net, uniform

import pellucid as pl
from pellucid.core.random import Key
from pellucid.explainers._queried import Masked, Place, painted


class Counting:
    """A smooth function of a table that counts its rows and keeps them."""

    def __init__(self):
        self.rows, self.seen = 0, []

    def __call__(self, rows):
        self.rows += len(rows)
        self.seen.append(rows.copy())
        return np.tanh(rows @ np.linspace(-1, 1, rows.shape[1] * 2).reshape(rows.shape[1], 2))


X = uniform(2, 30, seed=1)
shap = pl.KernelSHAP(baseline=pl.Zeros(), budget=200)


@pytest.mark.parametrize("budget", [70, 111, 200, 512])
def test_a_budget_counts_every_row_that_the_model_is_given(budget):
    count = Counting()
    a = replace(shap, budget=budget)(pl.FunctionModel(count), X[:1], 0)
    same = len(a.estimate.state["answers"][0]) - len(a.estimate.state["answers"][0].unique())
    assert count.rows == a.cost.forward + a.diagnosis_cost.forward
    assert budget - 1 - same <= count.rows <= budget  # a pair takes two; what is asked twice is asked once
    assert a.samples_used == budget - budget % 2


def test_each_input_has_the_budget():
    count = Counting()
    a = shap(pl.FunctionModel(count), X, 0)
    assert a.estimate.samples == (200, 200)
    assert count.rows <= 400


def test_what_was_not_asked_because_it_had_been_is_said():
    count = Counting()
    explain, x = replace(shap, budget=600), X[:1, :10]
    a = explain(pl.FunctionModel(count), x, 0)
    again = 600 - count.rows
    assert again > 100
    assert a.stopped == f"the budget of 600 model calls was spent, {again} of them on copies that had been asked about"
    longer = replace(shap, budget=400)(pl.FunctionModel(Counting()), x, 0).extend(pl.FunctionModel(Counting()), x, 200)
    assert longer.stopped == a.stopped
    assert shap(pl.FunctionModel(Counting()), X[:1], 0).stopped == "the budget of 200 model calls was spent"


def test_no_mask_is_asked_twice():
    count = Counting()
    replace(shap, budget=600)(pl.FunctionModel(count), X[:1, :11], 0)
    altered = np.concatenate(count.seen[2:])  # after the prediction and its repetition
    assert len(np.unique(altered, axis=0)) == len(altered)


@pytest.mark.parametrize("micro_batch", [1, 3, 17, 512])
def test_masks_are_the_same_in_any_pieces(micro_batch):
    one, other = Counting(), Counting()
    a = shap(pl.FunctionModel(one, micro_batch=micro_batch), X, 0)
    b = shap(pl.FunctionModel(other), X, 0)

    def altered(seen):
        return np.concatenate(seen)[2 * len(X) :]

    assert np.array_equal(altered(one.seen), altered(other.seen))
    # Products of matrices of other sizes are rounded in another order.
    assert float((a.scores - b.scores).abs().max()) < 1e-5 * float(b.scores.abs().max())


@pytest.mark.parametrize("estimator", [pl.Regression(), pl.PairedGP()])
@pytest.mark.parametrize("first", [70, 101, 150])
def test_an_extension_is_one_long_run(estimator, first, tmp_path):
    explain, model = replace(shap, estimator=estimator), pl.FunctionModel(Counting())
    long = explain(model, X, 0)
    short = replace(explain, budget=first)(model, X, 0)
    loaded = pl.Attribution.load(short.save(tmp_path / "a.safetensors"))
    longer = loaded.extend(model, X, 200 - first)
    assert torch.equal(longer.scores, long.scores)
    assert torch.equal(longer.standard_error, long.standard_error)
    assert longer.recipe.explainer == long.recipe.explainer
    assert longer.cost.forward <= long.cost.forward - 2 * (first - 12)  # no altered input is asked again


def test_an_extension_to_all_sets_is_exact():
    model, x = pl.FunctionModel(Counting()), X[:, :8]
    sampled = replace(shap, budget=60)(model, x, 0)
    exact = replace(shap, budget=300)(model, x, 0)
    assert "exact" in exact.estimate.stopped[0]
    assert "exact" not in sampled.estimate.stopped[0]
    assert torch.equal(sampled.extend(model, x, 240).scores, exact.scores)


def test_a_smaller_error_is_one_long_run():
    model, x = pl.FunctionModel(Counting()), X
    some = replace(shap, budget=pl.Until(error=0.5, at_most=2000))(model, x, 0)
    few = replace(shap, budget=pl.Until(error=0.1, at_most=2000))(model, x, 0)
    assert some.estimate.samples < few.estimate.samples
    assert torch.equal(some.extend(model, x, few_goal := pl.Until(error=0.1, at_most=2000)).scores, few.scores)
    assert float(few.estimated_error.max()) <= few_goal.error


def test_a_batch_is_as_its_inputs_alone():
    together = shap(pl.FunctionModel(Counting()), X, [0, 1])
    for row in range(2):
        alone = shap(pl.FunctionModel(Counting()), X[row : row + 1], row)
        assert float((together.scores[row] - alone.scores[0]).abs().max()) < 1e-5


def test_an_average_over_a_background_is_the_average_of_its_rows():
    model, x = quadratic(6)[0], torch.ones(1, 6, dtype=torch.float64)
    rows = uniform(3, 6, seed=5, dtype=torch.float64)
    many = pl.KernelSHAP(baseline=pl.Background.of(rows))(model, x)
    each = [pl.KernelSHAP(baseline=pl.Background.of(row[None]))(model, x).scores for row in rows]
    assert torch.allclose(many.scores, torch.stack(each).mean(0), atol=1e-12)
    assert many.cost.forward == 1 + 3 * 2**6


def test_signals_and_pictures_share_a_score_among_the_channels_and_places_of_a_segment():
    model = pl.FunctionModel(lambda rows: rows.reshape(len(rows), -1).sum(1), output="regression")
    for shape in [(1, 2, 14), (1, 3, 8, 8)]:
        a = pl.Occlusion(segments=pl.Patches(2), baseline=pl.Zeros())(model, torch.ones(shape))
        assert a.scores.shape == (1, 1, *shape[2:])
        assert torch.allclose(a.by_segment, torch.full_like(a.by_segment, np.prod(shape) / 2 ** (len(shape) - 2)))


def test_held_places_are_never_taken_away_and_have_no_score():
    labels = torch.tensor([0, 0, -1, 1])
    model = pl.FunctionModel(lambda rows: rows @ [1.0, 2.0, 4.0, 8.0], output="regression")
    a = pl.Occlusion(segments=pl.SegmentMap.of(labels), baseline=pl.Zeros())(model, torch.ones(1, 4))
    assert a.scores.tolist() == [[3.0, 3.0, 0.0, 8.0]]


def test_a_network_of_several_inputs_has_a_score_for_every_feature():
    net = torch.nn.Bilinear(3, 2, 2)
    x = (uniform(2, 3), uniform(2, 2))
    a = pl.Occlusion(baseline=pl.Zeros())(pl.TorchModel(net), x, 0)
    assert [part.shape for part in a.parts.values()] == [(2, 3), (2, 2)]


@pytest.mark.parametrize("estimator", [pl.Regression(), pl.PairedGP()])
@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_inputs_of_a_batch_may_be_exact_and_sampled(estimator, order):
    """Few segments in one picture, many in the other: each as by itself."""
    plain = torch.zeros(1, 1, 16, 16)
    plain[..., 8:] = 1
    both = torch.cat([plain, uniform(1, 1, 16, 16, seed=2)])[order]
    explain = replace(shap, estimator=estimator, segments=pl.Superpixels(count=16, method="felzenszwalb"), budget=400)
    model = pl.FunctionModel(lambda rows: np.tanh(rows[:, 0] @ np.linspace(-1, 1, 16)).sum(1), output="regression")
    together = explain(model, both)
    assert sorted(one.stopped[:5] for one in together) == ["exact", "the b"]
    for i in range(2):
        alone = explain(model, both[i : i + 1])
        assert float((together[i].scores - alone.scores).abs().max()) < 1e-5
        assert torch.allclose(together[i].standard_error, alone.standard_error, atol=1e-5)
    assert together.recipe.to_json()
    if estimator == pl.PairedGP():  # what is exact has no process
        assert sorted(value == "" for value in together.recipe.notes["r2"]) == [False, True]


def test_an_input_without_an_error_leaves_the_others_theirs():
    rng = np.random.default_rng(0)

    def function(rows):
        noise = rng.normal(size=len(rows))
        return np.where(np.abs(rows).max(1) > 2, noise, rows.sum(1))

    x = torch.stack([torch.linspace(0.5, 1, 30), torch.linspace(5, 6, 30)])
    a = replace(shap, estimator=pl.PairedGP())(pl.FunctionModel(function, output="regression"), x)
    assert a[1].standard_error is None
    assert torch.isfinite(a[0].standard_error).all()
    assert a.estimated_error.isinf().tolist() == [False, True]


def test_smoothing_keeps_what_is_odd_about_the_answers():
    def breaks(rows):
        if ((rows[:, 0] == 0) & (rows[:, 1] != 0) & (rows[:, 2] == 0)).any():
            raise ValueError("never one without two")
        return rows.sum(1)

    smooth = pl.SmoothGrad(base=replace(shap, budget=400), n_samples=3)
    a = smooth(pl.FunctionModel(breaks, output="regression"), 1 + X[:1, :20])
    assert any("Of noisy copies, 3 times:" in f.message and "no score" in f.message for f in a.findings)


def test_an_interruption_can_be_sent_to_another_process():
    import pickle

    with pytest.raises(pl.Interrupted) as stop:
        shap(stopping(150), X[:1], 0)
    again = pickle.loads(pickle.dumps(stop.value))
    assert torch.equal(again.attributions[0].scores, stop.value.attributions[0].scores)


def test_a_constant_input_is_nothing_to_a_method_without_noise():
    a = shap(pl.FunctionModel(Counting()), torch.ones(1, 30), 0)
    assert "constant-input" not in {f.code for f in a.findings}


def test_a_network_is_asked_in_micro_batches_that_its_memory_limit_leaves():
    x = uniform(1, 3, 64, 64)
    net = conv_net()
    free = pl.TorchModel(net)
    bounded = pl.TorchModel(net, memory_limit="100MiB")
    a, b = (replace(shap, budget=150)(model, x, 0) for model in (free, bounded))
    assert float((a.scores - b.scores).abs().max()) < 1e-4 * float(a.scores.abs().max())
    assert b.memory is not None
    assert b.memory.predicted <= b.memory.limit


def test_what_has_no_score_is_left_out_and_said():
    def breaks(rows):
        if ((rows[:, 0] == 0) & (rows[:, 1] != 0) & (rows[:, 2] == 0)).any():
            raise ValueError("never one without two")
        return rows.sum(1)

    a = replace(shap, budget=400)(pl.FunctionModel(breaks, output="regression"), 1 + X[:1, :20])
    [finding] = [f for f in a.findings if f.code == "estimate"]
    assert "altered inputs had no score (" in finding.message
    assert "never one without two" in finding.message
    assert torch.isfinite(a.scores).all()


@pytest.mark.parametrize("breaks", [lambda rows: np.full(len(rows), np.nan), lambda rows: rows[:, 0] / 0])
def test_a_model_without_answers_is_an_error(breaks):
    calls = []

    def later(rows):
        calls.append(1)
        return rows.sum(1) if len(calls) < 3 else breaks(rows)

    with pytest.raises(pl.ModelError, match="altered inputs: too many"), np.errstate(all="ignore"):
        shap(pl.FunctionModel(later, output="regression"), X[:1])


def test_a_model_of_chance_is_noticed():
    rng = np.random.default_rng(0)
    model = pl.FunctionModel(lambda rows: rows.sum(1) + rng.normal(size=len(rows)), output="regression")
    assert "not-deterministic" in {f.code for f in shap(model, X[:1]).findings}
    assert "not-deterministic" not in {f.code for f in shap(pl.FunctionModel(Counting()), X[:1]).findings}


def test_probabilities_that_are_none_are_noticed():
    model = pl.FunctionModel(lambda rows: np.abs(rows[:, :2]) + 1, output="probabilities")
    [finding] = [f for f in shap(model, X[:1]).findings if f.code == "not-probabilities"]
    assert "sum to" in finding.message
    sound = pl.FunctionModel(lambda rows: np.tile([0.25, 0.75], (len(rows), 1)), output="probabilities")
    assert "not-probabilities" not in {f.code for f in shap(sound, X[:1]).findings}


def test_black_box_methods_say_nothing_of_gradients():
    a = shap(pl.TorchModel(torch.nn.Sequential(torch.nn.Linear(30, 3), torch.nn.Softmax(1))), X[:1])
    assert not {"softmax-head", "no-gradient", "saturated"} & {f.code for f in a.findings}


def test_progress_tells_calls_and_ends_with_all_of_them():
    told = []
    a = shap(pl.FunctionModel(Counting(), micro_batch=16), X, 0, progress=told.append)
    done = [one.done for one in told]
    assert done == sorted(done)
    assert told[-1].done <= told[-1].total == 2 * 198
    assert told[-1].error == pytest.approx(float(a.estimated_error[-1]))


def stopping(after):
    count = Counting()

    def function(rows):
        if count.rows + len(rows) > after:
            raise KeyboardInterrupt
        return count(rows)

    return pl.FunctionModel(function, micro_batch=10)


def test_an_interruption_leaves_a_result_that_can_be_made_again():
    with pytest.raises(pl.Interrupted) as stop:
        shap(stopping(150), X[:1], 0)
    [a] = stop.value.attributions
    assert a.stopped.startswith("interrupted after 14")
    again = pl.FunctionModel(Counting())
    assert torch.equal(a.reproduce(again, X[:1]).scores, a.scores)
    assert torch.equal(a.extend(again, X[:1], 200 - a.samples_used).scores, shap(again, X[:1], 0).scores)


def test_an_interruption_keeps_the_inputs_that_were_done():
    with pytest.raises(pl.Interrupted) as stop:
        shap(stopping(340), X, [0, 1])
    first, second = stop.value.attributions
    assert "budget of 200" in first.stopped
    assert "interrupted" in second.stopped
    assert [a.decision.source for a in (first, second)] == ["input 0", "input 1"]
    assert [a.target.index for a in (first, second)] == [0, 1]


def test_an_interruption_before_there_is_anything_leaves_nothing():
    with pytest.raises(pl.Interrupted) as stop:
        shap(stopping(40), X[:1], 0)
    assert stop.value.attributions == ()


def test_an_interrupted_base_is_an_interruption_of_its_wrapper():
    with pytest.raises(KeyboardInterrupt) as stop:
        pl.SmoothGrad(base=shap, n_samples=3)(stopping(300), X[:1], 0)
    assert getattr(stop.value, "attributions", ()) == ()


@pytest.mark.doors
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"budget": 0}, "`budget` is a whole number of model calls"),
        ({"budget": 2.5}, "`budget` is a whole number of model calls"),
        ({"budget": 20}, r"`budget` is 66 model calls or more, for KernelSHAP of this input. Got 20"),
        ({"seed": -1}, "`seed` is a whole number"),
        ({"baseline": 0.5}, r"`baseline` is one such as pl.Pixel"),
        ({"estimator": pl.Mean()}, r"Regression\(\) or PairedGP\(\)"),
    ],
)
def test_wrong_settings_are_named(settings, words):
    with pytest.raises(pl.ArgumentError, match=words):
        replace(shap, **settings)(pl.FunctionModel(Counting()), X[:1])


def test_a_query_is_the_input_where_segments_are_present_and_the_baseline_elsewhere():
    class Halves(Masked):
        def masks(self, queries):
            return np.array([[True, False], [False, True]])[list(queries)]

        def fit(self, scores):
            raise NotImplementedError

    x, away = uniform(1, 2, 4), torch.full((1, 2, 4), 9.0)
    place = Place(x, away, torch.tensor([0, 0, 1, -1]), Key.named("x"))
    rows = Halves(place).rows([1, 0], [0, 0])
    assert torch.equal(rows[0], torch.cat([away[0, :, :2], x[0, :, 2:]], 1))
    assert torch.equal(rows[1], torch.cat([x[0, :, :2], away[0, :, 2:3], x[0, :, 3:]], 1))


def test_each_place_is_painted_with_the_value_of_its_segment():
    picture = torch.zeros(1, 3, 2, 2)
    place = Place(picture, picture, torch.tensor([[2, 0], [-1, 2]]), Key.named("x"))
    assert painted(np.array([5.0, 6.0, 7.0]), place).tolist() == [[[[7.0, 5.0], [0.0, 7.0]]]]
