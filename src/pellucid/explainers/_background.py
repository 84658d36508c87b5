"""Expectations over baselines, of which each sample draws one: the rows of a data set, or several rules for what absent
means.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.core.baseline import Background, Baseline, BlackOrZero, FeatureMean, standing_in
from pellucid.core.checks import check_seed
from pellucid.core.estimate import Estimate
from pellucid.core.estimator import Draw, Mean, Samples, sample
from pellucid.core.explainer import Call, Explainer
from pellucid.core.model import Model
from pellucid.core.random import uniform
from pellucid.core.stopping import Until, check_samples, lengthened
from pellucid.core.target import Targets
from pellucid.errors import ArgumentError

__all__ = ["OverBaselines", "absent", "check_baselines", "drawn"]


@dataclass(frozen=True, kw_only=True)
class OverBaselines(Explainer):
    """Abstract: the mean over baselines that are drawn at random, with its standard error.

    `baselines` is a Background (inputs of a data set), or a tuple of Baselines.
    """

    baselines: Background | tuple[Baseline, ...] = field(default_factory=lambda: (BlackOrZero(), FeatureMean()))
    n_samples: int | Until = 200
    seed: int = 0

    def __post_init__(self) -> None:
        check_baselines(self.baselines)
        check_samples(self.n_samples)
        check_seed(self.seed)

    @abstractmethod
    def contributions(
        self,
        model: Model,
        x: Float[Tensor, "m *features"],
        start: Float[Tensor, "m *features"],
        numbers: Float[Tensor, " m"],
        targets: Targets,
    ) -> Float[Tensor, "m *features"]:
        """One sample of each row, given its baseline and a random number in [0, 1)."""

    def extended(self, taken: Sequence[int], draws: int, more: int | Until) -> "OverBaselines":
        return replace(self, n_samples=lengthened(self.n_samples, taken, more))

    def attribute(self, model: Model, x: Float[Tensor, "b *features"], targets: Targets, call: Call) -> Estimate:
        streams = [key.stream(self.seed) for key in call.keys]
        starts = absent(self.baselines, model, x)

        def draw(inputs: Sequence[int], indices: range, how: Draw) -> tuple[Tensor, None]:
            two = np.stack([uniform(streams[b], i, 2) for b in inputs for i in indices])
            rows = torch.tensor([b for b in inputs for _ in indices])
            start, numbers = drawn(starts, two[:, 0], rows), torch.from_numpy(two[:, 1])
            found = self.contributions(model, x[rows], start, numbers, targets.chosen(rows.tolist()))
            return found.unflatten(0, (len(inputs), len(indices))), None

        samples = Samples(
            inputs=len(x),
            rows=model.rows(x, maps=1),
            n_samples=self.n_samples,
            draw=draw,
            report=call.report,
            listening=call.listening,
            earlier=call.earlier,
        )
        return sample(samples, Mean())


def check_baselines(baselines: object) -> None:
    """Raises ArgumentError for what is neither a background nor a tuple of baselines."""
    several = isinstance(baselines, tuple) and baselines and all(isinstance(one, Baseline) for one in baselines)
    if not isinstance(baselines, Background) and not several:
        raise ArgumentError(
            f"`baselines` is pl.Background.of(rows), or a tuple such as (pl.Pixel(0.0), pl.Pixel(1.0)). Got "
            f"{baselines!r}."
        )


def absent(
    baselines: Background | tuple[Baseline, ...], model: Model, x: Float[Tensor, "b *features"]
) -> Float[Tensor, "n own *features"]:
    """The baselines of each input; those of a background are the same for all, (n, 1, *features)."""
    if not isinstance(baselines, Background):
        return torch.stack([standing_in(one, x, model.preprocess, model.packing) for one in baselines])
    rows, packing = baselines.rows, model.packing
    if packing is not None and sum(not held for held in packing.held) == 1:  # such as a layer
        [shape] = [shape for shape, held in zip(packing.shapes, packing.held, strict=True) if not held]
        if tuple(rows.shape[1:]) == shape:
            given = {packing.names[packing.drawn]: rows}
            held = {name: rows.new_zeros((len(rows), *part.shape[1:])) for name, part in packing.parts(x).items()}
            rows = packing.packed(list((held | given).values()))
    if rows.shape[1:] != x.shape[1:]:
        raise ArgumentError(
            f"Expected a background of inputs {tuple(x.shape[1:])}, but it holds {tuple(rows.shape[1:])}."
        )
    found = rows.to(x)[:, None]
    if packing is None:
        return found
    mask = packing.mask(x)
    return found * mask + x * (1 - mask)  # what is held stays each input's own


def drawn(starts: Float[Tensor, "n own *features"], where: np.ndarray, rows: Tensor) -> Float[Tensor, "m *features"]:
    """One baseline for each of the inputs `rows`, chosen by numbers in [0, 1)."""
    chosen = torch.from_numpy((where * len(starts)).astype(np.int64)).clamp(max=len(starts) - 1)
    return starts[chosen, rows if starts.shape[1] > 1 else torch.zeros_like(rows)]
