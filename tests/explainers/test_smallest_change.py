import itertools

import numpy as np
import pytest
import torch
from tests.oracles import conv_net, uniform
from torch import nn

import pellucid as pl
from pellucid.core.recipe import decode, encode
from pellucid.explainers import _removals

SMALLEST, NEEDED, FLIPS = _removals._SMALLEST, _removals._NEEDED, _removals._FLIPS


def explain(**settings) -> pl.SmallestChange:
    return pl.SmallestChange(**{"baseline": pl.Zeros()} | settings)


def game(lead, players: int, **settings):
    """A model of two classes, the first of which leads by `lead` of the set of columns that are taken away."""
    asked = []

    def f(rows: np.ndarray) -> np.ndarray:
        away = [frozenset(np.flatnonzero(row == 0).tolist()) for row in rows]
        asked.extend(away)
        return np.array([[lead(each), 0.0] for each in away])

    model = pl.FunctionModel(f, **{"output": "logits", "labels": ["cat", "dog"]} | settings)
    return model, torch.ones(1, players, dtype=torch.float64), asked


def found(a: pl.Attribution, row: int = 0) -> set[int]:
    return set(torch.nonzero(a.scores[row].flatten() == 1).flatten().tolist())


def notes(a: pl.Attribution, row: int = 0) -> dict:
    return {name: values[row] for name, values in a.recipe.notes.items()}


def said(a: pl.Attribution) -> str:
    """What is odd about how the map came about."""
    return " ".join(f.message for f in a.findings if f.code == "estimate")


def weighted(*weights: float, bias: float):
    return lambda away: bias + sum(w for j, w in enumerate(weights) if j not in away)


# ------------------------------------------------------------------ what is found
def test_of_a_linear_lead_the_largest_go_until_it_is_negative():
    """5 + 1 + 4 + 2 - 6 = 6: without 5 it is 1, without 5 and 4 it is -3."""
    model, x, _ = game(weighted(5.0, 1.0, 4.0, 2.0, bias=-6.0), 4)
    a = explain()(model, x)
    assert a.scores.tolist() == [[1.0, 0.0, 1.0, 0.0]]
    expected = {"size": 2.0, "flips to": "dog", "proof": SMALLEST, "margin": 6.0, "margin after": -3.0, "segments": 4.0}
    assert notes(a) == expected
    assert not said(a)


def test_what_turns_out_not_to_be_needed_comes_back():
    """0 goes first, as alone it does most; 1 and 2 together flip without it."""

    def lead(away):
        return 10 - 4 * (0 in away) - 3 * (1 in away) - 3 * (2 in away) - 9 * ({1, 2} <= away)

    model, x, _ = game(lead, 3)
    assert lead({0, 1}) > 0
    assert found(explain()(model, x)) == {1, 2}


def test_segments_come_back_until_none_can():
    """0, 1, 2 and 3 go, in this order; 2 and 3 are enough, and all pairs of twelve would be too many to try."""

    def lead(away):
        return 10 - 2 * (0 in away) - 1.9 * (1 in away) - 1.5 * (2 in away) - 1.4 * (3 in away) - 9 * ({2, 3} <= away)

    a = explain(budget=60)(*game(lead, 12)[:2])
    assert found(a) == {2, 3}


def test_a_tie_is_no_flip():
    model, x, _ = game(weighted(3.0, 1.0, 0.5, bias=-1.5), 3)
    a = explain()(model, x)
    assert found(a) == {0, 1}
    assert notes(a)["margin after"] == -1


def test_with_one_segment_back_the_class_stays():
    """Whatever the game: a set is only said to be needed if it is."""
    rng = np.random.default_rng(0)
    proofs = set()
    for _ in range(60):
        players = 6
        table = 0.5 * rng.normal(size=2**players) - 0.4 * np.bitwise_count(np.arange(2**players)) + 1.5
        table[0] = 2
        lead = lambda away, table=table: float(table[sum(1 << j for j in away)])  # noqa: E731
        a = explain(budget=int(rng.integers(5, 60)))(*game(lead, players)[:2])
        best, proof = found(a), notes(a)["proof"]
        proofs.add(proof)
        flipping = [s for k in range(players + 1) for s in itertools.combinations(range(players), k) if lead(s) < 0]
        if proof in (SMALLEST, NEEDED, FLIPS):
            assert lead(best) < 0
            assert notes(a)["margin after"] == pytest.approx(lead(best))
        if proof == SMALLEST:
            assert len(best) == min(map(len, flipping))
        if proof in (SMALLEST, NEEDED):
            assert all(lead(best - {j}) >= 0 for j in best)
    assert proofs >= {SMALLEST, NEEDED, FLIPS}


