import pytest
import torch
from tests.oracles import uniform

import pellucid as pl
from pellucid.core.label import Labels
from pellucid.core.prediction import OutputKind, Prediction
from pellucid.core.recipe import decode, encode
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


# regions of segmentations


SCORES = torch.tensor([[[0.0, 2.0], [0.0, 0.0]], [[1.0, 1.0], [3.0, -1.0]]])  # two classes at 2x2 places
MAP = Prediction(torch.stack([SCORES, -SCORES]), OutputKind.SEGMENTATION, Labels(("ground", "tree")))


@pytest.mark.parametrize("seed", range(20))
def test_a_region_is_its_mask_again(seed):
    generator = torch.Generator().manual_seed(seed)
    size = tuple(torch.randint(1, 6, (1 + seed % 3,), generator=generator).tolist())
    mask = torch.rand(size, generator=generator) < (seed % 5) / 4
    region = pl.Region.of(mask)
    assert torch.equal(region.mask(), mask)
    assert region.size == size
    assert sum(region.runs[1::2]) == int(mask.sum())
    assert all(region.runs[1:]), "each run but the first has places, so that equal masks are equal regions"
    assert decode(encode(region)) == region


@pytest.mark.parametrize(
    ("mask", "runs"),
    [([True, True], (0, 2)), ([False, True], (1, 1)), ([True, False], (0, 1, 1)), ([False], (1,)), ([], (0,))],
)
def test_runs_begin_outside(mask, runs):
    assert pl.Region.of(torch.tensor(mask, dtype=torch.bool)).runs == runs
    assert pl.Region((len(mask),), runs).mask().tolist() == mask


@pytest.mark.doors
@pytest.mark.parametrize("runs", [(1, 2), (4, 1), (-1, 5), (1.0, 3.0)])
def test_runs_that_are_not_of_the_size_are_refused(runs):
    with pytest.raises(pl.ArgumentError, match=r"The runs of a region of \(2, 2\) sum to 4. Got"):
        pl.Region((2, 2), runs)


def test_the_mean_over_a_region_is_where_the_input_shows_the_class():
    """Of the first input tree scores more at the places 0 and 2, of the second at 1 and 3."""
    first, second = settle("tree", MAP)
    assert first == pl.RegionMean(1, pl.Region((2, 2), (0, 1, 1, 1, 1)))
    assert second == pl.RegionMean(1, pl.Region((2, 2), (1, 1, 1, 1)))
    outputs = torch.stack([SCORES, SCORES * 10])
    assert first.score(outputs, OutputKind.SEGMENTATION).tolist() == [2.0, 20.0]
    assert second.score(outputs, OutputKind.SEGMENTATION).tolist() == [0.0, 0.0]


