"""A network from one of its layers on: outputs, gradients, and what is not run again."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from tests.core.networks import (
    Calling,
    channels_last,
    classes,
    conv,
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
from tests.oracles import conv_net, uniform
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # as networks write it

import pellucid as pl
from pellucid.core.layer import find, modules_of
from pellucid.core.tail import Tail
from pellucid.core.target import Targets

PICTURES = uniform(3, 3, 8, 8, dtype=torch.float64)
STEPS = uniform(3, 4, 3, dtype=torch.float64)
WORDS = uniform(3, 5, 4, dtype=torch.float64)
EXACT = {"rtol": 1e-10, "atol": 1e-12}
"""The same operations on the same numbers, for other numbers of rows."""

ORDER = [2, 0, 0, 1]
"""Rows of inputs in another order, one of them twice."""


def replaced(net: nn.Module, layer: str, activation: Tensor, x: Tensor) -> Tensor:
    """The outputs where the layer's (first) tensor is another: all is run, and a hook puts it there."""
    module, _, run = layer.partition(":")
    runs = []

    def put(module: nn.Module, args: Any, output: Any) -> Any:
        runs.append(output)
        if len(runs) != int(run or 1):
            return output
        return (activation, *output[1:]) if isinstance(output, tuple) else activation.clone()

    handle = find(modules_of(net), module).register_forward_hook(put)
    try:
        outputs = net(x.clone())
    finally:
        handle.remove()
    return outputs.mean((2, 3)) if outputs.ndim == 4 else outputs


def ignoring() -> nn.Module:
    """What a module writes in place is used, and not what it returns."""

    def forward(net: Any, x: Tensor) -> Tensor:
        y = net.conv(x)
        net.act(y)
        return net.head(F.relu_(net.last(y)).mean((2, 3)) + y.mean((2, 3)))

    return fixed(lambda: Calling(forward, conv=conv(3, 4), act=nn.ReLU(inplace=True), last=conv(4, 4),
                                 head=nn.Linear(4, 3)))()  # fmt: skip


def writing() -> nn.Module:
    """Writes into its input, and uses it again after the layer."""

    def forward(net: Any, x: Tensor) -> Tensor:
        x.sub_(0.5).mul_(2)
        return net.head(F.relu_(net.conv(x)).mean((2, 3))) + x.mean((2, 3))

    return fixed(lambda: Calling(forward, conv=conv(3, 4), head=nn.Linear(4, 3)))()


def viewing() -> nn.Module:
    """Takes no channels last: a view of what a convolution gives."""
    return fixed(lambda: Calling(lambda net, x: net.head(net.conv(x).view(len(x), -1)), conv=conv(3, 4),
                                 head=nn.Linear(256, 3)))()  # fmt: skip


def stateful() -> nn.Module:
    """A module leaves something in the network that is read after the layer."""

    def forward(net: Any, x: Tensor) -> Tensor:
        y = net.conv(net.first(x))
        return net.head(y.mean((2, 3)) + net.first.kept.mean((2, 3))[:, :1])

    def first(net: Any, x: Tensor) -> Tensor:
        net.kept = x * 2
        return x

    return fixed(lambda: Calling(forward, first=Calling(first), conv=conv(3, 4), head=nn.Linear(4, 3)))()


CASES = [
    (plain, "0", PICTURES), (plain, "2", PICTURES), (plain, "5", PICTURES), (plain, "6", PICTURES),
    (residual, "stem.0", PICTURES), (residual, "block1", PICTURES), (residual, "block1.norm2", PICTURES),
    (residual, "block2.conv1", PICTURES), (residual, "block2", PICTURES),
    (reusing, "act:1", PICTURES), (reusing, "act:2", PICTURES), (reusing, "act:3", PICTURES),
    (reusing, "conv", PICTURES), (reusing, "block", PICTURES),
    (tokens, "blocks.1", PICTURES), (tokens, "blocks.2.norm1", PICTURES), (channels_last, "mlp", PICTURES),
    (segmenting, "coarse", PICTURES), (segmenting, "up", PICTURES), (segmenting, "joined", PICTURES),
    (recurrent, "first", STEPS), (recurrent, "lstm", STEPS), (lambda: recurrent(3), "lstm", STEPS),
    (encoder, "body.layers.0", WORDS), (encoder, "body.layers.1.linear1", WORDS),
    (encoder, "body.layers.1.norm1", WORDS), (encoder, "body.layers.1.self_attn", WORDS),
    (ignoring, "last", PICTURES), (ignoring, "conv", PICTURES), (writing, "conv", PICTURES),
    (viewing, "conv", PICTURES), (stateful, "conv", PICTURES),
]  # fmt: skip
NAMES = [f"{getattr(make, '__name__', make)}-{layer}" for make, layer, _ in CASES]


