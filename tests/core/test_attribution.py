import itertools
import json
from dataclasses import dataclass, replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tests.oracles import Linear, conv_net, uniform
from torch import nn

import pellucid as pl
from pellucid.core.estimate import Estimate


def mixing(*widths: int) -> list[nn.Module]:
    """Linear layers with fixed weights and tanh between them."""
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        layer = nn.utils.skip_init(nn.Linear, inputs, outputs)
        with torch.no_grad():
            layer.weight.copy_(uniform(outputs, inputs, seed=i) - 0.5)
            layer.bias.copy_(uniform(outputs, seed=i) - 0.5)
        layers += [layer, nn.Tanh()]
    return layers[:-1]


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


def test_another_function_with_the_same_weights_is_refused(a):
    other = conv_net()
    other[2] = torch.nn.Tanh()
    with pytest.raises(pl.RecipeError, match="computed with weights"):
        a.reproduce(pl.TorchModel(other), X)


def test_mode_and_output_kind_are_those_of_the_recipe():
    made = pl.TorchModel(NET, mode="as-is", output="logits")
    a = EXPLAIN(made, X, pl.LogProb(1))
    assert torch.equal(a.reproduce(pl.TorchModel(NET), X).scores, a.scores)


def test_both_forms_of_the_noise_level_are_in_the_recipe():
    x = torch.stack([X[0], 2 * X[0]])
    notes = pl.SmoothGrad(n_samples=2, noise_level=pl.NoiseLevel.absolute(0.5))(pl.TorchModel(NET), x).recipe.notes
    span = float(X[0].max() - X[0].min())
    assert notes["sigma"] == [0.5, 0.5]
    assert notes["noise_level"] == pytest.approx([0.5 / span, 0.25 / span])