def test_all_smaller_sets_are_tried_where_the_budget_allows():
    """Greedy takes 0, 1 and 2, each the best of its step and all needed; 3 and 4 alone would do, and only together."""

    def lead(away):
        return 6 - 2.5 * len({0, 1, 2} & away) - 20 * ({3, 4} <= away)

    model, x, asked = game(lead, 8)
    a = explain(budget=200)(model, x)
    assert found(a) == {3, 4}
    assert notes(a)["proof"] == SMALLEST
    b = explain(budget=len(asked) - 20)(model, x)
    assert found(b) == {0, 1, 2}
    assert notes(b)["proof"] == NEEDED


def test_of_sets_of_a_size_that_which_flips_by_most():
    model, x, _ = game(lambda away: {frozenset({1}): -1.0, frozenset({2}): -3.0}.get(away, 1.0), 4)
    a = explain()(model, x)
    assert found(a) == {2}
    assert notes(a)["margin after"] == -3


def test_the_class_that_takes_over_is_named():
    def f(rows):
        return np.stack([rows[:, 0] * 3, rows[:, 1], rows[:, 2] * 2], 1)

    model = pl.FunctionModel(f, output="logits", labels=["a", "b", "c"])
    assert notes(explain()(model, torch.ones(1, 3)))["flips to"] == "c"
    unnamed = pl.FunctionModel(f, output="logits")
    assert notes(explain()(unnamed, torch.ones(1, 3)))["flips to"] == "class 2"
    against = explain()(model, torch.ones(1, 3), target=pl.Margin(0, 1))
    assert notes(against)["flips to"] == "b"
    assert notes(against)["margin"] == 2


# ------------------------------------------------------------------ outputs
def net() -> nn.Module:
    return conv_net(5, dtype=torch.float64).eval()


def flipping_input() -> torch.Tensor:
    return 4 * uniform(3, 3, 9, 9, seed=8, dtype=torch.float64)


def test_logits_and_probabilities_have_the_same_answer():
    patches = pl.Patches(3)
    one = explain(segments=patches)(pl.TorchModel(net()), flipping_input())
    soft = nn.Sequential(net(), nn.Softmax(1))
    other = explain(segments=patches)(pl.TorchModel(soft), flipping_input())
    assert torch.equal(one.scores, other.scores)
    assert one.scores.any()
    assert one.recipe.notes["margin"] == pytest.approx(other.recipe.notes["margin"])
    assert one.recipe.notes["flips to"] == other.recipe.notes["flips to"]


def test_the_set_flips_the_network():
    model, x = pl.TorchModel(net()), flipping_input()
    a = explain(segments=pl.Patches(3))(model, x)
    for row in range(len(x)):
        if notes(a, row)["size"]:
            away = x[row : row + 1] * (1 - a.scores[row : row + 1])
            before, after = model.predict(x[row : row + 1]), model.predict(away)
            assert before.top(1)[0][0] != after.top(1)[0][0] == notes(a, row)["flips to"]
    assert sum(size > 0 for size in a.recipe.notes["size"]) >= 2


def test_two_columns_of_probabilities_are_a_decision():
    model = pl.FunctionModel(lambda rows: np.stack([rows.mean(1), 1 - rows.mean(1)], 1), output="probabilities")
    a = explain()(model, torch.ones(1, 5, dtype=torch.float64) * 0.9)
    assert len(found(a)) == 3  # 0.36 is under a half
    assert notes(a)["proof"] == SMALLEST
    assert a.recipe.notes["margin"] == pytest.approx([np.log(9)])


def test_a_certain_probability_of_zero_is_no_error():
    model = pl.FunctionModel(lambda rows: np.stack([rows[:, 0], 1 - rows[:, 0]], 1), output="probabilities")
    assert found(explain()(model, torch.ones(1, 3))) == {0}


def test_a_regression_is_refused():
    model = pl.FunctionModel(lambda rows: rows.sum(1), output="regression")
    with pytest.raises(pl.ArgumentError, match="a column of outputs for each class"):
        explain()(model, torch.ones(1, 3))
    one = pl.FunctionModel(lambda rows: rows.sum(1), output="logits")
    with pytest.raises(pl.ArgumentError, match="two classes at least"):
        explain()(one, torch.ones(1, 3))


