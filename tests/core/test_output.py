"""From what networks take and return to the tensor of their outputs."""

import pytest
import torch
from tests.oracles import uniform
from torch import Tensor, nn

import pellucid as pl
from pellucid.core.output import check_outputs, selected, takes_names
from pellucid.core.prediction import OutputKind

A, B = uniform(2, 3, 4), uniform(2, 3, 5, seed=1)


@pytest.mark.parametrize(
    ("result", "select", "expected"),
    [
        (A, None, A),
        ({"a": A, "b": B}, "b", B),
        ((A, B), 1, B),
        ([A, B], -1, B),
        ((A, B), (0, 1), torch.cat([A, B], 2)),
        ({"boxes": A, "scores": B}, ("scores", "boxes"), torch.cat([B, A], 2)),
    ],
)
def test_the_outputs_are_picked_and_joined_along_the_last_axis(result, select, expected):
    assert torch.equal(selected(result, select, "net"), expected)


@pytest.mark.doors
@pytest.mark.parametrize(
    ("result", "select", "words"),
    [
        ({"a": A, "b": 1}, None, r"a dict with tensors at \['a'\]. Say which one: TorchModel\(net, select='a'\)"),
        ((1, A), None, r"returned a tuple with tensors at \[1\]. Say which one: TorchModel\(net, select=1\)"),
        ({"a": A}, "b", r"which has no tensor at 'b'. Say which one: TorchModel\(net, select='a'\)"),
        ((A,), 3, r"no tensor at 3"),
        ((A, 1), 1, r"no tensor at 1"),
        (A, 0, r"returned a Tensor, which has no tensor at 0. Leave `select` out"),
        (1.0, None, r"returned a float. Wrap it to return a tensor"),
        ((A, B), (0, "b"), r"no tensor at 'b'"),
        ((A, B[:, :2]), (0, 1), r"joined along their last axis, but net returned \(2, 3, 4\) and \(2, 2, 5\)"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_refused_with_what_is(result, select, words):
    with pytest.raises(pl.ModelError, match=words):
        selected(result, select, "net")


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ((2, 3), None),
        ((2, 3), OutputKind.LOGITS),
        ((2, 3, 4, 5), None),
        ((2, 3, 4), OutputKind.SEGMENTATION),
        ((2, 3, 4, 5, 6), OutputKind.SEGMENTATION),
        ((2, 7, 5), OutputKind.DETECTION),
    ],
)
def test_outputs_of_each_kind_have_their_shape(shape, kind):
    check_outputs(torch.zeros(shape), 2, kind, "net")


@pytest.mark.doors
@pytest.mark.parametrize(
    ("shape", "kind", "words"),
    [
        ((2,), None, r"Expected outputs \(B, K\) for 2 inputs, but net returned \(2,\)"),
        ((3, 4), None, r"for 2 inputs, but net returned \(3, 4\)"),
        ((2, 3, 4), None, r"say output='segmentation' for \(B, K, ...\), output='detection' for boxes"),
        ((2, 3, 4, 5), OutputKind.LOGITS, r"Expected outputs \(B, K\)"),
        ((2, 3, 4, 5), OutputKind.REGRESSION, r"Expected outputs \(B, K\)"),
        ((2, 3), OutputKind.SEGMENTATION, r"class scores of places, \(B, K, ...\), .* but net returned \(2, 3\)"),
        ((1, 3, 4, 4), OutputKind.SEGMENTATION, r"for 2 inputs"),
        ((2, 3), OutputKind.DETECTION, r"Expected \(B, N, 4 \+ K\) for 2 inputs.*select=\('boxes', 'scores'\)"),
        ((2, 7, 4), OutputKind.DETECTION, r"but net returned \(2, 7, 4\)"),
        ((1, 7, 5), OutputKind.DETECTION, r"for 2 inputs"),
    ],
)  # fmt: skip
def test_outputs_of_another_shape_are_refused_in_words(shape, kind, words):
    with pytest.raises(pl.ModelError, match=words):
        check_outputs(torch.zeros(shape), 2, kind, "net")


class ByName(nn.Module):
    def forward(self, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        return a + b


class OneDict(nn.Module):
    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return inputs["a"] + inputs["b"]


class Anything(nn.Module):
    def forward(self, **inputs: Tensor) -> Tensor:
        return inputs["a"] + inputs["b"]


@pytest.mark.parametrize(("net", "by_name"), [(ByName(), True), (Anything(), True), (OneDict(), False)])
@pytest.mark.parametrize("wrap", [lambda net: net, nn.DataParallel, lambda net: torch.compile(net, backend="eager")],
                         ids=["plain", "parallel", "compiled"])  # fmt: skip
def test_a_network_takes_names_where_its_forward_does_also_inside_another(net, by_name, wrap):
    assert takes_names(wrap(net), ["a", "b"]) is by_name
    assert takes_names(wrap(net), ["a", "z"]) is isinstance(net, Anything)


def test_boxes_and_scores_are_joined_for_a_detection():
    class Detector(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"boxes": x[:, :, :4], "scores": x[:, :, 4:]}

    x = uniform(2, 7, 6)
    prediction = pl.TorchModel(Detector(), select=("boxes", "scores"), output="detection").predict(x)
    assert torch.equal(prediction.outputs, x)
    assert prediction.kind is OutputKind.DETECTION
    assert len(prediction.labels.names) == 2