def test_no_target_is_the_class_of_most_places():
    """Of two places each, the first class; then of three places, though the one of the other scores the most."""
    assert [target.index for target in settle(None, MAP)] == [0, 0]
    scores = torch.tensor([[[9.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]])
    [target] = settle(None, Prediction(scores[None], MAP.kind, MAP.labels))
    assert target == pl.RegionMean(1, pl.Region((2, 2), (1, 3)))


def test_a_region_of_ones_own_is_kept():
    target = pl.RegionMean(0, pl.Region.of(torch.tensor([[True, True], [False, False]])))
    assert settle(target, MAP).each == (target, target)
    assert target.score(MAP.outputs, MAP.kind).tolist() == [1.0, -1.0]
    assert target.describe(MAP.labels) == "ground in its region"


def test_the_gradient_of_a_region_mean_is_one_over_its_places():
    outputs = torch.stack([SCORES, SCORES]).requires_grad_()
    target = settle(1, MAP)[:1].repeat(2)
    [gradient] = torch.autograd.grad(target.score(outputs).sum(), outputs)
    assert torch.equal(gradient[1], torch.tensor([[[0.0, 0.0], [0.0, 0.0]], [[0.5, 0.0], [0.5, 0.0]]]))


def test_the_region_is_that_of_the_clean_input_and_not_of_a_noised_copy():
    """A linear map of each place: were the region to follow the noise, gradients would vary with the samples."""
    net = torch.nn.Conv2d(2, 2, 1, bias=False)
    net.weight.data.copy_(torch.tensor([[1.0, 0.5], [-1.0, 2.0]]).view(2, 2, 1, 1))
    x = uniform(1, 2, 4, 4) - 0.3
    region = net(x)[0].argmax(0) == 1
    assert 0 < int(region.sum()) < 16
    a = pl.SmoothGrad(noise_level=0.5, n_samples=8)(pl.TorchModel(net), x, 1)
    expected = region * torch.tensor([-1.0, 2.0]).view(2, 1, 1) / region.sum()
    torch.testing.assert_close(a.scores[0], expected)
    assert a.decisions[0].target == pl.RegionMean(1, pl.Region.of(region))
    assert not bool((a.standard_error > 1e-6).any())


@pytest.mark.doors
@pytest.mark.parametrize(
    ("target", "words"),
    [
        (pl.RegionMean(0, pl.Region((4,), (0, 4))), r"a region of the \(2, 2\) places of the outputs. Got \(4,\)"),
        (
            pl.RegionMean(0, pl.Region((2, 2), (4,))),
            r"so it has no region. Give one: RegionMean\(index, Region.of\(mask\)\)",
        ),
        (pl.RegionMean(2), "2 outputs, 0 to 1"),
        (
            pl.ClassScore(0),
            r"ClassScore reads logits or .*, but the model's outputs are a segmentation. Take RegionMean",
        ),
        (pl.BoxScore(0), r"BoxScore reads detection, but .* are a segmentation. Take RegionMean\(index\)"),
    ],
)
def test_wrong_targets_of_a_segmentation_are_refused_in_words(target, words):
    with pytest.raises(pl.TargetError, match=words):
        settle(target, MAP)


def test_a_class_that_is_nowhere_the_likeliest_has_no_region():
    with pytest.raises(pl.TargetError, match="Class 0 is nowhere the likeliest on this input"):
        settle(0, Prediction(torch.tensor([[[[0.0, 1.0]], [[2.0, 2.0]]]]), MAP.kind, MAP.labels))


# boxes


BOXES = torch.tensor([
    [[0.0, 0, 4, 4, 0.5, 0.1], [2, 0, 6, 4, 0.4, 0.9], [9, 9, 10, 10, 1.0, 0.2]],
    [[0.0, 0, 4, 4, 0.1, 0.3], [0, 0, 4, 2, 0.8, 0.2], [9, 9, 10, 10, 0.2, 0.1]],
])  # fmt: skip
FOUND = Prediction(BOXES, OutputKind.DETECTION, Labels(("cat", "dog")))


def test_a_box_score_is_the_largest_overlap_times_score():
    """IoU with (0, 0, 4, 4): 1, 8 / 24, 0 in the first input; 1, 8 / 16, 0 in the second."""
    box = (0.0, 0.0, 4.0, 4.0)
    torch.testing.assert_close(pl.BoxScore(0, box).score(BOXES, FOUND.kind), torch.tensor([0.5, 0.4]))
    torch.testing.assert_close(pl.BoxScore(1, box).score(BOXES, FOUND.kind), torch.tensor([0.9 / 3, 0.3]))


def test_the_box_is_that_of_the_highest_score_on_the_clean_input():
    first, second = settle("cat", FOUND)
    assert (first, second) == (pl.BoxScore(0, (9.0, 9.0, 10.0, 10.0)), pl.BoxScore(0, (0.0, 0.0, 4.0, 2.0)))
    assert settle(None, FOUND).each == (first, second), "the class with the highest score of all"
    assert decode(encode(first)) == first
    assert first.describe(FOUND.labels) == "cat at 9, 9, 10, 10"
    assert settle(pl.BoxScore(1, (0.0, 0.0, 1.0, 1.0)), FOUND).each[1].box == (0.0, 0.0, 1.0, 1.0)


def test_the_gradient_of_a_box_score_is_by_the_score_and_by_the_box():
    """Of (l, t, r, b) = (2, 1, 6, 3) with (0, 0, 4, 4): I = (4 - l) (b - t) = 4, U = (r - l) (b - t) + 16 - I = 20 and
    d(I / U) = (dI U - I dU) / U^2, with dI = -2, -2, 0, 2 and dU = 0, -2, 2, 2.
    """
    outputs = torch.tensor([[[2.0, 1.0, 6.0, 3.0, 0.4, 0.9]]], requires_grad=True)
    score = pl.BoxScore(1, (0.0, 0.0, 4.0, 4.0)).score(outputs, FOUND.kind)
    [gradient] = torch.autograd.grad(score.sum(), outputs)
    expected = torch.tensor([-40.0, -40 + 8, -8, 40 - 8]) / 400 * 0.9
    torch.testing.assert_close(gradient[0, 0], torch.cat([expected, torch.tensor([0, 4 / 20])]))


def test_a_box_that_is_turned_inside_out_overlaps_nothing():
    outputs = torch.tensor([[[4.0, 4.0, 0.0, 0.0, 1.0], [3.0, 0.0, 1.0, 4.0, 1.0]]])
    assert pl.BoxScore(0, (0.0, 0.0, 4.0, 4.0)).score(outputs, FOUND.kind).tolist() == [0.0]


@pytest.mark.doors
@pytest.mark.parametrize("box", [(0.0, 0.0, 1.0), (1.0, 0.0, 1.0, 2.0), (0.0, 2.0, 1.0, 1.0)])
def test_a_box_has_an_inside(box):
    with pytest.raises(pl.ArgumentError, match=r"A box is \(left, top, right, bottom\), right and bottom larger"):
        pl.BoxScore(0, box)


@pytest.mark.doors
@pytest.mark.parametrize(
    ("target", "prediction", "words"),
    [
        (pl.RegionMean(0), FOUND, r"RegionMean reads segmentation, but .* a detection. Take BoxScore\(index\)"),
        (pl.ClassScore(0), FOUND, r"Take BoxScore\(index\)"),
        (pl.BoxScore(0), PREDICTION, r"BoxScore reads detection, but .* are a logits. Take ClassScore\(index\)"),
        (pl.RegionMean(0), PREDICTION, r"Take ClassScore\(index\)"),
        (pl.BoxScore(2), FOUND, "2 outputs, 0 to 1"),
    ],
)
def test_targets_of_another_kind_of_outputs_are_refused(target, prediction, words):
    with pytest.raises(pl.TargetError, match=words):
        settle(target, prediction)


# units of layers


def test_a_neuron_is_one_unit_and_fewer_numbers_are_the_mean_of_the_rest():
    activation = uniform(2, 3, 4, 5)
    torch.testing.assert_close(pl.Neuron("a", (1, 2, 3)).score(activation, OutputKind.LOGITS), activation[:, 1, 2, 3])
    torch.testing.assert_close(pl.Neuron("a", (1,)).score(activation, OutputKind.LOGITS), activation[:, 1].mean((1, 2)))
    torch.testing.assert_close(pl.Neuron("a", (1, 3)).score(activation, OutputKind.LOGITS), activation[:, 1, 3].mean(1))
    assert decode(encode(pl.Neuron("a", (1,)))) == pl.Neuron("a", (1,))
    assert pl.Neuron("a", (1, 2)).describe(LABELS) == "unit 1, 2 of a"


@pytest.mark.doors
def test_an_index_may_be_written_as_a_number_or_a_list():
    assert pl.Neuron("a", 1) == pl.Neuron("a", (1,))
    assert pl.Neuron("a", [1, 3]) == pl.Neuron("a", (1, 3))


@pytest.mark.doors
@pytest.mark.parametrize("index", [(3,), (0, 4), (0, 0, 5), (0, 0, 0, 0)])
def test_a_neuron_that_the_layer_does_not_have_is_refused(index):
    with pytest.raises(pl.TargetError, match=r"The layer 'a' gives \(3, 4, 5\) for each input. Got the index"):
        pl.Neuron("a", index).score(uniform(2, 3, 4, 5), OutputKind.LOGITS)


@pytest.mark.doors
@pytest.mark.parametrize(
    ("layer", "index", "words"),
    [("a", (), "a layer's name and an index"), (3, (1,), "a layer's name"), ("a", (-1,), "`index` is a whole number"),
     ("a", (1.5,), "`index` is a whole number")],
)  # fmt: skip
def test_a_neuron_is_a_name_and_whole_numbers(layer, index, words):
    with pytest.raises(pl.ArgumentError, match=words):
        pl.Neuron(layer, index)


def layered() -> tuple[torch.nn.Sequential, torch.Tensor]:
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 4))
    for i, parameter in enumerate(net.parameters()):
        parameter.data.copy_(uniform(*parameter.shape, seed=i) - 0.5)
    return net, uniform(5, 3, seed=9)