def test_a_unit_of_a_layer_is_no_class():
    with pytest.raises(pl.ArgumentError, match="a unit of a layer is none"):
        explain()(pl.TorchModel(net()), flipping_input(), target=pl.Neuron("0", (1,)))


# ------------------------------------------------------------------ no set
def test_if_nothing_flips_the_map_is_zero_and_it_is_said():
    model, x, asked = game(lambda away: 5.0 - 0.1 * len(away), 4)
    a = explain()(model, x)
    assert not a.scores.any()
    assert notes(a)["proof"] == "no set was found"
    assert notes(a)["flips to"] == "no other class"
    assert frozenset(range(4)) in asked
    assert "up to 4 of 4 were taken away, and its lead fell from 5 to 4.6" in said(a)


def test_if_the_budget_ends_first_it_is_said():
    model, x, _ = game(lambda away: 10.0 - len(away), 20)
    a = explain(budget=50)(model, x)
    assert not a.scores.any()
    assert "Raise `budget`" in said(a)


def test_a_class_that_does_not_lead_needs_no_change():
    model, x, asked = game(weighted(1.0, 1.0, bias=0.0), 2)
    a = explain()(model, x, target="dog")
    assert not a.scores.any()
    assert notes(a)["proof"] == "the class is not the model's decision on the input as it is"
    assert notes(a)["flips to"] == "cat"
    assert len(asked) == 4  # the prediction, its repetition, the input and once more
    assert "Another class leads already" in said(a)


# ------------------------------------------------------------------ calls
@pytest.mark.parametrize("budget", [5, 6, 9, 14, 23, 40, 61, 200])
def test_no_more_calls_than_the_budget_and_no_set_twice(budget):
    def lead(away):
        return 6 - 2.5 * len({0, 1, 2} & away) - 20 * ({3, 4} <= away)

    model, x, asked = game(lead, 8)
    a = explain(budget=budget)(model, x)
    assert len(asked) == a.cost.forward + a.diagnosis_cost.forward <= budget
    tried = asked[2:-1] if notes(a)["size"] else asked[2:]
    assert len(set(tried)) == len(tried)


def test_the_last_step_asks_first_about_what_did_most_before():
    """Six segments, and calls for two of the second step: those that were second and third in the first."""
    model, x, asked = game(weighted(1.0, 2.0, 6.0, 4.0, 5.0, 3.0, bias=-10.5), 6)
    a = explain(budget=2 + 1 + 6 + 1 + 1)(model, x)
    assert asked[9:10] == [frozenset({2, 4})]
    assert found(a) == {2, 4}


def test_a_budget_too_small_to_begin_is_refused():
    model, x, _ = game(weighted(1.0, 1.0, bias=0.0), 2)
    with pytest.raises(pl.ArgumentError, match="5 model calls or more"):
        explain(budget=4)(model, x)


@pytest.mark.parametrize("rows", [1, 2, 5, 500])
def test_the_rows_at_once_change_nothing(rows):
    model, x = pl.TorchModel(net(), micro_batch=rows), flipping_input()
    one = explain(segments=pl.Patches(3))(pl.TorchModel(net()), x)
    assert torch.equal(explain(segments=pl.Patches(3))(model, x).scores, one.scores)


def test_progress_is_told():
    told = []
    model, x, asked = game(weighted(5.0, 1.0, 4.0, 2.0, bias=-6.0), 4, micro_batch=2)
    explain(budget=30)(model, x, progress=told.append)
    assert [t.done for t in told] == sorted(t.done for t in told)
    assert told[-1].done == len(asked) - 3  # without the prediction, its repetition and the set once more
    assert told[-1].total == 28


# ------------------------------------------------------------------ what cannot be had
def test_sets_without_a_score_are_passed_over():
    def lead(away):
        if 0 in away:
            return np.nan
        return 3.0 - 2 * len(away)

    model, x, _ = game(lead, 4)
    a = explain()(model, x)
    assert len(found(a)) == 2
    assert 0 not in found(a)
    assert notes(a)["proof"] == NEEDED, "one smaller set has no score"
    assert "had no score" in said(a)


def test_without_any_score_of_a_step_the_search_ends():
    model, x, _ = game(lambda away: np.nan if len(away) == 2 else 3.0 - len(away), 8)
    a = explain()(model, x)
    assert notes(a)["proof"] == "no set was found"


