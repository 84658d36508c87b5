"""Each rule against its paper's equation, summand by summand."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from tests.oracles import uniform
from torch import Tensor, nn

import pellucid as pl
from pellucid.core.executed import recorded
from pellucid.core.recipe import decode, encode
from pellucid.explainers._affine import Affine, sums
from pellucid.explainers._rules import SumRule, stabilised
from pellucid.explainers.lrp import Relevance

KEEP = Relevance(pl.Epsilon(), pl.Epsilon(), None, ()).keep
STABLE = 1e-6
ROUNDED = {"rtol": 1e-11, "atol": 1e-12}
"""Some hundred sums and products of float64 each; where sums nearly cancel, they show more of their rounding."""
LOW, HIGH = -1.5, 2.5  # the inputs below lie between


def real(*shape: int, seed: int) -> Tensor:
    """Of either sign."""
    return 2 * uniform(*shape, seed=seed, dtype=torch.float64) - 1


def only_sum(net: nn.Module, x: Tensor) -> Affine:
    """The sum that the network executes."""
    with recorded(net.requires_grad_(False), KEEP) as executed, torch.enable_grad():
        net(x.clone().requires_grad_())
    [found] = sums(executed.operations)
    return found


def given_back(rule: SumRule, affine: Affine, message: Tensor) -> Tensor:
    """The relevance that the rule gives to what is summed."""
    with torch.no_grad():
        found = rule.at(affine.x, None).back(affine, message)
    return found if rule.lands else affine.x * found


# The equations: what of R_j each of the summands x_i w_ij gets. `joined` are the pairs (i, j) that there are.

Shares = Callable[[list[float], list[float], float], list[float]]
"""From x_i, w_ij of one j and its bias to the share of each i."""


def by(numbers: list[float], whole: float, stable: float = STABLE) -> list[float]:
    return [n / (whole + (stable if whole >= 0 else -stable)) for n in numbers]


def epsilon(of: float) -> Shares:
    def shares(x: list[float], w: list[float], b: float) -> list[float]:
        parts = [xi * wi for xi, wi in zip(x, w, strict=True)]
        return by(parts, sum(parts) + b, of)

    return shares


def gamma(of: float) -> Shares:
    """A summand of the sum's own sign counts 1 + gamma times; so does the bias (Andeol et al. 2021)."""

    def shares(x: list[float], w: list[float], b: float) -> list[float]:
        parts = [xi * wi for xi, wi in zip(x, w, strict=True)]
        z = sum(parts) + b
        more = [one * (1 + of) if one * z > 0 else one for one in [*parts, b]]
        return by(more[:-1], sum(more))

    return shares


def alpha_beta(alpha: float, beta: float) -> Shares:
    def shares(x: list[float], w: list[float], b: float) -> list[float]:
        parts = [xi * wi for xi, wi in zip(x, w, strict=True)]
        rise, fall = [max(p, 0) for p in parts], [min(p, 0) for p in parts]
        up, down = by(rise, sum(rise) + max(b, 0)), by(fall, sum(fall) + min(b, 0))
        return [alpha * u - beta * d for u, d in zip(up, down, strict=True)]

    return shares


def flat(x: list[float], w: list[float], b: float) -> list[float]:
    return by([1.0] * len(x), len(x))


def w_square(x: list[float], w: list[float], b: float) -> list[float]:
    return by([wi**2 for wi in w], sum(wi**2 for wi in w))


def z_box(x: list[float], w: list[float], b: float) -> list[float]:
    parts = [xi * wi - LOW * max(wi, 0) - HIGH * min(wi, 0) for xi, wi in zip(x, w, strict=True)]
    return by(parts, sum(parts))


