"""Noisy copies of an input, and a base method's maps of them as a stream of samples."""

import math
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.core.card import MethodCard
from pellucid.core.checks import check_count, check_seed
from pellucid.core.estimate import Estimate, Samples
from pellucid.core.explainer import Call, Explainer
from pellucid.core.model import Model
from pellucid.core.random import normal
from pellucid.core.recipe import Value
from pellucid.core.target import Targets
from pellucid.errors import ArgumentError
from pellucid.explainers.simple_gradient import SimpleGradient

__all__ = ["NoiseLevel", "NoisyCopies"]


@dataclass(frozen=True)
class NoiseLevel(Value):
    """The spread of the noise: a fraction of each input's own range (max - min over all its features), or absolute.

    `clean_copy` makes the last of the n copies noiseless, as Zennit does.

    Raises:
        ArgumentError: not one of fraction and sigma, or out of range.

    Example:
        >>> import torch, pellucid as pl
        >>> pl.NoiseLevel(0.5).spread(torch.tensor([[0.0, 4.0], [1.0, 1.0]])).tolist()
        [[2.0], [0.0]]
    """

    fraction: float | None = None
    sigma: float | None = None
    clean_copy: bool = False

    def __post_init__(self) -> None:
        if (self.fraction is None) == (self.sigma is None):
            raise ArgumentError("A NoiseLevel is a fraction of the input's range, or NoiseLevel.absolute(sigma).")
        if self.fraction is not None and not _within(self.fraction, 1):
            raise ArgumentError(
                f"`noise_level` is a fraction of the input's range, between 0 and 1. Got {self.fraction!r}. "
                f"For an absolute sigma write NoiseLevel.absolute({self.fraction!r})."
            )
        if self.sigma is not None and not _within(self.sigma, math.inf):
            raise ArgumentError(f"An absolute sigma is a finite number, 0 or more. Got {self.sigma!r}.")

    @classmethod
    def absolute(cls, sigma: float) -> "NoiseLevel":
        """The same sigma for every input, in units of the input tensor."""
        return cls(sigma=sigma)

    def spread(self, x: Float[Tensor, "b *features"]) -> Tensor:
        """Sigma of each input, (B, 1, ...)."""
        axes = tuple(range(1, x.ndim))
        if self.fraction is None:
            return torch.full_like(x.amax(axes, keepdim=True), self.sigma or 0.0)
        return (x.amax(axes, keepdim=True) - x.amin(axes, keepdim=True)) * self.fraction


def _within(value: object, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most and value < math.inf


@dataclass(frozen=True, kw_only=True)
class NoisyCopies(Explainer):
    """Abstract: a base method run on noisy copies. The methods differ in what they make of its maps."""

    base: Explainer = field(default_factory=SimpleGradient)
    noise_level: float | NoiseLevel = 0.15
    n_samples: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.base, Explainer):
            raise ArgumentError(
                f"`base` is the explainer to run on the copies, such as SimpleGradient() with its parentheses. "
                f"Got {self.base!r}."
            )
        check_count("n_samples", self.n_samples)
        check_seed(self.seed)
        _ = self.noise  # checks the level

    @property
    def noise(self) -> NoiseLevel:
        """The noise level, whichever way it was given."""
        return self.noise_level if isinstance(self.noise_level, NoiseLevel) else NoiseLevel(self.noise_level)

    def samples(
        self, model: Model, x: Float[Tensor, "b *features"], targets: Targets, call: Call, count: int
    ) -> Samples:
        """The base's maps of x + e_i, i < count, with e_i from the stream H(seed, input key)."""
        streams = [key.stream(self.seed) for key in call.keys]
        sigma = self.noise.spread(x)
        shape = tuple(x.shape[1:])

        def compute(inputs: slice, indices: range) -> Tensor:
            drawn = np.stack([[normal(stream, i, shape) for i in indices] for stream in streams[inputs]])
            noise = torch.from_numpy(drawn).to(x.device, x.dtype)
            copies = x[inputs, None] + sigma[inputs, None] * noise
            inner = Call(tuple(stream.child(i) for stream in streams[inputs] for i in indices))
            maps = self.base.attribute(model, copies.flatten(0, 1), targets[inputs].repeat(len(indices)), inner)
            return maps.values.reshape(noise.shape)

        return Samples(len(x), count, model.rows(x), compute, call.report)

    def noted(self, estimate: Estimate, x: Float[Tensor, "b *features"]) -> Estimate:
        """The estimate with each input's sigma, absolute and as a fraction of its range: the recipe stores both."""
        sigma, spread = self.noise.spread(x), NoiseLevel(1.0).spread(x)
        level = torch.where(spread > 0, sigma / spread.clamp(min=torch.finfo(x.dtype).tiny), 0.0)
        return replace(
            estimate, notes={"sigma": tuple(sigma.flatten().tolist()), "noise_level": tuple(level.flatten().tolist())}
        )

    def card_over(self, name: str, title: str, reference: str, caveats: tuple[str, ...] = ()) -> MethodCard:
        """The base's card with another name and n times its cost: needs, access and applicability are the base's."""
        base = self.base.card
        plain = isinstance(self.base, SimpleGradient)
        return replace(
            base,
            name=name if plain else f"{name}-of-{base.name}",
            title=title if plain else f"{title} of {base.title}",
            cost=base.cost * self.n_samples,
            reference=reference,
            sampled=True,
            caveats=base.caveats[:1] + caveats,
        )
