"""What layers give, their names, and the layer that maps are made of by default."""

from collections import OrderedDict, namedtuple
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from tests.core.networks import (
    Calling,
    channels_last,
    classes,
    conv,
    fixed,
    plain,
    quiet,
    recurrent,
    residual,
    resnet,
    reusing,
    same_state,
    segmenting,
    state_of,
    tokens,
    two_inputs,
)
from tests.oracles import uniform
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # as networks write it

import pellucid as pl
from pellucid.core.grid import grid_of
from pellucid.core.layer import first_tensor, with_first

X = uniform(2, 3, 9, 9, dtype=torch.float64)
EXACT = {"rtol": 1e-10, "atol": 1e-13}
"""The same operations on the same numbers, in another order of memory."""


def of_layer(net: nn.Module, *layers: str, x: Any = X, target: int = 0, gradients: bool = True, **settings: Any) -> Any:
    with quiet(net, **settings) as model:
        placed = model.place(x)
        return model.layer_pass(placed, classes(len(placed), target), layers, gradients=gradients)


def by_hand(net: nn.Sequential, number: int, x: Tensor = X) -> tuple[Tensor, Tensor]:
    """What step `number` of a sequence gives, and the gradient of output 0 by that; nothing is written in place."""
    for module in net.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    activation = net[: number + 1](x).detach().requires_grad_()
    [gradient] = torch.autograd.grad(net[number + 1 :](activation)[:, 0].sum(), activation)
    return activation.detach(), gradient


@pytest.mark.parametrize("number", range(7))
def test_it_is_what_the_layer_gave_and_the_gradient_by_that_though_the_next_writes_in_place(number):
    expected, gradient = by_hand(plain(), number)
    found = of_layer(plain(), str(number))
    torch.testing.assert_close(found.activations[0], expected, **EXACT)
    torch.testing.assert_close(found.gradients[0], gradient, **EXACT)
    torch.testing.assert_close(found.scores, plain()(X)[:, 0].detach(), **EXACT)


def test_several_layers_come_from_one_pass_in_the_order_of_their_names():
    passes = []
    net = plain()
    net.register_forward_pre_hook(lambda module, args: passes.append(len(args[0])))
    found = of_layer(net, "5", "0", "3")
    assert passes == [2]
    for i, number in enumerate((5, 0, 3)):
        expected, gradient = by_hand(plain(), number)
        torch.testing.assert_close(found.activations[i], expected, **EXACT)
        torch.testing.assert_close(found.gradients[i], gradient, **EXACT)


def test_activations_alone_need_no_graph():
    found = of_layer(plain(), "3", gradients=False)
    torch.testing.assert_close(found.activations[0], by_hand(plain(), 3)[0], **EXACT)
    assert found.gradients == ()


def test_the_gradient_of_a_layer_on_which_the_target_does_not_depend_is_zero():
    net = Calling(lambda net, x: net.a(x) + 0 * net.b(x).detach(), a=nn.Linear(3, 2), b=nn.Linear(3, 2)).double()
    found = of_layer(net, "a", "b", x=uniform(4, 3, dtype=torch.float64))
    assert torch.equal(found.gradients[0], torch.eye(2, dtype=torch.float64)[:1].expand(4, 2))
    assert torch.equal(found.gradients[1], torch.zeros(4, 2, dtype=torch.float64))


