"""The straight path from a baseline to an input: points on it, in micro-batches, and what changes along it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.core.baseline import Baseline, standing_in
from pellucid.core.explainer import Call
from pellucid.core.model import Model
from pellucid.core.target import Targets

__all__ = ["Path", "change", "of_rows", "path", "telling"]


@dataclass(frozen=True, eq=False)
class Path:
    """x' + alpha (x - x') of each input."""

    x: Float[Tensor, "b *features"]
    start: Float[Tensor, "b *features"]

    @property
    def whole(self) -> Float[Tensor, "b *features"]:
        """X - x'."""
        return self.x - self.start

    def points(self, alphas: Float[Tensor, " steps"], rows: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """All points of all inputs, so many at once: of which input each is, which step, and the points.

        The steps of an input follow each other.
        """
        inputs = torch.arange(len(self.x)).repeat_interleave(len(alphas))
        steps = torch.arange(len(alphas)).repeat(len(self.x))
        for which, step in zip(inputs.split(rows), steps.split(rows), strict=True):
            alpha = alphas[step].view(-1, *(1,) * (self.x.ndim - 1)).to(self.x)
            start = self.start[which]
            yield which, step, start + alpha * (self.x[which] - start)


def path(baseline: Baseline, model: Model, x: Float[Tensor, "b *features"]) -> Path:
    """The path of each input from its baseline; what is held does not move."""
    return Path(x, standing_in(baseline, x, model.preprocess, model.packing))


def change(model: Model, along: Path, targets: Targets) -> Float[Tensor, " b"]:
    """The target's change along the whole path, f(x) - f(x'), in double precision."""
    return model.scores(along.x, targets).double() - model.scores(along.start, targets).double()


def telling(call: Call, total: int) -> Callable[[int], None]:
    """A callback that adds so many done points to what the caller is told."""
    done = [0]

    def tell(points: int) -> None:
        done[0] += points
        call.report(done[0], total, None)

    return tell


def of_rows(targets: Targets, which: Sequence[int] | Tensor) -> Targets:
    """The targets of some inputs, one for each row."""
    return targets.chosen([int(i) for i in which])
