"""Conductance: how much of an attribution flows through each unit of a layer.

    M_u(x) = sum_i (x_i - x'_i) int dS/du du/dx_i da = int_0^1 dS/du(a) du(a)        (Dhamdhere et al. 2018, eq. 3)

u(a) is what the unit gives at x' + a (x - x'). One number for each unit of the layer, signed, in units of the score;
over a layer that every path passes they sum to S(x) - S(x'), but for the `residual`. The second integral is taken by
the trapezoid rule in u, between `n_steps` + 1 points of the path.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.core.baseline import Baseline, BlackOrZero, check_baseline
from pellucid.core.card import Applicability, Cost, MethodCard, Needs, Per, Scope, Stage
from pellucid.core.checks import check_count
from pellucid.core.estimate import Estimate
from pellucid.core.explainer import Call, Explainer
from pellucid.core.model import Model
from pellucid.core.target import Targets
from pellucid.errors import ArgumentError
from pellucid.explainers._path import of_rows, path, telling

__all__ = ["Conductance"]


@dataclass(frozen=True, kw_only=True)
class Conductance(Explainer):
    """Integrated Gradients divided among the units of `layer` (Dhamdhere et al. 2018), by default the last of cells.

    Raises:
        ArgumentError: no baseline, or a count out of range.
        LayerError: the network has no such layer, or it runs several times.

    Example:
        >>> import torch, pellucid as pl
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()
        >>> a = pl.Conductance(layer="0", n_steps=200)(pl.TorchModel(net), torch.rand(1, 3), target=1)
        >>> a.scores.shape, bool(a.residual.abs() < 1e-4)
        (torch.Size([1, 4]), True)
    """

    layer: str | None = None
    baseline: Baseline = field(default_factory=BlackOrZero)
    n_steps: int = 50

    def __post_init__(self) -> None:
        check_baseline(self.baseline)
        if self.layer is not None and not isinstance(self.layer, str):
            raise ArgumentError(f"`layer` is the name of a module. Got {self.layer!r}.")
        check_count("n_steps", self.n_steps)

    @property
    def card(self) -> MethodCard:
        return MethodCard(
            name="conductance",
            title="Conductance",
            scope=Scope.LOCAL,
            stage=Stage.POST_HOC,
            applicability=Applicability.MODEL_SPECIFIC,
            needs=Needs.SCORES | Needs.GRADIENTS | Needs.ACTIVATIONS | Needs.MODULES,
            cost=Cost(forward=self.n_steps + 1, backward=self.n_steps + 1),
            reference="Dhamdhere et al. 2018, arXiv:1805.12233",
            unit="score",
            channels="sum",
            per=Per.UNIT,
            caveats=("networks with that layer only", "sums to the change of the score where no path avoids the layer"),
        )

    def attribute(self, model: Model, x: Float[Tensor, "b *features"], targets: Targets, call: Call) -> Estimate:
        layer = model.spatial_layer(x, targets.layers) if self.layer is None else self.layer
        along = path(self.baseline, model, x)
        tell = telling(call, len(x) * (self.n_steps + 1))
        last: dict[int, tuple[Tensor, Tensor]] = {}  # of each input, what the point before gave
        ends: dict[int, list[Tensor]] = {i: [] for i in range(len(x))}
        gathered: Tensor | None = None
        for which, _, points in along.points(torch.linspace(0, 1, self.n_steps + 1), model.rows(x, maps=1)):
            found = model.layer_pass(points, of_rows(targets, which), [layer], gradients=True)
            [units], [gradients] = found.activations, found.gradients
            if gathered is None:
                gathered = torch.zeros((len(x), *units.shape[1:]), dtype=torch.float64, device=units.device)
            for i, unit, gradient, score in zip(
                which.tolist(), units.double(), gradients.double(), found.scores.double(), strict=True
            ):
                if i in last:
                    before, slope = last[i]
                    gathered[i] += (gradient + slope) / 2 * (unit - before)
                last[i] = unit, gradient
                ends[i] = [*ends[i][:1], score]
            tell(len(which))
        assert gathered is not None  # noqa: S101  # a path has two points
        whole = torch.stack([last - first for first, last in ends.values()])
        return Estimate.exact(
            gathered.to(units.dtype),
            residual=gathered.flatten(1).sum(1) - whole,
            notes={"change": tuple(whole.tolist()), "layer": (layer,) * len(x)},
        )
