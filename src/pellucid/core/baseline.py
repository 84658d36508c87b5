"""What "absent" means: the values that stand in for a feature whose influence is measured."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.core.input import Preprocess
from pellucid.core.packing import Packing, pack
from pellucid.core.random import Key
from pellucid.core.recipe import Value
from pellucid.errors import ArgumentError, RecipeError

__all__ = ["Background", "Baseline", "BlackOrZero", "Blur", "Constant", "FeatureMean", "Pixel", "Zeros",
           "check_baseline", "standing_in"]  # fmt: skip


class Baseline(ABC, Value):
    """A stand-in for an input, in the units of the model's input tensor."""

    @abstractmethod
    def values(
        self, x: Float[Tensor, "b *features"], preprocess: Preprocess | None = None
    ) -> Float[Tensor, "b *features"]:
        """The stand-in of each input. `preprocess` says what a pixel's value is in the model's units."""


@dataclass(frozen=True)
class Zeros(Baseline):
    """Zero in the model's own units; for a normalised image that is the mean colour, not black.

    Example:
        >>> import torch, pellucid as pl
        >>> pl.Zeros().values(torch.ones(1, 2))
        tensor([[0., 0.]])
    """

    def values(
        self, x: Float[Tensor, "b *features"], preprocess: Preprocess | None = None
    ) -> Float[Tensor, "b *features"]:
        return torch.zeros_like(x)


@dataclass(frozen=True)
class Constant(Baseline):
    """One value everywhere, in the model's own units.

    Example:
        >>> import torch, pellucid as pl
        >>> pl.Constant(-1.0).values(torch.ones(1, 2))
        tensor([[-1., -1.]])
    """

    value: float

    def values(
        self, x: Float[Tensor, "b *features"], preprocess: Preprocess | None = None
    ) -> Float[Tensor, "b *features"]:
        return torch.full_like(x, self.value)


@dataclass(frozen=True)
class Pixel(Baseline):
    """One value everywhere in the original: 0 is black, 1 white, whatever the model's normalisation makes of it.

    Raises:
        ArgumentError: a value outside 0 .. 1; when used, a model that was made without `preprocess`.

    Example:
        >>> import torch, pellucid as pl
        >>> prepare = pl.ImagePreprocess(size=2, mean=0.5, std=0.25)
        >>> pl.Pixel(0.0).values(torch.ones(1, 3, 2, 2), prepare)[0, 0, 0]
        tensor([-2., -2.])
    """

    value: float

    def __post_init__(self) -> None:
        if isinstance(self.value, bool) or not isinstance(self.value, int | float) or not 0 <= self.value <= 1:
            raise ArgumentError(f"A pixel's value runs from 0 (black) to 1 (white). Got {self.value!r}.")

    def values(
        self, x: Float[Tensor, "b *features"], preprocess: Preprocess | None = None
    ) -> Float[Tensor, "b *features"]:
        if preprocess is None:
            raise ArgumentError(
                f"{self!r} is a value in the original, but what this model's inputs are made of is not known. Make the "
                "model with preprocess=..., or give the value in the model's units (or a layer's): Constant(value)."
            )
        return preprocess.level(self.value).to(x).expand_as(x).clone()


@dataclass(frozen=True)
class BlackOrZero(Baseline):
    """Black where the model's preprocessing says what black is, otherwise zero in the model's own units.

    Example:
        >>> import torch, pellucid as pl
        >>> pl.BlackOrZero().values(torch.ones(1, 2))
        tensor([[0., 0.]])
    """

    def values(
        self, x: Float[Tensor, "b *features"], preprocess: Preprocess | None = None
    ) -> Float[Tensor, "b *features"]:
        return Zeros().values(x) if preprocess is None else Pixel(0.0).values(x, preprocess)


@dataclass(frozen=True)
class FeatureMean(Baseline):
    """Each input's own mean over all axes behind the first feature axis: an image's mean colour, for a vector its mean.

    Example:
        >>> import torch, pellucid as pl
        >>> pl.FeatureMean().values(torch.tensor([[[1.0, 3.0], [0.0, 4.0]]]))
        tensor([[[2., 2.],
                 [2., 2.]]])
    """

    def values(
        self, x: Float[Tensor, "b *features"], preprocess: Preprocess | None = None
    ) -> Float[Tensor, "b *features"]:
        axes = tuple(range(2, x.ndim)) or (1,)
        return x.mean(axes, keepdim=True).expand_as(x).clone()


