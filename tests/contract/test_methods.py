"""What every method promises, swept over the catalogue and over SmoothGrad(base=e) for every local e."""

import pickle
import random
from dataclasses import FrozenInstanceError, fields, replace

import numpy as np
import pytest
import torch
from tests.oracles import Constant, Raising, attention_net, conv_net, uniform
from torch import nn

import pellucid as pl
from pellucid.catalogue import registered
from pellucid.core.explainer import Explainer
from pellucid.core.recipe import decode, encode


def _small(method: type) -> pl.Explainer:
    """The method with few samples and steps, so that the sweep stays fast."""
    names = {f.name for f in fields(method)}
    few = {"n_samples": 6, "n_steps": 6, "budget": 70, "segments": pl.PatchesOrColumns(3)}
    few |= {"baseline": pl.Constant(10.0)} if method is pl.SmallestChange else {}  # which flips the class
    return method(**{name: value for name, value in few.items() if name in names})


LOCAL = [_small(m) for m in registered().values() if issubclass(m, Explainer)]
WRAPPED = [pl.SmoothGrad(base=e, n_samples=3) for e in LOCAL]
ALL = [pytest.param(e, id=e.card.name) for e in (*LOCAL, *WRAPPED)]
everyone = pytest.mark.parametrize("explain", ALL)
of_features = pytest.mark.parametrize(
    "explain",
    [p for p in ALL if p.values[0].card.per == "feature" and pl.Modality.TABLE in p.values[0].card.modalities],
)
of_cells = pytest.mark.parametrize(
    "explain", [p for p in ALL if p.values[0].card.per != "feature" and p.values[0].card.access == "white-box"]
)
of_segments = pytest.mark.parametrize("explain", [p for p in ALL if p.values[0].card.per == "segment"])
white_box = pytest.mark.parametrize("explain", [p for p in ALL if p.values[0].card.access == "white-box"])
black_box = pytest.mark.parametrize("explain", [p for p in ALL if p.values[0].card.access == "black-box"])

X = uniform(5, 3, 9, 9, seed=4)
CHANNELS, CELLS = 8, (4, 4)  # of the last layer with cells


