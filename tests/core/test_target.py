import pytest
import torch
from tests.oracles import uniform

import pellucid as pl
from pellucid.core.label import Labels
from pellucid.core.prediction import OutputKind, Prediction
from pellucid.core.target import Targets, settle

LABELS = Labels(("cat", "dog", "crane", "crane"))
LOGITS = torch.tensor([[0.0, 1.0, 2.0, 3.0], [5.0, 1.0, 2.0, 3.0]])
PREDICTION = Prediction(LOGITS, OutputKind.LOGITS, LABELS)


def test_no_target_is_each_rows_top_class():
    assert settle(None, PREDICTION).each == (pl.ClassScore(3), pl.ClassScore(0))


def test_one_target_serves_all_rows():
    assert settle("dog", PREDICTION).each == (pl.ClassScore(1),) * 2
    assert settle(2, PREDICTION).each == (pl.ClassScore(2),) * 2
    assert settle(pl.Margin(1, 0), PREDICTION).each == (pl.Margin(1, 0),) * 2


def test_rows_may_have_targets_of_their_own():
    each = settle([None, "dog"], PREDICTION).each
    assert each == (pl.ClassScore(3), pl.ClassScore(1))
    assert settle(torch.tensor([1, 2]), PREDICTION).each == (pl.ClassScore(1), pl.ClassScore(2))


@pytest.mark.doors
@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (4, "4 outputs, 0 to 3. Got target 4"),
        (-1, "4 outputs, 0 to 3. Got target -1"),
        ("crane", "fits 2 classes"),
        ("dgo", "dog"),
        ([0], "one target for each of 2 inputs"),
        ([0, 1, 2], "one target for each of 2 inputs"),
        (1.5, "an index, a label or a pellucid Target. Got float"),
        (True, "Got bool"),
        (pl.Margin(0, 9), r"4 outputs, 0 to 3. Got Margin\(index=0, against=9\)"),
    ],
)
def test_wrong_targets_are_refused_in_words(spec, words):
    with pytest.raises(pl.TargetError, match=words):
        settle(spec, PREDICTION)


@pytest.mark.doors
def test_a_negative_class_is_no_target():
    with pytest.raises(pl.ArgumentError, match=r"`index` is a whole number, 0 or more. Got -1"):
        pl.ClassScore(-1)


def test_rows_with_mixed_targets_keep_their_order():
    score, margin, log_prob = pl.ClassScore(1), pl.Margin(3, 0), pl.LogProb(0)
    targets = Targets((score, margin, log_prob, score, margin), OutputKind.LOGITS)
    outputs = uniform(5, 4)
    expected = [targets.each[i].score(outputs[i : i + 1], OutputKind.LOGITS)[0] for i in range(5)]
    torch.testing.assert_close(targets.score(outputs), torch.stack(expected))


def test_copies_lie_side_by_side():
    targets = Targets((pl.ClassScore(0), pl.ClassScore(1)), OutputKind.LOGITS).repeat(2)
    assert [t.index for t in targets] == [0, 0, 1, 1]


def test_probability_and_log_probability_of_logits_and_of_probabilities():
    p = torch.softmax(LOGITS, 1)
    for outputs, kind in ((LOGITS, OutputKind.LOGITS), (p, OutputKind.PROBABILITIES)):
        torch.testing.assert_close(pl.Probability(2).score(outputs, kind), p[:, 2])
        torch.testing.assert_close(pl.LogProb(2).score(outputs, kind), p[:, 2].log())


@pytest.mark.parametrize("target", [pl.Probability(0), pl.LogProb(0)])
def test_a_regression_has_no_probability(target):
    with pytest.raises(pl.TargetError, match=r"the model is a regression"):
        target.score(LOGITS, OutputKind.REGRESSION)


def test_a_regression_with_several_outputs_has_no_top_class():
    with pytest.raises(pl.TargetError, match=r"no top class"):
        settle(None, Prediction(LOGITS, OutputKind.REGRESSION, LABELS))


def test_descriptions_name_the_class():
    assert pl.Margin(1, 0).describe(LABELS) == "dog rather than cat"
    assert pl.LogProb(1).describe(LABELS) == "log probability of dog"
    assert pl.Probability(1).describe(LABELS) == "probability of dog"
    assert pl.Margin(1, 0).classes == (1, 0)
