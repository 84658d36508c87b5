"""Where networks are cut: the rule on hand-made networks of the kinds that there are, and what a cut does."""

from collections.abc import Callable, Iterator

import pytest
import torch
from tests.oracles import Constant, uniform
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # as networks write it

import pellucid as pl
from pellucid.core.cuts import at_once, averaged, description, find_cuts
from pellucid.models.efficientnet_lite0 import EfficientNetLite0


@pytest.fixture(autouse=True)
def same_weights() -> Iterator[None]:
    """Layers draw their first weights from the global state, which goes back to its owner."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        yield


def cuts_of(net: nn.Module, *shape: int, count: int = 3) -> list[str]:
    """Where the rule cuts a network, in words, from the input to the score."""
    x = uniform(4, *shape).requires_grad_()
    score = net.eval().requires_grad_(False)(x.clone())[:, 0].sum()
    return description(find_cuts(score, len(x), count)).split(", ")


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2)


def head(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 2))


class Calling(nn.Module):
    """A network of modules and of a function that calls them."""

    def __init__(self, forward: Callable[["Calling", Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.call = forward
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)


class Block(nn.Module):
    """The basic block of ResNet, or the bottleneck with 1x1 convolutions around; batch norm throughout."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, *, narrow: int = 0, inplace: bool = False) -> None:
        super().__init__()
        if narrow:
            steps = [conv(inputs, narrow, 1), conv(narrow, narrow, 3, stride), conv(narrow, outputs, 1)]
        else:
            steps = [conv(inputs, outputs, 3, stride), conv(outputs, outputs)]
        parts = [part for step in steps for part in (step, nn.BatchNorm2d(step.out_channels), nn.ReLU(inplace))]
        self.branch = nn.Sequential(*parts[:-1])
        same = stride == 1 and inputs == outputs
        self.skip = nn.Identity() if same else nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
        self.act = nn.ReLU(inplace)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.skip(x) + self.branch(x))


class Fire(nn.Module):
    """SqueezeNet's module: a narrow tensor, and two convolutions of it side by side."""

    def __init__(self, inputs: int, narrow: int, outputs: int) -> None:
        super().__init__()
        self.squeeze = conv(inputs, narrow, 1)
        self.one, self.three = conv(narrow, outputs // 2, 1), conv(narrow, outputs // 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.one(x)), F.relu(self.three(x))], 1)


class Dense(nn.Module):
    """DenseNet's layer: what it finds stands beside its input."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.steps = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(), conv(inputs, growth))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.steps(x)], 1)


class Inception(nn.Module):
    """A reduction of two branches: a max-pool beside a strided convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv, self.pool = conv(inputs, outputs, 3, 2), nn.MaxPool2d(3, 2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.pool(x), F.relu(self.conv(x))], 1)


# --- strided convolutions


def test_before_a_strided_convolution_the_narrowest_tensor_within_one_activation_is_cut():
    """Of 16, 4 and again 16 channels the four are cut; the two channels before them are two activations away."""
    net = nn.Sequential(
        conv(3, 2), nn.ReLU(), conv(2, 4), nn.ReLU(), conv(4, 16), nn.ReLU(), conv(16, 8, stride=2), nn.ReLU(), head(8)
    )
    assert cuts_of(net, 3, 12, 12) == ["Relu 4x12x12"]


def test_of_tensors_as_narrow_the_last_is_cut():
    net = nn.Sequential(
        conv(3, 8), nn.ReLU(), conv(8, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 8, stride=2), nn.ReLU(), head(8)
    )
    assert cuts_of(net, 3, 12, 12) == ["Relu 8x12x12"]


def test_a_narrow_tensor_with_nothing_but_linear_steps_before_it_does_not_hide_the_one_after():
    """The picture's three channels are the narrowest, but a mean there would change nothing."""
    net = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8, stride=2), nn.ReLU(), head(8))
    assert cuts_of(net, 3, 12, 12) == ["Relu 8x12x12"]


def test_the_search_for_a_narrow_tensor_never_passes_a_fall():
    """The 2 channels stand before the max-pool; between it and the strided convolution there are 8 at the least."""
    net = nn.Sequential(
        conv(3, 2), nn.ReLU(), nn.MaxPool2d(2), conv(2, 8), nn.ReLU(), conv(8, 8, stride=2), nn.ReLU(), head(8)
    )
    assert cuts_of(net, 3, 16, 16) == ["MaxPool2DWithIndices 2x8x8"]
    parted = nn.Sequential(
        conv(3, 1), nn.ReLU(), conv(1, 8, stride=2), nn.ReLU(), conv(8, 8, stride=2), nn.ReLU(), head(8)
    )
    assert cuts_of(parted, 3, 16, 16)[-1] == "Relu 8x8x8"


