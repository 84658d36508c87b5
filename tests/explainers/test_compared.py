import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.oracles import uniform
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # its usual name

import pellucid as pl

START = 0.2
SUM = 1e-10
"""Of what is summed, a share of the map's largest: differences of close numbers are divided by each other, which costs
five of sixteen digits at the most for inputs as far from the baseline as these.
"""


class Of(nn.Module):
    """A function, with the modules that it needs. Its one parameter says that it computes in float64."""

    def __init__(self, function: Callable[..., Tensor], *modules: nn.Module) -> None:
        super().__init__()
        self.function, self.needed = function, nn.ModuleList(modules)
        self.unused = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.needed)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Around zero, so that every piece of a function is met."""
    return 2 * uniform(*shape, seed=seed, dtype=torch.float64) - 1


X = drawn(3, 8, seed=1)
W = torch.full_like(X, START)
INNER, OUTER = 2 * drawn(12, 8, seed=2), drawn(12, seed=3)


def lifted(function: Callable[..., Tensor], x: Tensor = X, *, target: int = 0, start: float = START) -> pl.Attribution:
    """What DeepLIFT makes of a function to scores (b,) or (b, k)."""
    net = function if isinstance(function, nn.Module) else Of(function)
    return pl.DeepLIFT(baseline=pl.Constant(start))(pl.TorchModel(net.double().eval()), x, target=target)


def same(found: Tensor, expected: Tensor, share: float = SUM) -> None:
    assert found.shape == expected.shape
    assert float(expected.abs().max()) > 0
    torch.testing.assert_close(found, expected, rtol=0, atol=share * float(expected.abs().max()))


def derivative_of(f: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """Of each number."""
    leaf = z.clone().requires_grad_()
    return torch.autograd.grad(f(leaf).sum(), leaf)[0]


def summed(values: Callable[[Tensor], Tensor], weight: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: (values(x) * weight).flatten(1).sum(1, keepdim=True)


# Functions of one number

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": lambda z: F.relu6(5 * z),
    "gelu": F.gelu,
    "gelu with tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": F.softplus,
    "elu": F.elu,
    "selu": F.selu,
    "celu": F.celu,
    "leaky relu": lambda z: F.leaky_relu(z, 0.1),
    "prelu": lambda z: F.prelu(z, torch.tensor([0.3]).to(z)),
    "prelu of channels": lambda z: F.prelu(z, torch.linspace(0.1, 0.9, z.shape[1]).to(z)),
    "hardswish": lambda z: F.hardswish(2 * z),
    "hardsigmoid": lambda z: F.hardsigmoid(3 * z),
    "hardtanh": F.hardtanh,
    "mish": F.mish,
    "log sigmoid": F.logsigmoid,
    "exp": torch.exp,
    "log": lambda z: (z.square() + 1).log(),
    "root": lambda z: (z.square() + 1).sqrt(),
    "square": torch.square,
    "cube": lambda z: z**3,
    "power of two": lambda z: 2**z,
    "absolute value": torch.abs,
    "one over": lambda z: (z + 20).reciprocal(),
    "clamp to an interval": lambda z: z.clamp(-0.4, 0.7),
    "clamp from above": lambda z: z.clamp(max=0.7),
    "sine": torch.sin,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_multiplier_of_a_function_is_its_slope_between_both_values(name):
    """m_ij = A_ij (f(z_i) - f(z'_i)) / (z_i - z'_i) for z = A x: equation 10 and the chain rule of the paper."""
    f = FUNCTIONS[name]
    a = lifted(lambda x: (f(x @ INNER.T) * OUTER).sum(1, keepdim=True))
    z, there = X @ INNER.T, W @ INNER.T
    slope = (f(z) - f(there)) / (z - there)
    same(a.scores, ((OUTER * slope) @ INNER) * (X - W))
    change = ((f(z) - f(there)) * OUTER).sum(1)
    torch.testing.assert_close(a.scores.sum(1), change, rtol=SUM, atol=1e-12)
    assert not torch.allclose(slope, derivative_of(f, z), rtol=1e-3), "the derivative would be told from it"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_where_nothing_changes_the_multiplier_is_the_derivative(name):
    """z = x_0 - x_1 is what it is for the baseline, but x_0 and x_1 are not."""
    f = FUNCTIONS[name]
    x = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    z = torch.full((1, 1), 0.3, dtype=torch.float64)
    a = lifted(lambda x: f(x[:, :1] - x[:, 1:] + 0.3), x)
    slope = derivative_of(f, z)
    torch.testing.assert_close(
        a.scores, torch.tensor([[0.8, -0.8]], dtype=torch.float64) * slope, rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("step", [1e-15, 1e-12, 1e-9, 1e-7, 1e-5])
def test_near_the_baseline_the_quotient_does_not_lose_itself_in_rounding(step):
    """Within half the digits: a quotient of differences 1e-12 apart would keep four digits of sixteen."""
    x = torch.tensor([[0.7 + step, 0.7 - step]], dtype=torch.float64)
    a = lifted(lambda x: x.exp().sum(1, keepdim=True), x, start=0.7)
    torch.testing.assert_close(a.scores / (x - 0.7), torch.full_like(x, math.exp(0.7)), rtol=2 * step + 3e-8, atol=0)


def test_small_numbers_are_told_apart():
    """What is too small to divide by is small beside the numbers themselves, not beside one."""
    x = torch.tensor([[3e-12]], dtype=torch.float64)
    expected = torch.tensor([[3e-12**0.5 - 1e-6]], dtype=torch.float64)
    torch.testing.assert_close(lifted(torch.sqrt, x, start=1e-12).scores, expected, rtol=1e-12, atol=0)


SPELLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "function": F.relu,
    "method": lambda z: z.relu(),
    "in place": lambda z: F.relu(z, inplace=True),
    "in place by method": lambda z: z.relu_(),
    "clamp": lambda z: z.clamp(min=0),
    "clamp in place": lambda z: z.clamp_(min=0),
    "clamp_min": lambda z: torch.clamp_min(z, 0),
    "threshold": lambda z: F.threshold(z, 0.0, 0.0),
    "maximum": lambda z: torch.maximum(z, torch.zeros(()).to(z)),
    "leaky of none": lambda z: F.leaky_relu(z, 0.0),
    "prelu of none": lambda z: F.prelu(z, torch.zeros(1).to(z)),
    "bounded far away": lambda z: F.hardtanh(z, 0.0, 100.0),
    "absolute value": lambda z: (z + z.abs()) / 2,
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_all_spellings_of_relu_are_one(name):
    one, other = nn.Linear(8, 12).double(), nn.Linear(12, 2).double()
    expected = lifted(nn.Sequential(one, nn.ReLU(), other)).scores
    same(lifted(Of(lambda x, one, other: other(SPELLINGS[name](one(x))), one, other)).scores, expected, 1e-13)


def test_a_shared_relu_and_what_it_overwrites_are_seen_as_they_were():
    """One module three times, in place each time, and what it overwrote is an operand of what comes after."""
    one, relu, first, other = nn.Linear(8, 6), nn.ReLU(inplace=True), nn.Linear(6, 6), nn.Linear(6, 1)

    def forward(x: Tensor, one: nn.Module, relu: nn.Module, first: nn.Module, other: nn.Module) -> Tensor:
        y = relu(one(x))
        y = y + relu(first(y))
        return other(relu(y - 0.3))

    net = Of(forward, one, relu, first, other).double()
    a = lifted(net)
    with Tape() as tape:
        x = tape.leaf(X, W)
        y = x.affine(one.weight, one.bias).apply(torch.relu)
        y = y + y.affine(first.weight, first.bias).apply(torch.relu)
        y = (y + (-0.3)).apply(torch.relu).affine(other.weight, other.bias)
        same(a.scores, tape.scores(y, x))


LINEAR: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "linear": F.linear,
    "matrix product": lambda x, w, b: x @ w.T + b,
    "from the left": lambda x, w, b: (w @ x.T).T + b,
    "addmm": lambda x, w, b: torch.addmm(b, x, w.T),
    "einsum": lambda x, w, b: torch.einsum("ni,ki->nk", x, w) + b,
    "product and sum": lambda x, w, b: (x[:, None].expand(-1, len(w), -1) * w).sum(2) + b,
    "convolution of one place": lambda x, w, b: F.conv1d(x[:, :, None], w[:, :, None], b)[:, :, 0],
    "convolution of all places": lambda x, w, b: F.conv1d(x[:, None], w[:, None], b)[:, :, 0],
    "convolution of a picture": lambda x, w, b: F.conv2d(x.view(-1, 2, 2, 2), w.view(-1, 2, 2, 2), b).flatten(1),
}


@pytest.mark.parametrize("name", LINEAR)
def test_a_linear_operation_is_its_weight_times_the_way(name):
    weight, bias = drawn(3, 8, seed=7), drawn(3, seed=8)
    a = lifted(lambda x: LINEAR[name](x, weight, bias), target=2)
    same(a.scores, weight[2] * (X - W), 1e-13)


def test_what_only_moves_sums_or_scales_is_linear():
    """Each number of x has its own weight, wherever it is moved to; norms by fixed statistics scale."""
    x, weight = drawn(2, 4, 4, 6, seed=3), drawn(4, 4, 6, seed=4)
    norm = nn.BatchNorm2d(4).double().eval()
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.copy_(drawn(4, seed=5))
        norm.running_var.copy_(uniform(4, seed=6) + 0.5)

    def forward(x: Tensor, norm: nn.Module) -> Tensor:
        y = norm(x).permute(0, 2, 3, 1).flip(1) * 3 - 1
        y = torch.cat([y[:, :2], -y[:, 2:]], 1).roll(1, 2).permute(0, 3, 1, 2)
        return (F.pad(y, (1, 1, 1, 1))[:, :, 1:-1, 1:-1] * weight).flatten(1).mean(1, keepdim=True)

    def directly(x: Tensor) -> Tensor:
        return forward(x, norm).sum()

    slope = torch.autograd.functional.jacobian(directly, x)
    same(lifted(Of(forward, norm), x).scores, slope * (x - START), 1e-13)


# A tape of pairs: each value for the input and for the baseline, and the rules by the paper, written without autograd


class Tape:
    """What was computed, in its order; the way back goes from the last to the first."""

    def __enter__(self) -> "Tape":
        self.nodes: list[Both] = []
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def leaf(self, x: Tensor, w: Tensor) -> "Both":
        return Both(self, x, w, [])

    def scores(self, root: "Both", leaf: "Both") -> Tensor:
        """The multipliers at the leaf times its change."""
        messages = {id(root): torch.ones_like(root.x)}
        for node in reversed(self.nodes):
            message = messages.get(id(node))
            for parent, pull in node.parents if message is not None else []:
                sent = pull(message).sum_to_size(parent.x.shape)
                messages[id(parent)] = messages.get(id(parent), 0) + sent
        return messages[id(leaf)] * (leaf.x - leaf.w)


class Both:
    """A value for the input x and for the baseline w, and how a multiplier of it becomes those of its parents."""

    def __init__(self, tape: Tape, x: Tensor, w: Tensor, parents: list[tuple["Both", Callable[..., Any]]]) -> None:
        self.tape, self.x, self.w, self.parents = tape, x.detach(), w.detach(), parents
        tape.nodes.append(self)

    def _of(self, f: Callable[[Tensor], Tensor], pull: Callable[[Tensor], Tensor]) -> "Both":
        return Both(self.tape, f(self.x), f(self.w), [(self, pull)])

    def apply(self, f: Callable[[Tensor], Tensor]) -> "Both":
        """Rescale; the derivative where the numbers are the same."""
        change = self.x - self.w
        slope = torch.where(change == 0, derivative_of(f, self.x), (f(self.x) - f(self.w)) / change)
        return self._of(f, lambda m: m * slope)

    def affine(self, weight: Tensor, bias: Tensor | float = 0.0) -> "Both":
        weight = weight.detach()
        return self._of(lambda t: t @ weight.T + bias, lambda m: m @ weight)

    def view(self, *shape: int) -> "Both":
        return self._of(lambda t: t.reshape(shape), lambda m: m.reshape(self.x.shape))

    def transposed(self, one: int, other: int) -> "Both":
        return self._of(lambda t: t.transpose(one, other), lambda m: m.transpose(one, other))

    def part(self, axis: int, start: int, length: int) -> "Both":
        def pull(m: Tensor) -> Tensor:
            whole = torch.zeros_like(self.x)
            whole.narrow(axis, start, length).copy_(m)
            return whole

        return self._of(lambda t: t.narrow(axis, start, length), pull)

    def mean(self, axis: int) -> "Both":
        count = self.x.shape[axis]
        return self._of(lambda t: t.mean(axis, keepdim=True), lambda m: m.expand(self.x.shape) / count)

    def softmax(self, axis: int) -> "Both":
        e = self.apply(torch.exp)
        total = e._of(lambda t: t.sum(axis, keepdim=True), lambda m: m.expand(e.x.shape))
        return e * total.apply(torch.reciprocal)

    def normed(self, eps: float, *, centred: bool = True) -> "Both":
        """Over the last axis."""
        u = self + self.mean(-1) * (-1.0) if centred else self
        return u * ((u * u).mean(-1) + eps).apply(torch.rsqrt)

    def __add__(self, other: "Both | Tensor | float") -> "Both":
        if not isinstance(other, Both):
            return self._of(lambda t: t + other, lambda m: m)
        parents = [(self, lambda m: m), (other, lambda m: m)]
        return Both(self.tape, self.x + other.x, self.w + other.w, parents)

    def __mul__(self, other: "Both | Tensor | float") -> "Both":
        """To each factor the mean of the other."""
        if not isinstance(other, Both):
            return self._of(lambda t: t * other, lambda m: m * other)
        here, there = (self.x + self.w) / 2, (other.x + other.w) / 2
        parents = [(self, lambda m: m * there), (other, lambda m: m * here)]
        return Both(self.tape, self.x * other.x, self.w * other.w, parents)

    def __matmul__(self, other: "Both") -> "Both":
        here, there = (self.x + self.w) / 2, (other.x + other.w) / 2
        parents = [(self, lambda m: m @ there.mT), (other, lambda m: here.mT @ m)]
        return Both(self.tape, self.x @ other.x, self.w @ other.w, parents)


# Products and quotients


def test_each_factor_of_a_product_gets_the_mean_of_the_other():
    """A b - a' b' = (a - a') (b + b') / 2 + (b - b') (a + a') / 2: half of both orders in which they may change."""
    a, b = X[:, :4], X[:, 4:]
    found = lifted(lambda x: (x[:, :4] * x[:, 4:]).sum(1, keepdim=True)).scores
    same(found, torch.cat([(a - START) * (b + START) / 2, (b - START) * (a + START) / 2], 1), 1e-13)
    orders = [torch.cat([(a - START) * one, (b - START) * other], 1) for one, other in ((START, a), (b, START))]
    same(found, sum(orders) / 2, 1e-13)


def test_a_square_is_the_same_as_a_product_with_itself_and_as_a_power():
    found = [lifted(summed(f, OUTER[:8])).scores for f in (lambda x: x * x, torch.square, lambda x: x**2)]
    for one in found:
        same(one, OUTER[:8] * (X**2 - START**2), 1e-12)


def test_a_quotient_is_a_product_with_one_over():
    a, b = X[:, :4], X[:, 4:] + 3
    c, d = START, START + 3
    found = lifted(lambda x: (x[:, :4] / (x[:, 4:] + 3)).sum(1, keepdim=True)).scores
    above = (a - c) * (1 / b + 1 / d) / 2
    below = (a + c) / 2 * (1 / b - 1 / d)
    same(found, torch.cat([above, below], 1), 1e-12)


@pytest.mark.parametrize("above", [2.0, torch.linspace(1, 2, 8, dtype=torch.float64)], ids=["number", "numbers"])
def test_what_stands_below_a_constant_gets_the_difference(above):
    same(lifted(summed(lambda x: above / (x + 3), OUTER[:8])).scores, OUTER[:8] * above * (1 / (X + 3) - 1 / 3.2))


def test_one_denominator_of_many_gathers_from_all():
    """Eight numbers over the first of them: numerators one by one, the denominator summed over them by hand."""
    found = lifted(lambda x: (x / (x[:, :1] + 3) * OUTER[:8]).sum(1, keepdim=True)).scores
    b, d = X[:, :1] + 3, START + 3
    expected = OUTER[:8] * (X - START) * (1 / b + 1 / d) / 2
    for k in range(8):
        expected[:, 0] += OUTER[k] * (X[:, k] + START) / 2 * (1 / b - 1 / d)[:, 0]
    same(found, expected, 1e-12)


def test_one_numerator_over_many_gathers_from_all():
    found = lifted(lambda x: (x[:, :1] / (x + 3) * OUTER[:8]).sum(1, keepdim=True)).scores
    b, d = X + 3, START + 3
    expected = OUTER[:8] * (X[:, :1] + START) / 2 * (1 / b - 1 / d)
    for k in range(8):
        expected[:, 0] += OUTER[k] * (X[:, 0] - START) * (1 / b[:, k] + 1 / d) / 2
    same(found, expected, 1e-12)


@pytest.mark.parametrize("batched", [True, False])
def test_a_matrix_product_of_two_that_depend_on_the_input_is_many_products(batched):
    """Y_ij = sum_k A_ik B_kj, one product at a time."""
    x, weight = drawn(2, 3, 8, seed=5), drawn(3, 3, seed=6)

    def forward(x: Tensor) -> Tensor:
        y = x @ x.mT if batched else torch.stack([one.mm(one.T) for one in x])
        return (y * weight).flatten(1).sum(1, keepdim=True)

    expected = torch.zeros_like(x)
    for i, j, k in itertools.product(range(3), range(3), range(8)):
        expected[:, i, k] += weight[i, j] * (x[:, i, k] - START) * (x[:, j, k] + START) / 2
        expected[:, j, k] += weight[i, j] * (x[:, j, k] - START) * (x[:, i, k] + START) / 2
    same(lifted(forward, x).scores, expected, 1e-12)


# Maxima


def by_windows(x: Tensor, windows: list[list[tuple[int, ...]]], weight: Tensor, sign: int = 1) -> Tensor:
    """To the largest of the pass whose largest is larger, the difference of both; window by window."""
    found = torch.zeros_like(x)
    for b, row in enumerate(x):
        for places, factor in zip(windows, weight.flatten().tolist(), strict=True):
            here = [sign * float(row[place]) for place in places]
            there = sign * START
            top = max(here)
            # The baseline is constant: its largest stands at the window's first place.
            place = places[here.index(top)] if top >= there else places[0]
            found[(b, *place)] += factor * sign * (top - there)
    return found


def windows_of(size: tuple[int, ...], width: int, stride: int, padding: int) -> list[list[tuple[int, ...]]]:
    """The places of one channel that each window of a pool sees, in the order of what it gives."""
    starts = [range(-padding, n + padding - width + 1, stride) for n in size]
    found = []
    for corner in itertools.product(*starts):
        reach = [range(max(0, c), min(n, c + width)) for c, n in zip(corner, size, strict=True)]
        found.append([(0, *place) for place in itertools.product(*reach)])
    return found


POOLS: dict[str, tuple[tuple[int, ...], Callable[[Tensor], Tensor]]] = {
    "1d": ((11,), lambda x: F.max_pool1d(x, 3, 2, 1)),
    "2d": ((7, 9), lambda x: F.max_pool2d(x, 3, 2, 1)),
    "3d": ((5, 7, 5), lambda x: F.max_pool3d(x, 3, 2, 1)),
}


@pytest.mark.parametrize("name", POOLS)
def test_max_pools_whose_windows_overlap_give_each_window_to_one_place(name):
    size, pool = POOLS[name]
    x = drawn(2, 1, *size, seed=9) * 1.5
    windows = windows_of(size, 3, 2, 1)
    weight = drawn(len(windows), seed=10)
    largest = torch.stack([torch.stack([x[:, *p] for p in ps]).amax(0) for ps in windows])
    with torch.no_grad():
        x[0, 0] *= 0.1  # all below the baseline or near it: then the baseline's largest pays
        x[0, 0] -= 0.1
    assert float(largest.max()) > START
    found = lifted(lambda x: (pool(x).flatten(1) * weight).sum(1, keepdim=True), x).scores
    expected = by_windows(x, windows, weight)
    assert (expected[0] != 0).any()
    same(found, expected, 1e-13)


def test_adaptive_max_pools_are_max_pools_of_their_windows():
    cases = [
        ((8,), lambda x: F.adaptive_max_pool1d(x, 4)),
        ((8, 4), lambda x: F.adaptive_max_pool2d(x, (4, 2))),
        ((4, 4, 2), lambda x: F.adaptive_max_pool3d(x, (2, 2, 1))),
    ]
    for size, pool in cases:
        x = drawn(2, 1, *size, seed=11)
        windows = windows_of(size, 2, 2, 0)
        weight = drawn(len(windows), seed=12)
        found = lifted(lambda x, pool=pool, weight=weight: (pool(x).flatten(1) * weight).sum(1, keepdim=True), x).scores
        same(found, by_windows(x, windows, weight), 1e-13)


LARGEST: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    "max of an axis": (1, lambda x: x.max(2).values),
    "min of an axis": (-1, lambda x: x.min(2).values),
    "max of a row": (1, lambda x: torch.stack([torch.stack([r.max() for r in row]) for row in x])),
    "min of a row": (-1, lambda x: torch.stack([torch.stack([r.min() for r in row]) for row in x])),
}


@pytest.mark.parametrize("name", LARGEST)
def test_the_largest_or_least_of_a_row_takes_its_change(name):
    """The baseline has its own place of the largest, so that both branches of the rule are met."""
    sign, f = LARGEST[name]
    x, offset = START + sign * drawn(3, 4, 5, seed=13), torch.linspace(-0.6, 0.6, 5, dtype=torch.float64)
    weight = drawn(4, seed=14)
    found = lifted(lambda x: (f(x + offset) * weight).sum(1, keepdim=True), x).scores
    expected, took_there = torch.zeros_like(x), 0
    for b, r in itertools.product(range(3), range(4)):
        here, there = sign * (x[b, r] + offset), sign * (START + offset)
        top, other = here.max(), there.max()
        at = int(here.argmax() if top >= other else there.argmax())
        took_there += int(top < other)
        expected[b, r, at] += weight[r] * sign * (top - other)
    assert 0 < took_there < 12
    same(found, expected, 1e-13)


@pytest.mark.parametrize("name", ["amax", "amin"])
def test_amax_and_amin_of_several_axes_do_the_same(name):
    sign = 1 if name == "amax" else -1
    x, offset = drawn(3, 2, 3, 4, seed=15), drawn(2, 3, 4, seed=16) / 4
    found = lifted(lambda x: getattr(x + offset, name)((2, 3)), x, target=1).scores
    expected = torch.zeros_like(x)
    for b in range(3):
        here, there = (sign * (t + offset[1]).flatten() for t in (x[b, 1], torch.full_like(x[b, 1], START)))
        top, other = here.max(), there.max()
        at = int(here.argmax() if top >= other else there.argmax())
        expected[b, 1].view(-1)[at] = sign * (top - other)
    same(found, expected, 1e-13)


@pytest.mark.parametrize("name", ["maximum", "minimum"])
def test_of_two_the_larger_takes_the_change_and_of_the_smaller_what_was_larger(name):
    """max(a, b + 0.1): of the baseline the second is the larger, and loses what it was if neither is as large."""
    sign = 1 if name == "maximum" else -1
    f = getattr(torch, name)
    x = drawn(9, 8, seed=31)
    a, b = x[:, :4], x[:, 4:] + 0.1 * sign
    found = lifted(lambda x: f(x[:, :4], x[:, 4:] + 0.1 * sign).sum(1, keepdim=True), x).scores
    there = START + 0.1 * sign  # the second is the larger of the baseline
    change = f(a, b) - there
    rises = sign * change > 0
    first = (sign * a > sign * b) & rises
    expected = torch.cat([torch.where(first, change, 0), torch.where(first, 0, change)], 1)
    assert 0 < int(first.sum()) < first.numel()
    same(found, expected, 1e-13)


def test_a_maximum_that_does_not_change_hands_on_the_derivative():
    """max(x_0 - x_1 + 0.5, 0 x_0): the larger is as for the baseline."""
    x = torch.tensor([[0.9, 0.9]], dtype=torch.float64)
    a = lifted(lambda x: torch.maximum(x[:, :1] - x[:, 1:] + 0.5, x[:, :1] / 100), x)
    torch.testing.assert_close(a.scores, torch.tensor([[0.7, -0.7]], dtype=torch.float64), rtol=1e-12, atol=1e-15)


# Softmax, norms


def softmax_by_hand(x: Tensor, message: Tensor, *, logarithm: bool = False) -> Tensor:
    """Of exponentials, their sum, one over it (or its logarithm) and a product, number by number."""
    found = torch.zeros_like(x)
    for b, k in itertools.product(range(len(x)), range(x.shape[1])):
        e, f = x[b].exp(), torch.full_like(x[b], START).exp()
        s, t = float(e.sum()), float(f.sum())
        if logarithm:
            whole = -float(message.sum()) * (math.log(s) - math.log(t)) / (s - t)
            found[b, k] = message[k] * (x[b, k] - START) + whole * (e[k] - f[k])
        else:
            whole = -float(sum(message[i] * (e[i] + f[i]) / 2 for i in range(len(e)))) / (s * t)
            found[b, k] = (e[k] - f[k]) * (message[k] * (1 / s + 1 / t) / 2 + whole)
    return found


@pytest.mark.parametrize("logarithm", [False, True])
@pytest.mark.parametrize("shift", [0.0, 700.0])
def test_softmax_is_made_of_exponentials_a_sum_and_a_product(logarithm, shift):
    """A shift of all numbers, which overflows exponentials, changes nothing."""
    message = drawn(8, seed=17)
    f = torch.log_softmax if logarithm else torch.softmax
    found = lifted(lambda x: (f(x + shift, 1) * message).sum(1, keepdim=True)).scores
    same(found, softmax_by_hand(X, message, logarithm=logarithm), 1e-11)


@pytest.mark.parametrize("logarithm", [False, True])
@pytest.mark.parametrize("axis", [1, 2, -1])
def test_softmax_of_any_axis(logarithm, axis):
    x, message = drawn(2, 3, 4, seed=18), drawn(3, 4, seed=19)
    f = torch.log_softmax if logarithm else torch.softmax
    found = lifted(lambda x: (f(x, axis) * message).flatten(1).sum(1, keepdim=True), x).scores
    expected = torch.zeros_like(x)
    for i in range(4 if axis == 1 else 3):
        part = (slice(None), slice(None), i) if axis == 1 else (slice(None), i)
        expected[part] = softmax_by_hand(x[part], message[part[1:]], logarithm=logarithm)
    same(found, expected, 1e-11)


def test_a_number_of_a_softmax_that_does_not_change_has_the_derivative_of_its_exponential():
    """softmax([x_0 - x_1, x_2]): the first is as for the baseline, and its exponential 1."""
    x = torch.tensor([[0.9, 0.9, -0.4]], dtype=torch.float64)
    a = lifted(lambda x: torch.stack([x[:, 0] - x[:, 1], x[:, 2]], 1).softmax(1), x)
    e, f = (torch.tensor([0.0, y], dtype=torch.float64).exp() for y in (-0.4, START))
    s, t = e.sum(), f.sum()
    slope = (1 / s + 1 / t) / 2 - 1 / (s * t)
    last = -(e[1] - f[1]) / (s * t)
    torch.testing.assert_close(a.scores, torch.stack([0.7 * slope, -0.7 * slope, last])[None], rtol=1e-12, atol=0)


def test_a_softmax_that_stays_as_it_is_has_its_derivative():
    x = torch.full((1, 8), 0.9, dtype=torch.float64)
    for f in (torch.softmax, torch.log_softmax):

        def forward(x: Tensor, f: Callable[..., Tensor] = f) -> Tensor:
            return f((x - x.flip(1)) + OUTER[:8], 1)

        slope = torch.autograd.functional.jacobian(lambda x, forward=forward: forward(x)[0, 2], x)
        same(lifted(forward, x, target=2).scores, slope * (x - START), 1e-9)


def group_norm_by_tape(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, message: Tensor) -> Tensor:
    """Rows are the groups of each picture; the message of a channel is times its weight."""
    with Tape() as tape:
        start = tape.leaf(x, torch.full_like(x, START) + GAPS.view(x.shape[1:]))
        flat = start.view(len(x), groups, -1).normed(eps)
        scaled = flat.view(*x.shape) * weight.view(-1, *(1,) * (x.ndim - 2))
        return tape.scores(scaled * message, start)


GAPS = drawn(4 * 3 * 2, seed=20) / 2
"""A baseline of one number has no spread; inputs are shifted by these."""


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_group_norm_is_made_of_means_squares_a_root_and_products(groups, affine):
    x, message = drawn(3, 4, 3, 2, seed=21), drawn(4, 3, 2, seed=22)
    norm = nn.GroupNorm(groups, 4, eps=0.01, affine=affine).double()
    weight, bias = drawn(4, seed=23), drawn(4, seed=24)
    if affine:
        with torch.no_grad():
            norm.weight.copy_(weight)
            norm.bias.copy_(bias)
    else:
        weight, bias = torch.ones_like(weight), torch.zeros_like(bias)
    gaps = GAPS.view(4, 3, 2)
    found = lifted(Of(lambda x, norm: (norm(x + gaps) * message).flatten(1).sum(1, keepdim=True), norm), x).scores
    same(found, group_norm_by_tape(x + gaps, groups, weight, bias, 0.01, message), 1e-11)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(2,), (3, 2)])
def test_layer_norm_is_made_of_means_squares_a_root_and_products(shape, affine):
    x, message = drawn(3, 4, 3, 2, seed=21), drawn(4, 3, 2, seed=22)
    norm = nn.LayerNorm(shape, eps=0.01, elementwise_affine=affine).double()
    if affine:
        with torch.no_grad():
            norm.weight.copy_(drawn(*shape, seed=23))
            norm.bias.copy_(drawn(*shape, seed=24))
    gaps = GAPS.view(4, 3, 2)
    found = lifted(Of(lambda x, norm: (norm(x + gaps) * message).flatten(1).sum(1, keepdim=True), norm), x).scores
    with Tape() as tape:
        start = tape.leaf(x + gaps, START + gaps.expand(3, 4, 3, 2))
        rows = start.view(*x.shape[: x.ndim - len(shape)], -1).normed(0.01).view(*x.shape)
        expected = tape.scores(rows * (norm.weight.detach() if affine else 1.0) * message, start)
    same(found, expected, 1e-11)


def test_a_fused_norm_is_the_same_as_its_parts():
    weight = drawn(8, seed=23)

    def parts(x: Tensor) -> Tensor:
        y = x + OUTER[:8]
        u = y - y.mean(1, keepdim=True)
        return u / (u.square().mean(1, keepdim=True) + 0.01).sqrt() * weight

    fused = lifted(lambda x: F.layer_norm(x + OUTER[:8], (8,), weight, None, 0.01), target=3).scores
    with Tape() as tape:
        x = tape.leaf(X + OUTER[:8], W + OUTER[:8])
        same(fused, tape.scores(x.normed(0.01).part(1, 3, 1) * weight[3], x), 1e-11)
    same(fused.sum(1), (parts(X) - parts(W))[:, 3], 1e-11)


# What is made of many


@pytest.mark.parametrize("steps", [1, 3])
def test_a_recurrent_layer_is_its_gates(steps):
    """LSTM: c = f c + i g, h = o tanh(c), written gate by gate."""
    x, lstm, head = drawn(2, steps, 3, seed=25), nn.LSTM(3, 4, batch_first=True).double(), nn.Linear(4, 1).double()
    found = lifted(Of(lambda x, lstm, head: head(lstm(x)[0][:, -1]), lstm, head), x).scores
    one, two = lstm.weight_ih_l0, lstm.weight_hh_l0
    bias = (lstm.bias_ih_l0 + lstm.bias_hh_l0).detach()
    with Tape() as tape:
        given = tape.leaf(x, torch.full_like(x, START))
        hidden = cell = None
        for at in range(steps):
            gates = given.part(1, at, 1).view(2, 3).affine(one, bias)
            if hidden is not None:
                gates = gates + hidden.affine(two)
            i, f, g, o = (gates.part(1, 4 * k, 4) for k in range(4))
            new = i.apply(torch.sigmoid) * g.apply(torch.tanh)
            cell = new if cell is None else f.apply(torch.sigmoid) * cell + new
            hidden = o.apply(torch.sigmoid) * cell.apply(torch.tanh)
        expected = tape.scores(hidden.affine(head.weight, head.bias), given)
    same(found, expected)


def attention_by_tape(x: "Both", attend: nn.MultiheadAttention, heads: int) -> "Both":
    b, t, width = x.x.shape
    inner = x.affine(attend.in_proj_weight, attend.in_proj_bias.detach())
    parts = [inner.part(2, width * k, width).view(b, t, heads, width // heads).transposed(1, 2) for k in range(3)]
    weights = ((parts[0] @ parts[1].transposed(2, 3)) * (width / heads) ** -0.5).softmax(-1)
    mixed = (weights @ parts[2]).transposed(1, 2).view(b, t, width)
    return mixed.affine(attend.out_proj.weight, attend.out_proj.bias.detach())


PLACES = drawn(4, 6, seed=28)
"""What is added to each place of a sequence, so that the places of a constant baseline differ."""


def biased(net: nn.Module) -> nn.Module:
    """With biases and gains that are not zero and one."""
    net = net.double().eval()
    with torch.no_grad():
        for number, parameter in enumerate(net.parameters()):
            if parameter.ndim == 1:
                parameter.add_(drawn(len(parameter), seed=100 + number) / 2)
    return net


@pytest.mark.parametrize("fused", [True, False])
def test_attention_is_matrix_products_and_a_softmax(fused):
    x = 2 * drawn(2, 4, 6, seed=26)
    attend = biased(nn.MultiheadAttention(6, 2, batch_first=True))
    weight = drawn(4, 6, seed=27)

    def forward(x: Tensor, attend: nn.Module) -> Tensor:
        y = x + PLACES
        return (attend(y, y, y, need_weights=not fused)[0] * weight).flatten(1).sum(1, keepdim=True)

    with Tape() as tape:
        given = tape.leaf(x + PLACES, START + PLACES.expand(2, 4, 6))
        expected = tape.scores(attention_by_tape(given, attend, 2) * weight, given)
    same(lifted(Of(forward, attend), x).scores, expected, 1e-9)


@pytest.mark.parametrize("first", [True, False])
def test_a_layer_of_a_transformer_is_attention_norms_residual_sums_and_two_layers(first):
    x, weight = drawn(2, 4, 6, seed=26), drawn(4, 6, seed=27)
    layer = biased(nn.TransformerEncoderLayer(6, 2, 10, activation="gelu", batch_first=True, norm_first=first))
    found = lifted(Of(lambda x, layer: (layer(x + PLACES) * weight).flatten(1).sum(1, keepdim=True), layer), x).scores

    def normed(y: Both, norm: nn.LayerNorm) -> Both:
        return y.normed(norm.eps) * norm.weight.detach() + norm.bias.detach()

    def inner(y: Both) -> Both:
        y = y.affine(layer.linear1.weight, layer.linear1.bias.detach()).apply(F.gelu)
        return y.affine(layer.linear2.weight, layer.linear2.bias.detach())

    with Tape() as tape:
        given = tape.leaf(x + PLACES, START + PLACES.expand(2, 4, 6))
        if first:
            y = given + attention_by_tape(normed(given, layer.norm1), layer.self_attn, 2)
            y = y + inner(normed(y, layer.norm2))
        else:
            y = normed(given + attention_by_tape(given, layer.self_attn, 2), layer.norm1)
            y = normed(y + inner(y), layer.norm2)
        expected = tape.scores(y * weight, given)
    same(found, expected, 1e-9)


def test_a_gated_unit_is_a_product_with_a_sigmoid():
    one, two = nn.Linear(8, 5).double(), nn.Linear(8, 5).double()
    found = lifted(
        Of(lambda x, one, two: (one(x) * two(x).sigmoid() * OUTER[:5]).sum(1, keepdim=True), one, two)
    ).scores
    with Tape() as tape:
        x = tape.leaf(X, W)
        left, right = (x.affine(n.weight, n.bias.detach()) for n in (one, two))
        same(found, tape.scores(left * right.apply(torch.sigmoid) * OUTER[:5], x))


def test_what_is_joined_again_is_summed():
    """A residual sum and a concatenation of three ways from one layer."""
    one, two = nn.Linear(8, 5).double(), nn.Linear(5, 5).double()

    def forward(x: Tensor, one: nn.Module, two: nn.Module) -> Tensor:
        y = one(x)
        z = torch.cat([y + two(y).relu(), y.tanh(), -y], 1)
        return (z * drawn(15, seed=30)).sum(1, keepdim=True)

    weight = drawn(15, seed=30)
    with Tape() as tape:
        x = tape.leaf(X, W)
        y = x.affine(one.weight, one.bias.detach())
        whole = (y + y.affine(two.weight, two.bias.detach()).apply(torch.relu)) * weight[:5]
        whole = whole + y.apply(torch.tanh) * weight[5:10] + y * -weight[10:]
        same(lifted(Of(forward, one, two)).scores, tape.scores(whole, x))


# What has no rule


class Doubled(torch.autograd.Function):
    """Twice a tensor, below everything that is recorded."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return 2 * gradients[0]


def in_part(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :2] = y[:, :2].tanh()
    return y


REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "a function of one's own": (Doubled.apply, "DoubledBackward"),
    "topk": (lambda z: z.topk(12, 1).values, "topk"),
    "sort": (lambda z: z.sort(1).values, "sort"),
    "median": (lambda z: z.median(1, keepdim=True).values.expand(-1, 12), "median"),
    "product of a row": (lambda z: z.prod(1, keepdim=True).expand(-1, 12), "prod"),
    "power of both": (lambda z: (z.square() + 1) ** z, "pow"),
    "rounding": (lambda z: z + z.round(), "round"),
    "a write into a part": (in_part, "CopySlices"),
}


