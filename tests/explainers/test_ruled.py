"""The list of what a network executes, and of what a method makes of each operation."""

from typing import Any

import pytest
import torch
from tests.core.networks import Calling, fixed, same_state, state_of
from tests.oracles import Constant, Recorder, uniform
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # as networks write it

import pellucid as pl
from pellucid.core.operation import Kind
from pellucid.explainers._ruled import Ruled

PICTURES = uniform(3, 3, 8, 8, dtype=torch.float64)
LIFT, RELEVANCE, GUIDED = pl.DeepLIFT(baseline=pl.Zeros()), pl.LRP.epsilon(), pl.GuidedBackprop()


@fixed
def small() -> nn.Module:
    """A function, a module that holds others, a residual sum."""

    def forward(net: Any, x: Tensor) -> Tensor:
        y = F.relu(net.stem(x))
        return net.head((net.body(y) + y).mean((2, 3)))

    body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Sigmoid())
    return Calling(forward, stem=nn.Conv2d(3, 4, 3), body=body, head=nn.Linear(4, 2))


def listed(explain: Ruled, net: nn.Module, x: Any = PICTURES, target: Any = 0) -> list[tuple[Any, ...]]:
    return [tuple(one) for one in explain.operations(pl.TorchModel(net), x, target)]


def computed(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """What does more than to move numbers."""
    return [row for row in rows if row[2] is not Kind.LAYOUT]


def test_every_operation_is_listed_in_its_order_with_its_module_kind_shape_and_rule():
    """Of the first input alone; the last operation, which picks the class, only moves."""
    assert computed(listed(LIFT, small())) == [
        ("stem", "convolution", Kind.AFFINE, (1, 4, 6, 6), "linear", False),
        ("", "relu", Kind.RECTIFIER, (1, 4, 6, 6), "rescale", False),
        ("body.0", "convolution", Kind.AFFINE, (1, 4, 6, 6), "linear", False),
        ("body.1", "sigmoid", Kind.ACTIVATION, (1, 4, 6, 6), "rescale", False),
        ("", "add", Kind.ADD, (1, 4, 6, 6), "linear", False),
        ("", "mean", Kind.SUM, (1, 4), "linear", False),
        ("head", "addmm", Kind.AFFINE, (1, 2), "linear", False),
        *[row for row in listed(LIFT, small()) if row[2] is Kind.SUM and row[3] == (1,)],
    ]


def test_what_only_moves_numbers_is_listed_too():
    net = fixed(lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 2)))()
    kinds = [row[2] for row in listed(LIFT, net)]
    assert kinds.index(Kind.AFFINE) > 0
    assert set(kinds[: kinds.index(Kind.AFFINE)]) == {Kind.LAYOUT}


def test_each_method_says_what_it_makes_of_an_operation():
    methods = {"lift": LIFT, "lrp": RELEVANCE, "guided": GUIDED, "excitation": pl.ExcitationBackprop()}
    rules = {name: {row[1]: row[4] for row in listed(method, small())} for name, method in methods.items()}
    assert [rules[name]["sigmoid"] for name in ("lift", "lrp", "guided")] == [
        "rescale", "handed on, f(x) / x", "derivative"
    ]  # fmt: skip
    assert rules["guided"]["relu"] == "guided"
    assert rules["lrp"]["relu"] == "derivative"
    assert rules["lrp"]["addmm"] == "Epsilon(epsilon=1e-06)"
    assert rules["excitation"]["addmm"] == "Winner()"
    assert [row[4] for row in listed(pl.LRP(), small()) if row[1] == "convolution"] == ["Flat()", "ZPlus()"]


def test_sums_are_told_with_what_belongs_to_them():
    net = fixed(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2)))()
    rows = computed(listed(RELEVANCE, net))
    assert rows[0][0] == "0"
    assert rows[0][4] == f"Epsilon(epsilon=1e-06), the sum of convolution + {rows[1][1]}"
    assert (rows[1][0], rows[1][4]) == ("1", "part of the convolution before")


def test_an_attention_is_told_as_seen():
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    net = fixed(lambda: nn.Sequential(layer, nn.Flatten(), nn.Linear(20, 2)))()
    x = uniform(2, 5, 4, dtype=torch.float64)
    for explain in (pl.AttentionRollout(), pl.GradientXAttention()):
        seen = [row for row in listed(explain, net, x) if row[4] != "derivative"]
        assert [row[2:] for row in seen] == [(Kind.SOFTMAX, (1, 2, 5, 5), "seen", False)]


class Spectrum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.rfft(x).real


