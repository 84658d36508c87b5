import pytest
import torch
from tests.oracles import Constant, Linear, Power, conv_net, uniform
from torch import nn

import pellucid as pl

GRADIENT = pl.SimpleGradient()


def codes(a: pl.Attribution) -> list[str]:
    return sorted(f.code for f in a.findings)


def test_a_sound_model_and_input_give_no_finding():
    assert codes(GRADIENT(pl.TorchModel(Linear(uniform(2, 4)).eval()), uniform(2, 4))) == []


def test_training_mode_is_told_as_a_note():
    findings = GRADIENT(pl.TorchModel(conv_net()), uniform(1, 3, 9, 9)).findings
    assert [(f.code, f.severity) for f in findings] == [("train-mode", "note")]


def test_training_mode_as_asked_for_is_a_warning():
    a = GRADIENT(pl.TorchModel(conv_net(), mode="as-is"), uniform(2, 3, 9, 9))
    assert [(f.code, f.severity) for f in a.findings] == [("train-mode", "warning")]


def test_a_softmax_head_is_recognised_and_its_saturation_told():
    net = nn.Sequential(Linear(torch.eye(2)), nn.Softmax(1)).eval()
    mild = GRADIENT(pl.TorchModel(net), torch.tensor([[0.5, 0.0]]))
    sharp = GRADIENT(pl.TorchModel(net), torch.tensor([[9.0, 0.0]]))
    assert codes(mild) == ["softmax-head"]
    assert codes(sharp) == ["saturated", "softmax-head"]
    p = float(torch.softmax(torch.tensor([9.0, 0.0]), 0)[0])
    assert f"{p * (1 - p):.1e}" in next(f.message for f in sharp.findings if f.code == "saturated")


def test_the_log_probability_is_the_remedy_of_saturation():
    net = nn.Sequential(Linear(torch.eye(2)), nn.Softmax(1)).eval()
    assert "saturated" not in codes(GRADIENT(pl.TorchModel(net), torch.tensor([[9.0, 0.0]]), pl.LogProb(0)))


def test_an_input_out_of_the_preprocessings_range_is_told():
    model = pl.TorchModel(conv_net().eval(), preprocess=pl.ImagePreprocess(size=9, mean=0.5, std=0.5))
    inside, outside = uniform(1, 3, 9, 9) * 2 - 1, uniform(1, 3, 9, 9) * 255
    assert codes(GRADIENT(model, inside)) == []
    assert codes(GRADIENT(model, outside)) == ["input-out-of-range"]


def test_a_constant_input_is_told_with_its_row():
    x = uniform(2, 4)
    x[1] = 0.5
    a = GRADIENT(pl.TorchModel(Linear(uniform(2, 4)).eval()), x)
    assert [(f.code, f.input) for f in a.findings] == [("constant-input", 1)]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_input_that_is_not_finite_is_told(bad):
    x = uniform(1, 4)
    x[0, 2] = bad
    assert "not-finite-input" in codes(GRADIENT(pl.TorchModel(Linear(uniform(2, 4)).eval()), x))


def test_outputs_that_are_not_finite_are_told_with_their_row():
    x = uniform(2, 4) + 0.1
    x[1, 0] = 0
    net = nn.Sequential(Linear(torch.eye(4)), Log()).eval()
    found = GRADIENT(pl.TorchModel(net), x, 1).findings
    assert [(f.code, f.input) for f in found if f.code == "not-finite-output"] == [("not-finite-output", 1)]


class Log(nn.Module):
    def forward(self, x):
        return x.log()


class Root(nn.Module):
    def forward(self, x):
        return torch.stack([x.sum(1), (x - x).sum(1).sqrt() + x.sum(1)], 1)


def test_a_gradient_that_is_nan_is_told_before_and_after():
    a = GRADIENT(pl.TorchModel(Root().eval()), uniform(1, 4), target=1)
    assert codes(a) == ["nan-gradient", "not-finite-map"]
    assert "4 of 4 values" in a.findings[-1].message


class Detached(nn.Module):
    def forward(self, x):
        return x.detach()[:, :2] * 2


@pytest.mark.parametrize("net", [Constant().eval(), Detached().eval()])
def test_no_gradient_is_an_error_that_says_where_to_look(net):
    a = GRADIENT(pl.TorchModel(net), uniform(1, 4))
    assert codes(a) == ["no-gradient", "zero-map"]
    assert "detach()" in a.findings[0].remedy


def test_the_probe_is_made_once_for_each_shape_and_its_cost_counted():
    model = pl.TorchModel(Linear(uniform(2, 4)).eval())
    inputs = [uniform(1, 4), uniform(1, 4, seed=1), uniform(1, 2, 2)]
    found = [GRADIENT(model, x) for x in inputs]
    assert [a.diagnosis_cost for a in found] == [pl.Cost(1, 1), pl.Cost(), pl.Cost(1, 1)]
    assert {a.cost for a in found} == {pl.Cost(1, 1)}


class Dead(nn.Module):
    def forward(self, x):
        return torch.relu(x[:, :2] - 2)


def test_a_dead_input_says_nothing_about_the_next():
    model = pl.TorchModel(Dead().eval())
    assert "no-gradient" in codes(GRADIENT(model, uniform(1, 4)))
    assert codes(GRADIENT(model, uniform(1, 4) + 2)) == []


def test_the_probe_changes_nothing_of_the_call():
    model = pl.TorchModel(conv_net(), mode="as-is")
    first, second = (GRADIENT(model, uniform(3, 3, 9, 9)).scores for _ in range(2))
    assert torch.equal(first, second)


def test_a_finding_reads_as_a_sentence_with_its_remedy():
    finding = GRADIENT(pl.TorchModel(Constant().eval()), uniform(1, 4)).findings[0]
    assert str(finding) == f"{finding.message} {finding.remedy}"


def test_a_residual_of_more_than_a_tenth_is_told_of_its_input():
    """3 x^2 by one step at the right end: 3 x^3 in place of x^3, a residual of twice the change."""
    x = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    rough = pl.IntegratedGradients(n_steps=1, rule="right")(pl.TorchModel(Power(3, 1.0)), x, 0)
    [told] = [f for f in rough.findings if f.code == "residual"]
    assert (told.severity, told.input) == ("warning", 0)
    assert "sums to 27, but should to 9" in told.message
    exact = pl.IntegratedGradients(n_steps=2)(pl.TorchModel(Power(3, 1.0)), x, 0)
    assert not [f for f in exact.findings if f.code == "residual"]


def test_a_map_of_cells_that_is_zero_says_that_nothing_speaks_for_the_target():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), Negative())
    a = pl.GradCAM()(pl.TorchModel(net), uniform(1, 3, 4, 4) + 1, 0)
    assert not a.scores.any()
    [told] = [f for f in a.findings if f.code == "zero-map"]
    assert "SignedGradCAM" in told.remedy


class Negative(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -x.flatten(1)
