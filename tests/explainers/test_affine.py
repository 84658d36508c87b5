"""Which operations of a pass are one weighted sum, and that sum's weights and bias."""

from collections.abc import Callable

import pytest
import torch
from tests.oracles import uniform
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # as networks write it

import pellucid as pl
from pellucid.core.executed import recorded
from pellucid.explainers._affine import Affine, sums
from pellucid.explainers.lrp import Relevance

KEEP = Relevance(pl.Epsilon(), pl.Epsilon(), None, ()).keep
Run = Callable[[Tensor], Tensor]


def real(*shape: int, seed: int) -> Tensor:
    """Of either sign."""
    return 2 * uniform(*shape, seed=seed, dtype=torch.float64) - 1


W, B, M, V = real(4, 3, seed=1), real(3, seed=2), real(3, seed=3), uniform(3, seed=4, dtype=torch.float64) + 0.5
K, T = real(3, 4, 2, 2, seed=5), real(4, 3, 2, 2, seed=6)
GAIN, SHIFT = real(3, seed=7) + 2, real(3, seed=8)
ROWS, TOKENS = real(5, 4, seed=9), real(2, 5, 4, seed=10)
GRID, PICTURES = real(2, 3, 5, 4, seed=11), real(2, 4, 3, 4, seed=12)


def sums_of(run: Run, x: Tensor) -> list[Affine]:
    with recorded(nn.Identity(), KEEP) as executed, torch.enable_grad():
        run(x.clone().requires_grad_())
    return sums(executed.operations)


def normed(y: Tensor) -> Tensor:
    """A batch norm in evaluation."""
    return F.batch_norm(y, M, V, GAIN, SHIFT)


def column(t: Tensor) -> Tensor:
    return t.view(3, 1, 1)


# Each with the number of operations after the one that multiplies, if all of what it does is one sum.
ONE_SUM: dict[str, tuple[Run, Tensor, int]] = {
    "mm": (lambda x: x @ W, ROWS, 0),
    "mm + b": (lambda x: x @ W + B, ROWS, 1),
    "b + mm": (lambda x: B + x @ W, ROWS, 1),
    "mm added in place": (lambda x: (x @ W).add_(B), ROWS, 1),
    "torch.add": (lambda x: torch.add(x @ W, B), ROWS, 1),
    "addmm": (lambda x: torch.addmm(B, x, W), ROWS, 0),
    "linear": (lambda x: F.linear(x, W.T, B), ROWS, 0),
    "two biases": (lambda x: F.linear(x, W.T, B) + M, ROWS, 1),
    "one row of biases": (lambda x: x @ W + B[None], ROWS, 1),
    "linear of 3 axes": (lambda x: F.linear(x, W.T, B), TOKENS, 0),
    "product of 3 axes": (lambda x: x @ W + B, TOKENS, 2),
    "linear of 4 axes": (lambda x: F.linear(x, W.T, B), GRID, 0),
    "product of 4 axes": (lambda x: x @ W + B, GRID, 2),
    "transposed tokens": (lambda x: F.linear(x.transpose(0, 1), W.T, B), TOKENS, 2),
    "linear, norm": (lambda x: normed(F.linear(x, W.T, B)), ROWS, 1),
    "linear without a bias, norm": (lambda x: normed(x @ W), ROWS, 1),
    "convolution": (lambda x: F.conv2d(x, K, B), PICTURES, 0),
    "convolution, norm": (lambda x: normed(F.conv2d(x, K, B)), PICTURES, 1),
    "convolution without a bias, norm": (lambda x: normed(F.conv2d(x, K)), PICTURES, 1),
    "norm without gain and shift": (lambda x: F.batch_norm(F.conv2d(x, K, B), M, V), PICTURES, 1),
    "two norms": (lambda x: normed(normed(F.conv2d(x, K, B))), PICTURES, 2),
    "convolution + b": (lambda x: F.conv2d(x, K) + column(B), PICTURES, 1),
    "b + convolution, norm": (lambda x: normed(column(B) + F.conv2d(x, K)), PICTURES, 2),
    "norm, then + b": (lambda x: normed(F.conv2d(x, K)) + column(B)[None], PICTURES, 2),
    "transposed convolution": (lambda x: F.conv_transpose2d(x, T, B, 2, 1), PICTURES, 0),
    "transposed convolution, norm": (lambda x: normed(F.conv_transpose2d(x, T, B, 2)), PICTURES, 1),
    "stride, padding, dilation": (lambda x: normed(F.conv2d(x, K, B, (1, 2), 1, (2, 1))), PICTURES, 1),
    "convolution in groups": (lambda x: normed(F.conv2d(x, K.repeat(2, 1, 1, 1)[:3, :2], B)), PICTURES[:, :2], 1),
}  # fmt: skip