def test_without_a_decision_on_the_input_there_is_nothing_to_flip():
    calls = []

    def f(rows):
        calls.append(len(rows))
        outputs = np.stack([rows.sum(1), 0 * rows.sum(1)], 1)
        return outputs if len(calls) < 3 else np.where(rows.all(1, keepdims=True), np.nan, outputs)

    with pytest.raises(pl.ModelError, match=r"the model has none|too many to explain"):
        explain()(pl.FunctionModel(f, output="logits"), torch.ones(1, 3))


def test_a_model_that_takes_back_its_flip_is_reported():
    calls = []

    def lead(away):
        calls.append(away)
        return -1.0 if away == {1} and calls.count(away) < 2 else 1.0

    model, x, _ = game(lead, 3)
    assert "kept its class" in said(explain()(model, x))


def test_a_model_that_is_gone_at_the_last_call_leaves_all_that_was_found():
    calls = []

    def lead(away):
        calls.append(away)
        if away == {1} and calls.count(away) == 2:
            raise ConnectionError("gone")
        return -1.0 if away == {1} else 1.0

    model, x, _ = game(lead, 3)
    a = explain()(model, x.repeat(2, 1))
    assert [found(a, row) for row in (0, 1)] == [{1}, {1}]
    assert [notes(a, row)["flips to"] for row in (0, 1)] == ["a class that is not known", "dog"]
    assert "the model failed: " in said(a)
    assert "gone" in said(a)


def interrupted(at: int, budget: int = 200):
    """Ctrl-C at a call: what was found, and the same search with so many calls."""

    def lead(away):
        return 6 - 2.5 * len({0, 1, 2} & away) - 20 * ({3, 4} <= away)

    calls = []

    def stopping(away):
        calls.append(away)
        if len(calls) == at:
            raise KeyboardInterrupt
        return lead(away)

    model, x, _ = game(stopping, 8, micro_batch=3)
    with pytest.raises(pl.Interrupted) as stop:
        explain(budget=budget)(model, x)
    return stop.value.attributions, game(lead, 8, micro_batch=3)[0], x


@pytest.mark.parametrize("at", [26, 27, 28, 40])
def test_ctrl_c_leaves_the_set_that_was_found(at):
    (a,), model, x = interrupted(at)
    assert found(a) == {0, 1, 2}
    shorter = decode(a.recipe.explainer)
    assert a.stopped == f"interrupted after {shorter.budget} model calls"
    again = shorter(model, x)
    assert torch.equal(again.scores, a.scores)
    assert notes(again) == notes(a)


def test_ctrl_c_before_leaves_nothing_of_this_input():
    assert interrupted(12)[0] == ()


# ------------------------------------------------------------------ inputs
@pytest.mark.parametrize(("shape", "shown"), [((2, 4), (2, 4)), ((2, 3, 20), (2, 1, 20)), ((2, 3, 8, 9), (2, 1, 8, 9))])
def test_tables_signals_and_pictures_are_taken_away_in_segments(shape, shown):
    def f(rows):
        total = rows.reshape(len(rows), -1).mean(1)
        return np.stack([total, 0 * total + 0.6], 1)

    x = torch.ones(shape)
    a = explain(segments=pl.PatchesOrColumns(2))(pl.FunctionModel(f, output="logits"), x)
    assert a.scores.shape == shown
    assert set(a.scores.unique().tolist()) == {0.0, 1.0}
    assert all(notes(a, row)["proof"] == SMALLEST for row in range(2))


def test_inputs_of_a_batch_have_sets_of_their_own():
    weights = torch.tensor([[3.0, 1.0, 1.0], [1.0, 1.0, 3.0]])
    model = pl.FunctionModel(lambda rows: np.stack([rows.sum(1), 0 * rows.sum(1) + 2.5], 1), output="logits")
    a = explain()(model, weights)
    assert [found(a, row) for row in range(2)] == [{0}, {2}]


@pytest.mark.doors
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"budget": 0}, "`budget`"),
        ({"budget": pl.Until(error=0.5, at_most=10)}, "`budget`"),
        ({"baseline": pl.Background.of(torch.ones(2, 3))}, "Take one baseline"),
        ({"segments": 7}, "pl.Patches"),
    ],
)
def test_wrong_settings_are_named(settings, said):
    with pytest.raises(pl.ArgumentError, match=said):
        explain(**settings)


def test_a_recipe_brings_it_back():
    method = pl.SmallestChange(segments=pl.Patches(3), budget=77)
    assert decode(encode(method)) == method