@pytest.mark.doors
@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_rule_is_refused_by_name(name):
    f, what = REFUSED[name]
    net = nn.Sequential(nn.Linear(8, 12), Of(f), nn.Linear(12, 3))
    with pytest.raises(pl.RuleError, match=f"no rule for the operation '.*{what}.*' of the network.*IntegratedGrad"):
        lifted(net)


@pytest.mark.doors
def test_what_leads_nowhere_needs_no_rule():
    """The sorted numbers do not reach the score."""

    def forward(x: Tensor) -> Tensor:
        x.sort(1)
        Doubled.apply(x)
        return x.exp()

    same(lifted(forward, target=3).scores[:, 3], X[:, 3].exp() - math.exp(START), 1e-12)


@pytest.mark.doors
def test_a_network_that_decides_by_values_is_refused():
    """Other operations for the baseline than for the input; where they are the same it is explained."""
    net = nn.Sequential(nn.Linear(8, 6), Of(lambda z: z.tanh() if float(z.detach().mean()) > 0 else z.exp()))
    with torch.no_grad():
        net[0].weight.copy_(uniform(6, 8, dtype=torch.float64))
        net[0].bias.fill_(-1)
    with pytest.raises(
        pl.RuleError, match=r"other operations for the baseline than for the input.*IntegratedGradients"
    ):
        lifted(net, X.abs() + 1)
    a = lifted(net, X.abs() + 1, start=0.9)
    assert float(a.residual.abs().max()) < 1e-12


