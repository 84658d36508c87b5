import pytest
import torch
from tests.oracles import uniform

import pellucid as pl
from pellucid.core.packing import pack
from pellucid.core.segments import HELD, places_of, segmented


def test_patches_number_a_grid_row_by_row():
    labels = pl.Patches((2, 3)).labels(torch.zeros(2, 1, 4, 6))
    row = [0, 0, 1, 1, 2, 2]
    expected = torch.tensor([row, row, [3, 3, 4, 4, 5, 5], [3, 3, 4, 4, 5, 5]])
    assert torch.equal(labels, expected.expand(2, 4, 6))


@pytest.mark.parametrize("side", range(1, 40))
def test_patches_are_of_nearly_one_size_and_none_is_empty(side):
    counts = torch.bincount(pl.Patches(7).labels(torch.zeros(1, 1, side))[0])
    assert len(counts) == min(7, side)
    assert int(counts.max() - counts.min()) <= 1


@pytest.mark.parametrize("side", [7, 9, 16, 23, 224])
def test_patches_are_the_same_from_either_end(side):
    labels = pl.Patches(7).labels(torch.zeros(1, 1, side))[0]
    assert torch.equal(labels.flip(0), 6 - labels)


def test_columns_are_segments_of_their_own_behind_the_groups():
    labels = pl.Columns(groups=((4, 1), (0,))).labels(torch.zeros(3, 6))
    assert labels.tolist() == [[1, 0, 2, 3, 0, 4]] * 3


def test_a_segment_map_keeps_its_labels():
    labels = torch.tensor([[0, 0, HELD], [1, 1, 2]])
    rule = pl.SegmentMap.of(labels)
    assert torch.equal(rule.labels(torch.zeros(2, 3, 2, 3)), labels.expand(2, 2, 3))
    assert hash(rule) == hash(pl.SegmentMap.of(labels.clone()))


@pytest.mark.parametrize(
    ("shape", "count"), [((1, 5), 5), ((1, 1, 70), 7), ((1, 3, 28, 28), 49), ((1, 2, 7, 7, 7), 343)]
)
def test_the_default_is_patches_or_columns(shape, count):
    assert int(pl.PatchesOrColumns().labels(torch.zeros(shape)).max()) + 1 == count


def test_places_are_what_lies_behind_the_channels():
    assert places_of((3, 8, 9)) == (8, 9)
    assert places_of((5,)) == (5,)


def test_several_inputs_have_segments_of_their_own_and_held_ones_none():
    rows, packing = pack({"picture": uniform(2, 3, 4, 4), "index": torch.tensor([1, 2]), "table": uniform(2, 3)})
    labels = segmented(pl.PatchesOrColumns(), rows, None, packing)
    parts = packing.parts(labels.double())
    assert parts["picture"][0, 0].tolist() == parts["picture"][0, 2].tolist()
    assert parts["index"].flatten().tolist() == [HELD, HELD]
    assert sorted(parts["table"][0].tolist()) == [16, 17, 18]
    assert int(parts["picture"].max()) == 15


@pytest.mark.doors
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: pl.Patches(0), "`cells` is a whole number, 1 or more. Got 0"),
        (lambda: pl.Patches(()), "`cells` is a whole number"),
        (lambda: pl.Patches(2).labels(torch.zeros(1, 5)), r"Patches are of pictures .* take Columns"),
        (lambda: pl.Patches((2, 2)).labels(torch.zeros(1, 1, 5)), "one number of cells for each of 1 axes"),
        (lambda: pl.Columns(((0, 1), (1,))), "none in two of them"),
        (lambda: pl.Columns(((7,),)).labels(torch.zeros(1, 3)), "columns from 0 to 2, but `groups` has 7"),
        (lambda: pl.Columns().labels(torch.zeros(1, 1, 3)), "Columns are of tables"),
        (lambda: pl.SegmentMap.of(torch.tensor([0, 2])), "without a gap"),
        (lambda: pl.SegmentMap.of(torch.zeros(3)), "whole numbers"),
        (lambda: pl.SegmentMap.of(torch.tensor([0, 1])).labels(torch.zeros(1, 3)), r"inputs of places \(2,\)"),
        (lambda: pl.KernelSHAP(segments=7), r"`segments` is a rule such as pl.Patches\(7\)"),
    ],
)
def test_what_is_no_rule_is_refused(make, words):
    with pytest.raises(pl.ArgumentError, match=words):
        make()


@pytest.mark.doors
def test_an_input_without_a_segment_is_refused():
    class Nothing(pl.Segments):
        def labels(self, x, preprocess=None):
            return torch.full((len(x), *x.shape[2:]), HELD)

    with pytest.raises(pl.ArgumentError, match="nothing to take away"):
        segmented(Nothing(), torch.zeros(1, 1, 3), None, None)


def test_steps_of_a_sequence_can_be_segments():
    """Of (B, T, C), where what lies behind the first axis is no place."""
    steps = pl.SegmentMap.of(torch.arange(4)[:, None].expand(4, 2))
    model = pl.FunctionModel(lambda rows: rows.sum((1, 2)), output="regression")
    a = pl.Occlusion(segments=steps, baseline=pl.Zeros())(model, torch.arange(8.0).view(1, 4, 2))
    assert a.scores.tolist() == [[[1.0, 1.0], [5.0, 5.0], [9.0, 9.0], [13.0, 13.0]]]
    assert a.by_segment.tolist() == [1.0, 5.0, 9.0, 13.0]