def test_an_average_pool_counts_as_a_fall():
    net = nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 8), nn.ReLU(), nn.AvgPool2d(2), conv(8, 8), nn.ReLU(), head(8))
    assert cuts_of(net, 3, 12, 12) == ["Relu 4x12x12"]


def test_a_pool_to_two_by_two_is_a_fall_and_the_global_pool_is_none():
    layers = [conv(3, 8), nn.ReLU(), conv(8, 8), nn.ReLU()]
    small = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 2))
    assert cuts_of(small, 3, 12, 12) == ["Relu 8x12x12"]
    for pool in (nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1), nn.AvgPool2d(12), nn.MaxPool2d(12)):
        with pytest.raises(pl.CutError):
            cuts_of(nn.Sequential(*layers, pool, nn.Flatten(), nn.Linear(8, 2)), 3, 12, 12)


def test_an_edge_lost_for_want_of_padding_is_no_fall():
    layers = [step for _ in range(4) for step in (nn.Conv2d(3, 3, 3), nn.ReLU())]
    with pytest.raises(pl.CutError, match="falls nowhere"):
        cuts_of(nn.Sequential(*layers, head(3)), 3, 24, 24)


# --- what does not count


@pytest.mark.parametrize(
    "stem",
    [
        pytest.param(nn.Identity, id="nothing"),
        pytest.param(lambda: nn.AvgPool2d(2), id="average pool"),
        pytest.param(lambda: nn.AdaptiveAvgPool2d(16), id="adaptive average pool"),
        pytest.param(lambda: nn.Upsample(scale_factor=0.5, mode="bilinear"), id="resize"),
        pytest.param(lambda: nn.ReflectionPad2d(1), id="padding"),
        pytest.param(lambda: nn.Sequential(nn.PixelUnshuffle(2), conv(12, 3, 1)), id="space to depth"),
        pytest.param(lambda: nn.Conv2d(3, 3, 4, 4), id="patches"),
    ],
)
def test_nothing_is_cut_where_all_that_lies_before_is_linear(stem):
    """A mean of equal Jacobians changes nothing."""
    net = nn.Sequential(
        stem(), conv(3, 4, stride=2), nn.BatchNorm2d(4), nn.Dropout(0.5), conv(4, 8, stride=2), nn.ReLU(), head(8)
    )
    with pytest.raises(pl.CutError, match="falls nowhere after a nonlinear operation"):
        cuts_of(net, 3, 32, 32)


ACTIVATIONS = [nn.ReLU, nn.ReLU6, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.Hardswish, nn.Mish, nn.ELU, nn.SELU,
               nn.Softplus, nn.LeakyReLU, nn.PReLU, nn.Hardtanh, nn.Softsign, nn.LogSigmoid, nn.Hardsigmoid,
               nn.Tanhshrink, nn.Softshrink]  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_makes_what_follows_it_worth_a_cut(activation):
    net = nn.Sequential(conv(3, 4), activation(), conv(4, 2), conv(2, 4, stride=2), nn.ReLU(), head(4))
    assert cuts_of(net, 3, 12, 12) == ["Convolution 2x12x12"]


@pytest.mark.parametrize(
    "bend",
    [
        pytest.param(lambda x: F.threshold(x, 0.1, 0.0), id="threshold"),
        pytest.param(lambda x: torch.addcmul(x, x, x), id="addcmul"),
        pytest.param(lambda x: x * torch.sigmoid(x), id="swish"),
        pytest.param(lambda x: x * x, id="x times x"),
        pytest.param(lambda x: 1 / (3 + x), id="1 over x"),
        pytest.param(lambda x: torch.full_like(x, 2.0) / (3 + x), id="a constant over x"),
        pytest.param(lambda x: x.square(), id="square"),
        pytest.param(lambda x: x.exp(), id="exp"),
        pytest.param(lambda x: torch.where(x > 0, x, 0.1 * x), id="where"),
        pytest.param(lambda x: torch.maximum(x, 0.1 * x), id="maximum"),
        pytest.param(lambda x: x.clamp(min=0), id="clamp"),
    ],
)
def test_nonlinear_operations_by_hand_count_as_well(bend):
    parts = {"first": conv(3, 4), "second": conv(4, 2), "third": conv(2, 4, stride=2), "head": head(4)}
    net = Calling(lambda net, x: net.head(F.relu(net.third(net.second(bend(net.first(x)))))), **parts)
    assert cuts_of(net, 3, 12, 12) == ["Convolution 2x12x12"]


