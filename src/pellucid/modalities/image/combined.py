"""Combined SmoothGrad: plain and factored maps of the same noise, weighed per wavelet band by their estimated risk.

    M_b = w_p P_b + w_f F_b,   w >= 0 minimising w'Qw - 2 w'r + <M, M>_b

Q holds the products of the two means P and F, r their products with the truth, estimated from products of independent
groups: <E P, M> = <P, P>, <E F, M> = <F, P>. So the risk counts the bias of the factored map, and the weights follow
it: few samples trust the factored map, many the plain one. One graph gives both, by two backward passes.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float

from pellucid.core.card import Cost
from pellucid.core.estimator import Draw, Estimator, Finished
from pellucid.core.factored import Factored
from pellucid.core.moments import Moments, per_input, power_error
from pellucid.core.stopping import Until
from pellucid.modalities.image.wavelet import Colours, check_image, forward, groups_of, inverse, kept, within

__all__ = ["Combined"]

_WELL_KNOWN = 4  # standard errors
_TINY = np.finfo(np.float64).tiny


@dataclass(frozen=True, kw_only=True)
class Combined(Estimator):
    """The best weights of plain and factored map in each wavelet band; for images. Settings are those of Factored.

    Raises:
        ArgumentError: a setting that Factored refuses; inputs that are not (B, C, H, W).
        CutError: when called with a network that cannot be cut.

    Example:
        >>> import pellucid as pl
        >>> str(pl.SmoothGrad(n_samples=48, estimator=pl.Combined()).card.cost)
        '48 forward, 96 backward'
    """

    cuts: int | tuple[str, ...] = 3
    group: int | None = None

    least = 4

    def __post_init__(self) -> None:
        _ = self._factored

    @property
    def _factored(self) -> Factored:
        return Factored(cuts=self.cuts, group=self.group)

    def check(self, features: tuple[int, ...]) -> None:
        check_image(features, "Combined")

    def how(self, n_samples: int | Until) -> Draw:
        return replace(self._factored.how(n_samples), stacked=True)

    def settled(self, size: int) -> "Combined":
        return replace(self, group=size)

    def cost(self, base: Cost, n_samples: int | Until) -> Cost:
        once = super().cost(base, n_samples)
        return replace(once, backward=2 * once.forward * base.backward // max(base.forward, 1))

    def finish(self, moments: Moments) -> Finished:
        plain, factored = moments.mean[:, 0], moments.mean[:, 1]
        if moments.count < 2:
            nothing = torch.full((len(plain),), torch.inf, dtype=torch.float64, device=plain.device)
            zero = torch.zeros_like(nothing)
            return Finished(
                factored.to(moments.dtype), None, zero, nothing, lambda t: nothing, lambda t: nothing, nothing,
                moments.still,
            )  # fmt: skip
        noise = per_input(moments.noise[:, 0])
        power, unsure = _power(moments)
        rows = [_Row.of(moments, row) for row in range(len(plain))]

        def squared(times: float) -> torch.Tensor:
            each = torch.tensor([row.squared(times) for row in rows], dtype=torch.float64)
            return each.to(plain.device)

        return Finished(
            values=torch.from_numpy(np.stack([row.values for row in rows])).to(plain.device, moments.dtype),
            standard_error=None,
            power=power,
            power_error=unsure,
            still=moments.still,
            squared=squared,
            plain=lambda times: noise / times,
            bias=torch.tensor([row.fixed for row in rows], dtype=torch.float64).to(plain.device),
        )

    @property
    def words(self) -> str:
        return "plain and factored combined"


def _power(moments: Moments) -> tuple[torch.Tensor, torch.Tensor]:
    """The signal's power and its standard error: the plain map's, once it is well known; before, the factored one's."""
    (plain, own), (factored, other) = (
        (
            per_input(moments.mean[:, i].square() - moments.noise[:, i]),
            power_error(moments.sums[:, :, i], moments.count),
        )
        for i in (0, 1)
    )
    known = plain > _WELL_KNOWN * own
    return torch.where(known, plain, factored), torch.where(known, own, other)


