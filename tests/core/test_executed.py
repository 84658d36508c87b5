"""What a network executed is recorded, and the way back through it is autograd's where no rule says otherwise."""

import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from tests.core.networks import (
    Calling,
    channels_last,
    classes,
    encoder,
    fixed,
    plain,
    quiet,
    recurrent,
    residual,
    reusing,
    same_state,
    segmenting,
    state_of,
    tokens,
)
from tests.oracles import Constant, uniform
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # as networks write it
from torch.utils.checkpoint import checkpoint

import pellucid as pl
from pellucid.core.executed import Executed, derivative, recorded, walk_back
from pellucid.core.operation import Cell, Kind, Operation
from pellucid.core.rule import Assigned, Keep, Rule, RuleBook, Sent
from pellucid.core.target import Targets

ROWS = uniform(3, 6, dtype=torch.float64) * 2 - 1
PICTURES = uniform(3, 4, 8, 8, dtype=torch.float64, seed=1) * 2 - 1
STEPS = uniform(3, 5, 6, dtype=torch.float64, seed=2) * 2 - 1
EXACT = {"rtol": 1e-12, "atol": 1e-14}
"""The same derivatives of the same numbers; sums of several messages may be added in another order."""
ALL = frozenset(Kind)


@dataclass(frozen=True)
class Book(RuleBook):
    """Rules by kind, none by default; what it was asked to assign is noted."""

    by_kind: Mapping[Kind, Rule] = field(default_factory=dict)
    kept: Keep = field(default_factory=Keep)
    asked: list[Operation] = field(default_factory=list)
    asked_beside: list[Operation] = field(default_factory=list)

    @property
    def keep(self) -> Keep:
        return self.kept

    def assign(self, operations: Sequence[Operation], beside: Sequence[Operation] = ()) -> Mapping[Operation, Assigned]:
        self.asked.extend(operations)
        self.asked_beside.extend(beside)
        return {one: Assigned(self.by_kind[one.kind], "a rule") for one in operations if one.kind in self.by_kind}


def weighted(out: Tensor) -> Tensor:
    """A number to which each output contributes differently."""
    return (out * torch.linspace(1, 2, out.numel(), dtype=out.dtype).reshape(out.shape)).sum()


def ran(f: Callable[..., Any], x: Tensor, keep: Keep | None = None, net: nn.Module | None = None) -> Executed:
    """What the function executed."""
    with recorded(net or nn.Module(), keep or Keep()) as executed:
        f(x.clone().requires_grad_())
    return executed


def walked(
    f: Callable[[Tensor], Tensor], x: Tensor, book: Book | None = None, net: nn.Module | None = None
) -> tuple[Tensor, Tensor | None]:
    """The messages at x, and what landed there."""
    leaf, book = x.clone().requires_grad_(), book or Book()
    with recorded(net or nn.Module(), book.keep) as executed:
        out = f(leaf.clone())
    root = weighted(out).grad_fn
    with torch.no_grad():
        messages, landed, *_ = walk_back([root], leaf, executed, [out.grad_fn], book)
    return messages, landed


