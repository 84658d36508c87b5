"""DeepLIFT-SHAP: the mean of DeepLIFT over baselines, which approximates Shapley values.

    M_i(x) = E_x' [ m_i(x, x') (x_i - x'_i) ]        (Lundberg & Lee 2017, section 4.2; Chen et al. 2021, eq. 10)

Signed, shape of the input, in units of the score. Each sample draws one baseline, so that each value has its standard
error; the map sums to S(x) less the mean score of the baselines that were drawn.
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
from pellucid.explainers._compared import Compared

__all__ = ["DeepLIFTSHAP"]


@dataclass(frozen=True, kw_only=True)
class DeepLIFTSHAP(Explainer):
    """The expectation of DeepLIFT over several baselines (Lundberg & Lee 2017), with its standard error.

    `baselines` is a Background (inputs of a data set), or a tuple of Baselines.

    Raises:
        ArgumentError: no baselines, or a setting out of range.
        RuleError: the network executes an operation that has no rule.

    Example:
        >>> import torch, pellucid as pl
        >>> model, x = pl.TorchModel(torch.nn.Linear(3, 2)), torch.rand(1, 3)
        >>> a = pl.DeepLIFTSHAP(baselines=pl.Background.of(torch.rand(20, 3)), n_samples=50)(model, x, 0)
        >>> a.scores.shape == a.standard_error.shape
        True
    """

    baselines: Background | tuple[Baseline, ...] = field(default_factory=lambda: (BlackOrZero(), FeatureMean()))
    n_samples: int | Until = 50
    seed: int = 0

    def __post_init__(self) -> None:
        check_baselines(self.baselines)
        check_samples(self.n_samples)
        check_seed(self.seed)

    @property
    def card(self) -> MethodCard:
        return MethodCard(
            name="deep-lift-shap",
            title="DeepLIFT-SHAP",
            scope=Scope.LOCAL,
            stage=Stage.POST_HOC,
            applicability=Applicability.MODEL_SPECIFIC,
            needs=Needs.SCORES | Needs.GRADIENTS | Needs.OPERATIONS,
            cost=Mean().cost(Cost(forward=2, backward=1), self.n_samples),
            reference="Lundberg & Lee 2017, arXiv:1705.07874",
            unit="score",
            channels="sum",
            sampled=True,
            caveats=("networks of operations that have rules", "the baselines decide what can be seen"),
        )

    def extended(self, taken: Sequence[int], draws: int, more: int | Until) -> "DeepLIFTSHAP":
        return replace(self, n_samples=lengthened(self.n_samples, taken, more))

    def attribute(self, model: Model, x: Float[Tensor, "b *features"], targets: Targets, call: Call) -> Estimate:
        streams = [key.stream(self.seed) for key in call.keys]
        starts = absent(self.baselines, model, x)

        def draw(inputs: Sequence[int], indices: range, how: Draw) -> tuple[Tensor, None]:
            where = np.stack([uniform(streams[b], i, 1) for b in inputs for i in indices])[:, 0]
            rows = torch.tensor([b for b in inputs for _ in indices])
            start = drawn(starts, where, rows)
            found = model.rule_pass(x[rows], targets.chosen(rows.tolist()), Compared(), start)
            return ((x[rows] - start) * found.messages).unflatten(0, (len(inputs), len(indices))), None

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