@pytest.mark.parametrize(("make", "layer", "x"), CASES, ids=NAMES)
@pytest.mark.parametrize("batch", [1, 3])
def test_it_is_the_network_as_a_function_of_the_activation(make, layer, x, batch):
    """Shortcuts keep what each row's own input gave; the rows may come in any order."""
    x = x[:batch]
    order = [i for i in ORDER if i < batch]
    output = "segmentation" if make is segmenting else None
    with quiet(make(), output=output) as model:
        clean = model.outputs(x)
        [expected] = model.layer_pass(x, classes(batch) if output is None else regions(batch), [layer],
                                      gradients=False).activations  # fmt: skip
        with model.tail(x, layer) as (rest, rows):
            assert rows.shape == (batch, expected[0].numel() + 1)
            torch.testing.assert_close(rows[:, :-1], expected.flatten(1), **EXACT)
            assert rows[:, -1].tolist() == list(range(batch))
            torch.testing.assert_close(rest.outputs(rows), clean, **EXACT)
            others = rows[order]
            others[:, :-1] += uniform(len(order), rows.shape[1] - 1, dtype=torch.float64) / 4
            targets = classes(len(order), 1) if output is None else regions(len(order))
            outputs, gradient = rest.outputs(others), rest.gradient(others, targets)
    activation = others[:, :-1].reshape(-1, *expected.shape[1:]).requires_grad_()
    by_hook = replaced(make(), layer, activation, x[order])
    scores = by_hook[:, 1]
    torch.testing.assert_close(outputs.mean((2, 3)) if output else outputs, by_hook.detach(), **EXACT)
    [by] = torch.autograd.grad(scores.sum(), activation)
    assert bool(by.any())
    torch.testing.assert_close(gradient[:, :-1], by.flatten(1), **EXACT)
    assert not bool(gradient[:, -1].any()), "which input a row is of is held"


def regions(rows: int) -> Any:
    whole = pl.RegionMean(1, pl.Region((8, 8), (0, 64)))
    return type(classes(1))((whole,) * rows, pl.core.prediction.OutputKind.SEGMENTATION)


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_inputs_go_through_in_parts(micro_batch):
    with quiet(residual(), micro_batch=micro_batch) as model:
        clean = model.outputs(PICTURES)
        with model.tail(PICTURES, "block2.conv1") as (rest, rows):
            torch.testing.assert_close(rest.outputs(rows[[2, 0, 1]]), clean[[2, 0, 1]], **EXACT)


def counted(net: nn.Module) -> tuple[nn.Module, dict[str, list[int]]]:
    """The rows of each call of each module's own forward."""
    calls: dict[str, list[int]] = {name: [] for name, _ in net.named_modules()}
    for name, module in net.named_modules():

        def forward(*args: Any, run: Callable[..., Any] = module.forward, name: str = name) -> Any:
            calls[name].append(len(args[0]))
            return run(*args)

        module.forward = forward
    return net, calls


def test_what_ended_before_the_layer_began_is_not_run_again():
    net, calls = counted(residual())
    with quiet(net) as model, model.tail(PICTURES, "block2.conv1") as (rest, rows):
        for each in calls.values():
            each.clear()
        rest.outputs(rows)
        rest.gradient(rows, classes(3))
    ran = {name for name, each in calls.items() if each}
    assert ran == {"", "block2", "block2.norm1", "block2.conv2", "block2.norm2", "head"}
    assert calls["head"] == [3, 3]


@pytest.mark.parametrize("layer", ["conv", "act:2"])
def test_a_module_that_runs_before_the_layer_and_after_it_runs_again_on_what_is_kept(layer):
    """Its first run is part of the block that is skipped, whether or not its second is the layer."""
    net, calls = counted(reusing())
    with quiet(net) as model, model.tail(PICTURES, layer) as (rest, rows):
        for each in calls.values():
            each.clear()
        rest.outputs(rows)
    assert {name: len(each) for name, each in calls.items() if each} == {"": 1, "block.1": 2, "head": 1}, (
        "act is block.1"
    )


@pytest.mark.parametrize("make", [ignoring, stateful])
def test_where_skipping_would_change_the_outputs_nothing_is_skipped(make):
    net, calls = counted(make())
    with quiet(net) as model, model.tail(PICTURES, "last" if make is ignoring else "conv") as (rest, rows):
        calls["conv" if make is ignoring else "first"].clear()
        rest.outputs(rows)
    assert calls["conv" if make is ignoring else "first"] == [3]


# with what models do to networks