@pytest.mark.parametrize("explain", [LIFT, RELEVANCE, pl.ExcitationBackprop()], ids=["lift", "lrp", "excitation"])
def test_an_operation_without_a_rule_is_listed_as_refused_where_an_explanation_is_refused(explain):
    net = fixed(lambda: nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Sequential(Spectrum()), nn.Linear(4, 2)))()
    x = uniform(2, 6, dtype=torch.float64)
    rows = listed(explain, net, x)
    refused = [row for row in rows if row[5]]
    assert next(row[:2] for row in refused) == ("2.0", "_fft_r2c")
    assert {row[4] for row in refused} == {"no rule"}
    assert [row[0] for row in computed(rows) if not row[5]][:2] == ["0", "1"], "the others have theirs"
    with pytest.raises(pl.RuleError, match="_fft_r2c"):
        explain(pl.TorchModel(net), x, target=0)


def test_functions_of_the_users_own_are_listed_as_refused():
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return 2 * x

        @staticmethod
        def backward(ctx: Any, by: Tensor) -> Tensor:  # type: ignore[override]  # one output
            return 2 * by

    net = Calling(lambda net, x: F.relu(Doubled.apply(net.layer(x))), layer=nn.Linear(6, 6).double())
    rows = listed(RELEVANCE, net, uniform(1, 6, dtype=torch.float64))
    assert [(row[1], row[2]) for row in rows if row[5]] == [("DoubledBackward", Kind.OTHER)]


def test_what_does_not_lead_to_the_target_is_not_listed():
    net = Calling(lambda net, x: (net.layer(x), torch.fft.rfft(x).real)[0], layer=nn.Linear(6, 2).double())
    rows = listed(LIFT, net, uniform(1, 6, dtype=torch.float64))
    assert "_fft_r2c" not in {row[1] for row in rows}
    assert not any(row[5] for row in rows)


def test_a_target_inside_the_network_ends_the_list():
    names = {row[0] for row in listed(LIFT, small(), target=pl.Neuron("body.0", (1,)))}
    assert "stem" in names
    assert "body.0" in names
    assert not names & {"body.1", "head"}


def test_outputs_that_do_not_depend_on_the_input_have_no_operations():
    assert listed(LIFT, Constant()) == []


def test_of_several_inputs_all_that_is_executed_is_listed():
    net = fixed(lambda: Calling(lambda net, a, b: F.relu(net.one(a)) + net.other(b), one=nn.Linear(3, 2),
                                other=nn.Linear(4, 2)))()  # fmt: skip
    given = (uniform(2, 3, dtype=torch.float64), uniform(2, 4, seed=1, dtype=torch.float64))
    for explain in (LIFT, RELEVANCE, GUIDED):
        rows = [row[:2] for row in computed(listed(explain, net, given))]
        assert rows[:4] == [("one", "addmm"), ("", "relu"), ("other", "addmm"), ("", "add")]


def test_nothing_of_the_list_depends_on_what_was_run_before():
    net = small()
    model = pl.TorchModel(net)
    first = LIFT.operations(model, PICTURES, 0)
    pl.SmoothGrad(n_samples=3)(model, PICTURES, target=0)
    maps = LIFT(model, PICTURES, target=0).scores
    assert LIFT.operations(model, PICTURES, 0) == first
    assert torch.equal(LIFT(model, PICTURES, target=0).scores, maps)


def test_norms_that_were_folded_for_an_explanation_are_listed_again():
    net = fixed(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
                                      nn.Linear(144, 2)))()  # fmt: skip
    model = pl.TorchModel(net)
    first = RELEVANCE.operations(model, PICTURES, 0)
    pl.SmoothGrad(n_samples=3)(model, PICTURES, target=0)
    assert RELEVANCE.operations(model, PICTURES, 0) == first
    assert [one.module for one in first if one.kind is Kind.SCALE] == ["1"]


@pytest.mark.parametrize("explain", [LIFT, RELEVANCE, GUIDED], ids=["lift", "lrp", "guided"])
def test_the_network_is_afterwards_as_before(explain):
    net = small().train()
    before = state_of(net)
    listed(explain, net)
    assert same_state(state_of(net), before)
    assert net.training


def test_the_first_input_alone_is_run():
    net = Recorder(6)
    pl.LRP().operations(pl.TorchModel(net), uniform(5, 6), 0)
    assert set(net.batches) == {1}
    assert not any(net.modes), "in evaluation mode"


def test_without_a_target_it_is_the_top_class():
    named, left_out = (listed(LIFT, small(), target=t) for t in (int(small()(PICTURES[:1]).argmax()), None))
    assert named == left_out


@pytest.mark.doors
def test_a_model_that_offers_scores_only_is_refused():
    model = pl.FunctionModel(lambda x: x[:, :2])
    with pytest.raises(pl.MissingNeed):
        RELEVANCE.operations(model, uniform(1, 6), 0)


@pytest.mark.doors
def test_a_method_that_says_nothing_of_such_networks_says_so():
    net = nn.Linear(6, 2)
    with pytest.raises(pl.RuleError, match="executed no rectifier"):
        GUIDED.operations(pl.TorchModel(net), uniform(1, 6), 0)
    with pytest.raises(pl.RuleError, match="executed no attention"):
        pl.AttentionRollout().operations(pl.TorchModel(net), uniform(1, 6), 0)