RULES: list[tuple[SumRule, Shares]] = [
    (pl.Epsilon(0.0), epsilon(0.0)),
    (pl.Epsilon(0.3), epsilon(0.3)),
    (pl.Gamma(0.0), gamma(0.0)),
    (pl.Gamma(), gamma(0.25)),
    (pl.Gamma(3.0), gamma(3.0)),
    (pl.AlphaBeta(), alpha_beta(2, 1)),
    (pl.AlphaBeta(1.5, 0.5), alpha_beta(1.5, 0.5)),
    (pl.AlphaBeta(1.0, 0.0), alpha_beta(1, 0)),
    (pl.ZPlus(), alpha_beta(1, 0)),
    (pl.Flat(), flat),
    (pl.WSquare(), w_square),
    (pl.ZBox(pl.Constant(LOW), pl.Constant(HIGH)), z_box),
]
rules = pytest.mark.parametrize(("rule", "shares"), RULES, ids=[repr(rule) for rule, _ in RULES])


def divided_by(shares: Shares, x: Tensor, w: dict[tuple[int, int], float], b: list[float], message: Tensor) -> Tensor:
    """R_i of one row by the equation, with R_j = z_j m_j."""
    found = torch.zeros_like(x)
    for j, bias in enumerate(b):
        among = [i for i in range(len(x)) if (i, j) in w]
        values, weights = [float(x[i]) for i in among], [w[i, j] for i in among]
        z = sum(xi * wi for xi, wi in zip(values, weights, strict=True)) + bias
        relevance = float(message[j]) * z
        for i, share in zip(among, shares(values, weights, bias), strict=True):
            found[i] += share * relevance
    return found


@rules
@pytest.mark.parametrize("bias", [True, False])
def test_a_dense_layer_divides_relevance_by_the_equation(rule, shares, bias):
    net = nn.Linear(5, 4, bias, dtype=torch.float64).requires_grad_(False)
    net.weight.copy_(real(4, 5, seed=1))
    if bias:
        net.bias.copy_(real(4, seed=2))
    x, message = 1.4 * real(3, 5, seed=3), real(3, 4, seed=4)
    w = {(i, j): float(net.weight[j, i]) for i in range(5) for j in range(4)}
    b = net.bias.tolist() if bias else [0.0] * 4
    found = given_back(rule, only_sum(net, x), message)
    expected = torch.stack([divided_by(shares, row, w, b, m) for row, m in zip(x, message, strict=True)])
    # Some sums of either sign: each branch of a rule is taken.
    assert len(torch.sign(net(x)).unique()) == 2
    torch.testing.assert_close(found, expected, **ROUNDED)


def taps(net: nn.Conv2d | nn.ConvTranspose2d, shape: tuple[int, ...], out: tuple[int, ...]) -> dict:
    """The convolution as a dense matrix: which weight joins input i to output j."""
    found = {}
    turned = isinstance(net, nn.ConvTranspose2d)
    # A transposed convolution joins the inputs of a plain one, from its outputs: exchange the two.
    (few, *small), (many, *large) = (shape, out) if turned else (out, shape)
    per_few, per_many = few // net.groups, many // net.groups
    for group, f, m in itertools.product(range(net.groups), range(per_few), range(per_many)):
        for place in itertools.product(*map(range, small)):
            for tap in itertools.product(*map(range, net.kernel_size)):
                at = [p * s + t * d - pad for p, s, t, d, pad in
                      zip(place, net.stride, tap, net.dilation, net.padding, strict=True)]  # fmt: skip
                if all(0 <= a < size for a, size in zip(at, large, strict=True)):
                    one = (group * per_few + f, *place)
                    other = (group * per_many + m, *at)
                    first, second = (math.prod(s) for s in (small, large))
                    few_i = one[0] * first + one[1] * small[1] + one[2]
                    many_i = other[0] * second + other[1] * large[1] + other[2]
                    weight = float(net.weight[(one[0], m, *tap)])
                    found[(few_i, many_i) if turned else (many_i, few_i)] = weight
    return found


CONVOLUTIONS = {
    "plain": lambda: nn.Conv2d(2, 3, 2),
    "stride": lambda: nn.Conv2d(2, 3, (3, 2), (2, 1), padding=(1, 0)),
    "groups": lambda: nn.Conv2d(4, 4, 2, groups=2, padding=1),
    "depthwise": lambda: nn.Conv2d(2, 4, 3, groups=2, bias=False),
    "dilation": lambda: nn.Conv2d(2, 2, 2, dilation=(2, 3), padding=1),
    "transposed": lambda: nn.ConvTranspose2d(2, 3, 2, (2, 1), padding=(1, 0)),
    "transposed in groups": lambda: nn.ConvTranspose2d(4, 2, 3, 2, padding=1, output_padding=1, groups=2),
}