@pytest.mark.parametrize("layer", ["0", "1", "2", "3", "0.0"])
@pytest.mark.parametrize("inner", [False, True])
def test_folded_norms_change_nothing(layer, inner):
    """Within `quick` a convolution does what its norm did; the layer still gives its own."""
    net = plain()
    if layer == "0.0":
        net[0] = nn.Sequential(net[0])
    with quiet(net) as model:
        clean = model.outputs(PICTURES)
        [expected] = model.layer_pass(PICTURES, classes(3), [layer], gradients=False).activations
        with model.quick(PICTURES) if not inner else nullcontext(), model.tail(PICTURES, layer) as (rest, rows):
            torch.testing.assert_close(rows[:, :-1], expected.flatten(1), **EXACT)
            with rest.quick(rows) if inner else nullcontext():
                torch.testing.assert_close(rest.outputs(rows), clean, **EXACT)
                activation = (rows[:, :-1] * 1.5).reshape(expected.shape).requires_grad_()
                changed = torch.cat([activation.detach().flatten(1), rows[:, -1:]], 1)
                gradient = rest.gradient(changed, classes(3))
                outputs = rest.outputs(changed)
        assert bool(model.folded_bytes) is False
    by_hook = replaced(net, layer, activation, PICTURES)
    torch.testing.assert_close(outputs, by_hook.detach(), **EXACT)
    torch.testing.assert_close(
        gradient[:, :-1], torch.autograd.grad(by_hook[:, 0].sum(), activation)[0].flatten(1), **EXACT
    )


@pytest.mark.parametrize(("make", "layer"), [(residual, "block1.norm2"), (tokens, "blocks.1"), (reusing, "act:2")])
def test_in_bfloat16_it_is_right_to_its_digits(make, layer):
    single = make().float()
    x = PICTURES.float()
    with quiet(single) as model, model.tail(x, layer) as (rest, rows):
        expected, by = rest.outputs(rows * 2 - rows), rest.gradient(rows, classes(3))
    with quiet(single, precision="bfloat16") as model, model.tail(x, layer) as (rest, rows):
        found, gradient = rest.outputs(rows), rest.gradient(rows, classes(3))
        torch.testing.assert_close(found, model.outputs(x), rtol=0, atol=4 * 2**-8 * float(expected.abs().max()))
    # A dozen roundings to eight digits, none in the largest number's favour.
    torch.testing.assert_close(found, expected, rtol=0, atol=12 * 2**-8 * float(expected.abs().max()))
    assert not torch.equal(found, expected)
    torch.testing.assert_close(gradient, by, rtol=0, atol=12 * 2**-8 * float(by.abs().max()))


def test_a_network_in_half_precision_stays_in_it():
    net, x = residual().bfloat16(), PICTURES.bfloat16()
    with quiet(net) as model:
        clean = model.outputs(x)
        with model.tail(x, "block1") as (rest, rows):
            assert rows.dtype == torch.float32, "an index has more than eight digits"
            torch.testing.assert_close(rest.outputs(rows), clean.float(), rtol=0, atol=4 * 2**-8)


@pytest.mark.parametrize("wrap", [lambda net: torch.compile(net, backend="eager"), nn.DataParallel],
                         ids=["compiled", "parallel"])  # fmt: skip
def test_compiled_and_parallel_networks_have_the_tail_of_the_network_inside(wrap):
    def found(net: nn.Module) -> tuple[Tensor, ...]:
        net(PICTURES)
        with quiet(net) as model, model.tail(PICTURES, "block2.conv1") as (rest, rows):
            return rows, rest.outputs(rows * 1.0), rest.gradient(rows, classes(3))

    for one, other in zip(found(wrap(residual())), found(residual()), strict=True):
        assert torch.equal(one, other)


# what users see


def test_hooks_of_the_user_fire_on_what_is_kept_too():
    """A hook that changes what a skipped module gives changes it each time, and not twice."""
    net = residual()
    net.stem.register_forward_hook(lambda module, args, output: output * 2)
    net.block1.register_forward_hook(lambda module, args, output: output + 1)
    with quiet(net) as model:
        clean = model.outputs(PICTURES)
        for layer in ("block1", "block2.conv1", "block2"):
            with model.tail(PICTURES, layer) as (rest, rows):
                torch.testing.assert_close(rest.outputs(rows), clean, **EXACT)