MIXED = [pl.Neuron("0", (2,)), 1, pl.Neuron("1", (0,)), pl.Neuron("0", (2,)), pl.Margin(1, 0)]


def test_rows_of_a_batch_may_read_layers_and_outputs():
    """Neurons of the first layer have its weights as their gradient; each row is as it is alone."""
    net, x = layered()
    model = pl.TorchModel(net)
    a = pl.SimpleGradient()(model, x, MIXED)
    assert torch.equal(a.scores[0], net[0].weight[2].detach())
    assert torch.equal(a.scores[3], net[0].weight[2].detach())
    hidden = net[0](x[2]).detach()
    torch.testing.assert_close(a.scores[2], (1 - hidden[0].tanh() ** 2) * net[0].weight[0].detach())
    for row, target in enumerate(MIXED):
        alone = pl.SimpleGradient()(model, x[row : row + 1], target)
        torch.testing.assert_close(a.scores[row], alone.scores[0])
        assert a.decisions[row].score == pytest.approx(alone.decisions[0].score, rel=1e-5)
    assert a.decisions[0].score == pytest.approx(float(net[0](x[0])[2].detach()), rel=1e-5)
    assert a.decisions[0].probability is None
    assert a.decisions[1].probability == pytest.approx(float(net(x[1]).softmax(0)[1].detach()), rel=1e-5)


