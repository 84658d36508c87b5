"""What is accumulated of a stream of draws: central moments, sums of batches, and the plain map beside a factored one.

Draws of one input are always added one by one in the order of their index, in float64, so that neither the micro-batch
nor the company of other inputs can change a sum.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pellucid.core.estimate import BATCHES, batch_sizes

__all__ = ["Moments", "per_input", "power_error"]

_NAMES = ("mean", "m2", "m3", "m4")
_GAP, _GAP_POWER, _PLAIN_POWER, _GAPS = "gap", "gap_power", "plain_power", "gaps"


class Moments:
    """The moments of W inputs that take their draws in step, (W, *features) each.

    Mean and central sums after Welford 1962; to the fourth order Pebay 2008, eq. 2.1. `gap` sums, over the draws that
    came with the plain map of the same noise, that map minus the draw.
    """

    def __init__(self, like: Tensor, order: int) -> None:
        self.count = 0
        self.central = [torch.zeros(like.shape, dtype=torch.float64, device=like.device) for _ in range(order)]
        # A variance is not the mean of its batches, so with higher moments there are none.
        batches = BATCHES if order == 2 else 0
        self.sums = torch.zeros((len(like), batches, *like.shape[1:]), dtype=like.dtype, device=like.device)
        self.gaps = 0
        self.gap: Tensor | None = None
        self.gap_power = torch.zeros(len(like), dtype=torch.float64, device=like.device)
        self.plain_power = torch.zeros_like(self.gap_power)
        self.dtype = like.dtype

    def add(self, draw: Tensor, plain: Tensor | None = None) -> None:
        """The next draw of each input (W, *features), and the plain map of the same noise if there is one."""
        before, self.count = self.count, self.count + 1
        n = self.count
        mean, *higher = self.central
        delta = draw - mean
        step = delta / n
        if len(higher) == 1:
            higher[0].addcmul_(delta, step, value=before)
        else:
            m2, m3, m4 = higher
            term = delta * step * before
            m4 += term * step**2 * (n * n - 3 * n + 3) + 6 * step**2 * m2 - 4 * step * m3
            m3 += term * step * (n - 2) - 3 * step * m2
            m2 += term
        mean += step
        if self.sums.shape[1]:
            self.sums[:, before % BATCHES] += draw
        if plain is not None:
            gap = plain.double() - draw
            self.gap = gap if self.gap is None else self.gap + gap
            self.gap_power += gap.square().flatten(1).sum(1)
            self.plain_power += plain.double().square().flatten(1).sum(1)
            self.gaps += 1

    def rows(self, which: Sequence[int]) -> "Moments":
        """Those of some of the inputs."""
        part = object.__new__(Moments)
        index = torch.as_tensor(which, device=self.sums.device)
        part.count, part.gaps, part.dtype = self.count, self.gaps, self.dtype
        part.central = [moment[index] for moment in self.central]
        part.sums, part.gap = self.sums[index], None if self.gap is None else self.gap[index]
        part.gap_power, part.plain_power = self.gap_power[index], self.plain_power[index]
        return part

    @property
    def mean(self) -> Tensor:
        """The mean of the draws, float64."""
        return self.central[0]

    @property
    def noise(self) -> Tensor:
        """The squared standard error of the mean per element, float64; zero of a single draw, which shows none."""
        return self.central[1] / max(self.count - 1, 1) / self.count

    @property
    def still(self) -> Tensor:
        """Which inputs' draws were all the same, (W,); a single draw shows nothing."""
        return (self.central[1] == 0).flatten(1).all(1) & (self.count > 1)

    def state(self) -> dict[str, Tensor]:
        """All of it as tensors with a row for each input."""
        rows = len(self.sums)
        found = dict(zip(_NAMES, self.central, strict=False)) | {"draws": torch.full((rows,), self.count)}
        if self.sums.shape[1]:
            found["batch_sums"] = self.sums
        if self.gap is not None:
            found |= {_GAP: self.gap, _GAP_POWER: self.gap_power, _PLAIN_POWER: self.plain_power}
            found[_GAPS] = torch.full((rows,), self.gaps)
        return found

    @classmethod
    def of(cls, state: Mapping[str, Tensor], which: Sequence[int], like: Tensor, order: int) -> "Moments":
        """What `state` gave, of inputs that had as many draws."""
        index = torch.as_tensor(which)
        part = {name: tensor[index].to(like.device) for name, tensor in state.items()}
        moments = cls(like, order)
        moments.count = int(part["draws"][0])
        moments.central = [part[name] for name in _NAMES[:order]]
        moments.sums = part.get("batch_sums", moments.sums)
        if _GAP in part:
            moments.gap, moments.gaps = part[_GAP], int(part[_GAPS][0])
            moments.gap_power, moments.plain_power = part[_GAP_POWER], part[_PLAIN_POWER]
        return moments


def power_error(sums: Tensor, draws: int) -> Tensor:
    """The standard error of the signal power of each input, (W,): jackknife over products of independent batches."""
    sizes = batch_sizes(draws)
    n = sizes[sizes > 0].double().to(sums.device)
    k = len(n)
    if k < 3:  # two batches make one product, which shows no spread
        return torch.full((len(sums),), torch.inf, dtype=torch.float64, device=sums.device)
    flat = sums[:, :k].flatten(2)
    # In units of the largest sum, whose square single precision may not hold.
    unit = flat.abs().amax((1, 2)).clamp(min=torch.finfo(flat.dtype).tiny)[:, None, None]
    scaled = flat / unit
    gram = (scaled @ scaled.transpose(1, 2)).double() / max(flat.shape[2], 1) * unit.double() ** 2
    squares = gram.diagonal(dim1=1, dim2=2)
    between = gram.sum((1, 2), keepdim=False)[:, None] - 2 * gram.sum(2) + 2 * squares - squares.sum(1, keepdim=True)
    without = between / ((n.sum() - n) ** 2 - ((n**2).sum() - n**2))
    spread = (without - without.mean(1, keepdim=True)).square().sum(1)
    return (spread * (k - 1) / k).sqrt()


def per_input(x: Tensor) -> Tensor:
    """The mean over the features of each input, (W,)."""
    return x.flatten(1).mean(1)
