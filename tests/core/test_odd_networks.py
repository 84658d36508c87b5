"""Networks written oddly, gone through by rules: broadcasting, views, threads, hooks, functions of one's own."""

import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
import torch
from tests.core.networks import Calling, classes, fixed, quiet, residual
from tests.core.test_executed import EXACT, PICTURES, ROWS, Book, by_autograd, doubled, names, walked
from tests.core.test_operation import last
from tests.explainers.test_guided_backprop import Rectifier, both
from tests.oracles import uniform
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # as networks write it

import pellucid as pl
from pellucid.core.executed import derivative, recorded
from pellucid.core.network import Ask
from pellucid.core.operation import Kind
from pellucid.core.rule import Assigned, Keep
from pellucid.core.target import Targets

# broadcasting


def squeezed(x: Tensor) -> Tensor:
    y = x.tanh()
    return y * (y.mean((2, 3), keepdim=True) * 3).sigmoid()


def dense(x: Tensor) -> Tensor:
    found = [x]
    for i in range(6):
        found.append((torch.cat(found, 1).mean(1, keepdim=True) * (i + 1) * found[i // 2]).tanh())
    return torch.cat(found[::-1], 1)


@pytest.mark.parametrize("f", [
    squeezed, dense, lambda x: x.mean(0) + x * x[:, :, :1] - x[0, 0, 0, 0],
    lambda x: x[:, :1].expand(3, 5, 8, 8) * x.mean((2, 3), keepdim=True)[:, :1],
    lambda x: (x[:, :1] / x.exp()).tanh() + torch.maximum(x, x[:, :1]),
], ids=["squeezed", "dense", "sums", "expand", "quotients"])  # fmt: skip
def test_messages_are_summed_over_what_was_broadcast(f):
    torch.testing.assert_close(walked(f, PICTURES)[0], by_autograd(f, PICTURES), **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_messages_have_the_type_of_what_they_are_of(dtype):
    def f(x):
        return (x * 2).tanh().double() * x

    found, _ = walked(f, ROWS.to(dtype))
    assert found.dtype == dtype
    assert torch.equal(found, by_autograd(f, ROWS.to(dtype)))


@both
def test_of_a_gate_that_is_broadcast_it_is_what_autograd_makes_of_such_rectifiers(method, monkeypatch):
    net = fixed(lambda: Calling(
        lambda net, x: net.head(((y := F.relu(net.a(x))) * net.b(y.mean((2, 3), keepdim=True)).sigmoid()).mean((2, 3))),
        a=nn.Conv2d(4, 4, 3), b=nn.Conv2d(4, 4, 1), head=nn.Linear(4, 2)))()  # fmt: skip
    leaf = PICTURES.clone().requires_grad_()
    with monkeypatch.context() as patch:
        patch.setattr(F, "relu", lambda x: Rectifier.apply(x, method))
        [expected] = torch.autograd.grad(net(leaf)[:, 0].sum(), leaf)
    torch.testing.assert_close(method(pl.TorchModel(net), PICTURES, target=0).scores, expected, **EXACT)


# functions of the user's own, full backward hooks


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor, other):
        ctx.save_for_backward(x)
        ctx.factor = factor
        return x * x * factor, x * 3

    @staticmethod
    def backward(ctx, one, other):
        [x] = ctx.saved_tensors
        return 5 * x * one + 3 * other, None, None  # not the derivative: it is asked


@pytest.mark.parametrize("used", [0, 1, 2])
def test_functions_of_the_users_own_are_gone_through(used):
    def f(x):
        out = Square.apply(x.tanh(), 2.0, torch.ones(1))
        return out[used] if used < 2 else out[0] * out[1]

    torch.testing.assert_close(walked(f, ROWS)[0], by_autograd(f, ROWS), **EXACT)


def test_a_function_of_the_users_own_is_told_as_one_that_nobody_recorded():
    book = Book()
    walked(lambda x: Square.apply(x.tanh(), 2.0, torch.ones(1))[0].exp(), ROWS, book)
    assert [one.what for one in book.asked if not one.operands] == ["SquareBackward"]


@both
def test_networks_with_backward_hooks_are_explained(method):
    nets = [nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).double() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    nets[0][0].register_full_backward_hook(lambda module, given, out: None)
    found, expected = (method(pl.TorchModel(net), ROWS, target=0).scores for net in nets)
    assert torch.equal(found, expected)


# scripted modules


@both
@pytest.mark.parametrize("whole", [True, False])
def test_scripted_parts_in_which_nobody_sees_rectifiers_are_refused(method, whole):
    part = fixed(lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU()))()
    rest = fixed(lambda: nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 2)))()
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        net = torch.jit.script(nn.Sequential(part, rest)) if whole else nn.Sequential(torch.jit.script(part), rest)
    expected = method(pl.TorchModel(nn.Sequential(part, rest)), ROWS, target=0).scores
    for _ in range(3):  # torch optimises what it has run twice; before, all is seen
        with suppress(pl.RuleError):
            torch.testing.assert_close(method(pl.TorchModel(net), ROWS, target=0).scores, expected, **EXACT)
    with pytest.raises(pl.RuleError, match=r"before torch\.jit"):
        method(pl.TorchModel(net), ROWS, target=0)


