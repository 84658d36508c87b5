"""Deliberate bugs in DeepLIFT and its rules."""

from tests.mutants.mutant import Mutant

COMPARED = "tests/explainers/test_compared.py"
LIFT = "tests/explainers/test_deep_lift.py"

_FILE = "explainers/_compared.py"

MUTANTS: list[Mutant] = [
    Mutant(
        "rescale by the derivative",
        _FILE,
        "_over(message * (one.output - other.output), change, tiny, sent.message)",
        "sent.message",
        (COMPARED,),
    ),
    Mutant(
        "rescale that puts nothing where nothing changes",
        _FILE,
        "return torch.where(tiny, instead, numerator",
        "return torch.where(tiny, 0 * instead, numerator",
        (COMPARED,),
    ),
    Mutant(
        "differences are divided however small they are",
        _FILE,
        "torch.finfo(change.dtype).eps ** 0.5",
        "torch.finfo(change.dtype).tiny",
        (COMPARED,),
    ),
    Mutant(
        "what is small is small beside one",
        _FILE,
        ".eps ** 0.5 * (x.abs() + y.abs())",
        ".eps ** 0.5 * (1 + x.abs() + y.abs())",
        (COMPARED,),
    ),
    Mutant(
        "products by the derivative at the input",
        _FILE,
        "there = derivative(one, [message]), derivative(other, [message])",
        "there = derivative(one, [message]), derivative(one, [message])",
        (COMPARED,),
    ),
    Mutant(
        "quotients with the numerator of the input",
        _FILE,
        "else (a + c) / 2",
        "else a",
        (COMPARED,),
    ),
    Mutant(
        "quotients with the denominator of the input",
        _FILE,
        "(message * (1 / b + 1 / d) / 2).sum",
        "(message / b).sum",
        (COMPARED,),
    ),
    Mutant(
        "denominators whose change has the other sign",
        _FILE,
        "(-message * above / (b * d))",
        "(message * above / (b * d))",
        (COMPARED,),
    ),
    Mutant(
        "maxima give all to the input's largest",
        _FILE,
        "derivative(other, [message * (y - between)])",
        "derivative(one, [message * (y - between)])",
        (COMPARED,),
    ),
    Mutant(
        "minima are taken for maxima",
        _FILE,
        "y - between)])\n",
        "z - between)])\n",
        (COMPARED,),
    ),
    Mutant(
        "of several operands of a maximum the first one's change",
        _FILE,
        "x, w = operand.value, other.operands[i].value",
        "x, w = operand.value, other.operands[0].value",
        (COMPARED,),
    ),
    Mutant(
        "softmax with the sum of the input",
        _FILE,
        "by_sum = -by_inverse / (s * t)",
        "by_sum = -by_inverse / (s * s)",
        (COMPARED,),
    ),
    Mutant(
        "log-softmax with the derivative of the logarithm",
        _FILE,
        "* _over(s.log() - t.log(), s - t, _tiny(s - t, s, t), 1 / s)",
        "/ s",
        (COMPARED,),
    ),
    Mutant(
        "softmax over the last axis always",
        _FILE,
        "axis = one.args[1]",
        "axis = -1",
        (COMPARED,),
    ),
    Mutant(
        "norms that do not centre what they hand back",
        _FILE,
        "found = found - found.mean(axes, keepdim=True)",
        "found = found * 1",
        (COMPARED,),
    ),
    Mutant(
        "norms with the spread of the input",
        _FILE,
        "found = message * (a + b) / 2 +",
        "found = message * a +",
        (COMPARED,),
    ),
    Mutant(
        "norms that forget their gain",
        _FILE,
        "message = message * weight.view(unit)",
        "message = message * 1",
        (COMPARED,),
    ),
    Mutant(
        "norms of groups with the spread of the whole",
        _FILE,
        "t.reshape(len(t), groups, -1)",
        "t.reshape(len(t), 1, -1)",
        (COMPARED,),
    ),
    Mutant(
        "what nobody recorded passes as linear",
        _FILE,
        "[*beside, *operations[len(beside) :]], strict=True)",
        "beside, strict=False)",
        (COMPARED,),
    ),
    Mutant(
        "what has no rule gets the derivative",
        _FILE,
        'Assigned(None, "no rule", _no_rule(one.what))',
        'Assigned(None, "derivative")',
        (COMPARED,),
    ),
    Mutant(
        "the multiplier times the input instead of the way",
        "explainers/deep_lift.py",
        "scores = (x - start)",
        "scores = x",
        (LIFT,),
    ),
    Mutant(
        "the default begins at zero even where black is known",
        "explainers/deep_lift.py",
        "field(default_factory=BlackOrZero)",
        "field(default_factory=Zeros)",
        (LIFT,),
    ),
    Mutant(
        "the rest of DeepLIFT with the other sign",
        "explainers/deep_lift.py",
        "residual = scores.flatten(1).sum(1).double() - change",
        "residual = change - scores.flatten(1).sum(1).double()",
        (LIFT,),
    ),
    Mutant(
        "every part of a batch beside the first baselines",
        "core/model.py",
        "None if beside is None else beside[part]) for part",
        "None if beside is None else beside[: len(x[part])]) for part",
        (LIFT,),
    ),
]