def test_scaling_by_constants_and_adding_branches_is_linear():
    def forward(net, x):
        x = (net.first(x) - 0.5) / torch.tensor(0.2) * torch.tensor(3.0)
        return net.head(F.relu(net.third(-x + F.pad(x, (1, 1, 1, 1))[:, :, 1:-1, 1:-1])))

    with pytest.raises(pl.CutError):
        cuts_of(Calling(forward, first=conv(3, 4), third=conv(4, 4, stride=2), head=head(4)), 3, 12, 12)


# --- max-pools


def test_a_max_pool_is_cut_after_and_never_before():
    """Also where the tensor before it is far smaller, and where a strided convolution follows at once."""
    net = nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 16), nn.ReLU(), nn.MaxPool2d(2), conv(16, 8), nn.ReLU(), head(8))
    assert cuts_of(net, 3, 12, 12) == ["MaxPool2DWithIndices 16x6x6"]
    strided = nn.Sequential(conv(3, 8), nn.ReLU(), nn.MaxPool2d(2), conv(8, 8, stride=2), nn.ReLU(), head(8))
    assert cuts_of(strided, 3, 12, 12) == ["MaxPool2DWithIndices 8x6x6"]


def test_an_adaptive_max_pool_is_cut_after_too():
    net = nn.Sequential(conv(3, 4), nn.ReLU(), nn.AdaptiveMaxPool2d(4), conv(4, 4), nn.ReLU(), head(4))
    assert cuts_of(net, 3, 12, 12) == ["AdaptiveMaxPool2D 4x4x4"]


def test_a_max_pool_that_keeps_the_resolution_is_no_fall():
    net = nn.Sequential(conv(3, 4), nn.ReLU(), nn.MaxPool2d(3, 1, padding=1), conv(4, 4), nn.ReLU(), head(4))
    with pytest.raises(pl.CutError):
        cuts_of(net, 3, 12, 12)


# --- architectures


def vgg() -> nn.Module:
    steps: list[nn.Module] = []
    inputs = 3
    for outputs in (4, 8, 16, 16):
        steps += [conv(inputs, outputs), nn.ReLU(), conv(outputs, outputs), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        inputs = outputs
    return nn.Sequential(*steps, nn.Flatten(), nn.Linear(16 * 2 * 2, 8), nn.ReLU(), nn.Linear(8, 2))


def resnet(inplace: bool = False) -> nn.Module:
    """ResNet-20: three stages of three basic blocks."""
    blocks = [
        Block(inputs, outputs, stride, inplace=inplace)
        for inputs, outputs, stride in [(4, 4, 1)] * 3
        + [(4, 8, 2), *[(8, 8, 1)] * 2]
        + [(8, 16, 2), *[(16, 16, 1)] * 2]
    ]
    return nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), nn.ReLU(inplace), *blocks, head(16))


def bottlenecks() -> nn.Module:
    """ResNet-50: a stem of stride four, then four stages of bottlenecks."""
    stages = [
        block
        for inputs, narrow, stride in ((4, 4, 1), (16, 8, 2), (32, 8, 2), (32, 16, 2))
        for block in (
            Block(inputs, 16 if narrow == 4 else 32, stride, narrow=narrow),
            Block(16 if narrow == 4 else 32, 16 if narrow == 4 else 32, narrow=narrow),
        )
    ]
    stem = [conv(3, 4, 7, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)]
    return nn.Sequential(*stem, *stages, head(32))


