"""DeepLIFT: what each feature contributes to the difference between the score and that of a baseline.

    M_i(x) = m_i (x_i - x'_i),   sum_i M_i = S(x) - S(x')        (Shrikumar et al. 2017, eq. 1 and 3, rescale rule)

Signed, shape of the input, in units of the score. Each operation is compared with what it gave for the baseline, so
that a saturated unit does not hide what brought it there; the rules stand in `_compared.py`. Two passes and one back.
A target that is no linear function of the outputs is differentiated, and `residual` says what that leaves.
"""

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from pellucid.core.baseline import Baseline, BlackOrZero, Zeros, check_baseline, standing_in
from pellucid.core.card import Applicability, Cost, MethodCard, Needs, Scope, Stage
from pellucid.core.estimate import Estimate
from pellucid.core.explainer import Call
from pellucid.core.model import Model
from pellucid.core.target import Targets
from pellucid.explainers._compared import Compared
from pellucid.explainers._ruled import Ruled

__all__ = ["DeepLIFT"]


@dataclass(frozen=True, kw_only=True)
class DeepLIFT(Ruled):
    """The difference from `baseline`, divided among the features by the rescale rule (Shrikumar et al. 2017).

    Raises:
        ArgumentError: no baseline.
        RuleError: the network executes an operation that has no rule, or other operations for the baseline.

    Example:
        >>> import torch, pellucid as pl
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.GELU(), torch.nn.Linear(8, 2)).double()
        >>> a = pl.DeepLIFT()(pl.TorchModel(net), torch.rand(1, 3), target=0)
        >>> bool(a.residual.abs() < 1e-9)
        True
    """

    baseline: Baseline = field(default_factory=BlackOrZero)

    def __post_init__(self) -> None:
        check_baseline(self.baseline)

    @classmethod
    def captum(cls) -> "DeepLIFT":
        """Captum 0.9's default: from zero in the model's units."""
        return cls(baseline=Zeros())

    @property
    def card(self) -> MethodCard:
        return MethodCard(
            name="deep-lift",
            title="DeepLIFT",
            scope=Scope.LOCAL,
            stage=Stage.POST_HOC,
            applicability=Applicability.MODEL_SPECIFIC,
            needs=Needs.SCORES | Needs.GRADIENTS | Needs.OPERATIONS,
            cost=Cost(forward=2, backward=1),
            reference="Shrikumar et al. 2017, arXiv:1704.02685",
            unit="score",
            channels="sum",
            caveats=(
                "networks of operations that have rules",
                "what equals the baseline gets zero: the choice of the baseline decides what can be seen",
            ),
        )

    def book(self, model: Model, x: Float[Tensor, "b *features"]) -> Compared:
        return Compared()

    def beside(self, model: Model, x: Float[Tensor, "b *features"]) -> Float[Tensor, "b *features"]:
        return standing_in(self.baseline, x, model.preprocess, model.packing)

    def attribute(self, model: Model, x: Float[Tensor, "b *features"], targets: Targets, call: Call) -> Estimate:
        start = self.beside(model, x)
        found = model.rule_pass(x, targets, self.book(model, x), start)
        assert found.beside is not None  # noqa: S101  # as asked for
        scores = (x - start).to(found.messages.dtype) * found.messages
        change = found.scores.double() - found.beside.double()
        residual = scores.flatten(1).sum(1).double() - change
        return Estimate.exact(scores, residual=residual, notes={"change": tuple(change.tolist())})
