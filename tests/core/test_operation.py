"""What kind each operation is: told by what it does and by which of its operands depend on the input."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.oracles import uniform
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # as networks write it

from pellucid.core.executed import recorded
from pellucid.core.operation import Cell, Kind, Operand, Operation, kind_of
from pellucid.core.rule import Keep

X = uniform(2, 4, 6, 6, dtype=torch.float64) * 2 - 1
C = uniform(2, 4, 6, 6, dtype=torch.float64, seed=1)
SQUARE = uniform(6, 6, dtype=torch.float64, seed=2)
CONVOLUTION = nn.Conv2d(4, 2, 3, bias=True).double().requires_grad_(False)
FILTERS = uniform(5, 4, 3, 3, dtype=torch.float64, seed=3)


def last(f: Callable[[Tensor], Any], x: Tensor = X) -> Operation:
    """The last operation that the function executes."""
    with recorded(nn.Module(), Keep()) as executed:
        f(x.clone().requires_grad_())
    return executed.operations[-1]


KINDS: dict[Kind, dict[str, Callable[[Tensor], Any]]] = {
    Kind.LAYOUT: {
        "view": lambda x: x.view(2, -1),
        "reshape": lambda x: x.transpose(1, 2).reshape(2, -1),
        "flatten": lambda x: x.flatten(1),
        "permute": lambda x: x.permute(0, 2, 3, 1),
        "T": lambda x: x.mT,
        "expand": lambda x: x[:, None].expand(2, 3, 4, 6, 6),
        "cat": lambda x: torch.cat([x, C]),
        "stack": lambda x: torch.stack([x, C]),
        "slice": lambda x: x[:, 1:],
        "select": lambda x: x[:, 1],
        "index": lambda x: x[:, [2, 0]],
        "mask": lambda x: x[C > 0.5],
        "pad": lambda x: F.pad(x, (1, 1)),
        "reflected": lambda x: F.pad(x, (1, 1, 1, 1), "reflect"),
        "shuffle": lambda x: F.pixel_shuffle(x, 2),
        "cast": lambda x: x.float(),
        "clone": lambda x: x.clone(),
        "flip": lambda x: x.flip(1),
        "roll": lambda x: x.roll(1, 1),
        "unbind": lambda x: x.unbind(1),
        "split": lambda x: x.split([1, 3], 1),
        "chunk": lambda x: x.chunk(2, 1),
        "unsqueeze": lambda x: x[None],
        "masked_fill": lambda x: x.masked_fill(C > 0.5, 0.0),
        "where": lambda x: torch.where(C > 0.5, x, C),
        "tril": lambda x: x.tril(),
        "gather": lambda x: x.gather(1, torch.zeros(2, 1, 6, 6, dtype=torch.int64)),
        "unfold": lambda x: F.unfold(x, 2),
        "repeat": lambda x: x.repeat(1, 2, 1, 1),
    },
    Kind.AFFINE: {
        "linear": lambda x: F.linear(x[:, 0, 0], SQUARE),
        "linear with bias": lambda x: F.linear(x[:, 0, 0], SQUARE, SQUARE[0]),
        "x @ w": lambda x: x[0, 0] @ SQUARE,
        "w @ x": lambda x: SQUARE @ x[0, 0],
        "mv": lambda x: SQUARE @ x[0, 0, 0],
        "bmm": lambda x: torch.bmm(x[0], C[0]),
        "addmm": lambda x: torch.addmm(SQUARE, x[0, 0], SQUARE),
        "baddbmm": lambda x: torch.baddbmm(C[0], C[1], x[0]),
        "dot": lambda x: x[0, 0, 0].dot(SQUARE[0]),
        "conv2d": lambda x: F.conv2d(x, FILTERS),
        "nn.Conv2d": CONVOLUTION,
        "conv1d": lambda x: F.conv1d(x[0], FILTERS[:, :, 0, :2].repeat(1, 2, 1)[:, :6]),
        "turned": lambda x: F.conv_transpose2d(x, FILTERS[:4, :3]),
        "in groups": lambda x: F.conv2d(x, FILTERS[:4, :1], groups=4),
    },
    Kind.SCALE: {
        "x + 1": lambda x: x + 1,
        "x + c": lambda x: x + C,
        "c + x": lambda x: C + x,
        "1 - x": lambda x: 1 - x,
        "x - c": lambda x: x - C,
        "c - x": lambda x: C - x,
        "x * 2": lambda x: x * 2,
        "c * x": lambda x: C * x,
        "x / 2": lambda x: x / 2,
        "x / c": lambda x: x / (C + 1),
        "-x": lambda x: -x,
        "x + c with alpha": lambda x: x.add(C, alpha=3),
        "batch norm": lambda x: F.batch_norm(x, C[0, :, 0, 0], C[1, :, 0, 0] + 1),
        "x detached": lambda x: x * x.detach(),
    },
    Kind.SUM: {
        "mean": lambda x: x.mean((2, 3)),
        "sum": lambda x: x.sum(1),
        "all": lambda x: x.sum(),
        "avg_pool": lambda x: F.avg_pool2d(x, 2),
        "adaptive": lambda x: F.adaptive_avg_pool2d(x, 3),
        "to one": lambda x: F.adaptive_avg_pool2d(x, 1),
        "nearest": lambda x: F.interpolate(x, scale_factor=2),
        "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
        "cumsum": lambda x: x.cumsum(1),
        "bicubic": lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
    },
    Kind.ADD: {
        "x + x": lambda x: x + x,
        "x - f(x)": lambda x: x - x.exp(),
        "torch.add": lambda x: torch.add(x, x),
        "x.add": lambda x: x.add(x, alpha=2),
        "x.add_": lambda x: x.exp().add_(x),
        "rsub": lambda x: torch.rsub(x, x.flip(0)),
    },
    Kind.MAX: {
        "max_pool": lambda x: F.max_pool2d(x, 2),
        "with indices": lambda x: F.max_pool2d(x, 2, return_indices=True),
        "3d": lambda x: F.max_pool3d(x, 2),
        "adaptive": lambda x: F.adaptive_max_pool2d(x, 2),
        "amax": lambda x: x.amax(1),
        "max": lambda x: x.max(1).values,
        "of two": lambda x: torch.maximum(x, -x),
        "topk": lambda x: x.topk(2).values,
        "min": lambda x: x.amin((2, 3)),
    },
    Kind.RECTIFIER: {
        "relu": F.relu,
        "relu_": lambda x: (x * 1).relu_(),
        "nn.ReLU": nn.ReLU(),
        "relu6": F.relu6,
        "nn.ReLU6": nn.ReLU6(),
        "clamp": lambda x: x.clamp(min=0),
        "clamp to 6": lambda x: x.clamp(0, 6),
        "clamp_min": lambda x: x.clamp_min(0.0),
        "hardtanh": lambda x: F.hardtanh(x, 0, 6),
        "threshold": lambda x: F.threshold(x, 0, 0),
        "clip": lambda x: torch.clip(x, 0.0),
        "where": lambda x: torch.where(x > 0, x, 0),
        "where not": lambda x: torch.where(x <= 0, x.new_zeros(1), x),
        "x * (x > 0)": lambda x: x * (x > 0),
        "(x >= 0.0) * x": lambda x: (x >= 0.0) * x,
        "x * (x > 0).float()": lambda x: x * (x > 0).float(),
        "of a zero": lambda x: torch.where(x.gt(torch.zeros(())), x, x.new_zeros(())),
        "in place": lambda x: (y := x * 1).mul_(y > 0),
        "masked_fill": lambda x: x.masked_fill(x < 0, 0),
    },
    Kind.ACTIVATION: {
        "gelu": F.gelu,
        "silu": F.silu,
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "elu": F.elu,
        "mish": F.mish,
        "hardswish": F.hardswish,
        "hardsigmoid": F.hardsigmoid,
        "softplus": F.softplus,
        "leaky": F.leaky_relu,
        "prelu": lambda x: F.prelu(x, SQUARE[0, :4]),
        "exp": torch.exp,
        "log": lambda x: (x + 2).log(),
        "x ** 2": lambda x: x**2,
        "sqrt": lambda x: (x + 2).sqrt(),
        "abs": torch.abs,
        "1 / x": lambda x: x.reciprocal(),
        "log sigmoid": F.logsigmoid,
        "hardtanh": F.hardtanh,
        "clamp from -1": lambda x: x.clamp(-1, 1),
        "clamp from above": lambda x: x.clamp(max=0),
        "clamp from a tensor": lambda x: x.clamp(min=torch.zeros(())),
        "clamp_min 1": lambda x: x.clamp_min(1),
        "threshold at 1": lambda x: F.threshold(x, 1, 0),
        "threshold that gives 1": lambda x: F.threshold(x, 0, 1),
        "maximum with a number": lambda x: torch.maximum(x, torch.zeros(())),
    },
    Kind.PRODUCT: {
        "x * x": lambda x: x * x,
        "gate": lambda x: x * x.sigmoid(),
        "a product with a mask of it": lambda x: (x * (x > 0)) * x,
        "x / f(x)": lambda x: x / x.exp(),
        "c / x": lambda x: C / x,
        "addcmul": lambda x: torch.addcmul(x, C, C),
        "addcdiv": lambda x: torch.addcdiv(C, x, C),
    },
    Kind.MATMUL: {
        "x @ x": lambda x: x[0, 0] @ x[0, 1],
        "bmm": lambda x: torch.bmm(x[0], x[1]),
        "dot": lambda x: x[0, 0, 0].dot(x[0, 0, 1]),
        "mv": lambda x: x[0, 0].mv(x[0, 1, 0]),
    },
    Kind.SOFTMAX: {"softmax": lambda x: x.softmax(1), "log": lambda x: F.log_softmax(x, 1)},
    Kind.NORM: {"layer": lambda x: F.layer_norm(x, (6,)), "group": lambda x: F.group_norm(x, 2)},
    Kind.OTHER: {
        "weights that depend on x": lambda x: F.conv2d(x, x),
        "weights alone": lambda x: F.conv2d(C, x),
        "linear of itself": lambda x: torch.addmm(SQUARE, x[0, 0], x[0, 1]),
        "addmm with beta": lambda x: torch.addmm(SQUARE, x[0, 0], SQUARE, beta=2),
        "addmm with alpha": lambda x: torch.addmm(SQUARE, x[0, 0], SQUARE, alpha=2),
        "baddbmm with alpha": lambda x: torch.baddbmm(C[0], C[1], x[0], alpha=0.5),
        "what is added depends on x": lambda x: torch.addmm(x[0, 0], SQUARE, SQUARE),
        "all of it": lambda x: torch.addmm(x[0, 0], x[0, 1], SQUARE),
        "eigenvalues": torch.linalg.svdvals,
        "lgamma": lambda x: (x + 2).lgamma(),
    },
}
CASES = [(f, kind) for kind, each in KINDS.items() for f in each.values()]
NAMES = [f"{kind}: {name}" for kind, each in KINDS.items() for name in each]


@pytest.mark.parametrize(("f", "kind"), CASES, ids=NAMES)
def test_an_operation_is_of_its_kind(f, kind):
    assert last(f).kind is kind


LINEAR = (Kind.LAYOUT, Kind.AFFINE, Kind.SCALE, Kind.SUM, Kind.ADD)
BESIDE = ("scale: x detached", "add: x - f(x)", "add: x.add_")
"""Linear in what depends on the input, but what is computed before is not."""


@pytest.mark.parametrize(
    "name", [n for n, (_, kind) in zip(NAMES, CASES, strict=True) if kind in LINEAR and n not in BESIDE]
)
def test_what_is_called_linear_is_linear(name):
    """f(2 x) - f(0) is twice f(x) - f(0)."""
    f, _ = CASES[NAMES.index(name)]

    def flat(x: Tensor) -> Tensor:
        out = f(x)
        return torch.cat([t.flatten() for t in ((out,) if isinstance(out, Tensor) else out)])

    zero, once, twice = flat(torch.zeros_like(X)), flat(X), flat(2 * X)
    assert not torch.equal(once, zero)
    eps = torch.finfo(zero.dtype).eps  # a cast to single precision is among them
    torch.testing.assert_close(twice - zero, 2 * (once - zero), rtol=16 * eps, atol=64 * eps)


def test_every_rectifier_is_zero_below_zero_and_rises_from_there():
    x = torch.tensor([-3.0, -0.5, 0.0, 0.5, 3.0], dtype=torch.float64)
    for name, f in KINDS[Kind.RECTIFIER].items():
        assert torch.equal(f(x.clone()), torch.tensor([0, 0, 0, 0.5, 3], dtype=torch.float64)), name


def test_a_name_is_that_of_the_function_without_its_way_of_being_written():
    assert (
        last(lambda x: (x * 1).relu_()).what
        == last(F.relu).what
        == last(lambda x: nn.ReLU(inplace=True)(x * 1)).what
        == "relu"
    )
    assert last(lambda x: x.softmax(1)).what == "_softmax"


def test_which_operands_depend_on_the_input_decides():
    for name in ("add", "sub", "rsub"):
        assert kind_of(name, [True, False], [None, None, 1]) is Kind.SCALE
        assert kind_of(name, [True, True], [None, None, 1]) is Kind.ADD
    assert kind_of("mul", [False, True], []) is Kind.SCALE
    assert kind_of("mul", [True, True], []) is Kind.PRODUCT
    assert kind_of("div", [True, False], []) is Kind.SCALE
    assert kind_of("div", [False, True], []) is Kind.PRODUCT
    for name in ("mm", "bmm", "mv", "dot"):
        assert kind_of(name, [True, False], []) is kind_of(name, [False, True], []) is Kind.AFFINE
        assert kind_of(name, [True, True], []) is Kind.MATMUL
    for name in ("convolution", "_convolution"):
        assert kind_of(name, [True, False], []) is Kind.AFFINE
        assert kind_of(name, [False, True], []) is kind_of(name, [True, True], []) is Kind.OTHER
    assert kind_of("addmm", [False, True, False], [0, 0, 0, 1, 1]) is Kind.AFFINE
    assert kind_of("addmm", [False, True, True], [0, 0, 0, 1, 1]) is Kind.OTHER
    assert kind_of("addmm", [True, False, False], [0, 0, 0, 1, 1]) is Kind.OTHER
    assert kind_of("addmm", [False, True, False], [0, 0, 0, 1, 2]) is Kind.OTHER
    assert kind_of("nobody_knows", [True], []) is Kind.OTHER
    assert kind_of("mkldnn_rnn_layer", [True], []) is kind_of("_cudnn_rnn", [True], []) is Kind.RECURRENT


def test_a_value_that_was_kept_is_read_from_its_cell():
    cell = Cell(X)
    operand = Operand(0, (None, 0), (2,), cell)
    operation = Operation(Kind.ADD, "add", "", None, (operand,), (), (2,), cell)
    assert operand.value is X
    assert operation.output is X
    cell.value = C
    assert operand.value is C
    assert operation.output is C


def test_operations_are_told_apart_by_identity():
    """Two runs of the same are two."""
    one, other = (Operation(Kind.ADD, "add", "", None, (), (), (2,), None) for _ in range(2))
    assert len({one: 1, other: 2}) == 2
    assert one != other


@pytest.mark.parametrize(
    "f",
    [
        lambda x: torch.where(x > 0, x, 1),
        lambda x: torch.where(x > 1, x, 0),
        lambda x: torch.where(x < 0, x, 0),
        lambda x: torch.where(x <= 0, x, 0),
        lambda x: torch.where(x > 0, 0, x),
        lambda x: x * (x < 0),
        lambda x: x * (x > 0.5),
        lambda x: x * (x != 0),
        lambda x: x * (x > 0).float().add(1),
        lambda x: x.masked_fill(x > 0, 0),
        lambda x: x.masked_fill(x < 0, 1),
        lambda x: x * (x.exp() > 0),
        lambda x: torch.where(x.flip(0) > 0, x, 0),
        lambda x: (y := x * 2, mask := y > 0, y.add_(1), y * mask)[-1],
        lambda x: torch.where(x > 0, x, torch.ones_like(x).clamp(max=1)),
        lambda x: torch.where(C > 0, x, 0),
    ],
)
def test_masks_of_something_else_make_no_rectifier(f):
    assert last(f).kind is not Kind.RECTIFIER