def test_what_lies_before_the_layer_needs_no_gradient():
    class OneWay(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            raise RuntimeError("no way back")

    net = Calling(lambda net, x: net.b(net.a(OneWay.apply(x))), a=nn.Linear(3, 4), b=nn.Linear(4, 2)).double()
    x = uniform(4, 3, dtype=torch.float64)
    assert torch.equal(of_layer(net, "a", x=x).gradients[0], net.b.weight[:1].detach().expand(4, 4))


# names


@pytest.mark.doors
def test_a_module_that_runs_several_times_is_refused_with_its_runs():
    with pytest.raises(pl.LayerError, match=r"'act' runs 3 times in one pass.*write 'act:1' to 'act:3'"):
        of_layer(reusing(), "act")


@pytest.mark.parametrize("name", ["act:2", "block.1:2"])
def test_a_run_is_named_by_its_number(name):
    """block.1 is the same module under another name."""
    net = reusing()
    second = net.act(net.conv(net.block(X))).detach().requires_grad_()
    [gradient] = torch.autograd.grad(net.head(net.act(0.3 - second).mean((2, 3)))[:, 0].sum(), second)
    found = of_layer(net, name)
    torch.testing.assert_close(found.activations[0], second.detach(), **EXACT)
    torch.testing.assert_close(found.gradients[0], gradient, **EXACT)


def test_two_runs_of_a_module_are_two_layers():
    net = reusing()
    found = of_layer(net, "act:3", "act:1")
    torch.testing.assert_close(found.activations[1], net.block(X).detach(), **EXACT)
    torch.testing.assert_close(found.activations[0], net.act(0.3 - net.act(net.conv(net.block(X)))).detach(), **EXACT)


def test_a_module_under_two_names_is_one_layer():
    net = Calling(lambda net, x: net.a(x) * 3, a=nn.Linear(3, 2), b=nn.Identity()).double()
    net.b = net.a
    x = uniform(4, 3, dtype=torch.float64)
    assert torch.equal(of_layer(net, "a", x=x).activations[0], of_layer(net, "b", x=x).activations[0])
    net.call = lambda net, x: net.a(net.b(x)[:, [0, 1, 1]])
    for name in ("a", "b"):
        with pytest.raises(pl.LayerError, match=f"'{name}' runs 2 times"):
            of_layer(net, name, x=x)


@pytest.mark.doors
@pytest.mark.parametrize(
    ("net", "name", "words"),
    [
        (residual, "blok1", r"no layer 'blok1'. Did you mean 'block1' or 'block2'"),
        (residual, "block1.conv3", r"Did you mean 'block1.conv\d' or 'block1.conv\d'"),
        (residual, "zzz", r"Did you mean 'block2.conv2' or 'block2.norm2' or 'head'|or 'head'\?"),
        (reusing, "act:4", r"'act' runs 3 times in one pass, but 'act:4' was asked for"),
        (reusing, "act:0", r"no layer 'act:0'. Did you mean 'act'"),
        (lambda: nn.Linear(3, 2).double(), "fc", r"no layer 'fc'. It has no modules inside."),
    ],
)
def test_a_wrong_name_is_refused_with_near_ones(net, name, words):
    with pytest.raises(pl.LayerError, match=words):
        of_layer(net(), name)


@pytest.mark.doors
def test_a_layer_in_a_branch_that_is_not_taken_is_refused():
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.small(x) if len(x) < 100 else net.large(x)

    net = Calling(forward, small=nn.Linear(3, 2), large=nn.Linear(3, 2)).double()
    with pytest.raises(pl.LayerError, match=r"'large' did not run for these inputs"):
        of_layer(net, "large", x=uniform(2, 3, dtype=torch.float64))


@pytest.mark.doors
@pytest.mark.parametrize(
    ("gives", "words"),
    [
        (lambda x: x.transpose(0, 1), r"'odd' to give a row for each of 2 inputs, but it gave a tensor \(3, 2\)"),
        (lambda x: x.sum(), r"but it gave a tensor \(\)"),
        (lambda x: None, r"but it gave no tensor"),
        (lambda x: (), r"but it gave no tensor"),
    ],
)
def test_what_has_no_row_for_each_input_is_no_activation(gives, words):
    net = Calling(lambda net, x: (net.odd(x), x)[1], odd=Calling(lambda net, x: gives(x)))
    with pytest.raises(pl.LayerError, match=words):
        of_layer(net, "odd", x=uniform(2, 3))


def test_a_networks_own_module_may_be_called_inside():
    net = Calling(lambda net, x: net.outside(net.inside(x)), inside=nn.Linear(3, 4), outside=nn.Linear(4, 2)).double()
    x = uniform(2, 3, dtype=torch.float64)
    assert torch.equal(of_layer(net, "inside", x=x).activations[0], net.inside(x).detach())


# what layers give


Two = namedtuple("Two", "one two")  # as torch's own


@pytest.mark.parametrize(
    "output",
    [
        torch.ones(2), [torch.ones(2), "b"], (torch.ones(2), "b"), Two(torch.ones(2), "b"), (((torch.ones(2),),), 1),
        {"a": torch.ones(2), "b": 1}, OrderedDict(a=(torch.ones(2), 2), b=1), ({"a": torch.ones(2)}, 1),
    ],
)  # fmt: skip
def test_the_first_tensor_of_a_structure_is_taken_and_replaced(output):
    assert torch.equal(first_tensor(output), torch.ones(2))
    other = with_first(output, torch.zeros(2))
    assert type(other) is type(output)
    assert torch.equal(first_tensor(other), torch.zeros(2))
    assert torch.equal(first_tensor(output), torch.ones(2)), "the network's own is left as it was"
    assert str(other) == str(output).replace("1., 1.", "0., 0.")


@pytest.mark.parametrize("output", [None, "text", (), {}, (None, torch.ones(2)), [[]]])
def test_without_a_first_tensor_there_is_none(output):
    assert first_tensor(output) is None


def test_of_a_recurrent_layer_the_steps_are_taken_and_the_state_goes_on():
    net, x = recurrent(), uniform(3, 4, 3, dtype=torch.float64)
    steps, _ = net.lstm(net.first(x))
    found = of_layer(net, "lstm", x=x)
    torch.testing.assert_close(found.activations[0], steps.detach(), **EXACT)
    expected = net.head.weight[0, :5].detach() / 4  # of the mean of four steps; the last state is another tensor
    torch.testing.assert_close(found.gradients[0], expected.expand(3, 4, 5), **EXACT)
    torch.testing.assert_close(found.scores, net(x)[:, 0].detach(), **EXACT)


def test_a_dict_goes_on_as_a_dict():
    body = Calling(lambda net, x: {"out": net.conv(x), "aux": x}, conv=conv(3, 4))
    net = Calling(lambda net, x: net.head(net.body(x)["out"].mean((2, 3))) + net.body.last, body=body).double()
    net.head, body.last = nn.Linear(4, 2).double(), 0
    found = of_layer(net, "body")
    torch.testing.assert_close(found.activations[0], body.conv(X).detach(), **EXACT)
    expected = (net.head.weight[0].detach() / 81).view(4, 1, 1).expand(2, 4, 9, 9)
    torch.testing.assert_close(found.gradients[0], expected, **EXACT)


def test_the_result_of_a_module_that_writes_in_place_may_be_ignored():
    def forward(net: Any, x: Tensor) -> Tensor:
        y = net.a(x)
        net.act(y)
        return net.b(y)

    net = Calling(forward, a=nn.Linear(3, 4), act=nn.ReLU(inplace=True), b=nn.Linear(4, 2)).double()
    found = of_layer(net, "act", x=(x := uniform(2, 3, dtype=torch.float64) - 0.5))
    assert torch.equal(found.activations[0], net.a(x).relu().detach())
    assert torch.equal(found.gradients[0], net.b.weight[:1].detach().expand(2, 4))


def test_a_network_may_write_into_its_input():
    def forward(net: Any, x: Tensor) -> Tensor:
        x.sub_(0.5).mul_(2)
        return net.head(F.relu_(net.conv(x)).mean((2, 3))) + x.mean((2, 3))[:, :2]

    net = Calling(forward, conv=conv(3, 4), head=nn.Linear(4, 2)).double()
    before = X.clone()
    found = of_layer(net, "conv")
    assert torch.equal(X, before)
    activation = net.conv((X - 0.5) * 2).detach()
    torch.testing.assert_close(found.activations[0], activation, **EXACT)
    expected = (activation > 0) * net.head.weight[0].detach().view(4, 1, 1) / 81
    torch.testing.assert_close(found.gradients[0], expected, **EXACT)


# nothing is left behind


def test_hooks_of_the_user_stay_and_fire_and_what_they_change_is_seen():
    net, fired = plain(), []
    handle = net[3].register_forward_hook(lambda module, args, output: fired.append(1) or output * 2)
    doubled = of_layer(net, "3").activations[0]
    assert len(fired) == 1
    handle.remove()
    torch.testing.assert_close(doubled, 2 * of_layer(net, "3").activations[0], **EXACT)
    assert len(fired) == 1


def layer_pass(net: nn.Module) -> None:
    of_layer(net, "0", "3")


def spatial(net: nn.Module) -> None:
    with quiet(net) as model:
        model.spatial_layer(X)


@pytest.mark.parametrize("use", [layer_pass, spatial])
@pytest.mark.parametrize("error", [False, True])
def test_the_network_is_afterwards_bit_by_bit_as_before(use, error):
    def stop(x: Tensor) -> Tensor:
        raise RuntimeError("the network broke")

    net = plain().train()
    net[3].weight.requires_grad_(False)
    net[3].register_forward_hook(lambda module, args, output: None)
    if error:
        net[5] = Calling(lambda net, x: stop(x))
    before = state_of(net)
    with pytest.raises(pl.ModelError, match="the network broke") if error else nullcontext():
        use(net)
    assert same_state(state_of(net), before)


def test_a_layer_that_gives_a_buffer_leaves_it_without_a_gradient():
    table = Calling(lambda net, x: net.rows)
    table.register_buffer("rows", torch.ones(2, 3))
    net = Calling(lambda net, x: x * net.table(x), table=table)
    x = uniform(2, 3)
    assert torch.equal(of_layer(net, "table", x=x).gradients[0], x * torch.tensor([1.0, 0.0, 0.0]))
    assert not table.rows.requires_grad


# networks inside others


@pytest.mark.parametrize(("wrap", "prefix"), [
    (lambda net: torch.compile(net, backend="eager"), "_orig_mod."), (nn.DataParallel, "module."),
])  # fmt: skip
def test_compiled_and_parallel_networks_give_what_the_network_inside_gives(wrap, prefix):
    expected = of_layer(plain(), "3", "1")
    for names in (("3", "1"), (f"{prefix}3", f"{prefix}1")):
        net = wrap(plain())
        net(X)  # compiled
        found = of_layer(net, *names)
        for one, other in zip([*found.activations, *found.gradients], [*expected.activations, *expected.gradients],
                              strict=True):  # fmt: skip
            assert torch.equal(one, other)
    with quiet(wrap(plain())) as model, quiet(plain()) as inner:
        assert model.spatial_layer(X) == inner.spatial_layer(X)


@pytest.mark.doors
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch would rather export, users still script
@pytest.mark.parametrize("name", ["0", "0.0"])
def test_a_layer_inside_a_scripted_module_is_refused_by_name(name):
    inner = torch.jit.script(nn.Sequential(conv(3, 4), nn.ReLU()))
    net = nn.Sequential(inner, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 2))
    with pytest.raises(pl.LayerError, match=rf"The layer '{name}' is scripted"):
        of_layer(net, name, x=X.float())
    torch.testing.assert_close(of_layer(net, "1", x=X.float()).activations[0], net[:2](X.float()).detach())