def squeezenet() -> nn.Module:
    return nn.Sequential(
        conv(3, 8, stride=2), nn.ReLU(), nn.MaxPool2d(2), Fire(8, 2, 16), Fire(16, 2, 16), nn.MaxPool2d(2),
        Fire(16, 4, 16), Fire(16, 4, 16), nn.MaxPool2d(2), Fire(16, 4, 16), conv(16, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


def densenet() -> nn.Module:
    transition = [nn.BatchNorm2d(16), nn.ReLU(), conv(16, 8, 1), nn.AvgPool2d(2)]
    return nn.Sequential(conv(3, 8), Dense(8, 4), Dense(12, 4), *transition, Dense(8, 4), nn.ReLU(), head(12))


ARCHITECTURES = {
    "vgg, after its last max-pools": (
        vgg, (3, 32, 32),
        ["MaxPool2DWithIndices 8x8x8", "MaxPool2DWithIndices 16x4x4", "MaxPool2DWithIndices 16x2x2"],
    ),
    "resnet-20, at the ends of its stages": (resnet, (3, 16, 16), ["Relu 4x16x16", "Relu 8x8x8"]),
    "resnet-50, at the ends of its stages": (
        bottlenecks, (3, 64, 64), ["Relu 16x16x16", "Relu 32x8x8", "Relu 32x4x4"]
    ),
    "squeezenet, after its three max-pools": (
        squeezenet, (3, 64, 64),
        ["MaxPool2DWithIndices 8x16x16", "MaxPool2DWithIndices 16x8x8", "MaxPool2DWithIndices 16x4x4"],
    ),
    "densenet, within its transition": (densenet, (3, 16, 16), ["Convolution 8x16x16"]),
    "efficientnet-lite0, at the ends of its blocks": (
        EfficientNetLite0, (3, 64, 64), ["Add 24x16x16", "Add 40x8x8", "Add 112x4x4"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_known_architectures_are_cut_where_they_should_be(name):
    build, shape, expected = ARCHITECTURES[name]
    assert cuts_of(build(), *shape) == expected


def test_there_are_as_many_cuts_as_asked_for_the_last_ones():
    every = cuts_of(bottlenecks(), 3, 64, 64, count=99)
    assert every == ["MaxPool2DWithIndices 4x16x16", "Relu 16x16x16", "Relu 32x8x8", "Relu 32x4x4"]
    for count in (1, 2, 3, 4):
        assert cuts_of(bottlenecks(), 3, 64, 64, count=count) == every[-count:]


def test_a_reduction_of_two_branches_is_cut_before_both():
    net = nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 6), nn.ReLU(), Inception(6, 6), conv(12, 8), nn.ReLU(), head(8))
    assert cuts_of(net, 3, 16, 16) == ["Relu 4x16x16"]


def test_nothing_is_cut_inside_a_residual_block():
    """The bottleneck's narrow tensors are smaller than its ends, but a path leads around them."""
    net = nn.Sequential(conv(3, 8), nn.ReLU(), Block(8, 8, narrow=2), Block(8, 8, 2, narrow=2), head(8))
    assert cuts_of(net, 3, 16, 16) == ["Relu 8x16x16"]


def test_one_dimensional_networks_are_cut():
    """Audio: (B, 1, T)."""
    net = nn.Sequential(
        nn.Conv1d(1, 4, 5, 2, padding=2), nn.ReLU(), nn.Conv1d(4, 8, 3, 2, padding=1), nn.ReLU(), nn.MaxPool1d(2),
        nn.Conv1d(8, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 2),
    )  # fmt: skip
    assert cuts_of(net, 1, 64) == ["Relu 4x32", "MaxPool2DWithIndices 8x1x8"]


def test_three_dimensional_networks_are_cut():
    net = nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(4, 4, 3, padding=1), nn.ReLU(),
        nn.Conv3d(4, 8, 3, 2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 2),
    )  # fmt: skip
    assert cuts_of(net, 1, 8, 8, 8) == ["MaxPool3DWithIndices 4x4x4x4", "Relu 4x4x4x4"]


def test_a_fall_of_one_side_alone_is_a_fall():
    net = nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 4), nn.ReLU(), nn.AvgPool2d((1, 2)), conv(4, 4), head(4))
    assert cuts_of(net, 3, 12, 12) == ["Relu 4x12x12"]


# --- however it is written


def test_functional_calls_are_cut_like_modules():
    modules = nn.Sequential(
        conv(3, 4), nn.ReLU(), conv(4, 4), nn.ReLU(), nn.MaxPool2d(2), conv(4, 8), nn.ReLU(), conv(8, 8, stride=2),
        nn.ReLU(), head(8),
    )  # fmt: skip

    def forward(net, x):
        x = F.max_pool2d(F.relu(net.b(F.relu(net.a(x)))), 2)
        x = torch.relu_(net.c(x))
        x = net.d(x).relu_()
        return net.e(x.mean((2, 3)))

    calls = Calling(
        forward, a=conv(3, 4), b=conv(4, 4), c=conv(4, 8), d=conv(8, 8, stride=2), e=nn.Linear(8, 2)
    )  # fmt: skip
    found = cuts_of(calls, 3, 16, 16)
    assert found == cuts_of(modules, 3, 16, 16) == ["MaxPool2DWithIndices 4x8x8"]