def test_a_number_that_is_multiplied_into_many_gathers_from_all():
    found = lifted(lambda x: (x * x[:, :1] * OUTER[:8]).sum(1, keepdim=True)).scores
    expected = OUTER[:8] * (X - START) * (X[:, :1] + START) / 2
    for k in range(8):
        expected[:, 0] += OUTER[k] * (X[:, 0] - START) * (X[:, k] + START) / 2
    same(found, expected, 1e-12)


def test_an_rms_norm_is_taken_apart():
    weight = drawn(8, seed=23)
    with Tape() as tape:
        x = tape.leaf(X + OUTER[:8], W + OUTER[:8])
        expected = tape.scores(x.normed(0.01, centred=False).part(1, 3, 1) * weight[3], x)
    same(lifted(lambda x: F.rms_norm(x + OUTER[:8], (8,), weight, 0.01), target=3).scores, expected, 1e-11)


def test_a_sum_of_a_number_with_many():
    found = lifted(lambda x: ((x + x[:, :1]).exp() * OUTER[:8]).sum(1, keepdim=True))
    assert float(found.residual.abs().max()) < 1e-12


def test_under_a_mask_nothing_is_lost():
    x = 2 * drawn(2, 4, 6, seed=26)
    a = lifted(Of(lambda x: F.scaled_dot_product_attention(x, x, x.sin(), is_causal=True).flatten(1)), x, target=13)
    assert float(a.residual.abs().max()) < 1e-12