@pytest.mark.parametrize("when", ["never", "recording", "forward"])
def test_the_network_is_afterwards_bit_by_bit_as_before(when):
    net, left = residual().train(), [{"never": 100, "recording": 1, "forward": 0}[when]]

    def break_down(module: nn.Module, args: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise RuntimeError("the network broke")

    net.head.register_forward_pre_hook(break_down)
    before = state_of(net)
    error = pytest.raises(pl.ModelError, match="the network broke") if when != "never" else nullcontext()
    with error, quiet(net) as model, model.tail(PICTURES, "block2.norm1") as (rest, rows):
        rest.outputs(rows)
        if when == "forward":
            left[0] = 1
        rest.gradient(rows, classes(3))
    assert same_state(state_of(net), before)


@pytest.mark.doors
@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ("act", r"'act' runs 3 times in one pass.*write 'act:1' to 'act:3'"),
        ("act:4", r"runs 3 times in one pass, but 'act:4'"),
        ("convv", r"no layer 'convv'. Did you mean 'conv'"),
        ("idle", r"'idle' did not run"),
    ],
)
def test_layers_are_named_as_everywhere(layer, words):
    net = reusing()
    net.idle = nn.Linear(2, 2)
    with quiet(net) as model, pytest.raises(pl.LayerError, match=words), model.tail(PICTURES, layer):
        pass


@pytest.mark.doors
def test_a_layer_without_a_row_for_each_input_is_refused():
    """Steps come first: with one step, one input alone is told from nothing else."""

    def forward(net: Any, x: Tensor) -> Tensor:
        return net.head(net.a(x[:, :1].transpose(0, 1))[0])

    net = fixed(lambda: Calling(forward, a=nn.Linear(3, 3), head=nn.Linear(3, 2)))()
    refused = pytest.raises(pl.LayerError, match=r"a row for each of 3 inputs, but it gave a tensor \(1, 3, 3\)")
    with quiet(net) as model, refused, model.tail(STEPS, "a"):
        pass


@pytest.mark.doors
def test_a_layer_that_other_rows_do_not_run_is_refused():
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.head(net.a(x) if len(x) < 5 else x)

    net = fixed(lambda: Calling(forward, a=nn.Linear(3, 3), head=nn.Linear(3, 2)))()
    refused = pytest.raises(pl.LayerError, match="'a' ran for the inputs, but not for rows from there on")
    with quiet(net) as model, model.tail(STEPS[:, 0], "a") as (rest, rows), refused:
        rest.outputs(rows[[0] * 5])


def test_a_neuron_after_the_layer_is_read_from_there_on():
    net = residual()
    with quiet(net) as model, model.tail(PICTURES, "block1") as (rest, rows):
        unit = type(classes(1))((pl.Neuron("block2.conv1", (1, 2, 3)),) * 3, classes(1).kind)
        gradient = rest.gradient(rows, unit)
    expected = torch.zeros(4, 8, 8, dtype=torch.float64)
    expected[:, 1:4, 2:5] = net.block2.conv1.weight[1].detach()
    torch.testing.assert_close(gradient[:, :-1], expected.flatten().expand(3, -1), **EXACT)


def test_a_tail_made_in_half_precision_is_folded_in_single():
    """Whether norms can be folded is found out in single precision, where nothing converts what autocast gave."""
    model, x = pl.TorchModel(conv_net(), precision="bfloat16"), uniform(2, 3, 9, 9)
    at = pl.AtLayer(base=pl.IntegratedGradients(n_steps=4), layer="2")
    expected = at(pl.TorchModel(conv_net()), x, 0).scores
    found = at(model, x, 0).scores
    assert float((found - expected).abs().max()) < 0.05 * float(expected.abs().max())


def test_only_what_the_tail_takes_is_kept_for_each_input():
    net = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(4)), nn.Flatten(), nn.Linear(3 * 64, 2)).eval()
    x = uniform(5, 3, 8, 8)
    tail = Tail(net, "3", x, net, 2)
    assert tail.skipped == {}
    assert {id(module) for module in tail.idle} == {id(net[i]) for i in range(3)}
    assert all(len(gave) == 1 for runs in tail.idle.values() for gave in runs)
    with torch.no_grad():
        found, expected = tail(tail.activation, torch.arange(5)[:, None]), net(x)
    assert float((found - expected).abs().max()) <= 1e-6 * float(expected.abs().max())


def test_hooks_of_the_users_come_before_what_the_layer_gives():
    net, x = conv_net().eval(), uniform(2, 3, 9, 9)
    net[2].register_forward_hook(lambda module, args, output: 3 * output)
    model = pl.TorchModel(net)
    target = [pl.ClassScore(0)] * 2
    with model.undisturbed(pl.Key.named("x")) as quiet:
        placed = quiet.place(x)
        targets = Targets(tuple(target), pl.OutputKind.LOGITS)
        [activation], [gradient], _ = quiet.layer_pass(placed, targets, ["2"], gradients=True)
        with quiet.tail(placed, "2") as (rest, rows):
            assert torch.equal(rest.packing.parts(rows)["activation"], activation)
            by = rest.packing.parts(rest.gradient(rows, targets))["activation"]
    assert float((by - gradient).abs().max()) <= 1e-6 * float(gradient.abs().max())