@dataclass(frozen=True, eq=False)
class _Row:
    """One input's combined map; its risk is `fixed` + `falling` / times."""

    values: np.ndarray
    fixed: float
    falling: float

    @classmethod
    def of(cls, moments: Moments, row: int) -> "_Row":
        means, counts = groups_of(moments.sums[row], moments.count)
        mean, noise = moments.mean[row].cpu().numpy(), moments.noise[row].cpu().numpy()
        if not noise.any() or not np.isfinite(means).all():  # nothing to weigh, or no way to
            return cls(mean[1], 0.0, float(noise.mean()))
        colours = Colours.of(means[:, 1], counts)
        bands = forward(colours.turn(means))
        fixed = falling = plain = mixed = 0.0
        best, mixtures = [], []
        for band, inner in zip(bands, within(bands, mean.shape), strict=True):
            weighed = [_Weighed.of(inner[:, :, colour], counts) for colour in range(band.shape[2])]
            both = np.tensordot(counts / counts.sum(), band, 1)
            best.append(np.stack([np.tensordot(one.best, both[:, i], 1) for i, one in enumerate(weighed)]))
            mixtures.append(np.stack([np.tensordot(one.mixture, both[:, i], 1) for i, one in enumerate(weighed)]))
            for one, weight in zip(weighed, colours.weights, strict=True):
                fixed, falling = fixed + weight * one.stays, falling + weight * one.falls
                plain, mixed = plain + weight * one.plain, mixed + weight * one.mixed
        map_, mixture = (colours.turn_back(inverse(part, mean.shape[1:])) for part in (best, mixtures))
        # The noise of the mixture in a pixel is that of the two means there, in the proportion that it has overall.
        own = noise.mean(0) * mixed / max(plain, _TINY) * float(noise[0].mean()) / float(noise.mean())
        values, sure = kept(mixture, own, map_, moments.count)
        unit = float(noise[0].mean()) / max(plain, _TINY)
        left = max(falling, 0.0) * unit
        return cls(values, max(fixed, 0.0) * unit, left + sure * max(mixed * unit - left, 0.0))

    def squared(self, times: float) -> float:
        """The mean squared error per element, bias included, with so many times the draws."""
        return self.fixed + self.falling / times


@dataclass(frozen=True, eq=False)
class _Weighed:
    """Weights of a band's two maps: `best` has the least risk, of which `stays` does not fall with more draws and
    `falls` does; `mixture` is the best that adds up to 1, so that it shrinks nothing. `plain` and `mixed` are the noise
    of the plain mean and of the mixture.
    """

    best: np.ndarray
    mixture: np.ndarray
    stays: float
    falls: float
    plain: float
    mixed: float

    @classmethod
    def of(cls, band: Float[np.ndarray, "k 2 h w"], counts: Float[np.ndarray, " k"]) -> "_Weighed":
        n = counts.sum()
        flat = band.reshape(*band.shape[:2], -1).astype(np.float64)
        mean = np.tensordot(counts / n, flat, 1)
        second = mean @ mean.T
        sums = flat * counts[:, None, None]
        own = np.einsum("kip,kjp->ij", sums, sums)
        across = (n * n * second - own) / (n * n - (counts**2).sum())  # products of different groups: no noise in them
        noise = second - across
        truth = max(across[0, 0], 0.0)
        goal = np.array([truth, (across[0, 1] + across[1, 0]) / 2])
        weights = _least_risk(second, goal)
        apart = np.array([-1.0, 1.0])
        bias = max(float(apart @ across @ apart), 0.0)
        factored = -(noise[0] @ apart) / max(float(apart @ noise @ apart) + bias, _TINY)
        mixing = np.array([1.0, 0.0]) + apart * min(max(factored, 0.0), 1.0)
        return cls(
            best=weights,
            mixture=mixing,
            stays=float(weights @ across @ weights - 2 * weights @ goal + truth),
            falls=float(weights @ noise @ weights),
            plain=float(noise[0, 0]),
            mixed=float(mixing @ noise @ mixing),
        )


def _least_risk(q: Float[np.ndarray, "2 2"], r: Float[np.ndarray, " 2"]) -> Float[np.ndarray, " 2"]:
    """The weights in 0..1 that minimise w'qw - 2 w'r: inside if the minimum is there, otherwise on the best edge."""
    determinant = q[0, 0] * q[1, 1] - q[0, 1] ** 2
    inside = np.array([q[1, 1] * r[0] - q[0, 1] * r[1], q[0, 0] * r[1] - q[0, 1] * r[0]])
    if determinant > 1e-9 * q[0, 0] * q[1, 1] and (inside >= 0).all() and (inside <= determinant).all():
        return np.asarray(inside / determinant)
    edges = []
    for i, held in ((0, 0.0), (0, 1.0), (1, 0.0), (1, 1.0)):
        weights = np.full(2, held)
        weights[1 - i] = np.clip((r[1 - i] - q[0, 1] * held) / max(q[1 - i, 1 - i], _TINY), 0.0, 1.0)
        edges.append(weights)
    return min(edges, key=lambda w: float(w @ q @ w - 2 * w @ r))
