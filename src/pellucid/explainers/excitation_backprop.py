"""Excitation backpropagation: where a winner at the top was decided, by chance at each sum in proportion to what spoke
for it.

    P(a_i | a_j) = a_i w+_ij / sum_k a_k w+_kj,   P(a_i) = sum_j P(a_i | a_j) P(a_j)    (Zhang et al. 2016, eq. 1, 5)

Shape of the input, 0 or more where the input and all activations are; a probability, which sums to 1 but for what meets
no positive summand (`residual`). Biases win nothing.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.core.card import Applicability, Cost, MethodCard, Needs, Scope, Stage
from pellucid.core.estimate import Estimate
from pellucid.core.explainer import Call
from pellucid.core.model import Model
from pellucid.core.rule import RuleBook
from pellucid.core.target import Targets
from pellucid.explainers._ruled import Ruled
from pellucid.explainers._rules import Winner
from pellucid.explainers.lrp import Relevance

__all__ = ["ExcitationBackprop"]


@dataclass(frozen=True, kw_only=True)
class ExcitationBackprop(Ruled):
    """The probability that each feature is why the target won (Zhang et al. 2016).

    Raises:
        RuleError: the network executes an operation that has no rule.

    Example:
        >>> import torch, pellucid as pl
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> weights = [torch.nn.init.constant_(p, 0.1) for p in net.parameters()]
        >>> a = pl.ExcitationBackprop()(pl.TorchModel(net), torch.rand(1, 3), target=0)
        >>> round(float(a.scores.sum()), 3)
        1.0
    """

    def book(self, model: Model, x: Float[Tensor, "b *features"]) -> RuleBook:
        return Relevance(Winner(), Winner(), None, ())

    @property
    def card(self) -> MethodCard:
        return MethodCard(
            name="excitation-backprop",
            title="Excitation Backpropagation",
            scope=Scope.LOCAL,
            stage=Stage.POST_HOC,
            applicability=Applicability.MODEL_SPECIFIC,
            needs=Needs.SCORES | Needs.GRADIENTS | Needs.OPERATIONS,
            cost=Cost(forward=1, backward=1),
            reference="Zhang et al. 2016, arXiv:1608.00507",
            unit="probability",
            channels="sum",
            caveats=("networks of operations that have rules", "a probability for activations of 0 or more only"),
        )

    def attribute(self, model: Model, x: Float[Tensor, "b *features"], targets: Targets, call: Call) -> Estimate:
        found = model.rule_pass(x, targets, self.book(model, x))
        # The message at the top is 1, the relevance therefore the score; a winner has won with probability 1.
        whole = found.scores.view(-1, *(1,) * (x.ndim - 1))
        scores = x.to(found.messages.dtype) * found.messages / torch.where(whole == 0, 1, whole)
        return Estimate.exact(scores, residual=scores.flatten(1).sum(1).double() - 1)
