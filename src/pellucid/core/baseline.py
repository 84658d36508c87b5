"""What "absent" means: the values that stand in for a feature whose influence is measured."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.core.recipe import Value

__all__ = ["Baseline", "Constant", "FeatureMean", "Zeros"]


class Baseline(ABC, Value):
    """A stand-in for an input, in the units of the model's input tensor."""

    @abstractmethod
    def values(self, x: Float[Tensor, "b *features"]) -> Float[Tensor, "b *features"]:
        """The stand-in of each input."""


@dataclass(frozen=True)
class Zeros(Baseline):
    """Zero in the model's own units; for a normalised image that is the mean colour, not black.

    Example:
        >>> import torch, pellucid as pl
        >>> pl.Zeros().values(torch.ones(1, 2))
        tensor([[0., 0.]])
    """

    def values(self, x: Float[Tensor, "b *features"]) -> Float[Tensor, "b *features"]:
        return torch.zeros_like(x)


@dataclass(frozen=True)
class Constant(Baseline):
    """One value everywhere.

    Example:
        >>> import torch, pellucid as pl
        >>> pl.Constant(-1.0).values(torch.ones(1, 2))
        tensor([[-1., -1.]])
    """

    value: float

    def values(self, x: Float[Tensor, "b *features"]) -> Float[Tensor, "b *features"]:
        return torch.full_like(x, self.value)


@dataclass(frozen=True)
class FeatureMean(Baseline):
    """Each input's own mean over all axes behind the first feature axis: an image's mean colour, for a vector its mean.

    Example:
        >>> import torch, pellucid as pl
        >>> pl.FeatureMean().values(torch.tensor([[[1.0, 3.0], [0.0, 4.0]]]))
        tensor([[[2., 2.],
                 [2., 2.]]])
    """

    def values(self, x: Float[Tensor, "b *features"]) -> Float[Tensor, "b *features"]:
        axes = tuple(range(2, x.ndim)) or (1,)
        return x.mean(axes, keepdim=True).expand_as(x).clone()