@dataclass(frozen=True)
class Blur(Baseline):
    """The input without detail: each channel blurred by a Gaussian of `sigma` features, its edges continued.

    Raises:
        ArgumentError: `sigma` is not over zero; when used, inputs without axes behind their channels.

    Example:
        >>> import torch, pellucid as pl
        >>> pl.Blur(100.0).values(torch.eye(4)[None, None]).std() < 1e-3
        tensor(True)
    """

    sigma: float = 10.0

    def __post_init__(self) -> None:
        if isinstance(self.sigma, bool) or not isinstance(self.sigma, int | float) or not 0 < self.sigma < math.inf:
            raise ArgumentError(f"`sigma` is a number of pixels, over 0. Got {self.sigma!r}.")

    def values(
        self, x: Float[Tensor, "b *features"], preprocess: Preprocess | None = None
    ) -> Float[Tensor, "b *features"]:
        from scipy.ndimage import gaussian_filter

        if x.ndim < 3:
            raise ArgumentError(f"A blur is of pictures (B, C, H, W) or signals (B, C, T). Got {tuple(x.shape)}.")
        digits = x.detach().cpu().to(torch.promote_types(x.dtype, torch.float32)).numpy()
        axes = tuple(range(2, x.ndim))
        return torch.from_numpy(gaussian_filter(digits, self.sigma, axes=axes, mode="nearest")).to(x)


@dataclass(frozen=True)
class Background(Value):
    """Inputs of a data set as baselines, known by the hash of their content; `Background.of` makes one.

    The rows stay in this process: a recipe names the hash, and whoever runs it again makes the background again.

    Example:
        >>> import torch, pellucid as pl
        >>> background = pl.Background.of(torch.rand(10, 3))
        >>> background.count, background.rows.shape
        (10, torch.Size([10, 3]))
    """

    digest: str
    count: int
    _kept: ClassVar[dict[str, Tensor]] = {}

    @classmethod
    def of(cls, rows: Tensor | Mapping[str, Tensor] | Sequence[Tensor]) -> "Background":
        """The background of these inputs (N, *features), or of dicts and tuples of tensors (N, ...).

        Raises:
            ArgumentError: not at least one row of floating point.
        """
        tensor = rows if isinstance(rows, Tensor) else pack(rows)[0]
        if tensor.ndim < 2 or not len(tensor) or not tensor.is_floating_point():
            raise ArgumentError(f"A background is a tensor (N, *features) of inputs. Got {tuple(tensor.shape)}.")
        digest = f"{Key.of(tensor).hex}-{str(tensor.dtype).removeprefix('torch.')}"
        cls._kept[digest] = tensor.detach().cpu().clone()
        return cls(digest, len(tensor))

    def __reduce__(self) -> tuple[Any, ...]:
        return (Background.of, (self._kept[self.digest],)) if self.digest in self._kept else super().__reduce__()  # type: ignore[return-value]  # a tuple, here

    @property
    def rows(self) -> Tensor:
        """The inputs, (N, *features).

        Raises:
            RecipeError: they were not made in this process.
        """
        if self.digest not in self._kept:
            raise RecipeError(
                f"The background {self.digest} of {self.count} inputs is not here. Make it again: Background.of(rows)."
            )
        return self._kept[self.digest]


def check_baseline(value: object) -> None:
    """Raises ArgumentError unless `value` is a baseline."""
    if not isinstance(value, Baseline):
        raise ArgumentError(
            f"`baseline` is one such as pl.Pixel(0.0), pl.Blur() or pl.Constant(0.5). Got {value!r}. For a set of "
            "baselines take ExpectedGradients."
        )


def standing_in(
    baseline: Baseline, x: Float[Tensor, "b *features"], preprocess: Preprocess | None, packing: Packing | None
) -> Float[Tensor, "b *features"]:
    """The stand-in of each input; of packed inputs that of each part, while those that are held stay as they are."""
    if packing is None:
        return baseline.values(x, preprocess)
    parts = packing.parts(x)
    absent = {name: baseline.values(part, preprocess) for name, part in packing.explained(x).items()}
    return packing.packed([absent.get(name, part) for name, part in parts.items()])