def test_targets_name_the_layers_that_they_read_once():
    targets = settle(MIXED, Prediction(uniform(5, 4), OutputKind.LOGITS, LABELS))
    assert targets.layers == ("0", "1")
    outputs, layers = uniform(5, 4), {"0": uniform(5, 4, seed=1), "1": uniform(5, 4, seed=2)}
    expected = [layers["0"][0, 2], outputs[1, 1], layers["1"][2, 0], layers["0"][3, 2], outputs[4, 1] - outputs[4, 0]]
    assert torch.equal(targets.score(outputs, layers), torch.stack(expected))
    assert torch.equal(targets.chosen([3, 1]).score(outputs[[3, 1]], {"0": layers["0"][[3, 1]]}),
                       torch.stack([expected[3], expected[1]]))  # fmt: skip


@pytest.mark.doors
def test_a_neuron_of_a_layer_that_there_is_not_is_refused_and_so_is_one_of_a_function():
    net, x = layered()
    with pytest.raises(pl.LayerError, match=r"no layer '3'"):
        pl.SimpleGradient()(pl.TorchModel(net), x, pl.Neuron("3", (0,)))
    function = pl.FunctionModel(lambda rows: net(rows).detach(), output="logits")
    with pytest.raises(pl.MissingNeed, match="no activations: a neuron cannot be read"), \
         function.undisturbed(pl.Key.named("x")) as quiet:  # fmt: skip
        quiet.scores(x, Targets((pl.Neuron("0", (0,)),) * 5, OutputKind.LOGITS))


def test_a_neuron_serves_any_kind_of_outputs():
    for prediction in (PREDICTION, MAP, FOUND):
        assert settle(pl.Neuron("a", (0,)), prediction).each == (pl.Neuron("a", (0,)),) * 2


@pytest.mark.doors  # what users write, though the annotations say tuples
def test_lists_become_tuples():
    assert pl.BoxScore(1, [0, 0, 8, 8]) == pl.BoxScore(1, (0.0, 0.0, 8.0, 8.0))
    assert pl.Region([2, 2], [0, 4]) == pl.Region((2, 2), (0, 4))
    assert hash(pl.RegionMean(0, pl.Region([2, 2], [0, 4])))
