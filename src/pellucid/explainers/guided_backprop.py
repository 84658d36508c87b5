"""Guided backpropagation and Deconvnet: the gradient, with another way back through rectifiers.

Simple Gradient      R_in = 1[x > 0] R_out
Deconvnet            R_in = max(R_out, 0)                 (Zeiler & Fergus 2014)
Guided backprop      R_in = 1[x > 0] max(R_out, 0)        (Springenberg et al. 2015, fig. 1)

Signed, shape of the input. Only what speaks for the target is let through at each rectifier, which makes clean pictures
of what the network sees; they hardly depend on what its upper layers have learnt (Adebayo et al. 2018).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from pellucid.core.card import Applicability, Cost, MethodCard, Needs, Scope, Stage
from pellucid.core.estimate import Estimate
from pellucid.core.executed import derivative
from pellucid.core.explainer import Call
from pellucid.core.model import Model
from pellucid.core.operation import Kind, Operation
from pellucid.core.rule import Assigned, Keep, RuleBook, Sent
from pellucid.core.target import Targets
from pellucid.errors import RuleError
from pellucid.explainers._ruled import Ruled

__all__ = ["Deconvnet", "GuidedBackprop"]


@dataclass(frozen=True)
class _AtRectifiers(RuleBook):
    """One rule at every rectifier, the derivative elsewhere."""

    guided: bool

    @property
    def keep(self) -> Keep:
        return Keep()

    def assign(self, operations: Sequence[Operation], beside: Sequence[Operation] = ()) -> Mapping[Operation, Assigned]:
        for one in operations:
            if one.kind is Kind.OTHER and not one.operands:
                raise RuleError(
                    f"Whether the network's {one.what!r} holds rectifiers cannot be seen: a function of one's own, a "
                    "scripted part, or a write into a part of a tensor. Pass the network as it was before torch.jit, "
                    "or take SimpleGradient()."
                )
        rule = Assigned(_guided, "guided") if self.guided else Assigned(_deconvnet, "deconvnet")
        found = {one: rule for one in operations if one.kind is Kind.RECTIFIER}
        if not found:
            others = sorted({one.what for one in operations if one.kind is Kind.ACTIVATION})
            raise RuleError(
                "The network executed no rectifier (relu, relu6, clamp from 0), where alone this method differs from "
                f"the gradient; it has {' and '.join(others) or 'no activation at all'}. Take SimpleGradient()."
            )
        return found


def _guided(operation: Operation, messages: Sequence[Tensor | None]) -> list[Sent]:
    return derivative(operation, [m if m is None else m.clamp(min=0) for m in messages])


def _deconvnet(operation: Operation, messages: Sequence[Tensor | None]) -> list[Sent]:
    [message] = messages
    assert message is not None  # noqa: S101  # a rectifier gives one thing, or is not reached
    return [Sent(operation.operands[0].edge, message.clamp(min=0))]


@dataclass(frozen=True, kw_only=True)
class _Rectified(Ruled):
    """Abstract: the gradient with a rule at rectifiers."""

    def attribute(self, model: Model, x: Float[Tensor, "b *features"], targets: Targets, call: Call) -> Estimate:
        return Estimate.exact(model.rule_pass(x, targets, self.book(model, x)).messages)


@dataclass(frozen=True, kw_only=True)
class GuidedBackprop(_Rectified):
    """The gradient of which each rectifier lets only positive parts pass (Springenberg et al. 2015).

    Raises:
        RuleError: the network executes no rectifier.

    Example:
        >>> import torch, pellucid as pl
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> pl.GuidedBackprop()(pl.TorchModel(net), torch.rand(1, 3), target=0).scores.shape
        torch.Size([1, 3])
    """

    def book(self, model: Model, x: Float[Tensor, "b *features"]) -> RuleBook:
        return _AtRectifiers(guided=True)

    @property
    def card(self) -> MethodCard:
        return _card("guided-backprop", "Guided Backpropagation", "Springenberg et al. 2015, arXiv:1412.6806")


@dataclass(frozen=True, kw_only=True)
class Deconvnet(_Rectified):
    """The gradient with a rectifier at the message in place of each rectifier's derivative (Zeiler & Fergus 2014).

    Raises:
        RuleError: the network executes no rectifier.

    Example:
        >>> import torch, pellucid as pl
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> pl.Deconvnet()(pl.TorchModel(net), torch.rand(1, 3), target=0).scores.shape
        torch.Size([1, 3])
    """

    def book(self, model: Model, x: Float[Tensor, "b *features"]) -> RuleBook:
        return _AtRectifiers(guided=False)

    @property
    def card(self) -> MethodCard:
        return _card("deconvnet", "Deconvnet", "Zeiler & Fergus 2014, arXiv:1311.2901")


def _card(name: str, title: str, reference: str) -> MethodCard:
    return MethodCard(
        name=name,
        title=title,
        scope=Scope.LOCAL,
        stage=Stage.POST_HOC,
        applicability=Applicability.MODEL_SPECIFIC,
        needs=Needs.SCORES | Needs.GRADIENTS | Needs.OPERATIONS,
        cost=Cost(forward=1, backward=1),
        reference=reference,
        unit="score, up to a factor",
        caveats=("networks with rectifiers only", "hardly depends on what the upper layers have learnt"),
    )