# scores that are computed on another thread than the pass


def test_a_pass_that_was_begun_on_another_thread_gives_the_same():
    """Autograd numbers nodes by thread: those of the score may have lower numbers than those of the network."""
    x, book = PICTURES[:, :3], Book({Kind.RECTIFIER: doubled})
    targets = Targets((pl.ClassScore(0), pl.ClassScore(1), pl.Margin(1, 0)), classes(1).kind)
    with quiet(residual()) as model:
        [network] = model.networks.each
        expected = network.rule_pass(x, targets, book).messages

        def begin():
            y = torch.zeros(1, requires_grad=True)
            for _ in range(1000):
                y = y + 1
            return network.begin(x, Ask(record=book.keep))

        with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as two:
            begun = one.submit(begin).result()
            found = two.submit(lambda: network.rule_pass(x, targets, book, begun=begun)).result().messages
    torch.testing.assert_close(found, expected, **EXACT)


# memory


class Box:
    def __init__(self, t):
        self.t = t


def test_what_autograd_saved_is_let_go_of_as_the_walk_goes():
    boxes, alive = [], []

    def pack(t):
        box = Box(t.detach())
        boxes.append(weakref.ref(box))
        return box

    def noting(operation, messages):
        alive.append(sum(box() is not None for box in boxes))
        return derivative(operation, messages)

    class Chain(nn.Module):
        def forward(self, x):
            for _ in range(5):
                x = x.exp().tanh().neg()
            return x

    class Forgetful(Book):
        def assign(self, operations, beside=()):
            return {one: Assigned(noting, "") for one in operations if one.kind is Kind.SCALE}

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda box: box.t), quiet(Chain()) as model:
        model.rule_pass(ROWS, classes(len(ROWS)), Forgetful())
    assert len(boxes) == 10
    assert alive == [10, 8, 6, 4, 2]


# in place on a view


@both
@pytest.mark.parametrize("act", [lambda y: y[:, :].relu_(), lambda y: y.view(-1).relu_(),
                                 lambda y: y[:, :2].clamp_(min=0)], ids=["slice", "view", "part"])  # fmt: skip
def test_a_rectifier_in_place_on_a_view_is_not_passed_over(method, act):
    """The map of the same network with the rectifier by assignment, or an error; never plain derivatives."""

    def made(run):
        return fixed(lambda: Calling(
            lambda net, x: net.c(F.relu(net.b(run(net.a(x))))), a=nn.Linear(6, 5), b=nn.Linear(5, 5),
            c=nn.Linear(5, 2)))()  # fmt: skip

    def in_place(y):
        act(y)
        return y

    def assigned(y):
        if act(torch.ones(3, 5)).shape == (3, 2):
            return torch.cat([F.relu(y[:, :2]), y[:, 2:]], 1)
        return F.relu(y)

    expected = method(pl.TorchModel(made(assigned)), ROWS, target=0).scores
    try:
        found = method(pl.TorchModel(made(in_place)), ROWS, target=0).scores
    except pl.RuleError:
        return
    torch.testing.assert_close(found, expected, **EXACT)


@pytest.mark.parametrize("method", [pl.LRP(), pl.DeepLIFT()], ids=["lrp", "deep-lift"])
def test_a_rectifier_in_place_after_a_linear_layer_of_three_axes_is_as_any_other(method):
    def made(inplace):
        return fixed(lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=inplace), nn.Flatten(), nn.Linear(20, 2)))()

    x = uniform(2, 4, 6, dtype=torch.float64)
    found, expected = (method(pl.TorchModel(made(inplace)), x, target=0).scores for inplace in (True, False))
    torch.testing.assert_close(found, expected, **EXACT)


# norms by the statistics of the input are no scales


@pytest.mark.parametrize("f", [F.instance_norm, lambda x: F.batch_norm(x, None, None, training=True)],
                         ids=["instance", "training"])  # fmt: skip
def test_a_norm_by_the_inputs_own_statistics_is_a_norm(f):
    with recorded(nn.Module(), Keep()) as executed:
        f(PICTURES.clone().requires_grad_())
    assert Kind.NORM in [one.kind for one in executed.operations]


# rounding division is no scale


def test_a_rounded_quotient_is_no_scale():
    assert last(lambda x: torch.div(x, 2, rounding_mode="floor")).kind is not Kind.SCALE


# a hook of the user's that fails before the module is entered


def test_after_an_exception_in_a_hook_before_a_module_the_names_are_right_again():
    def stop(module, args):
        raise ValueError("not this way")

    def forward(net, x):
        try:
            return net.bad(x)
        except ValueError:
            return net.good(x.exp())

    net = Calling(forward, bad=nn.Tanh(), good=nn.Sigmoid())
    net.bad.register_forward_pre_hook(stop)
    assert names(net) == [("", "exp"), ("good", "sigmoid")]