# the layer that maps are made of


SQUARE = uniform(2, 3, 16, 16, dtype=torch.float64)


def chosen(net: nn.Module, x: Any = SQUARE, **settings: Any) -> str:
    with quiet(net, **settings) as model:
        return model.spatial_layer(model.place(x))


@fixed
def ending(*end: nn.Module) -> nn.Module:
    return nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 4), *end)


@pytest.mark.parametrize(
    ("make", "layer"),
    [
        (lambda: ending(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 2)), "2"),
        (lambda: ending(nn.ReLU(inplace=True), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(64, 2)), "3"),
        (lambda: ending(nn.ReLU(), nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)), "3"),
        (resnet, "block2"),
        (residual, "stem"),
        (reusing, "block.1:3"),
        (tokens, "blocks.1"),
        (lambda: tokens(prefix=5), "blocks.1"),
        (lambda: tokens(pooled=True), "norm"),
        (channels_last, "norm"),
    ],
    ids=["pool", "pool of an activation", "global pool", "resnet", "long shortcut", "reused", "class token",
         "five tokens", "tokens", "channels last"],
)  # fmt: skip
def test_maps_are_made_of_the_last_cells_before_pooling(make, layer):
    """Of the last block of a transformer the class token alone counts, so that its cells get no gradient."""
    assert chosen(make()) == layer


