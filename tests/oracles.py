"""Toy models whose explanations are known in closed form, and models that show what a call does to a network."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from pellucid.core.estimator import Draw, Samples
from pellucid.core.stopping import Until


class Linear(nn.Module):
    """f_k(x) = w_k . x + b_k. Gradient w_k everywhere, so SmoothGrad = w_k with no error and VarGrad = 0."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.linear = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0])
        self.linear.weight = nn.Parameter(weight.clone())
        self.linear.bias = nn.Parameter(torch.zeros(len(weight)) if bias is None else bias.clone())
        self.to(weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1))


class Power(nn.Module):
    """f_k(x) = a_k sum_j x_j^p: separable, gradient a_k p x^(p-1).

    For p = 3: E[g(x + e)] = 3 a (x^2 + sigma^2), Var[g] = a^2 (36 x^2 sigma^2 + 18 sigma^4),
    E[g^2] = 9 a^2 (x^4 + 6 x^2 sigma^2 + 3 sigma^4). It tells sigma from sigma^2 and from a multiple of it.
    """

    def __init__(self, exponent: int, *factors: float) -> None:
        super().__init__()
        self.exponent = exponent
        self.factors = nn.Parameter(torch.tensor(factors, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1) ** self.exponent).sum(1, keepdim=True) * self.factors.to(x)


class Quadratic(nn.Module):
    """f(x) = sum_j c_j x_j^2 / 2 beside a class 0: gradient c x, linear in x, so its mean over noise is normal."""

    def __init__(self, c: Tensor) -> None:
        super().__init__()
        self.c = nn.Parameter(c.clone())

    def forward(self, x: Tensor) -> Tensor:
        value = (self.c.to(x) * x.flatten(1) ** 2).sum(1) / 2
        return torch.stack([torch.zeros_like(value), value], 1)


class Constant(nn.Module):
    """Outputs that do not depend on the input."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), 3).to(x)


class Recorder(nn.Module):
    """A linear network that remembers the size of each batch that it was given, and in which mode."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.linear = nn.utils.skip_init(nn.Linear, features, 2)
        with torch.no_grad():
            self.linear.weight.copy_(torch.arange(2.0 * features).reshape(2, features))
            self.linear.bias.zero_()
        self.batches: list[int] = []
        self.modes: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        self.modes.append(self.training)
        return self.linear(x.flatten(1))


class Raising(nn.Module):
    """Fails on its n-th call, in the middle of whatever was being done."""

    def __init__(self, calls: int = 1) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        self.left = [calls]  # a list, since a number would be put back after each call

    def forward(self, x: Tensor) -> Tensor:
        self.left[0] -= 1
        if self.left[0] <= 0:
            raise RuntimeError("the network broke")
        return self.norm(x).flatten(1)


def conv_net(classes: int = 3, *, seed: int = 0, dtype: torch.dtype = torch.float32, pooled: int = 2) -> nn.Module:
    """A small network of everything that keeps state: convolution, batch norm, dropout, kinks; random but fixed. Its
    head reads `pooled` x `pooled` means of each channel.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng([]):
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(),
            nn.Dropout(0.5), nn.AdaptiveAvgPool2d(pooled), nn.Flatten(), nn.Linear(8 * pooled**2, classes),
        )  # fmt: skip
        with torch.no_grad():
            for tensor in (*net.parameters(), *net.buffers()):
                if tensor.is_floating_point():
                    tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
            net[1].running_mean.copy_(torch.randn(8, generator=generator))
            net[1].running_var.copy_(torch.rand(8, generator=generator) + 0.5)
    return net.to(dtype).train()


class Tokens(nn.Module):
    """The cells of (B, K, h, w) as tokens (B, h w, K)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


class MeanToken(nn.Module):
    """The mean of all tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def attention_net(classes: int = 3, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    """As `conv_net`, with attention among the cells of its last convolution."""
    convolutions = conv_net(seed=seed)[:4]
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        layers = (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), MeanToken(), nn.Linear(8, classes))
    return nn.Sequential(*convolutions, Tokens(), *layers).to(dtype).train()


def uniform(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Fixed values in [0, 1)."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Fixed standard normal values."""
    return np.random.default_rng(seed).standard_normal(shape)


def smooth(*shape: int, seed: int = 0, width: float = 2.5) -> np.ndarray:
    """Maps (..., C, H, W), each a signal of power 1 without fine detail."""
    signal = gaussian_filter(normal(*shape, seed=seed), (0,) * (len(shape) - 2) + (width, width))
    return signal / np.sqrt((signal**2).mean((-3, -2, -1), keepdims=True))


def stream_of(
    values: Tensor,
    rows: int = 7,
    n_samples: int | Until | None = None,
    *,
    plain: Tensor | None = None,
    seen: Callable[[Sequence[int], range], None] = lambda inputs, indices: None,
    **settings: Any,
) -> Samples:
    """Draws (inputs, count, *features) that are already there, and the plain maps beside them if there are any."""

    def draw(inputs: Sequence[int], indices: range, how: Draw) -> tuple[Tensor, Tensor | None]:
        seen(inputs, indices)
        chosen, part = torch.as_tensor(inputs), slice(indices.start, indices.stop)
        return values[chosen, part], None if plain is None else plain[chosen, part]

    return Samples(len(values), rows, n_samples or values.shape[1], draw, **settings)