def test_operations_in_place_are_cut_like_others():
    assert cuts_of(resnet(inplace=True), 3, 16, 16) == cuts_of(resnet(), 3, 16, 16)


def test_a_module_that_is_used_twice_gives_two_cuts():
    def forward(net, x):
        x = net.act(net.first(x))
        for _ in range(3):
            x = net.act(net.down(x))
        return net.head(x)

    net = Calling(forward, first=conv(3, 4), down=conv(4, 4, stride=2), act=nn.ReLU(), head=head(4))
    assert cuts_of(net, 4 - 1, 32, 32, count=2) == ["Relu 4x16x16", "Relu 4x8x8"]


# --- what is refused


REFUSED = "Take estimator=Shrunk"


class Gated(nn.Module):
    """Squeeze-and-excitation in its spellings, after one strided convolution and before another."""

    def __init__(self, gate: Callable[[Tensor, Tensor], Tensor], pooled: bool = True) -> None:
        super().__init__()
        self.first, self.squeeze, self.last = conv(3, 4), conv(4, 4 if pooled else 1, 1), conv(4, 4, stride=2)
        self.gate, self.pooled, self.head = gate, pooled, head(4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        s = torch.sigmoid(self.squeeze(x.mean((2, 3), keepdim=True) if self.pooled else x))
        return self.head(F.relu(self.last(self.gate(x, s))))


@pytest.mark.parametrize(
    ("gate", "pooled"),
    [
        pytest.param(lambda x, s: x * s, True, id="broadcast"),
        pytest.param(lambda x, s: x / (2 - s), True, id="divided"),
        pytest.param(lambda x, s: torch.lerp(x, 2 * x, s), True, id="lerp"),
        pytest.param(lambda x, s: torch.addcmul(x, x, s), True, id="addcmul"),
        pytest.param(lambda x, s: torch.pow(x + 1, s), True, id="power"),
        pytest.param(lambda x, s: F.glu(torch.cat([x, x + s], 1), 1), False, id="glu"),
        pytest.param(lambda x, s: F.local_response_norm(x, 3), True, id="response norm"),
        pytest.param(lambda x, s: s * x, True, id="the other way round"),
        pytest.param(lambda x, s: x.mul_(s), True, id="in place"),
        pytest.param(lambda x, s: x * s.expand_as(x), True, id="expanded"),
        pytest.param(lambda x, s: x * s, False, id="one gate for all channels"),
    ],
)
def test_gates_are_refused(gate, pooled):
    with pytest.raises(pl.CutError, match="multiplies activations with each other") as caught:
        cuts_of(Gated(gate, pooled), 3, 12, 12)
    assert REFUSED in str(caught.value)


def test_an_activation_times_its_own_sigmoid_is_no_gate():
    parts = {"first": conv(3, 4), "second": conv(4, 4, stride=2), "head": head(4)}
    net = Calling(lambda net, x: net.head(net.second((y := net.first(x)) * torch.sigmoid(y))), **parts)
    assert cuts_of(net, 3, 12, 12, count=1)[0].endswith("4x12x12")


class Attending(nn.Module):
    """A convolutional stem of stride four, attention over its places, and a head."""

    def __init__(self, attend: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8, stride=2), nn.ReLU(), conv(8, 8, stride=2))
        self.attention, self.linear = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 2)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.attend = attend

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.attend(self, self.stem(x).flatten(2).transpose(1, 2)).mean(1))


@pytest.mark.parametrize(
    "attend",
    [
        pytest.param(lambda net, t: net.attention(t, t, t)[0], id="MultiheadAttention with weights"),
        pytest.param(lambda net, t: net.attention(t, t, t, need_weights=False)[0], id="MultiheadAttention"),
        pytest.param(lambda net, t: net.layer(t), id="TransformerEncoderLayer"),
        pytest.param(lambda net, t: F.scaled_dot_product_attention(t, t, t), id="scaled_dot_product_attention"),
        pytest.param(lambda net, t: torch.bmm((t @ t.mT / 3).softmax(-1), t), id="bmm and softmax"),
        pytest.param(lambda net, t: torch.einsum("bij,bjd->bid", t @ t.mT, t), id="linear attention"),
        pytest.param(lambda net, t: (t.softmax(1) * t).sum(1, keepdim=True), id="softmax over places"),
    ],
)
def test_attention_is_refused(attend):
    with pytest.raises(pl.CutError, match="The network has attention") as caught:
        cuts_of(Attending(attend), 3, 16, 16)
    assert REFUSED in str(caught.value)


