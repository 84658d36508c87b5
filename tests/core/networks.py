"""Networks of the kinds that there are, small and in double precision, into which tests of layers and tails reach."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # as networks write it

import pellucid as pl
from pellucid.core.prediction import OutputKind
from pellucid.core.random import Key
from pellucid.core.target import Targets

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


class Calling(nn.Module):
    """A network of modules and of a function that calls them."""

    def __init__(self, forward: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        self.call = forward
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, *x: Any) -> Any:
        return self.call(self, *x)


def fixed(make: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """What `make` makes, always with the same weights and with statistics that norms could have learnt."""

    @functools.wraps(make)
    def made(*args: Any, **settings: Any) -> nn.Module:
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            net = make(*args, **settings)
            with torch.no_grad():
                for module in net.modules():
                    if isinstance(module, _NORMS) and module.running_mean is not None:
                        module.running_mean.normal_(0, 0.3)
                        module.running_var.uniform_(0.5, 2)
                        if module.affine:
                            module.weight.uniform_(0.5, 2)
                            module.bias.normal_(0, 0.3)
        return net.double().eval()

    return made


@contextmanager
def quiet(net: nn.Module, **settings: Any) -> Iterator[pl.TorchModel]:
    """The network as a model inside a call."""
    with pl.TorchModel(net, **settings).undisturbed(Key.named("x")) as model:
        yield model


def classes(rows: int, index: int = 0) -> Targets:
    return Targets((pl.ClassScore(index),) * rows, OutputKind.LOGITS)


def conv(inputs: int, outputs: int, stride: int = 1, **settings: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, **settings)


@fixed
def plain() -> nn.Module:
    """Convolutions, activations in place, a pool."""
    return nn.Sequential(
        conv(3, 4), nn.BatchNorm2d(4), nn.ReLU(inplace=True), conv(4, 6, 2), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(24, 3),
    )  # fmt: skip


class Block(nn.Module):
    """ResNet's: its activation is a function, its sum is written in place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv(channels, channels, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.norm2 = conv(channels, channels), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        y += x
        return F.relu(y)


@fixed
def residual() -> nn.Module:
    """A stem and two blocks with shortcuts; the last shortcut leads from the stem to the head."""
    return Calling(
        lambda net, x: net.head((net.block2(net.block1(s := net.stem(x))) + s).mean((2, 3))),
        stem=nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), nn.ReLU()), block1=Block(4), block2=Block(4),
        head=nn.Linear(4, 3),
    )  # fmt: skip


@fixed
def resnet() -> nn.Module:
    """The same without the last shortcut."""
    return Calling(
        lambda net, x: net.head(net.block2(net.block1(net.stem(x))).mean((2, 3))),
        stem=nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), nn.ReLU()), block1=Block(4), block2=Block(4),
        head=nn.Linear(4, 3),
    )  # fmt: skip


@fixed
def reusing() -> nn.Module:
    """One activation in a block and twice after it."""
    act = nn.ReLU()

    def forward(net: Any, x: Tensor) -> Tensor:
        y = net.act(net.conv(net.block(x)))
        return net.head(net.act(0.3 - y).mean((2, 3)))

    return Calling(forward, block=nn.Sequential(conv(3, 4), act), conv=conv(4, 4), act=act, head=nn.Linear(4, 3))


class Attention(nn.Module):
    """A block of a vision transformer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.mlp = nn.Linear(width, 3 * width), nn.Sequential(nn.Linear(width, 8), nn.GELU())
        self.out = nn.Linear(8, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.mix(self.norm1(x)).chunk(3, -1)
        x = x + torch.softmax(q @ k.transpose(1, 2), -1) @ v
        return x + self.out(self.mlp(self.norm2(x)))


class Tokens(nn.Module):
    """A vision transformer: tokens before the patches, of which the first, or the mean of all, is the decision."""

    def __init__(self, *, prefix: int, pooled: bool) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 4, 4)
        self.first = nn.Parameter(torch.randn(1, prefix, 6))
        self.blocks = nn.Sequential(Attention(6), Attention(6), Attention(6))
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 3)
        self.pooled = pooled

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = self.norm(self.blocks(torch.cat([self.first.expand(len(x), -1, -1), x], 1)))
        return self.head(x.mean(1) if self.pooled else x[:, 0])


@fixed
def tokens(*, prefix: int = 1, pooled: bool = False) -> nn.Module:
    return Tokens(prefix=prefix, pooled=pooled)


@fixed
def channels_last() -> nn.Module:
    """As Swin transformers: cells before channels."""
    return Calling(
        lambda net, x: net.head(net.norm(net.mlp(net.patches(x).permute(0, 2, 3, 1))).mean((1, 2))),
        patches=nn.Conv2d(3, 6, 4, 4), mlp=nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6)),
        norm=nn.LayerNorm(6), head=nn.Linear(6, 3),
    )  # fmt: skip


@fixed
def segmenting(end: Callable[[Tensor], Tensor] = lambda y: y) -> nn.Module:
    """As U-Net: down, up, and a shortcut between; class scores of each place."""

    def forward(net: Any, x: Tensor) -> Tensor:
        fine = net.fine(x)
        return end(net.head(net.joined(torch.cat([fine, net.up(net.coarse(fine))], 1))))

    return Calling(
        forward, fine=nn.Sequential(conv(3, 4), nn.ReLU()), coarse=nn.Sequential(conv(4, 4, 2), nn.ReLU()),
        up=nn.Upsample(scale_factor=2), joined=nn.Sequential(conv(8, 4), nn.ReLU(inplace=True)),
        head=nn.Conv2d(4, 2, 1),
    )  # fmt: skip


@fixed
def recurrent(layers: int = 1) -> nn.Module:
    """An LSTM, which gives a tuple; what is read are all its steps and its last state."""

    def forward(net: Any, x: Tensor) -> Tensor:
        steps, (state, _) = net.lstm(net.first(x))
        return net.head(torch.cat([steps.mean(1), state[-1]], 1))

    return Calling(forward, first=nn.Linear(3, 4), lstm=nn.LSTM(4, 5, layers, batch_first=True), head=nn.Linear(10, 3))


@fixed
def encoder() -> nn.Module:
    """PyTorch's transformer, which runs all its modules at once where nobody looks."""
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return Calling(lambda net, x: net.head(net.body(x).mean(1)), body=body, head=nn.Linear(4, 3))


@fixed
def two_inputs() -> nn.Module:
    """A picture and a vector."""
    return Calling(
        lambda net, picture, vector: net.head(torch.cat([net.eye(picture).mean((2, 3)), vector], 1)),
        eye=nn.Sequential(conv(3, 4), nn.ReLU()), head=nn.Linear(6, 3),
    )  # fmt: skip


def state_of(net: nn.Module) -> tuple[Any, ...]:
    """All that a call could leave behind in a network."""
    tensors = {name: (id(t), t.clone(), t.requires_grad, t.grad) for name, t in net.state_dict(keep_vars=True).items()}
    variables = [sorted(vars(module)) for module in net.modules()]
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in net.modules()]
    return tensors, variables, hooks, [module.training for module in net.modules()]


def same_state(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Whether two states are the same, bit by bit."""
    (tensors, *facts), (others, *other_facts) = one, other
    return (
        facts == other_facts
        and tensors.keys() == others.keys()
        and all(
            (t[0], t[2], t[3]) == (others[name][0], others[name][2], others[name][3])
            and torch.equal(t[1], others[name][1])
            for name, t in tensors.items()
        )
    )