def tamper(a, tmp_path, change) -> pl.Attribution:
    """The stored result, its description changed, loaded again."""
    path = a.save(tmp_path / "a")
    with safe_open(str(path), framework="pt") as file:
        facts = json.loads(file.metadata()["pellucid"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
    change(facts)
    save_file(tensors, str(path), metadata={"pellucid": json.dumps(facts)})
    return pl.Attribution.load(path)


@pytest.mark.doors
@pytest.mark.parametrize(
    "change",
    [
        lambda facts: facts["recipe"]["explainer"].update(settings=[1]),
        lambda facts: facts["recipe"]["explainer"].update(type=[1]),
        lambda facts: facts["recipe"].update(explainer=5),
        lambda facts: facts["recipe"].update(explainer={"type": "ClassScore", "settings": {"index": 1}}),
        lambda facts: facts["recipe"].update(keys=["zz"]),
        lambda facts: facts["recipe"].update(run=None),
        lambda facts: facts["recipe"]["run"].update(micro_batch=-3),
        lambda facts: facts["recipe"].update(targets=[{"type": "SmoothGrad"}] * 3),
        lambda facts: facts.update(samples=[]),
        lambda facts: facts.update(decisions=facts["decisions"][:1]),
        lambda facts: facts.update(views=[{"kind": "image"}]),
    ],
)
def test_a_file_that_was_tampered_with_is_refused_in_words(a, tmp_path, change):
    with pytest.raises(pl.RecipeError):
        tamper(a, tmp_path, change).reproduce(pl.TorchModel(NET, labels=["cat", "dog", "owl"]), X)


@pytest.mark.doors
def test_deeply_nested_metadata_is_refused(tmp_path):
    save_file({"w": torch.ones(1)}, str(tmp_path / "deep"), metadata={"pellucid": "[" * 100_000})
    with pytest.raises(pl.RecipeError, match="not a readable"):
        pl.Attribution.load(tmp_path / "deep")


def test_a_model_that_cannot_be_verified_is_told():
    class Scores(pl.Explainer):
        """Its scores for the three outputs."""

        @property
        def card(self):
            return replace(pl.SimpleGradient().card, name="scores", needs=pl.Needs.SCORES)

        def attribute(self, model, x, targets, call):
            return Estimate.exact(model.outputs(x)[:, :1] * x)

    model = pl.FunctionModel(lambda rows: rows, output="logits")
    a = dataclass(frozen=True)(Scores)()(model, uniform(1, 3))
    assert [f.code for f in a.reproduce(model, uniform(1, 3)).findings] == ["unverified-model"]


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
    with pytest.raises(pl.RecipeError, match=r"not one that Attribution.save of this version wrote"):
        pl.Attribution.load(tmp_path / "other")
    save_file({"w": torch.ones(1)}, str(tmp_path / "damaged"), metadata={"pellucid": '{"format": 1}'})
    with pytest.raises(pl.RecipeError, match=r"damaged"):
        pl.Attribution.load(tmp_path / "damaged")
    with pytest.raises(pl.OutputError, match=r"cannot be written"):
        a.save(tmp_path / "no" / "such" / "folder")


def test_its_repr_is_short(a):
    assert repr(a) == "<Attribution of 3 by SmoothGrad: (3, 3, 9, 9)>"


# --- more samples: what one long run would have given

UNEVEN = pl.TorchModel(nn.Sequential(nn.Flatten(), *mixing(27, 8, 3)))  # its inputs stop at different counts
MANY = torch.cat([uniform(1, 3, 3, 3, seed=1), uniform(1, 3, 3, 3, seed=2) * 3, uniform(1, 3, 3, 3, seed=3) * 9])


def smooth(n: int | pl.Until) -> pl.Attribution:
    return pl.SmoothGrad(n_samples=n, noise_level=1.0)(UNEVEN, MANY, 0)


def assert_one_run(longer: pl.Attribution, expected: pl.Attribution) -> None:
    for found in (longer, longer.reproduce(UNEVEN, MANY)):
        assert found.recipe == expected.recipe
        assert found.estimate.samples == expected.estimate.samples
        assert found.estimate.stopped == expected.estimate.stopped
        # Matrices of other numbers of rows round differently.
        torch.testing.assert_close(
            found.scores, expected.scores, rtol=0, atol=1e-6 * float(expected.scores.abs().max())
        )
        torch.testing.assert_close(found.estimated_error, expected.estimated_error, rtol=1e-5, atol=0)


UNTIL = pl.Until(error=0.3, at_most=300)


def test_its_inputs_stop_at_different_counts():
    assert len(set(smooth(UNTIL).estimate.samples)) == 3


@pytest.mark.parametrize("until", [UNTIL, replace(UNTIL, further=16), replace(UNTIL, at_least=50)])
def test_so_many_samples_more_after_each_stop(until):
    a = smooth(until)
    once = a.extend(UNEVEN, MANY, 6)
    assert [n - m for n, m in zip(once.estimate.samples, a.estimate.samples, strict=True)] == [6, 6, 6]
    assert_one_run(once, smooth(replace(until, further=until.further + 6)))
    assert_one_run(once.extend(UNEVEN, MANY, 5), smooth(replace(until, further=until.further + 11)))


def test_on_to_a_smaller_error():
    a = smooth(UNTIL)
    assert_one_run(a.extend(UNEVEN, MANY, replace(UNTIL, error=0.15)), smooth(replace(UNTIL, error=0.15)))
    same = a.extend(UNEVEN, MANY, replace(UNTIL, error=0.29))
    assert_one_run(same, smooth(replace(UNTIL, error=0.29)))


def test_from_a_count_to_an_error_and_on():
    a = smooth(20).extend(UNEVEN, MANY, UNTIL)
    assert min(a.estimate.samples) >= 20
    assert_one_run(a, smooth(replace(UNTIL, at_least=20)))
    assert_one_run(a.extend(UNEVEN, MANY, 5), smooth(replace(UNTIL, at_least=20, further=5)))
    again = a.extend(UNEVEN, MANY, 5).extend(UNEVEN, MANY, 5)
    assert_one_run(again, smooth(replace(UNTIL, at_least=20, further=10)))


def test_to_an_error_that_was_reached_already_nothing_is_added():
    one, x = smooth(UNTIL)[0], MANY[:1]
    a = one.extend(UNEVEN, x, replace(UNTIL, error=0.9))
    assert (a.samples_used, a.cost.backward) == (one.samples_used, 0)
    assert torch.equal(a.scores, one.scores)
    assert a.reproduce(UNEVEN, x).samples_used == one.samples_used


@pytest.mark.doors
def test_a_batch_that_no_one_run_describes_is_extended_one_by_one():
    with pytest.raises(pl.ArgumentError, match=r"Extend them one by one, a\[i\].extend"):
        smooth(UNTIL).extend(UNEVEN, MANY, replace(UNTIL, error=0.9))
