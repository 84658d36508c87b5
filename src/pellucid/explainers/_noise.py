"""Noisy copies of an input, and a base method's maps of them as a stream of samples."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.core.ahead import Ahead
from pellucid.core.card import Cost, MethodCard
from pellucid.core.checks import check_seed
from pellucid.core.estimate import Estimate
from pellucid.core.estimator import Draw, Estimator, Samples, sample
from pellucid.core.explainer import Call, Explainer
from pellucid.core.model import Model
from pellucid.core.packing import Packing, spread
from pellucid.core.precision import HALF
from pellucid.core.random import Key, normal
from pellucid.core.recipe import Value
from pellucid.core.stopping import Until, check_samples, lengthened
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

    def spread(self, x: Float[Tensor, "b *features"], packing: Packing | None = None) -> Tensor:
        """Sigma of each input, (B, 1, ...); of packed inputs that of each feature, from the range of its part."""
        if self.fraction is not None:
            return spread(x, packing) * self.fraction
        sigma = torch.full_like(x.amax(tuple(range(1, x.ndim)), keepdim=True), self.sigma or 0.0)
        return sigma if packing is None else sigma * packing.mask(x)


def _within(value: object, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most and value < math.inf


@dataclass(frozen=True, kw_only=True)
class NoisyCopies(Explainer):
    """Abstract: a base method run on noisy copies. The methods differ in what they make of its maps."""

    base: Explainer = field(default_factory=SimpleGradient)
    noise_level: float | NoiseLevel = 0.15
    n_samples: int | Until = 50
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.base, Explainer):
            raise ArgumentError(
                f"`base` is the explainer to run on the copies, such as SimpleGradient() with its parentheses. "
                f"Got {self.base!r}."
            )
        check_samples(self.n_samples)
        check_seed(self.seed)
        _ = self.noise  # checks the level

    @property
    def noise(self) -> NoiseLevel:
        """The noise level, whichever way it was given."""
        return self.noise_level if isinstance(self.noise_level, NoiseLevel) else NoiseLevel(self.noise_level)

    def check_features(self, features: tuple[int, ...]) -> None:
        self.base.check_features(features)

    def extended(self, taken: Sequence[int], draws: int, more: int | Until) -> "NoisyCopies":
        """The method that one long run would have had, after one that took `taken` samples, the first in `draws`."""
        return replace(self, n_samples=lengthened(self.n_samples, taken, more))

    def estimated(
        self,
        estimator: Estimator,
        model: Model,
        x: Float[Tensor, "b *features"],
        targets: Targets,
        call: Call,
        n_samples: int | Until,
    ) -> Estimate:
        """The estimate from the base's maps of x + e_i, with e_i from the stream H(seed, input key)."""
        streams = [key.stream(self.seed) for key in call.keys]
        sigma = self.noise.spread(x, model.packing)
        shape = tuple(x.shape[1:])
        cuts: set[str] = set()
        layers: set[str] = set()
        told: dict[int, list[str]] = {b: [] for b in range(len(x))}

        def drawn(inputs: Sequence[int], draws: range, how: Draw) -> np.ndarray:
            first, last = draws.start * how.size, draws.stop * how.size
            if not how.mirrored:
                noise = np.empty((len(inputs), last - first, *shape), dtype=np.float32)
                for row, b in zip(noise, inputs, strict=True):
                    for place, i in zip(row, range(first, last), strict=True):
                        normal(streams[b], i, shape, out=place)
                return noise
            pairs = range(first // 2, last // 2)
            half = np.stack([[normal(streams[b], j, shape) for j in pairs] for b in inputs])
            return np.stack([half, -half], 2).reshape(len(inputs), last - first, *shape)

        def draw(inputs: Sequence[int], draws: range, how: Draw) -> tuple[Tensor, Tensor | None]:
            noise = torch.from_numpy(ahead.take((tuple(inputs), draws, how))).to(x.device, x.dtype)
            copies = noise.mul_(sigma[inputs, None]).add_(x[inputs, None]).flatten(0, 1)
            goals = targets.chosen(inputs).repeat(len(draws) * how.size)
            plain = None
            if how.cuts is None:
                indices = range(draws.start * how.size, draws.stop * how.size)
                inner = Call(tuple(streams[b].child(i) for b in inputs for i in indices))
                found = self.base.attribute(model, copies, goals, inner)
                maps = found.values
                for place, said in enumerate(found.remarks):
                    told[inputs[place // len(indices)]] += said
                layers.update(map(str, found.notes.get("layer", ())))
            else:
                beside = [how.stacked or how.beside(i) for i in draws for _ in range(how.size)] * len(inputs)
                digits = torch.promote_types(copies.dtype, torch.float32)  # maps have no fewer
                maps, plain = copies.new_zeros(copies.shape, dtype=digits), copies.new_zeros(copies.shape, dtype=digits)
                for both in sorted(set(beside)):  # the draws without a plain map need no second backward pass
                    rows = [row for row, this in enumerate(beside) if this is both]
                    factors = model.factored_gradient(copies[rows], goals.chosen(rows), how.size, how.cuts, plain=both)
                    maps[rows] = factors.factored
                    if factors.plain is not None:
                        plain[rows] = factors.plain
                    cuts.add(factors.cuts)
            each = (len(inputs), len(draws), how.size, *maps.shape[1:])
            if plain is None:
                return _mean(maps, each), None
            factored, other = _mean(maps, each), _mean(plain, each)
            return (torch.stack([other, factored], 2), None) if how.stacked else (factored, other)

        how = estimator.how(n_samples)
        if how.cuts is not None and not isinstance(self.base, SimpleGradient):
            raise ArgumentError(
                f"{type(estimator).__name__} factors the plain gradient: its base is SimpleGradient(). For "
                f"{self.base.card.title} take estimator=Shrunk() or Mean()."
            )
        with Ahead(lambda asked: drawn(*asked)) as ahead:
            halves = lambda: self._halves(x, sigma, targets, streams[0])  # noqa: E731  # of the first input
            spread = estimator.order > 2
            model.settle_precision(x, halves, (repr(self.base), repr(self.noise), spread), spread=spread)
            samples = Samples(
                inputs=len(x),
                rows=model.rows(x, how.size if how.cuts is not None else 1, 1 + how.stacked),
                n_samples=n_samples,
                draw=draw,
                ahead=lambda *asked: ahead.ask((tuple(asked[0]), *asked[1:])),
                report=call.report,
                listening=call.listening,
                earlier=call.earlier,
            )
            estimate = sample(samples, estimator)
        said = {"cuts": cuts, "layer": layers}
        where = {name: ("; ".join(sorted(words)),) * len(x) for name, words in said.items() if words}
        remarks = tuple((f"Of noisy copies, {len(said)} times: {said[0]}",) if said else () for said in told.values())
        return replace(estimate, notes=self.notes(x, model.packing) | where, remarks=remarks if any(remarks) else ())

    def _halves(self, x: Tensor, sigma: Tensor, targets: Targets, stream: Key) -> list[Callable[[Model], Tensor]]:
        """The first plain samples of the first input in two halves, for any model to compute."""

        def half(indices: range) -> Callable[[Model], Tensor]:
            noise = np.stack([normal(stream, i, tuple(x.shape[1:])) for i in indices])
            copies = x[:1] + sigma[:1] * torch.from_numpy(noise).to(x.device, x.dtype)
            goals, inner = targets[:1].repeat(len(indices)), Call(tuple(stream.child(i) for i in indices))
            return lambda model: self.base.attribute(model, copies, goals, inner).values

        return [half(range(HALF)), half(range(HALF, 2 * HALF))]

    def notes(self, x: Float[Tensor, "b *features"], packing: Packing | None) -> dict[str, tuple[float | str, ...]]:
        """Each input's sigma, absolute and as a fraction of its range: the recipe stores both; of several parts, in
        words.
        """
        sigma, whole = self.noise.spread(x, packing), spread(x, packing)
        level = torch.where(whole > 0, sigma / whole.clamp(min=torch.finfo(x.dtype).tiny), 0.0)
        if packing is None:
            return {"sigma": tuple(sigma.flatten().tolist()), "noise_level": tuple(level.flatten().tolist())}
        each = {"sigma": packing.explained(sigma), "noise_level": packing.explained(level.expand_as(sigma))}

        def words(parts: Mapping[str, Tensor], row: int) -> str:
            return ", ".join(f"{name} {float(part[row].max()):.6g}" for name, part in parts.items())

        return {name: tuple(words(parts, row) for row in range(len(x))) for name, parts in each.items()}

    def card_over(self, name: str, title: str, reference: str, cost: Cost, caveats: tuple[str, ...] = ()) -> MethodCard:
        """The base's card with another name and the cost of the samples: needs and applicability are the base's."""
        base = self.base.card
        plain = isinstance(self.base, SimpleGradient)
        return replace(
            base,
            name=name if plain else f"{name}-of-{base.name}",
            title=title if plain else f"{title} of {base.title}",
            cost=cost,
            reference=reference,
            sampled=True,
            caveats=base.caveats[:1] + caveats,
        )


def _mean(maps: Tensor, each: tuple[int, ...]) -> Tensor:
    """The mean over the samples of each draw, (inputs, draws, *features)."""
    return maps.reshape(*each[:2], *each[3:]) if each[2] == 1 else maps.reshape(each).mean(2)