def test_a_constant_matrix_is_no_attention():
    """A turn of the colours within the network: linear, though torch multiplies batches of matrices for it."""
    turn = uniform(3, 3)
    parts = {"first": conv(3, 4), "second": conv(4, 4, stride=2), "head": head(4)}

    def forward(net, x):
        y = F.relu(net.first(torch.einsum("dc,nchw->ndhw", turn, x)))
        return net.head(F.relu(net.second(y)))

    assert cuts_of(Calling(forward, **parts), 3, 12, 12) == ["Relu 4x12x12"]


def unet(net: nn.Module, x: Tensor) -> Tensor:
    x = F.relu(net.first(x))
    low = F.relu(net.down(x))
    return net.head(F.relu(net.last(x + F.interpolate(low, scale_factor=2))))


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda: nn.Sequential(nn.Flatten(), nn.Linear(432, 8), nn.ReLU(), nn.Linear(8, 2)), id="MLP"),
        pytest.param(lambda: nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 4), nn.ReLU(), head(4)), id="one resolution"),
        pytest.param(lambda: nn.Sequential(conv(3, 4, stride=2), nn.ReLU(), head(4)), id="a fall of the input alone"),
        pytest.param(
            lambda: Calling(unet, first=conv(3, 4), down=conv(4, 4, stride=2), last=conv(4, 4), head=head(4)),
            id="a path around the fall",
        ),
    ],
)
def test_networks_without_a_place_are_refused(build):
    with pytest.raises(pl.CutError, match="no place to be cut") as caught:
        cuts_of(build(), 3, 12, 12)
    assert REFUSED in str(caught.value)
    assert "Factored(cuts=('layer1', ...))" in str(caught.value)


# --- what a cut does


def two_cuts() -> tuple[nn.Module, nn.Module, nn.Module, Tensor]:
    """Three segments that change the resolution, float64, and 12 rows."""
    parts = nn.Sequential(
        nn.Sequential(conv(3, 4), nn.Tanh(), nn.MaxPool2d(2)),
        nn.Sequential(conv(4, 4), nn.Softplus(), nn.MaxPool2d(2)),
        nn.Sequential(conv(4, 4), nn.Sigmoid(), head(4)),
    ).double().eval().requires_grad_(False)  # fmt: skip
    return *parts, uniform(12, 3, 8, 8, dtype=torch.float64)


def mean_over(groups: int, x: Tensor) -> Tensor:
    """Each row replaced by the mean of its group of neighbours, one by one."""
    out = torch.empty_like(x)
    for start in range(0, len(x), groups):
        out[start : start + groups] = sum(x[start + i] for i in range(groups)) / groups
    return out


@pytest.mark.parametrize("group", [1, 2, 3, 6, 12])
def test_the_gradient_at_a_cut_is_replaced_by_its_mean_over_each_group(group):
    """J1_i' (mean_j d_j) against two passes by hand."""
    first, second, third, rows = two_cuts()
    x = rows.clone().requires_grad_()
    middle = first(x)
    score = third(second(middle))[:, 0].sum()
    [node] = find_cuts(score, len(x), 2)[:1]
    with averaged([node], group):
        [found] = torch.autograd.grad(score, x, retain_graph=True)
    [d] = torch.autograd.grad(score, middle, retain_graph=True)
    [expected] = torch.autograd.grad(middle, x, mean_over(group, d), retain_graph=True)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)
    [plain] = torch.autograd.grad(score, x)
    assert torch.allclose(found, plain, rtol=1e-9, atol=0) == (group == 1)


def test_two_cuts_average_three_factors_apart():
    """J1_i' mean_j(J2_j' mean_k d_k)."""
    first, second, third, rows = two_cuts()
    x = rows.clone().requires_grad_()
    high = first(x)
    low = second(high)
    score = third(low)[:, 0].sum()
    with averaged(find_cuts(score, len(x), 2), 6):
        [found] = torch.autograd.grad(score, x, retain_graph=True)
    [d] = torch.autograd.grad(score, low, retain_graph=True)
    [d] = torch.autograd.grad(low, high, mean_over(6, d), retain_graph=True)
    [expected] = torch.autograd.grad(high, x, mean_over(6, d))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