@pytest.mark.parametrize("kind", ONE_SUM)
def test_what_is_scaled_and_shifted_after_a_sum_belongs_to_it(kind):
    run, x, after = ONE_SUM[kind]
    [affine] = sums_of(run, x)
    assert len(affine.after) == after
    whole = run(x)
    torch.testing.assert_close(affine.z.flatten(), whole.flatten(), rtol=1e-12, atol=1e-14)
    made = affine.map(affine.x, affine.weight)
    made = made if affine.bias is None else made + affine.bias
    torch.testing.assert_close(made, affine.z, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", ONE_SUM)
def test_the_bias_is_what_the_sum_gives_for_nothing(kind):
    run, x, _ = ONE_SUM[kind]
    [affine] = sums_of(run, x)
    nothing = run(torch.zeros_like(x)).reshape(affine.operation.shape)
    bias = torch.zeros(()).double() if affine.bias is None else affine.bias
    torch.testing.assert_close(bias.expand_as(nothing), nothing, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", ONE_SUM)
def test_the_way_back_is_the_derivative_of_the_whole(kind):
    run, x, _ = ONE_SUM[kind]
    [affine] = sums_of(run, x)
    leaf = x.clone().requires_grad_()
    given = run(leaf)
    message = real(*given.shape, seed=13)
    [expected] = torch.autograd.grad(given, leaf, message)
    found = affine.back(message.reshape(affine.operation.shape), affine.weight)
    if kind == "transposed tokens":
        found = found.reshape(5, 2, 4).transpose(0, 1)
    torch.testing.assert_close(found.reshape(x.shape), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", ONE_SUM)
def test_other_weights_act_on_other_inputs_as_they_would_in_the_operation(kind):
    """Both ways: the sum of y with weights v is linear in y, and its derivative by y leads back."""
    run, x, _ = ONE_SUM[kind]
    [affine] = sums_of(run, x)
    y, v = real(*affine.x.shape, seed=14).requires_grad_(), real(*affine.weight.shape, seed=15)
    z = affine.map(y, v)
    message = real(*z.shape, seed=16)
    [expected] = torch.autograd.grad(z, y, message)
    torch.testing.assert_close(affine.back(message, v), expected, rtol=1e-12, atol=1e-14)
    assert affine.map(torch.zeros_like(y), v).any().logical_not(), "no bias"


@pytest.mark.parametrize(
    ("run", "x"),
    [(lambda x: W.T @ x, ROWS.T), (lambda x: W.T @ x, TOKENS.mT.contiguous()),
     (lambda x: torch.addmm(B[:, None], W.T, x), ROWS.T), (lambda x: (W.T @ x) + real(5, seed=3), ROWS.T)],
    ids=["mm", "bmm", "addmm", "added to columns"],
)  # fmt: skip
def test_x_may_stand_on_the_right(run, x):
    [affine] = sums_of(run, x)
    made = affine.map(affine.x, affine.weight)
    made = made if affine.bias is None else made + affine.bias
    torch.testing.assert_close(made, affine.z, rtol=1e-12, atol=1e-14)
    message, leaf = real(*affine.z.shape, seed=3), affine.x.clone().requires_grad_()
    expected = torch.autograd.grad(affine.map(leaf, affine.weight), leaf, message)[0]
    torch.testing.assert_close(affine.back(message, affine.weight), expected, rtol=1e-12, atol=1e-14)
    if not affine.after:
        torch.testing.assert_close(affine.z.flatten(), run(x).flatten(), rtol=1e-12, atol=1e-14)


def with_another_taker(x: Tensor) -> Tensor:
    y = F.conv2d(x, K)
    return normed(y) + y


NOT_OF_THE_SUM: dict[str, tuple[Run, Tensor]] = {
    "what something else takes too": (with_another_taker, PICTURES),
    "a norm behind an activation": (lambda x: normed(F.conv2d(x, K).relu()), PICTURES),
    "a bias for each place": (lambda x: F.conv2d(x, K) + real(3, 2, 3, seed=1), PICTURES),
    "a bias along another axis": (lambda x: F.conv2d(x, K) + real(3, seed=1), PICTURES),
    "a bias for each row": (lambda x: x[:3] @ W + B[:, None], ROWS),
    "a number": (lambda x: x @ W + 1.0, ROWS),
    "a multiple of a bias": (lambda x: torch.add(x @ W, B, alpha=2), ROWS),
    "what depends on the input": (lambda x: x @ W + x[:, :3], ROWS),
    "another sum": (lambda x: (x @ W) @ W.T, ROWS),
    "a norm of tokens": (lambda x: normed((x @ W).transpose(1, 2)), TOKENS),
    "turned in groups": (lambda x: normed(F.conv_transpose2d(x, T[:3, :1], B, groups=3)), PICTURES[:, :3]),
}  # fmt: skip


@pytest.mark.parametrize("kind", NOT_OF_THE_SUM)
def test_what_does_more_than_scale_and_shift_channels_does_not_belong(kind):
    run, x = NOT_OF_THE_SUM[kind]
    for affine in sums_of(run, x):
        assert affine.after == ()
        assert affine.last is affine.operation


def test_sums_come_in_the_order_in_which_they_ran():
    found = sums_of(lambda x: F.linear((x @ W).relu(), W, None) @ W + B, ROWS)
    assert [affine.operation.what for affine in found] == ["mm", "mm", "mm"]
    assert [len(affine.after) for affine in found] == [0, 0, 1]


def test_layout_behind_the_last_shift_stays_outside():
    """A view that nothing follows moves numbers; it is no part of the sum."""
    [affine] = sums_of(lambda x: (x @ W).sum(0), TOKENS)
    assert affine.after == ()


def test_a_padded_edge_is_no_part_of_the_sum():
    net = nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect").double().requires_grad_(False)
    [affine] = sums_of(net, PICTURES)
    assert affine.x.shape[2:] == (5, 6)
    torch.testing.assert_close(affine.z, net(PICTURES), rtol=1e-12, atol=1e-14)


def test_norms_fold_in_double_precision():
    """rsqrt of a small variance in single precision would be off by its own digits."""
    run = lambda x: F.batch_norm(F.conv2d(x, K.float()), M.float(), 1e-3 * V.float(), eps=1e-12)  # noqa: E731
    [affine] = sums_of(run, PICTURES.float())
    expected = K * (1e-3 * V.float()).double().add(1e-12).rsqrt().view(3, 1, 1, 1)
    assert affine.weight.dtype == torch.float32
    assert float(((affine.weight.double() - expected) / expected).abs().max()) < 2 * torch.finfo(torch.float32).eps


# What is known of signs without looking


def plain(x: Tensor) -> Tensor:
    return F.conv2d(x, K, B)


@pytest.mark.parametrize(
    ("before", "rising"),
    [
        (F.relu, True), (F.relu6, True), (lambda x: x.clamp(0, 3), True), (lambda x: x * (x > 0), True),
        (lambda x: F.max_pool2d(F.relu(x), 2, 1), True), (lambda x: F.pad(F.relu(x), (1, 1)), True),
        (lambda x: torch.cat([F.relu(x[:, :2]), F.relu6(x[:, 2:])], 1), True),
        (lambda x: F.relu(x).view(2, 4, 4, 3), True), (lambda x: x, False), (lambda x: F.relu(x) * -1, False),
        (lambda x: F.pad(F.relu(x), (1, 1), value=-1.0), False), (F.gelu, False), (lambda x: F.relu(x) - 1, False),
        (lambda x: torch.cat([F.relu(x[:, :2]), x[:, 2:]], 1), False),
        (lambda x: torch.cat([F.relu(x[:, :2]), -torch.ones(2, 2, 3, 4, dtype=torch.float64)], 1), False),
        (lambda x: F.relu(x).add_(-1), False), (lambda x: x.clamp(-1, 1), False),
    ],
)  # fmt: skip
def test_behind_a_rectifier_nothing_is_negative(before, rising):
    [found] = sums_of(lambda x: plain(before(x)), PICTURES)
    assert found.rising is rising
    above, below = found.signs
    assert bool((found.x < 0).any()) == (below is not None)
    assert torch.equal(above, found.x.clamp(min=0))
    assert below is None or torch.equal(below, found.x.clamp(max=0))


@pytest.mark.parametrize(
    ("after", "rectified"),
    [
        (F.relu, True), (lambda y: F.relu6(normed(y)), True), (lambda y: F.relu(y) + F.relu6(y), True),
        (lambda y: y, False), (lambda y: F.relu(y) + y, False), (lambda y: F.relu(F.max_pool2d(y, 2)), False),
        (F.gelu, False), (lambda y: F.relu(-y), False),
    ],
)  # fmt: skip
def test_a_sum_is_rectified_where_nothing_but_rectifiers_takes_it(after, rectified):
    [found] = sums_of(lambda x: after(plain(x)), PICTURES)
    assert found.rectified is rectified


def test_a_sum_that_is_turned_round_ends_before():
    [found] = sums_of(lambda x: -plain(x), PICTURES)
    assert found.after == ()