def test_the_gradient_reaches_the_cells_of_the_layer_that_is_chosen_for_a_class_token_and_no_later_ones():
    net = tokens(prefix=2)
    grid = grid_of((2, 18, 6), (3, 16, 16))
    assert (grid.cells, grid.prefix) == ((4, 4), 2)
    for layer, reached in ((chosen(net, SQUARE), True), ("blocks.2", False), ("norm", False)):
        [gradient] = of_layer(net, layer, x=SQUARE).gradients
        assert bool(grid.maps(gradient).any()) is reached
        assert bool(gradient.any())


@pytest.mark.parametrize(
    "end",
    [lambda y: y, torch.sigmoid, lambda y: F.log_softmax(y, 1), lambda y: F.interpolate(y, scale_factor=2)],
    ids=["scores", "probabilities", "logarithms", "enlarged"],
)
@pytest.mark.parametrize("precision", [None, "bfloat16"])
def test_of_a_segmentation_the_outputs_are_not_their_own_explanation(end, precision):
    net = segmenting(end).float() if precision else segmenting(end)
    assert chosen(net, precision=precision, output="segmentation") == "joined"


def test_of_several_inputs_the_cells_are_those_of_the_picture():
    net = two_inputs()
    rows = pl.Input.of((SQUARE, uniform(2, 2, dtype=torch.float64)))
    with pl.TorchModel(net).undisturbed(pl.Key.named("x"), rows.packing) as model:
        assert model.spatial_layer(rows.tensor) == "eye"