@rules
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_a_convolution_divides_relevance_as_the_same_sum_written_as_a_matrix(rule, shares, kind):
    net = CONVOLUTIONS[kind]().double().requires_grad_(False)
    for i, parameter in enumerate(net.parameters()):
        parameter.copy_(real(*parameter.shape, seed=i))
    x = 1.4 * real(2, net.in_channels, 4, 5, seed=5)
    z = net(x).detach()
    message = real(*z.shape, seed=6)
    w = taps(net, tuple(x.shape[1:]), tuple(z.shape[1:]))
    b = [0.0] * net.out_channels if net.bias is None else net.bias.tolist()
    b = [one for one in b for _ in range(math.prod(z.shape[2:]))]
    found = given_back(rule, only_sum(net, x), message)
    expected = [divided_by(shares, row.flatten(), w, b, m.flatten()) for row, m in zip(x, message, strict=True)]
    torch.testing.assert_close(found, torch.stack(expected).view_as(x), **ROUNDED)


class Product(nn.Module):
    """x in a matrix product, on either side, and with what is added in the same operation."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.spelling = spelling
        wide = (2, 3, 4) if "bmm" in spelling else (3, 4)
        self.weight = nn.Parameter(real(*wide, seed=1))
        self.bias = nn.Parameter(real(4, seed=2))
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        match self.spelling:
            case "mm":
                return torch.mm(x, self.weight)
            case "addmm":
                return torch.addmm(self.bias, x, self.weight)
            case "bmm":
                return torch.bmm(x, self.weight)
            case "baddbmm":
                return torch.baddbmm(self.bias, x, self.weight)
            case "mm on the right":
                return torch.mm(self.weight.T, x)
            case "addmm on the right":
                return torch.addmm(self.bias[:, None], self.weight.T, x)
        return torch.bmm(self.weight.mT, x)


@rules
@pytest.mark.parametrize(
    "spelling", ["mm", "addmm", "bmm", "baddbmm", "mm on the right", "addmm on the right", "bmm on the right"]
)
def test_matrix_products_divide_relevance_from_either_side(rule, shares, spelling):
    net = Product(spelling)
    right, rows = "right" in spelling, (2, 5, 3) if net.weight.ndim == 3 else (5, 3)
    x = 1.4 * real(*rows, seed=3)
    x = x.mT.contiguous() if right else x
    message = real(*net(x).shape, seed=4)
    found = given_back(rule, only_sum(net, x), message)
    rows, messages = (x.mT, message.mT) if right else (x, message)
    weights = net.weight if net.weight.ndim == 3 else net.weight[None]
    rows, messages = (t.reshape(len(weights), -1, t.shape[-1]) for t in (rows, messages))
    b = net.bias.tolist() if "add" in spelling else [0.0] * 4
    expected = torch.empty_like(rows)
    for k, weight in enumerate(weights):
        w = {(i, j): float(weight[i, j]) for i in range(3) for j in range(4)}
        for n in range(rows.shape[1]):
            expected[k, n] = divided_by(shares, rows[k, n], w, b, messages[k, n])
    found = (found.mT if right else found).reshape(expected.shape)
    torch.testing.assert_close(found, expected, **ROUNDED)


def test_the_box_of_pixels_is_black_to_white_in_the_models_units():
    prepare = pl.ImagePreprocess(size=4, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5))
    net = nn.Sequential(nn.Conv2d(3, 1, 4), nn.Flatten()).double().requires_grad_(False)
    net[0].weight.copy_(real(1, 3, 4, 4, seed=1))
    net[0].bias.fill_(0.2)
    x = real(2, 3, 4, 4, seed=2)
    explain = pl.LRP(first=pl.ZBox())
    a = explain(pl.TorchModel(net, preprocess=prepare), x, target=0)
    bounds = [((0 - m) / s, (1 - m) / s) for m, s in ((0.5, 0.2), (0.4, 0.25), (0.3, 0.5))]
    z = net(x).detach()
    for row in range(2):
        parts = torch.zeros(3, 4, 4, dtype=torch.float64)
        for c, i, j in itertools.product(range(3), range(4), range(4)):
            w = float(net[0].weight[0, c, i, j])
            low, high = bounds[c]
            parts[c, i, j] = float(x[row, c, i, j]) * w - low * max(w, 0) - high * min(w, 0)
        expected = parts / (float(parts.sum()) + STABLE) * float(z[row])
        # The preprocessing is stored in single precision.
        torch.testing.assert_close(a.scores[row], expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


def test_a_box_of_numbers_needs_no_preprocessing():
    net = nn.Linear(3, 1, dtype=torch.float64)
    x = real(1, 3, seed=1)
    a = pl.LRP(first=pl.ZBox(pl.Constant(-1.0), pl.Constant(1.0)))(pl.TorchModel(net), x, target=0)
    parts = x * net.weight.detach() + net.weight.detach().abs()
    expected = parts / (parts.sum() + STABLE) * net(x).detach()
    torch.testing.assert_close(a.scores, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.doors
def test_a_box_of_pixels_needs_to_know_what_they_are():
    with pytest.raises(pl.ArgumentError, match="Constant"):
        pl.LRP(first=pl.ZBox())(pl.TorchModel(nn.Linear(3, 1)), torch.ones(1, 3), target=0)


def test_a_box_stands_where_the_input_comes_in_the_shape_it_has():
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 1))
    explain = pl.LRP(first=pl.ZBox(pl.Constant(0.0), pl.Constant(1.0)))
    with pytest.raises(pl.RuleError, match=r"ZBox stands where .*\(2, 3\).*takes \(6,\)"):
        explain(pl.TorchModel(net), uniform(1, 2, 3), target=0)


def test_from_inputs_of_zero_come_sums_of_no_sign_and_no_relevance():
    """And no division by zero: only Epsilon(0) divides by what is there."""
    net = nn.Linear(3, 2, bias=False, dtype=torch.float64)
    x = torch.zeros(1, 3, dtype=torch.float64)
    for rule, _ in RULES[1:]:
        found = given_back(rule, only_sum(net, x), torch.ones(1, 2, dtype=torch.float64))
        assert not found.any()


def test_the_stabiliser_leads_away_from_zero():
    z = torch.tensor([-2.0, -0.0, 0.0, 2.0], dtype=torch.float64)
    assert stabilised(z, 0.3).tolist() == [-2.3, -0.3, 0.3, 2.3]  # each zero by its sign
    assert stabilised(z.float(), 0.5).dtype == torch.float32


@pytest.mark.parametrize("rule", [rule for rule, _ in RULES] + [pl.ZBox(), pl.ZBox(pl.Pixel(0.2), pl.Pixel(0.4))])
def test_a_rule_is_a_value_that_comes_back_from_its_json(rule):
    assert decode(encode(rule)) == rule
    assert hash(rule) == hash(decode(encode(rule)))


@pytest.mark.doors
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: pl.Epsilon(-1e-9), "`epsilon` is a finite number, 0 or more"),
        (lambda: pl.Epsilon(float("nan")), "Got nan"),
        (lambda: pl.Epsilon("small"), "Got 'small'"),
        (lambda: pl.Gamma(-0.1), "`gamma` is a finite number, 0 or more"),
        (lambda: pl.Gamma(float("inf")), "Got inf"),
        (lambda: pl.AlphaBeta(2.0, 0.5), "Expected alpha - beta to be 1, but got 2.0 - 0.5"),
        (lambda: pl.AlphaBeta(0.5, -0.5), "`alpha` is a finite number, 1 or more"),
        (lambda: pl.AlphaBeta(True, 0.0), "Got True"),
        (lambda: pl.ZBox(0.0, 1.0), "Got 0.0"),
        (lambda: pl.ZBox(pl.Zeros(), 1.0), "Got 1.0"),
    ],
)
def test_wrong_numbers_say_what_to_write(make, words):
    with pytest.raises(pl.ArgumentError, match=words):
        make()