def test_half_precision_is_averaged_in_single():
    """Eight ones and eight values of 1/256: bfloat16 would lose the small ones one by one."""
    weight = torch.cat([torch.ones(8), torch.full((8,), 1 / 256)]).bfloat16()[:, None, None]
    x = torch.ones(16, 1, 4, dtype=torch.bfloat16, requires_grad=True)
    cut = x * 1
    score = (cut * weight).sum()
    with averaged([at_once(cut)], 16):
        [found] = torch.autograd.grad(score, x)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, weight.float().mean().bfloat16().expand(16, 1, 4))


def test_the_gradient_keeps_its_layout():
    """Convolutions backward run fastest in the layout in which they ran forward."""
    for layout in (torch.channels_last, torch.contiguous_format):
        x = uniform(4, 3, 8, 8).to(memory_format=layout).requires_grad_()
        cut = x * 1
        with averaged([at_once(cut)], 2):
            [found] = torch.autograd.grad((cut * cut.detach()).sum(), x)
        assert found.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("breaks", [False, True])
def test_averaging_ends_with_its_block_also_by_an_error(breaks):
    first, second, third, rows = two_cuts()
    x = rows.clone().requires_grad_()
    score = third(second(first(x)))[:, 0].sum()
    [before] = torch.autograd.grad(score, x, retain_graph=True)
    try:
        with averaged(find_cuts(score, len(x), 2), 5 if breaks else 4):  # 12 rows are no whole number of fives
            torch.autograd.grad(score, x, retain_graph=True)
    except RuntimeError:
        assert breaks
    [after] = torch.autograd.grad(score, x)
    assert torch.equal(before, after)


# --- cuts by the names of modules


def small() -> nn.Sequential:
    parts = {
        "layer1": conv(3, 4),
        "act1": nn.ReLU(),
        "layer2": conv(4, 4, stride=2),
        "act2": nn.ReLU(),
        "head": head(4),
    }
    net = nn.Sequential()
    for name, part in parts.items():
        net.add_module(name, part)
    return net


def explained(net: nn.Module, *names: str, n: int = 8, x: Tensor | None = None) -> pl.Attribution:
    explain = pl.SmoothGrad(n_samples=n, estimator=pl.Factored(cuts=names))
    return explain(pl.TorchModel(net), uniform(1, 3, 12, 12) if x is None else x, 0)


def hooks_of(net: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in net.modules())


def test_a_cut_can_be_named_by_its_module():
    assert explained(small(), "act1").recipe.notes["cuts"] == ["Relu 4x12x12"]
    assert explained(small(), "layer2").recipe.notes["cuts"] == ["Convolution 4x6x6"]
    assert explained(small(), "act1", "act2").recipe.notes["cuts"] == ["Relu 4x12x12, Relu 4x6x6"]
    assert explained(small(), "head.1").recipe.notes["cuts"][0].endswith(" 4")


def test_a_named_cut_is_the_modules_output_though_it_is_written_to_later():
    """Batch norm, then ReLU in place: the gradient is averaged before the mask, not after."""
    inplace, copied = (
        nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), nn.ReLU(there), conv(4, 4, stride=2), nn.ReLU(), head(4))
        for there in (True, False)
    )
    inplace.load_state_dict(copied.state_dict())
    found, expected = explained(inplace, "1"), explained(copied, "1")
    assert found.recipe.notes == expected.recipe.notes
    assert torch.equal(found.scores, expected.scores)


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 4), nn.LayerNorm([4, 12, 12]), nn.InstanceNorm2d(4)])
def test_a_norm_can_be_a_named_cut(norm):
    """Equal to a cut at the identity that follows it."""
    net = nn.Sequential(conv(3, 4), nn.Tanh(), norm, nn.Flatten(2), nn.Unflatten(2, (12, 12)), nn.Tanh(), head(4))
    torch.testing.assert_close(explained(net, "2").scores, explained(net, "3").scores, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    "joined",
    [lambda x, s: torch.where(x > 0.1, x, s), torch.maximum, lambda x, s: x - s, lambda x, s: x / (1 + x.abs())],
    ids=["where", "maximum", "difference", "softsign"],
)
def test_sums_and_choices_are_no_gates(joined):
    [cut] = cuts_of(Gated(joined, pooled=False), 3, 12, 12)
    assert cut.endswith(" 4x12x12")


def test_what_lies_off_the_path_of_named_cuts_is_not_looked_at():
    """Gates and attention are refused by the rule alone; who names modules has chosen."""
    net = Gated(lambda x, s: x * s)
    assert explained(net, "first").recipe.notes["cuts"] == ["Convolution 4x12x12"]