def test_a_layer_that_every_path_passes_comes_before_a_later_branch():
    def forward(net: Any, x: Tensor) -> Tensor:
        y = net.stem(x)
        return net.head(torch.cat([net.left(y), net.right(y)], 1).mean((2, 3)))

    net = fixed(lambda: Calling(forward, stem=conv(3, 4), left=conv(4, 4), right=conv(4, 4), head=nn.Linear(8, 2)))()
    assert chosen(net) == "stem"


def test_what_the_outputs_do_not_depend_on_is_not_chosen():
    net = fixed(lambda: Calling(lambda net, x: (net.head(net.stem(x).mean((2, 3))), net.beside(x))[0], stem=conv(3, 4),
                                beside=conv(3, 4), head=nn.Linear(4, 2)))()  # fmt: skip
    assert chosen(net) == "stem"


@pytest.mark.doors
@pytest.mark.parametrize(
    ("net", "x"),
    [
        (lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), uniform(2, 3)),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 2)), uniform(2, 3, 2, 2)),
        (lambda: nn.Sequential(conv(3, 4), Calling(lambda net, x: x.detach().mean((2, 3)))), uniform(2, 3, 4, 4)),
    ],
    ids=["vectors", "flattened", "constant"],
)
def test_a_network_without_cells_is_refused(net, x):
    with pytest.raises(pl.LayerError, match=r"Name one, layer=\.\.\., or take"):
        chosen(net(), x)


def test_the_layer_is_looked_for_once_for_each_shape():
    net, passes = plain(), []
    net.register_forward_pre_hook(lambda module, args: passes.append(len(args[0])))
    with quiet(net) as model:
        assert [model.spatial_layer(X), model.spatial_layer(X[:1] + 1)] == ["4", "4"]
        assert passes == [1]


@pytest.mark.parametrize("smoothed_first", [False, True])
def test_the_default_layer_does_not_depend_on_what_was_called_before(smoothed_first):
    """A norm that is folded gives what its convolution gives: then both would be one place."""
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    model, x = pl.TorchModel(net), uniform(1, 3, 8, 8)
    if smoothed_first:
        pl.SmoothGrad(base=pl.GradCAM(), n_samples=2)(model, x, 0)
    assert pl.GradCAM()(model, x, 0).recipe.notes["layer"] == ["1"]


def test_the_default_layer_of_a_neuron_lies_before_it():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 2))
    model, x = pl.TorchModel(net), uniform(2, 3, 8, 8)
    a = pl.GradCAM()(model, x, pl.Neuron("2", (3,)))
    assert a.recipe.notes["layer"] == ["1", "1"]
    assert pl.GradCAM()(model, x, 0).recipe.notes["layer"] == ["3", "3"]
    assert pl.GradCAM()(model, x, pl.Neuron("0", (3,))).recipe.notes["layer"] == ["0", "0"]
