"""Expected Gradients: Integrated Gradients averaged over baselines, sampled.

    M(x) = E_{x' ~ D, a ~ U(0, 1)} [ (x - x') dS(x' + a (x - x')) / dx ]      (Erion et al. 2021, eq. 3)

Signed, shape of the input, in units of the score; the map sums to S(x) - E S(x'), within its standard error. It is what
the shap package's GradientExplainer computes. With noise on the input (Captum's GradientShap) it is
`SmoothGrad(base=ExpectedGradients(n_samples=1))`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.core.baseline import Background, Baseline, BlackOrZero, FeatureMean
from pellucid.core.card import Applicability, Cost, MethodCard, Needs, Scope, Stage
from pellucid.core.checks import check_seed
from pellucid.core.estimate import Estimate
from pellucid.core.estimator import Draw, Mean, Samples, sample
from pellucid.core.explainer import Call, Explainer
from pellucid.core.model import Model
from pellucid.core.random import uniform
from pellucid.core.stopping import Until, check_samples, lengthened
from pellucid.core.target import Targets
from pellucid.explainers._background import absent, check_baselines, drawn

__all__ = ["ExpectedGradients"]


@dataclass(frozen=True, kw_only=True)
class ExpectedGradients(Explainer):
    """The expectation of Integrated Gradients over several baselines (Erion et al. 2021), with its standard error.

    `baselines` is a Background (inputs of a data set), or a tuple of Baselines.

    Raises:
        ArgumentError: no baselines, or a setting out of range.

    Example:
        >>> import torch, pellucid as pl
        >>> model, x = pl.TorchModel(torch.nn.Linear(3, 2)), torch.rand(1, 3)
        >>> a = pl.ExpectedGradients(baselines=pl.Background.of(torch.rand(20, 3)), n_samples=50)(model, x, 0)
        >>> a.scores.shape == a.standard_error.shape
        True
    """

    baselines: Background | tuple[Baseline, ...] = field(default_factory=lambda: (BlackOrZero(), FeatureMean()))
    n_samples: int | Until = 200
    seed: int = 0

    def __post_init__(self) -> None:
        check_baselines(self.baselines)
        check_samples(self.n_samples)
        check_seed(self.seed)

    @property
    def card(self) -> MethodCard:
        return MethodCard(
            name="expected-gradients",
            title="Expected Gradients",
            scope=Scope.LOCAL,
            stage=Stage.POST_HOC,
            applicability=Applicability.MODEL_AGNOSTIC,
            needs=Needs.SCORES | Needs.GRADIENTS,
            cost=Mean().cost(Cost(forward=1, backward=1), self.n_samples),
            reference="Erion et al. 2021, arXiv:1906.10670",
            unit="score",
            channels="sum",
            sampled=True,
            caveats=("agnostic among differentiable models only", "the baselines decide what can be seen"),
        )

    def extended(self, taken: Sequence[int], draws: int, more: int | Until) -> "ExpectedGradients":
        return replace(self, n_samples=lengthened(self.n_samples, taken, more))

    def attribute(self, model: Model, x: Float[Tensor, "b *features"], targets: Targets, call: Call) -> Estimate:
        streams = [key.stream(self.seed) for key in call.keys]
        starts = absent(self.baselines, model, x)

        def draw(inputs: Sequence[int], indices: range, how: Draw) -> tuple[Tensor, None]:
            two = np.stack([uniform(streams[b], i, 2) for b in inputs for i in indices])
            rows = torch.tensor([b for b in inputs for _ in indices])
            start = drawn(starts, two[:, 0], rows)
            alpha = torch.from_numpy(two[:, 1]).to(x).view(-1, *(1,) * (x.ndim - 1))
            whole = x[rows] - start
            gradient = model.gradient(start + alpha * whole, targets.chosen(rows.tolist()))
            return (whole * gradient).unflatten(0, (len(inputs), len(indices))), None

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