def by_autograd(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    [found] = torch.autograd.grad(weighted(f(leaf.clone())), leaf, materialize_grads=True)
    return found


# without rules, the way back is autograd's


def residual_sums(x: Tensor) -> Tensor:
    y = x.tanh()
    y = y + (y * 2).sigmoid()
    y = (y + x).relu() + y
    return y * y.flip(1)


def diamonds(x: Tensor) -> Tensor:
    """2^12 paths: each message waits for all that come to the same place."""
    for _ in range(12):
        left, right = x.sin(), x.cos()
        x = left * 0.5 + right * left
    return x


def dense(x: Tensor) -> Tensor:
    """Everything before goes into each step, so that messages come from near and far."""
    found = [x]
    for i in range(6):
        found.append((torch.cat(found, 1)[:, i : i + 4] * (i + 1) * found[i // 2]).tanh())
    return torch.cat(found[::-1], 1)


def in_place(x: Tensor) -> Tensor:
    y = x * 2
    y.relu_()
    z = y + 1
    z.mul_(3).clamp_(max=2).add_(y)
    return z


def written_into_part(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, 1:3] = x[:, 1:3].tanh()
    y[:, 0].mul_(2).add_(x[:, 3])
    y[:1] *= 3
    return y * 2


def written_over(x: Tensor) -> Tensor:
    """What is overwritten gets no message."""
    y = x * 2
    y[:, 2:] = x[:, :2].exp()
    return y


def written_through_a_view(x: Tensor) -> Tensor:
    y = x * 2
    part = y.view(len(x), -1)[:, 3:]
    part.sigmoid_()
    return torch.cat([y.flatten(1), part * 3], 1)


def attention(x: Tensor) -> Tensor:
    q, k, v = x.reshape(3, 4, 2, 32).unbind(2)[0].split([8, 16, 8], -1)
    return torch.softmax(q @ k[..., :8].transpose(1, 2) / 3, -1) @ v


def fused_attention(x: Tensor) -> Tensor:
    q = x.flatten(2)[:, :, :8]
    return F.scaled_dot_product_attention(q, q.tanh(), q * 2, is_causal=True)


FUNCTIONS: list[Callable[[Tensor], Tensor]] = [
    residual_sums, diamonds, dense, in_place, written_into_part, written_over, written_through_a_view, attention,
    fused_attention,
]  # fmt: skip
SHORT: dict[str, Callable[[Tensor], Tensor]] = {
    "nothing at all": lambda x: x,
    "x x": lambda x: x * x,
    "x + x": lambda x: x + x,
    "x @ x": lambda x: x @ x,
    "cat of itself": lambda x: torch.cat([x, x * 2, x], 1),
    "one of unbind": lambda x: x.unbind(1)[2] * 2,
    "two of unbind": lambda x: x.unbind(1)[3].exp() * x.unbind(1)[1],
    "last of split": lambda x: x.split([1, 3], 1)[1].tanh(),
    "first and last of chunk": lambda x: torch.mul(*x.chunk(4, 1)[::3]),
    "pool with indices": lambda x: F.max_pool2d(x.tanh(), 2, return_indices=True)[0],
    "unpooled": lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
    "values of topk": lambda x: x.topk(2, 1).values.exp(),
    "second of two": lambda x: torch.var_mean(x, 1)[1].exp(),
    "first of two": lambda x: torch.var_mean(x, 1)[0].exp(),
    "both of two": lambda x: torch.mul(*torch.var_mean(x, 1)),
    "values of sort": lambda x: x.sort(-1)[0] * x,
    "expand": lambda x: x[:, :1].expand(3, 4, 8, 8) * x,
    "dead branch": lambda x: (x.tanh(), x.exp())[0],
    "cut off": lambda x: x * torch.sigmoid(x.detach()),
    "under no_grad": lambda x: x.tanh() + torch.no_grad()(torch.exp)(x),
    "does not reach": lambda x: x[:, :2].detach() * 2 + x[:, 2:] * 0 + 1,
    "batch norm": lambda x: F.batch_norm(x, *uniform(2, 4, dtype=torch.float64)),
    "norm of the batch": lambda x: F.batch_norm(x, None, None, training=True) * x,
    "layer norm": lambda x: F.layer_norm(x, (8,)) * x,
    "group norm": lambda x: F.group_norm(x, 2).exp(),
    "instance norm": lambda x: F.instance_norm(x).exp(),
    "einsum": lambda x: torch.einsum("bchw,bdhw->bcd", x, x.tanh()),
    "spectrum": lambda x: torch.fft.rfft2(x).abs(),
    "singular values": torch.linalg.svdvals,
    "resized": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "padded": lambda x: F.conv2d(F.pad(x, (1, 2, 0, 1), "reflect"), uniform(2, 4, 3, 3, dtype=torch.float64)),
    "turned convolution": lambda x: F.conv_transpose2d(x, uniform(4, 2, 3, 3, dtype=torch.float64), stride=2),
    "weights from x": lambda x: F.conv2d(x, x[:2].tanh()),
    "scattered": lambda x: torch.zeros_like(x).scatter_add(1, torch.ones(3, 4, 8, 8, dtype=torch.int64), x),
    "put": lambda x: torch.zeros_like(x).index_put((torch.tensor([0, 2]),), x[:2].tanh()),
    "where": lambda x: torch.where(x > 0.2, x.exp(), x * 3),
    "vmap": lambda x: torch.vmap(torch.tanh)(x).relu(),
    "checkpoint": lambda x: checkpoint(lambda t: t.tanh().relu() * t, x * 2, use_reentrant=False) * x,
    "a million times": lambda x: x * 1e6 * 1e-6,
}


@pytest.mark.parametrize("f", [*FUNCTIONS, *SHORT.values()], ids=[*(f.__name__ for f in FUNCTIONS), *SHORT])
def test_without_rules_the_way_back_of_a_function_is_autograds(f):
    torch.testing.assert_close(walked(f, PICTURES)[0], by_autograd(f, PICTURES), **EXACT)


@pytest.mark.parametrize(
    ("make", "x"),
    [
        (plain, PICTURES[:, :3]), (residual, PICTURES[:, :3]), (reusing, PICTURES[:, :3]), (tokens, PICTURES[:, :3]),
        (channels_last, PICTURES[:, :3]), (segmenting, PICTURES[:, :3]), (recurrent, STEPS[..., :3]),
        (lambda: recurrent(3), STEPS[..., :3]), (encoder, STEPS[..., :4]),
    ],
    ids=["plain", "residual", "reusing", "tokens", "channels last", "segmenting", "LSTM", "deep LSTM", "encoder"],
)  # fmt: skip
def test_without_rules_the_way_back_of_a_network_is_autograds(make, x):
    """Also where torch runs a recurrent layer or attention fused when nobody looks."""
    net = make().requires_grad_(False)
    torch.testing.assert_close(walked(net, x, net=net)[0], by_autograd(net, x), **EXACT)


@pytest.mark.parametrize(
    "net",
    [
        nn.LSTM(6, 4, 2, batch_first=True, bidirectional=True), nn.GRU(6, 4, batch_first=True),
        nn.RNN(6, 4, nonlinearity="relu", batch_first=True), nn.LSTM(6, 4, proj_size=2, batch_first=True),
    ],
    ids=["LSTM", "GRU", "RNN", "projected"],
)  # fmt: skip
def test_recurrent_layers_are_seen_gate_by_gate(net):
    net = net.double().requires_grad_(False)
    torch.testing.assert_close(
        walked(lambda x: net(x)[0], STEPS, net=net)[0], by_autograd(lambda x: net(x)[0], STEPS), **EXACT
    )
    assert Kind.RECURRENT not in {one.kind for one in ran(net, STEPS, net=net).operations}


@pytest.mark.parametrize("cell", [nn.LSTMCell(6, 4), nn.GRUCell(6, 4)], ids=["LSTM", "GRU"])
def test_recurrent_cells_too(cell):
    cell = cell.double().requires_grad_(False)

    def f(x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = cell(step, state)
        return state[1] if isinstance(state, tuple) else state

    torch.testing.assert_close(walked(f, STEPS, net=cell)[0], by_autograd(f, STEPS), **EXACT)


@pytest.mark.parametrize("weights", [True, False])
def test_attention_layers_too(weights):
    net = nn.MultiheadAttention(6, 2, batch_first=True).double().requires_grad_(False)

    def f(x: Tensor) -> Tensor:
        return net(x, x * 2, x.tanh(), need_weights=weights)[0]

    torch.testing.assert_close(walked(f, STEPS, net=net)[0], by_autograd(f, STEPS), **EXACT)


def test_in_bfloat16_autocast_too():
    """Casts are operations as others; the same numbers are rounded at the same places, so all bits are the same."""
    net = residual().float().requires_grad_(False)

    def f(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return net(x)

    x = PICTURES[:, :3].float()
    assert torch.equal(walked(f, x, net=net)[0], by_autograd(f, x))
    assert not torch.equal(by_autograd(f, x), by_autograd(net, x))


def test_what_does_not_reach_the_input_is_zero():
    found, landed = walked(lambda x: x.detach() * 2 + torch.zeros(3, 6, dtype=torch.float64, requires_grad=True), ROWS)
    assert found.shape == ROWS.shape
    assert not found.any()
    assert landed is None


# rules


def doubled(operation: Operation, messages: Sequence[Tensor | None]) -> list[Sent]:
    return derivative(operation, [m if m is None else 2 * m for m in messages])


def test_a_rule_stands_in_place_of_the_derivative_of_its_operations_only():
    found, landed = walked(lambda x: (x * 3).tanh() + x, ROWS, Book({Kind.ACTIVATION: doubled}))
    weight = torch.linspace(1, 2, 18, dtype=torch.float64).reshape(3, 6)
    torch.testing.assert_close(found, weight * (1 + 6 * (1 - (3 * ROWS).tanh() ** 2)), **EXACT)
    assert landed is None


def test_a_rule_is_applied_at_each_run_of_an_operation():
    """Two rules of two runs make four."""
    found, _ = walked(lambda x: (x * 2).exp().exp(), ROWS / 4, Book({Kind.ACTIVATION: doubled}))
    torch.testing.assert_close(found, 4 * by_autograd(lambda x: (x * 2).exp().exp(), ROWS / 4), **EXACT)


def test_a_rule_sees_the_whole_message():
    """Not one for each path to it: of what comes from two sides, the sum is squared."""
    seen: list[Tensor] = []

    def squared(operation: Operation, messages: Sequence[Tensor | None]) -> list[Sent]:
        [message] = messages
        seen.append(message)
        return [Sent(operation.operands[0].edge, message**2)]

    def f(x: Tensor) -> Tensor:
        y = x.softmax(1)
        return y * 2 - (y * 3).tanh() + y.flip(1)

    found, _ = walked(f, ROWS, Book({Kind.SOFTMAX: squared}))
    y = ROWS.softmax(1).requires_grad_()
    weighted(y * 2 - (y * 3).tanh() + y.flip(1)).backward()
    assert len(seen) == 1
    torch.testing.assert_close(found, y.grad**2, **EXACT)


def test_a_rule_of_an_operation_with_several_outputs_gets_a_message_for_each():
    """None for those that lead nowhere."""
    seen: list[list[Tensor | None]] = []

    def noting(operation: Operation, messages: Sequence[Tensor | None]) -> list[Sent]:
        seen.append(list(messages))
        return derivative(operation, messages)

    walked(lambda x: x.split(2, 1)[2] * 5, ROWS, Book({Kind.LAYOUT: noting}))
    first, second, third = seen[0]
    assert first is None
    assert second is None
    torch.testing.assert_close(third, 5 * torch.linspace(1, 2, 6, dtype=torch.float64).reshape(3, 2), **EXACT)


def test_relevance_that_lands_is_moved_to_the_input_and_summed():
    """Only layout lies between: what landed is put where it belongs, and no rule meets it again."""

    def landing(operation: Operation, messages: Sequence[Tensor | None]) -> list[Sent]:
        [message] = messages
        return [Sent(operation.operands[0].edge, message, landed=True)]

    def f(x: Tensor) -> Tensor:
        moved = x.reshape(3, 2, 3).transpose(1, 2).split(2, 1)[1]
        return torch.cat([moved.reshape(3, 2).tanh(), x[:, 1:].exp(), x[:, :2] * 3], 1)

    found, landed = walked(f, ROWS, Book({Kind.ACTIVATION: landing}))
    weight = torch.linspace(1, 2, 27, dtype=torch.float64).reshape(3, 9)
    expected = torch.zeros_like(ROWS)
    expected[:, [2, 5]] += weight[:, :2]
    expected[:, 1:] += weight[:, 2:7]
    assert landed is not None
    torch.testing.assert_close(landed, expected, **EXACT)
    rest = torch.zeros_like(ROWS)
    rest[:, :2] = 3 * weight[:, 7:]
    torch.testing.assert_close(found, rest, **EXACT)


def test_a_book_is_asked_for_what_leads_to_the_target_in_its_order():
    def f(x: Tensor) -> Tensor:
        y = x.exp()
        y.sin()
        return (y.tanh() * 2).relu()

    book = Book()
    walked(f, ROWS, book)
    assert [one.what for one in book.asked] == ["clone", "exp", "tanh", "mul", "relu"]
    assert book.asked_beside == []


def test_writes_into_part_of_a_tensor_are_told_as_operations_that_nobody_recorded():
    book = Book()
    walked(written_over, PICTURES, book)
    [unseen] = [one for one in book.asked if not one.operands]
    assert "CopySlices" in unseen.what
    assert unseen.kind is Kind.OTHER


def test_nothing_that_was_recorded_is_told_twice():
    for f in (residual_sums, dense, in_place, attention, SHORT["both of two"], SHORT["weights from x"]):
        book = Book()
        walked(f, PICTURES, book)
        assert all(one.operands for one in book.asked)
        assert len({one.node for one in book.asked}) == len(book.asked)


def beside(f: Callable[[Tensor], Tensor], x: Tensor, other: Tensor, book: Book) -> Tensor:
    leaf = x.clone().requires_grad_()
    with recorded(nn.Module(), book.keep) as executed:
        out = f(leaf.clone())
    root, others = weighted(out).grad_fn, ran(lambda t: f(t.clone()), other, book.keep)
    with torch.no_grad():
        return walk_back([root], leaf, executed, [out.grad_fn], book, others)[0]


def test_other_rows_go_beside_operation_by_operation():
    book = Book(kept=Keep(outputs=frozenset({Kind.ACTIVATION})))
    beside(lambda x: (x.exp(), x.sin().tanh())[1], ROWS, ROWS * 2, book)
    assert [one.what for one in book.asked_beside] == [one.what for one in book.asked] == ["clone", "sin", "tanh"]
    for one, other in zip(book.asked[1:], book.asked_beside[1:], strict=True):
        assert not torch.equal(one.output, other.output)
    torch.testing.assert_close(book.asked_beside[2].output, (ROWS * 2).sin().tanh(), **EXACT)


def test_other_rows_that_take_another_way_are_refused():
    def f(x: Tensor) -> Tensor:
        return x.tanh() if x[0, 0] > ROWS[0, 0] else x.sin()

    with pytest.raises(pl.RuleError, match=r"other operations for the baseline.*IntegratedGradients"):
        beside(f, ROWS, ROWS + 1, Book())


# what is kept


def kept(f: Callable[[Tensor], Any], x: Tensor, keep: Keep) -> list[Operation]:
    return ran(f, x, keep).operations


def test_what_is_asked_for_is_kept_as_it_was_and_nothing_else():
    keep = Keep(operands=frozenset({Kind.ACTIVATION}), outputs=frozenset({Kind.SCALE}))
    scaled, activated, added = kept(lambda x: (x * 2).tanh() + x, ROWS, keep)
    torch.testing.assert_close(scaled.output, ROWS * 2, rtol=0, atol=0)
    torch.testing.assert_close(activated.operands[0].value, ROWS * 2, rtol=0, atol=0)
    assert not scaled.output.requires_grad, "a value that is kept keeps no graph"
    assert [one.cell for one in (activated, added)] == [None, None]
    assert [operand.cell for one in (scaled, added) for operand in one.operands] == [None, None, None]


def test_by_default_nothing_is_kept():
    for one in kept(dense, PICTURES, Keep()):
        assert one.cell is None
        assert all(operand.cell is None for operand in one.operands)


WRITES: dict[str, Callable[[Tensor], Any]] = {
    "in place": lambda y: y.mul_(0),
    "twice": lambda y: y.mul_(0).add_(1),
    "into a part": lambda y: y[:, 1:].zero_(),
    "into a view": lambda y: y.view(-1)[4:].fill_(7),
    "into detached": lambda y: y.detach().zero_(),
    "under no_grad": lambda y: torch.no_grad()(y.zero_)(),
    "by assignment": lambda y: y.__setitem__((slice(None), 2), 5.0),
    "as out": lambda y: torch.no_grad()(torch.sin)(torch.zeros_like(y), out=y.detach()),
    "foreach": lambda y: torch.no_grad()(torch._foreach_zero_)([y.detach()]),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_what_is_kept_is_what_it_was_though_it_is_written_to_later(write):
    def f(x: Tensor) -> None:
        y = x * 2
        y + 1
        y[:, 1:] + 1
        write(y)

    keep = Keep(operands=frozenset({Kind.SCALE}), outputs=frozenset({Kind.SCALE}))
    first, second, third, *_ = [one for one in kept(f, ROWS, keep) if one.kind is Kind.SCALE]
    for found, expected in (
        (first.output, ROWS * 2), (second.operands[0].value, ROWS * 2), (second.output, ROWS * 2 + 1),
        (third.operands[0].value, 2 * ROWS[:, 1:]),
    ):  # fmt: skip
        assert torch.equal(found, expected)


def test_what_an_operation_in_place_takes_and_gives_are_told_apart():
    def f(x: Tensor) -> Tensor:
        return (x * 2).relu_().add_(1).mul_(3)

    ops = kept(f, ROWS, Keep(ALL, ALL))
    values = [ROWS, ROWS * 2, (ROWS * 2).relu(), (ROWS * 2).relu() + 1, ((ROWS * 2).relu() + 1) * 3]
    assert [one.what for one in ops] == ["mul", "relu", "add", "mul"]
    for one, before, after in zip(ops, values[:-1], values[1:], strict=True):
        assert torch.equal(one.operands[0].value, before)
        assert torch.equal(one.output, after)


def test_what_is_not_written_to_is_not_copied():
    made: list[Tensor] = []

    def f(x: Tensor) -> Tensor:
        made.append(x * 2)
        return made[0].tanh()

    first, second = kept(f, ROWS, Keep(ALL, ALL))
    assert first.output.data_ptr() == second.operands[0].value.data_ptr() == made[0].data_ptr()


def test_operands_say_where_they_stood_and_what_does_not_depend_on_the_input_is_an_argument():
    weight, bias = uniform(4, 6, dtype=torch.float64), uniform(4, dtype=torch.float64)

    def f(x: Tensor) -> Tensor:
        y = F.linear(x, weight, bias)
        return torch.sub(2, torch.cat([bias.expand(3, 4), y, y * 3], 1), alpha=2)

    linear, scaled, joined, taken = kept(f, ROWS, Keep())
    assert [operand.at for operand in linear.operands] == [1]
    assert torch.equal(linear.args[0], bias)
    assert linear.args[1] is None
    assert torch.equal(linear.args[2], weight.T)
    assert linear.args[3:] == (1, 1), "what was left out is there with its default"
    assert linear.shape == (3, 4)
    assert [(operand.at, operand.edge[0]) for operand in joined.operands] == [(0, linear.node), (0, scaled.node)]
    assert joined.args[1] == 1
    assert taken.what in ("sub", "rsub")
    assert [operand.shape for operand in taken.operands] == [(3, 12)]
    assert 2 in taken.args


def test_an_operand_says_which_output_it_is():
    _, product = kept(lambda x: torch.mul(*x.split(2, 1)[1:]), ROWS, Keep())
    assert [operand.edge[1] for operand in product.operands] == [1, 2]


def test_what_does_not_depend_on_the_input_is_not_recorded():
    def f(x: Tensor) -> Tensor:
        torch.ones(3).exp()
        x.detach().tanh()
        with torch.no_grad():
            x.sin()
        return (x > 0) * x.detach() + x

    assert [one.what for one in kept(f, ROWS, Keep())] == ["add"]


def test_fused_attention_is_taken_apart():
    whats = [one.what for one in ran(fused_attention, PICTURES).operations]
    assert not any("scaled_dot_product" in what or "flash" in what for what in whats)
    assert sum("softmax" in what for what in whats) == 1
    assert [one.kind for one in ran(fused_attention, PICTURES).operations].count(Kind.MATMUL) == 2


# names of modules


def names(net: nn.Module, x: Tensor = ROWS, keep: Keep | None = None) -> list[tuple[str, str]]:
    return [(one.module, one.what) for one in ran(net, x, keep or Keep(named=True), net).operations]


def test_operations_know_the_module_that_ran_them():
    net = nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.ReLU(), nn.Tanh()), nn.Sigmoid()).double()
    net.requires_grad_(False)
    assert names(net) == [("0", "addmm"), ("1.0", "relu"), ("1.1", "tanh"), ("2", "sigmoid")]
    assert [module for module, _ in names(net, keep=Keep())] == ["", "", "", ""]


def test_what_stands_between_modules_belongs_to_the_one_around():
    inner = Calling(lambda net, x: net.act(x * 2) + 1, act=nn.Tanh())
    net = Calling(lambda net, x: net.inner(x.exp()).sin(), inner=inner)
    assert names(net) == [
        ("", "exp"), ("inner", "mul"), ("inner.act", "tanh"), ("inner", "add"), ("", "sin"),
    ]  # fmt: skip


def test_a_shared_module_has_its_last_or_first_name_each_time_it_runs():
    act = nn.Tanh()
    found = names(nn.Sequential(act, nn.Sigmoid(), act))
    assert [what for _, what in found] == ["tanh", "sigmoid", "tanh"]
    assert found[0] == found[2]
    assert found[0][0] in ("0", "2")
    assert found[1][0] == "1"


def test_a_module_that_runs_within_itself_is_left_as_often_as_entered():
    def forward(net: Any, x: Tensor, depth: int = 0) -> Tensor:
        return x.exp() if depth == 2 else net(x.tanh(), depth + 1).sin()

    net = Calling(lambda net, x: net.body(x) * 2, body=Calling(forward))
    assert names(net) == [*(("body", what) for what in ("tanh", "tanh", "exp", "sin", "sin")), ("", "mul")]


def test_after_an_exception_inside_a_module_the_names_are_right_again():
    def failing(net: Any, x: Tensor) -> Tensor:
        net.deep(x)
        raise ValueError("not this way")

    def forward(net: Any, x: Tensor) -> Tensor:
        try:
            return net.bad(x)
        except ValueError:
            return net.good(x.exp()) * 2

    net = Calling(forward, bad=Calling(failing, deep=nn.Tanh()), good=nn.Sigmoid())
    assert names(net) == [("bad.deep", "tanh"), ("", "exp"), ("good", "sigmoid"), ("", "mul")]


# nothing is left behind


def settings() -> tuple[bool, ...]:
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    return (
        torch.backends.mkldnn.enabled, cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled(), cuda.cudnn_sdp_enabled(),
    )  # fmt: skip


@pytest.mark.parametrize("make", [residual, recurrent, encoder])
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_hooks_and_settings_are_afterwards_as_before(make, fails, named):
    torch.backends.mkldnn.set_flags(_enabled=True)  # as it is unless somebody changed it
    net = make()
    before, state = settings(), state_of(net)
    within = []
    error = pytest.raises(KeyError, match="broken") if fails else nullcontext()
    with error, recorded(net, Keep(named=named)):
        within.append(settings())
        if fails:
            raise KeyError("broken")
    assert settings() == before
    assert same_state(state_of(net), state)
    assert within[0][4:] == (False, False, True, False), "plain attention alone"
    assert within[0][0] is (make is not recurrent), "fused recurrent layers are off where there are any"
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None


def test_settings_of_the_user_are_put_back():
    net = recurrent()
    torch.backends.mkldnn.set_flags(_enabled=False)
    try:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
            before = settings()
            ran(net, STEPS[..., :3], net=net)
            assert settings() == before
    finally:
        torch.backends.mkldnn.set_flags(_enabled=True)


def test_a_pass_within_a_pass_is_recorded_by_both():
    with recorded(nn.Module(), Keep()) as outer:
        x = ROWS.clone().requires_grad_()
        y = x.exp()
        with recorded(nn.Module(), Keep()) as inner:
            z = y.tanh()
        z.sin()
    assert [one.what for one in inner.operations] == ["tanh"]
    assert [one.what for one in outer.operations] == ["exp", "tanh", "sin"]


def test_two_threads_record_each_its_own():
    found: dict[str, list[str]] = {}
    barrier = threading.Barrier(2, timeout=10)

    def run(name: str) -> None:
        def f(x: Tensor) -> None:
            for _ in range(20):
                barrier.wait()
                x = getattr(x, name)()

        found[name] = [one.what for one in ran(f, ROWS).operations]

    threads = [threading.Thread(target=run, args=(name,)) for name in ("sin", "tanh")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {"sin": ["sin"] * 20, "tanh": ["tanh"] * 20}


def test_the_record_is_let_go_of_with_the_walk():
    leaf, book = ROWS.clone().requires_grad_(), Book()
    with recorded(nn.Module(), Keep(ALL, ALL)) as executed:
        out = leaf.clone().tanh()
    cell = weakref.ref(executed.operations[1].cell or Cell(leaf))
    root = weighted(out).grad_fn
    assert cell() is not None
    with torch.no_grad():
        walk_back([root], leaf, executed, [out.grad_fn], Book())
    assert executed.operations == []
    assert executed.by_node == {}
    assert cell() is None
    assert book.asked == []


def test_values_that_rules_need_are_let_go_of_as_the_walk_goes():
    """At each rule, those of the operations after it are gone."""
    cells: list[Any] = []
    alive: list[int] = []

    @dataclass(frozen=True)
    class Watched(Book):
        def assign(self, operations: Sequence[Operation], beside: Sequence[Operation] = ()) -> Mapping[Any, Any]:
            cells.extend(weakref.ref(one.cell) for one in operations if one.cell is not None)
            return {one: Assigned(noting, "") for one in operations if one.kind is Kind.ACTIVATION}

    def noting(operation: Operation, messages: Sequence[Tensor | None]) -> list[Sent]:
        alive.append(sum(cell() is not None for cell in cells))
        return derivative(operation, messages)

    def f(x: Tensor) -> Tensor:
        for _ in range(5):
            x = (x * 2).tanh()
        return x

    walked(f, ROWS, Watched(kept=Keep(outputs=frozenset({Kind.ACTIVATION}))))
    assert alive == [5, 4, 3, 2, 1]


# as a pass of a model


def test_a_pass_by_rules_gives_messages_scores_and_those_of_the_rows_beside():
    net, x = residual(), PICTURES[:, :3]
    targets = Targets((pl.ClassScore(0), pl.Margin(1, 2), pl.LogProb(1)), classes(1).kind)
    with quiet(net) as model:
        found = model.rule_pass(x, targets, Book())
        by = model.rule_pass(x, targets, Book(), x / 2)
        expected = model.gradient(x, targets)
        scores, others = model.scores(x, targets), model.scores(x / 2, targets)
    torch.testing.assert_close(found.messages, expected, **EXACT)
    torch.testing.assert_close(by.messages, expected, **EXACT)
    torch.testing.assert_close(found.scores, scores, **EXACT)
    torch.testing.assert_close(by.scores, scores, **EXACT)
    assert found.beside is None
    assert by.beside is not None
    torch.testing.assert_close(by.beside, others, **EXACT)
    assert found.landed is None


@pytest.mark.parametrize("settings", [{"micro_batch": 2}, {"device": ("cpu", "cpu")}], ids=["parts", "devices"])
def test_rows_that_go_in_parts_get_the_same(settings):
    x = PICTURES[:, :3]
    with quiet(residual()) as model:
        expected = model.rule_pass(x, classes(3), Book({Kind.RECTIFIER: doubled}), x / 2)
    with quiet(residual(), **settings) as model:
        found = model.rule_pass(x, classes(3), Book({Kind.RECTIFIER: doubled}), x / 2)
    for name in ("messages", "scores", "beside"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), **EXACT)


def test_a_constant_network_gives_zero():
    with quiet(Constant()) as model:
        found = model.rule_pass(ROWS, classes(3), Book())
    assert found.messages.shape == ROWS.shape
    assert not found.messages.any()
    assert found.scores.tolist() == [0, 0, 0]


def test_errors_of_the_network_and_of_rules_name_the_network():
    def broken(operation: Operation, messages: Sequence[Tensor | None]) -> list[Sent]:
        raise ZeroDivisionError("by nothing")

    with quiet(plain(), name="mine") as model:
        with pytest.raises(pl.ModelError, match=r"mine failed on a batch of shape \(3, 3, 8, 8\): by nothing"):
            model.rule_pass(PICTURES[:, :3], classes(3), Book({Kind.RECTIFIER: broken}))
        with pytest.raises(pl.ModelError, match="mine failed"):
            model.rule_pass(PICTURES, classes(3), Book())


def test_a_pass_by_rules_leaves_a_network_bit_by_bit_as_before():
    net = fixed(lambda: nn.Sequential(nn.Linear(6, 4), nn.ReLU(inplace=True), nn.Linear(4, 3)))()
    before, flags = state_of(net), settings()
    with quiet(net) as model:
        model.rule_pass(ROWS, classes(3), Book(kept=Keep(ALL, ALL, named=True)))
    assert same_state(state_of(net), before)
    assert settings() == flags


def test_recording_does_not_load_torchs_compiler():
    """A second of the first call, and 70 MB that no prediction of memory knows of."""
    code = """
import sys, torch
from torch import nn
import pellucid as pl
a = pl.LRP()(pl.TorchModel(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))), torch.rand(1, 3), 0)
print("torch._dynamo" in sys.modules)
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "False"
