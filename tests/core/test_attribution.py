import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tests.oracles import Linear, conv_net, uniform

import pellucid as pl

NET = conv_net()
X = uniform(3, 3, 9, 9)
EXPLAIN = pl.SmoothGrad(n_samples=20)


@pytest.fixture
def a() -> pl.Attribution:
    return EXPLAIN(pl.TorchModel(NET, labels=["cat", "dog", "owl"]), X, target="dog")


def test_a_row_is_an_attribution_of_its_own(a):
    row = a[1]
    assert len(row) == 1
    assert torch.equal(row.scores, a.scores[1:2])
    assert torch.equal(row.standard_error, a.standard_error[1:2])
    assert row.decision == a.decisions[1]
    assert row.recipe.inputs == [a.recipe.inputs[1]]
    assert torch.equal(row.estimate.batch_means, a.estimate.batch_means[1:2])
    assert [r.decision for r in a] == list(a.decisions)
    with pytest.raises(IndexError):
        _ = a[3]


def test_findings_follow_their_row():
    x = uniform(2, 4)
    x[1] = 0.5
    a = pl.SimpleGradient()(pl.TorchModel(Linear(uniform(2, 4)).eval()), x)
    assert [f.code for f in a[0].findings] == []
    assert [(f.code, f.input) for f in a[1].findings] == [("constant-input", 0)]


@pytest.mark.parametrize("name", ["target", "decision", "samples_used"])
def test_what_belongs_to_one_input_says_so_for_several(a, name):
    with pytest.raises(pl.ArgumentError, match=rf"Write a\[i\].{name}"):
        getattr(a, name)
    assert getattr(a[0], name) is not None


def test_decisions_tell_label_score_and_probability(a):
    outputs = pl.TorchModel(NET).predict(X).outputs
    assert a[0].decision.label == "dog"
    assert a[0].decision.score == pytest.approx(float(outputs[0, 1]))
    assert a[0].decision.probability == pytest.approx(float(torch.softmax(outputs, 1)[0, 1]))


def test_everything_survives_the_file(a, tmp_path):
    b = pl.Attribution.load(a.save(tmp_path / "a.safetensors"))
    assert torch.equal(b.scores, a.scores)
    assert torch.equal(b.standard_error, a.standard_error)
    assert torch.equal(b.estimate.batch_means, a.estimate.batch_means)
    assert all(torch.equal(b.estimate.state[n], part) for n, part in a.estimate.state.items())
    assert (b.decisions, b.recipe, b.findings, b.cost) == (a.decisions, a.recipe, a.findings, a.cost)
    assert (b.estimate.samples, b.estimate.stopped) == (a.estimate.samples, a.estimate.stopped)
    assert torch.equal(b.outputs, a.outputs)


def test_the_previews_survive_the_file(tmp_path, chelsea):
    model = pl.TorchModel(NET, preprocess=pl.ImagePreprocess(size=9))
    a = pl.SimpleGradient()(model, model.read(chelsea))
    b = pl.Attribution.load(a.save(tmp_path / "a.safetensors"))
    assert (b.views[0].preview.numpy() == chelsea).all()
    assert b.views[0].geometry == a.views[0].geometry


def test_the_same_result_gives_the_same_bytes(a, tmp_path):
    model = pl.TorchModel(NET, labels=["cat", "dog", "owl"])
    again = EXPLAIN(model, X, target="dog")
    assert a.save(tmp_path / "a").read_bytes() == again.save(tmp_path / "b").read_bytes()


def test_the_recipe_is_one_metadata_value(a, tmp_path):
    with safe_open(str(a.save(tmp_path / "a")), framework="pt") as file:
        metadata = file.metadata()
    assert list(metadata) == ["pellucid"]
    assert json.loads(metadata["pellucid"])["recipe"]["explainer"]["type"] == "SmoothGrad"


def test_maps_in_channels_last_are_saved(tmp_path):
    a = pl.SimpleGradient()(pl.TorchModel(NET), X.contiguous(memory_format=torch.channels_last))
    assert torch.equal(pl.Attribution.load(a.save(tmp_path / "a")).scores, a.scores)


def test_the_recipe_runs_again_after_loading(a, tmp_path):
    b = pl.Attribution.load(a.save(tmp_path / "a"))
    assert torch.equal(b.reproduce(pl.TorchModel(NET), X).scores, a.scores)
    assert torch.equal(b[1].reproduce(pl.TorchModel(NET), X[1:2]).scores, a.scores[1:2])


def test_a_shared_key_is_part_of_the_recipe():
    model = pl.TorchModel(NET)
    a = EXPLAIN(model, X, target=1, key="pair")
    assert torch.equal(a.reproduce(model, X).scores, a.scores)
    assert not torch.equal(a.scores, EXPLAIN(model, X, target=1).scores)


def test_it_runs_again_as_it_was_run():
    a = EXPLAIN(pl.TorchModel(NET, precision="bfloat16", micro_batch=3), X)
    assert torch.equal(a.reproduce(pl.TorchModel(NET), X).scores, a.scores)


def test_other_weights_are_refused(a):
    with pytest.raises(pl.RecipeError, match=r"computed with weights"):
        a.reproduce(pl.TorchModel(conv_net(seed=1)), X)


def test_other_inputs_are_refused(a):
    with pytest.raises(pl.RecipeError, match=r"Was another file read"):
        a.reproduce(pl.TorchModel(NET), X + 1e-3)
    with pytest.raises(pl.ArgumentError, match=r"pass them"):
        a.reproduce(pl.TorchModel(NET))


def test_a_global_explanation_runs_again_without_inputs():
    model = pl.TorchModel(Linear(uniform(2, 4)).linear)
    a = pl.LinearExplanation()(model)
    assert torch.equal(a.reproduce(model).scores, a.scores)


@pytest.mark.doors
def test_files_that_are_no_attribution_are_refused_in_words(tmp_path, a):
    with pytest.raises(pl.RecipeError, match=r"not a readable safetensors file"):
        pl.Attribution.load(tmp_path / "missing")
    (tmp_path / "text").write_text("hello, this is text and not a tensor file")
    with pytest.raises(pl.RecipeError, match=r"not a readable safetensors file"):
        pl.Attribution.load(tmp_path / "text")
    save_file({"w": torch.ones(1)}, str(tmp_path / "other"))
    with pytest.raises(pl.RecipeError, match=r"not one that Attribution.save wrote"):
        pl.Attribution.load(tmp_path / "other")
    save_file({"w": torch.ones(1)}, str(tmp_path / "damaged"), metadata={"pellucid": '{"format": 1}'})
    with pytest.raises(pl.RecipeError, match=r"damaged"):
        pl.Attribution.load(tmp_path / "damaged")
    with pytest.raises(pl.OutputError, match=r"cannot be written"):
        a.save(tmp_path / "no" / "such" / "folder")


def test_its_repr_is_short(a):
    assert repr(a) == "<Attribution of 3 by SmoothGrad: (3, 3, 9, 9)>"
