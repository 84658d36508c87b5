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


def test_outputs_of_places_are_recognised_as_a_segmentation():
    assert recognise(torch.zeros(1, 2, 3, 3)) == "segmentation"
    assert recognise(torch.zeros(1, 1, 3, 3)) == "segmentation"


@pytest.mark.parametrize(
    ("kind", "shape", "count"), [("logits", (2, 5), 5), ("segmentation", (2, 5, 3, 4), 5), ("detection", (2, 7, 9), 5)]
)
def test_the_number_of_classes_is_read_where_they_are(kind, shape, count):
    assert OutputKind(kind).classes(torch.zeros(shape)) == count


PLACES = torch.tensor([[[0.0, 5.0, 0.0, 0.0]], [[1.0, 1.0, 1.0, -1.0]], [[0.5, 9.0, 0.5, 0.0]]])[None]  # 3 classes, 1x4


def test_a_segmentation_ranks_classes_by_their_share_of_the_places():
    """At places 0 and 2 the dog is the likeliest, at 1 the owl; at 3 cat and owl tie, and the first is taken."""
    prediction = Prediction(PLACES, OutputKind.SEGMENTATION, LABELS)
    assert prediction.top(3) == [("dog", 0.5, 1), ("cat", 0.25, 0), ("owl", 0.25, 2)]
    assert prediction.top(1) == [("dog", 0.5, 1)]


def test_the_probabilities_of_a_segmentation_are_those_of_each_place():
    p = Prediction(PLACES, OutputKind.SEGMENTATION, LABELS).probabilities
    torch.testing.assert_close(p[0, :, 0, 1], torch.softmax(torch.tensor([5.0, 1.0, 9.0]), 0))
    torch.testing.assert_close(p.sum(1), torch.ones(1, 1, 4))


def test_a_detection_ranks_classes_by_their_highest_score_and_has_no_probabilities():
    boxes = torch.tensor([[[0.0, 0, 9, 9, 0.1, 0.7, 0.3], [0, 0, 5, 5, 0.9, 0.2, 0.3], [1, 1, 2, 2, 0.0, 0.1, 0.4]]])
    prediction = Prediction(boxes, OutputKind.DETECTION, LABELS)
    assert [(label, index) for label, _, index in prediction.top()] == [("cat", 0), ("dog", 1), ("owl", 2)]
    assert [score for _, score, _ in prediction.top()] == pytest.approx([0.9, 0.7, 0.4])
    with pytest.raises(pl.ArgumentError, match=r"A detection has no probabilities. Read `outputs` instead"):
        _ = prediction.probabilities
