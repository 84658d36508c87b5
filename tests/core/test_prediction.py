import pytest
import torch

import pellucid as pl
from pellucid.core.label import Labels
from pellucid.core.prediction import OutputKind, Prediction, recognise

LABELS = Labels(("cat", "dog", "owl"))
LOGITS = torch.tensor([[1.0, 3.0, 2.0], [0.0, 0.0, 0.0]])


def test_top_gives_label_probability_and_index_of_one_input():
    p = torch.softmax(LOGITS[0], 0)
    top = Prediction(LOGITS, OutputKind.LOGITS, LABELS)[0].top(2)
    assert [(label, index) for label, _, index in top] == [("dog", 1), ("owl", 2)]
    assert [value for _, value, _ in top] == pytest.approx([float(p[1]), float(p[2])])


def test_ties_go_to_the_lower_index():
    assert [i for _, _, i in Prediction(LOGITS, OutputKind.LOGITS, LABELS)[1].top(3)] == [0, 1, 2]


def test_top_of_several_inputs_says_what_to_write():
    with pytest.raises(pl.ArgumentError, match=r"prediction\[i\].top\(5\)"):
        Prediction(LOGITS, OutputKind.LOGITS, LABELS).top()


def test_a_regression_ranks_values_and_has_no_probabilities():
    prediction = Prediction(LOGITS[:1], OutputKind.REGRESSION, LABELS)
    assert prediction.top(1) == [("dog", 3.0, 1)]
    with pytest.raises(pl.ArgumentError, match="no probabilities"):
        _ = prediction.probabilities


def test_rows_are_taken_by_index():
    prediction = Prediction(LOGITS, OutputKind.LOGITS, LABELS)
    assert torch.equal(prediction[-1].outputs, LOGITS[1:])
    with pytest.raises(IndexError):
        _ = prediction[2]


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        ([[0.2, 0.8]], "probabilities"),
        ([[0.2, 0.8], [0.5, 0.6]], "logits"),
        ([[1.2, -0.2]], "logits"),
        ([[0.7]], "regression"),
    ],
)
def test_kinds_are_recognised_by_their_values(rows, kind):
    assert recognise(torch.tensor(rows)) == kind


def test_a_broken_row_says_nothing_about_the_others():
    assert recognise(torch.tensor([[0.2, 0.8], [float("nan"), 0.5]])) == "probabilities"
    assert recognise(torch.tensor([[float("nan"), 0.5]])) == "logits"


def test_bfloat16_probabilities_are_still_probabilities():
    assert recognise(torch.softmax(torch.randn(1, 10, generator=torch.Generator().manual_seed(0)), 1).bfloat16()) == (
        "probabilities"
    )