@pytest.mark.doors
def test_an_unknown_module_lists_those_that_are_near():
    with pytest.raises(
        pl.CutError, match=r"Sequential has no module 'layer_1'\. Did you mean '?layer1'? or '?layer2'?"
    ):
        explained(small(), "layer_1")
    with pytest.raises(pl.CutError, match=r"has no module 'zzzzzzz'\.$"):
        explained(small(), "zzzzzzz")


@pytest.mark.doors
def test_a_module_that_runs_twice_is_no_cut():
    parts = {"first": conv(3, 4), "act": nn.ReLU(), "down": conv(4, 4, stride=2), "head": head(4)}
    net = Calling(lambda net, x: net.head(net.act(net.down(net.act(net.first(x))))), **parts)
    with pytest.raises(pl.CutError, match="a module that runs once, but act ran 2 times"):
        explained(net, "act")


@pytest.mark.doors
def test_a_module_that_does_not_run_is_no_cut():
    net = Calling(lambda net, x: net.inner(x), inner=small(), idle=nn.Identity())
    with pytest.raises(pl.CutError, match="but idle ran 0 times"):
        explained(net, "idle")


@pytest.mark.doors
def test_a_module_on_which_the_score_does_not_depend_is_no_cut():
    """It would change nothing, and a map that was not factored would be called so."""

    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main, self.other = small(), small()

        def forward(self, x: Tensor) -> Tensor:
            self.other(x)
            return self.main(x)

    with pytest.raises(pl.CutError, match=r"the explained score depends on, but not on other\.act1\. Name another"):
        explained(Aside(), "other.act1")
    assert explained(Aside(), "main.act1").recipe.notes["cuts"] == ["Relu 4x12x12"]


class Giving(nn.Module):
    """Runs something in between whose result is not what a cut can be."""

    def __init__(self, odd: nn.Module) -> None:
        super().__init__()
        self.first, self.odd, self.last = conv(3, 4), odd, head(4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        self.odd(x)
        return self.last(x)


@pytest.mark.doors
@pytest.mark.parametrize(
    "odd",
    [
        pytest.param(Calling(lambda net, x: (x, x)), id="a tuple"),
        pytest.param(Calling(lambda net, x: x.detach()), id="a detached tensor"),
        pytest.param(Calling(lambda net, x: torch.ones(3)), id="a constant"),
        pytest.param(Calling(lambda net, x: None), id="nothing"),
    ],
)
def test_a_module_that_gives_no_tensor_of_the_input_is_no_cut(odd):
    with pytest.raises(pl.CutError, match="a tensor that depends on the input, but odd gave none"):
        explained(Giving(odd), "odd")


class Turned(nn.Module):
    """Places before samples, as sequence models have it."""

    def __init__(self) -> None:
        super().__init__()
        self.turn, self.linear = nn.Identity(), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        places = self.turn(torch.tanh(x).flatten(2).permute(2, 0, 1).contiguous())
        return self.linear(places.mean(0))


@pytest.mark.doors
def test_a_tensor_whose_first_axis_is_not_the_samples_is_no_cut():
    """Its neighbours are places of one picture: their mean is nothing that was asked for."""
    with pytest.raises(pl.CutError):
        explained(Turned(), "turn")


@pytest.mark.doors
@pytest.mark.parametrize("names", [("act1", "nowhere"), ("act1", "head", "nowhere")])
def test_no_hook_is_left_behind(names):
    net = small()
    explained(net, *names[:-1])
    assert hooks_of(net) == 0
    with pytest.raises(pl.CutError):
        explained(net, *names)
    assert hooks_of(net) == 0


@pytest.mark.doors
def test_no_hook_is_left_behind_by_a_network_that_fails():
    def forward(net, x):
        if torch.is_grad_enabled() and len(x) > 1:
            raise RuntimeError("the network broke")
        return net.inner(x)

    net = Calling(forward, inner=small())
    with pytest.raises(pl.ModelError, match="the network broke"):
        explained(net, "inner.act1")
    assert hooks_of(net) == 0


@pytest.mark.doors
def test_a_network_without_gradients_has_nothing_to_factor():
    with pytest.raises(pl.CutError, match="No gradient reaches the input of Constant, so there is nothing to factor"):
        pl.SmoothGrad(n_samples=8, estimator=pl.Factored())(pl.TorchModel(Constant()), uniform(1, 3, 12, 12), 0)