@pytest.mark.parametrize("norm", [nn.InstanceNorm1d(4), nn.InstanceNorm2d(4)])
def test_an_instance_norm_is_taken_apart(norm):
    x = 2 * drawn(2, 4, 3, 2, seed=26)
    x = x if isinstance(norm, nn.InstanceNorm2d) else x.flatten(2)
    gaps = GAPS.view(1, 4, 3, 2).reshape(1, *x.shape[1:])
    a = lifted(Of(lambda x, norm: norm(x + gaps).tanh().flatten(1), norm), x, target=3)
    assert float(a.residual.abs().max()) < 1e-12


def test_a_function_of_ones_own_at_the_end_is_refused_too():
    with pytest.raises(pl.RuleError, match="DoubledBackward"):
        lifted(nn.Sequential(nn.Linear(8, 3), Of(Doubled.apply)))


@pytest.mark.parametrize("mode", ["floor", "trunc"])
def test_rounded_quotients_are_refused(mode):
    with pytest.raises(pl.RuleError, match="div"):
        lifted(lambda x: torch.div(x, x.flip(1) + 3, rounding_mode=mode) + x)
    with pytest.raises(pl.RuleError, match="div"):
        lifted(lambda x: torch.div(x, 0.1, rounding_mode=mode) + x)
