"""Guided Integrated Gradients: from the baseline to the input by the way on which the gradient is least.

    M_i(x) = int dS/dx_i dx_i along a path that moves first the features with the smallest |dS/dx|
                                                                    (Kapishnikov et al. 2021, algorithm 1)

Signed, shape of the input, in units of the score. The path is a broken line of `n_steps` steps, which shorten the L1
distance to the input evenly; no feature may be further than `max_distance` (of the way) from where the straight path
would have it. Less of the noise that lies beside the straight path is gathered. `residual` reports how far the map's
sum is from S(x) - S(x'). Of deep networks with ReLU it is large, with the authors' own code as well: features move
while their gradients are small, and do not stay so. There the path also depends on how the gradients are rounded.
"""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.core.baseline import Baseline, BlackOrZero, check_baseline
from pellucid.core.card import Applicability, Cost, MethodCard, Needs, Scope, Stage
from pellucid.core.checks import check_count
from pellucid.core.estimate import Estimate
from pellucid.core.explainer import Call, Explainer
from pellucid.core.model import Model
from pellucid.core.target import Targets
from pellucid.errors import ArgumentError
from pellucid.explainers._path import change, path, telling

__all__ = ["GuidedIntegratedGradients"]

_CLOSE = 1e-9
"""Of the whole distance, which rounding leaves."""


@dataclass(frozen=True, kw_only=True)
class GuidedIntegratedGradients(Explainer):
    """Integrated Gradients along an adaptive path (Kapishnikov et al. 2021).

    `fraction` of the features, those with the smallest gradients, move at once.

    Raises:
        ArgumentError: no baseline, or a setting out of range.

    Example:
        >>> import torch, pellucid as pl
        >>> net, x = torch.nn.Linear(3, 2), torch.rand(1, 3)
        >>> a = pl.GuidedIntegratedGradients(n_steps=10)(pl.TorchModel(net), x, target=1)
        >>> torch.allclose(a.scores[0], x[0] * net.weight[1], atol=1e-6)
        True
    """

    baseline: Baseline = field(default_factory=BlackOrZero)
    n_steps: int = 200
    fraction: float = 0.25
    max_distance: float = 0.02

    def __post_init__(self) -> None:
        check_baseline(self.baseline)
        check_count("n_steps", self.n_steps)
        for name in ("fraction", "max_distance"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
                raise ArgumentError(f"`{name}` is a share, over 0 up to 1. Got {value!r}.")

    @property
    def card(self) -> MethodCard:
        return MethodCard(
            name="guided-integrated-gradients",
            title="Guided Integrated Gradients",
            scope=Scope.LOCAL,
            stage=Stage.POST_HOC,
            applicability=Applicability.MODEL_AGNOSTIC,
            needs=Needs.SCORES | Needs.GRADIENTS,
            cost=Cost(forward=self.n_steps + 2, backward=self.n_steps),
            reference="Kapishnikov et al. 2021, arXiv:2106.09788",
            unit="score",
            channels="sum",
            caveats=(
                "agnostic among differentiable models only",
                "the path depends on the model: two networks of one function may get two maps",
                "from a baseline of one value, max-pools break ties by rounding: prefer Blur() there",
            ),
        )

    def attribute(self, model: Model, x: Float[Tensor, "b *features"], targets: Targets, call: Call) -> Estimate:
        along = path(self.baseline, model, x)
        tell = telling(call, self.n_steps * len(x))
        walks = [
            _Walk(one.double().flatten(), start.double().flatten(), self.fraction, self.max_distance)
            for one, start in zip(along.x, along.start, strict=True)
        ]
        for step in range(self.n_steps):
            at = torch.stack([walk.at for walk in walks]).view(x.shape).to(x)
            gradients = model.gradient(at, targets).double().flatten(1)
            for walk, gradient in zip(walks, gradients, strict=True):
                walk.go((step + 1) / self.n_steps, gradient)
            tell(len(x))
        whole = change(model, along, targets)
        scores = torch.stack([walk.gathered for walk in walks])
        digits = torch.promote_types(x.dtype, torch.float32)
        return Estimate.exact(
            scores.view(x.shape).to(digits),
            residual=scores.sum(1) - whole,
            notes={"change": tuple(whole.tolist())},
        )


class _Walk:
    """One input's path: where it is and what it has gathered, all flat and in double precision."""

    def __init__(self, goal: Tensor, start: Tensor, fraction: float, reach: float) -> None:
        self.goal, self.start, self.fraction, self.reach = goal, start, fraction, reach
        self.at, self.gathered = start.clone(), torch.zeros_like(start)
        self.length = float((goal - start).abs().sum())
        self.still = goal == start

    def go(self, share: float, gradient: Tensor) -> None:
        """Move until only 1 - `share` of the distance is left, the features of least gradient first."""
        if self.length == 0:
            return
        whole = self.goal - self.start
        slowest = self.start + max(share - self.reach, 0.0) * whole
        fastest = self.start + min(share + self.reach, 1.0) * whole
        target = self.length * (1 - share)
        before = self.at
        # What is too far behind comes along first. |x - x'| grows on the way, whatever its direction.
        behind = (self.at - self.start).abs() < (slowest - self.start).abs()
        self.at = torch.where(behind, slowest, self.at)
        size = gradient.abs().nan_to_num(nan=math.inf, posinf=math.inf)  # what is no number goes last
        while (excess := float((self.goal - self.at).abs().sum()) - target) > _CLOSE * self.length:
            free = (self.at != fastest) & ~self.still
            if not bool(free.any()):
                break
            limit = self._threshold(size, free)
            moving = free & (size <= limit)
            possible = float((fastest - self.at).abs()[moving].sum())
            part = min(excess / possible, 1.0) if possible > 0 else 1.0
            self.at = torch.where(moving, fastest if part == 1 else self.at + part * (fastest - self.at), self.at)
        self.gathered += (self.at - before) * gradient

    def _threshold(self, size: Tensor, free: Tensor) -> float:
        """The magnitude below which `fraction` of all features lie, those at their end counting as infinite."""
        ranked = torch.where(free, size, math.inf)
        rank = math.floor(self.fraction * (len(ranked) - 1)) + 1
        value = float(ranked.kthvalue(rank).values)
        return value if value < math.inf else float(size[free].max())