def net_of(explain: pl.Explainer, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A network that the method explains: CAM needs a head that reads the mean of each channel, others attention."""
    if attends(explain):
        return attention_net(dtype=dtype)
    return conv_net(dtype=dtype, pooled=1 if explain.card.name.endswith("of-cam") or is_cam(explain) else 2)


def attends(explain: pl.Explainer) -> bool:
    return explain.card.name.endswith(("attention-rollout", "x-attention"))


def is_cam(explain: pl.Explainer) -> bool:
    return explain.card.name == "cam"


def shape_of(explain: pl.Explainer, x: torch.Tensor) -> tuple[int, ...]:
    """What the card promises."""
    shapes = {
        "feature": tuple(x.shape),
        "pixel": (len(x), 1, *x.shape[2:]),
        "cell of a layer": (len(x), 1, *CELLS),
        "unit of a layer": (len(x), CHANNELS, *CELLS),
        "segment": (len(x), 1, *x.shape[2:]),
    }
    return shapes[explain.card.per]


def snapshot(net: nn.Module) -> dict:
    return {
        "values": {name: t.clone() for name, t in net.state_dict().items()},
        "identities": {name: id(t) for name, t in (*net.named_parameters(), *net.named_buffers())},
        "modes": [m.training for m in net.modules()],
        "required": [p.requires_grad for p in net.parameters()],
        "grads": [None if p.grad is None else p.grad.clone() for p in net.parameters()],
        "hooks": [
            (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks), len(m._backward_pre_hooks))
            for m in net.modules()
        ],
        "attributes": [sorted(vars(m)) for m in net.modules()],
    }


def assert_same(before: dict, after: dict) -> None:
    assert before.keys() == after.keys()
    for name in ("identities", "modes", "required", "hooks", "attributes"):
        assert before[name] == after[name], name
    assert all(torch.equal(after["values"][n], v) for n, v in before["values"].items())
    for one, other in zip(before["grads"], after["grads"], strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)


def global_random_state() -> tuple:
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002


@everyone
def test_scores_have_the_shape_of_the_input_and_are_finite(explain):
    a = explain(pl.TorchModel(net_of(explain)), X)
    assert tuple(a.scores.shape) == shape_of(explain, X)
    assert a.scores.dtype == X.dtype
    assert torch.isfinite(a.scores).all()
    assert a.scores.any()


@everyone
def test_a_map_does_not_depend_on_its_company(explain):
    model = pl.TorchModel(net_of(explain))
    together = explain(model, X).scores
    for row in range(len(X)):
        alone = explain(model, X[row : row + 1]).scores[0]
        assert float((together[row] - alone).abs().max()) <= 1e-5 * float(alone.abs().max())


@everyone
@pytest.mark.parametrize("rows", [1, 2, 7, 64])
def test_a_map_does_not_depend_on_the_micro_batch(explain, rows):
    # Shares of a variance that is a thousandth of the scores' square enlarge what rounding does to these.
    exact = torch.float64 if explain.card.unit == "share of the variance" else torch.float32
    x = X.to(exact)
    one = explain(pl.TorchModel(net_of(explain, exact)), x).scores
    other = explain(pl.TorchModel(net_of(explain, exact), micro_batch=rows), x).scores
    assert float((one - other).abs().max()) <= 1e-5 * float(one.abs().max())


@everyone
def test_the_same_call_gives_the_same_bytes(explain):
    one, other = explain(pl.TorchModel(net_of(explain)), X), explain(pl.TorchModel(net_of(explain)), X)
    assert torch.equal(one.scores, other.scores)
    if one.standard_error is not None:
        assert torch.equal(one.standard_error, other.standard_error)


@everyone
def test_the_micro_batch_is_kept(explain):
    sizes = []
    net = net_of(explain)
    net[0].register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    explain(pl.TorchModel(net, micro_batch=4), X)
    assert max(sizes) <= 4


@pytest.mark.doors  # beartype, which executes the shapes, draws from Python's global generator itself
@everyone
def test_the_network_is_as_it_was(explain):
    net = net_of(explain)
    net[5].eval()  # a mixture of modes
    net[0].weight.requires_grad_(False)
    net[-1].weight.grad = torch.ones_like(net[-1].weight)
    net[3].register_forward_hook(lambda module, args, out: None)
    before, state = snapshot(net), global_random_state()
    explain(pl.TorchModel(net), X)
    explain(pl.TorchModel(net, mode="as-is"), X)
    assert_same(before, snapshot(net))
    assert state == global_random_state()
    assert torch.is_grad_enabled()


@pytest.mark.doors  # beartype, which executes the shapes, draws from Python's global generator itself
@everyone
@pytest.mark.parametrize("calls", [1, 2, 3])
def test_the_network_is_as_it_was_after_an_error(explain, calls):
    net = Raising(calls)
    before, state = snapshot(net), global_random_state()
    with pytest.raises(pl.ModelError, match="the network broke"):
        [explain(pl.TorchModel(net), uniform(2, 4, 3, 3)) for _ in range(3)]
    assert_same(before, snapshot(net))
    assert state == global_random_state()


@everyone
def test_the_input_is_as_it_was(explain):
    x = X.clone().requires_grad_()
    explain(pl.TorchModel(net_of(explain)), x)
    assert torch.equal(x, X)
    assert x.grad is None


@everyone
def test_double_precision_stays_double(explain):
    a = explain(pl.TorchModel(net_of(explain, torch.float64)), X.double())
    assert a.scores.dtype == torch.float64
    single = explain(pl.TorchModel(net_of(explain)), X, [d.target for d in a.decisions]).scores
    assert float((a.scores - single).abs().max()) <= 1e-3 * float(single.abs().max())


@everyone
def test_only_what_the_card_needs_is_needed(explain):
    """A model that offers the needs and nothing else serves; one that lacks one of them is refused before any work."""
    net = net_of(explain)
    model = pl.TorchModel(net)
    model.offers = explain.card.needs
    explain(model, X[:1])
    for need in explain.card.needs:
        model.offers = ~need & pl.TorchModel.offers
        calls = []
        handle = net[0].register_forward_pre_hook(lambda module, args, calls=calls: calls.append(1))
        with pytest.raises(pl.MissingNeed, match=str(need)):
            explain(model, X[:1])
        handle.remove()
        assert calls == []


@white_box
def test_a_black_box_is_refused_by_white_box_methods(explain):
    model = pl.FunctionModel(lambda rows: rows.reshape(len(rows), -1)[:, :3])
    with pytest.raises(pl.MissingNeed, match=r"gradients|activations"):
        explain(model, X)


@black_box
def test_a_black_box_is_explained_as_the_network_that_it_is(explain):
    net = net_of(explain).eval()
    a = explain(pl.FunctionModel(net, takes="torch"), X[:2])
    b = explain(pl.TorchModel(net), X[:2])
    assert a.scores.any()
    if not explain.card.sampled:  # the repeated prediction of a black box is a call of the budget
        assert float((a.scores - b.scores).abs().max()) <= 1e-4 * float(b.scores.abs().max())


@black_box
def test_a_black_box_method_takes_no_more_calls_than_its_card_says(explain):
    model = pl.TorchModel(net_of(explain))
    claimed, taken = explain.card.cost, explain(model, X[:1]).cost
    most = claimed.forward + claimed.segments * 9
    clean = isinstance(explain, pl.SmoothGrad)  # whose base does not count it
    assert taken.forward <= most + clean
    free = claimed.segments or explain.card.name.endswith("smallest-change")  # which stops where it has found
    assert free or taken.forward >= 0.6 * most  # what is asked twice is asked once
    assert taken.backward == claimed.backward == 0


@white_box
def test_the_cost_on_the_card_is_the_cost_of_the_call(explain):
    model = pl.TorchModel(net_of(explain))
    explain(model, X[:2])  # the diagnosis of this shape is done
    claimed = explain.card.cost
    cost = pl.Cost(claimed.forward + claimed.channels * CHANNELS, claimed.backward)
    taken = explain(model, X[:1]).cost
    assert taken.backward == cost.backward
    if claimed.channels:  # those that are the same everywhere may share a pass
        assert cost.forward - claimed.channels * (CHANNELS - 2) <= taken.forward <= cost.forward + 1
    else:
        with model.undisturbed(pl.Key.named("x")) as quiet:
            shared = explain.asks(quiet, X[:1]) is not None  # the clean prediction serves for the method too
        assert taken.forward == cost.forward + (not shared)


@everyone
def test_the_target_is_settled_once(explain):
    a = explain(pl.TorchModel(net_of(explain)), X)
    top = pl.TorchModel(net_of(explain)).predict(X).outputs.argmax(1).tolist()
    assert [d.target for d in a.decisions] == [pl.ClassScore(i) for i in top]


@everyone
def test_sampled_methods_and_only_they_report_an_error(explain):
    a = explain(pl.TorchModel(net_of(explain)), X)
    assert (a.standard_error is not None) == explain.card.sampled
    assert all((n > 0) == explain.card.sampled for n in a.estimate.samples)
    if a.standard_error is not None:
        assert a.standard_error.shape == a.scores.shape
        assert (a.standard_error >= 0).all()


@everyone
def test_explainers_are_frozen_values(explain):
    assert pickle.loads(pickle.dumps(explain)) == explain
    assert hash(replace(explain)) == hash(explain)
    assert decode(encode(explain)) == explain
    assert eval(repr(explain), {n: getattr(pl, n) for n in dir(pl)}) == explain  # noqa: S307  # its own repr
    with pytest.raises(FrozenInstanceError):
        explain.anything = 1


@everyone
def test_a_stored_result_runs_again(explain, tmp_path):
    model = pl.TorchModel(net_of(explain))
    a = explain(model, X, target=1)
    loaded = pl.Attribution.load(a.save(tmp_path / "a.safetensors"))
    assert torch.equal(loaded.scores, a.scores)
    assert torch.equal(loaded.reproduce(model, X).scores, a.scores)


@of_features
def test_a_constant_network_gives_a_blank_map_that_says_why(explain):
    a = explain(pl.TorchModel(Constant()), uniform(2, 4))
    assert not a.scores.any()
    assert {"no-gradient", "zero-map"} <= {f.code for f in a.findings}


@of_features
def test_inputs_need_not_be_images(explain):
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    for shape in [(2, 4), (2, 3, 4), (2, 2, 2, 2, 4)]:
        flat = nn.Sequential(nn.Flatten(), nn.Unflatten(1, (-1, 4)), net, nn.Flatten())
        assert explain(pl.TorchModel(flat), uniform(*shape)).scores.shape == shape


@of_segments
def test_segments_are_of_inputs_of_any_shape(explain):
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    for shape, places in [((2, 4), (2, 4)), ((2, 3, 4), (2, 1, 4)), ((2, 2, 2, 2, 4), (2, 1, 2, 2, 4))]:
        flat = nn.Sequential(nn.Flatten(), nn.Unflatten(1, (-1, 4)), net, nn.Flatten())
        a = explain(pl.TorchModel(flat), uniform(*shape))
        assert a.scores.shape == places


@of_segments
def test_a_constant_model_gives_every_segment_nothing(explain):
    assert not explain(pl.TorchModel(Constant()), uniform(2, 4)).scores.any()


@of_cells
def test_a_network_without_cells_is_refused(explain):
    flat = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    for net, x in [(flat, uniform(2, 4)), (Constant(), uniform(2, 4))]:
        with pytest.raises(
            (pl.LayerError, pl.ArgumentError, pl.RuleError), match=r"of cells|to the places|no attention"
        ):
            explain(pl.TorchModel(net), x)


@everyone
def test_it_works_where_gradients_are_off(explain):
    net = net_of(explain)
    expected = explain(pl.TorchModel(net), X).scores
    with torch.no_grad():
        assert torch.equal(explain(pl.TorchModel(net), X).scores, expected)
    with torch.inference_mode():
        assert torch.equal(explain(pl.TorchModel(net), X.clone()).scores, expected)


@everyone
def test_cards_are_complete(explain):
    card = explain.card
    assert card.name == card.name.lower()
    assert " " not in card.name
    assert "arXiv" in card.reference or "doi" in card.reference
    assert card.modalities
    assert card.cost.forward > 0


def test_the_reference_of_the_taxonomy():
    card = pl.LinearExplanation().card
    axes = (card.stage, card.scope, card.access, card.applicability)
    assert axes == ("intrinsic", "global", "white-box", "model-specific")


def test_names_are_unique_and_found():
    from pellucid.catalogue import find

    assert all(find(name) is method for name, method in registered().items())
