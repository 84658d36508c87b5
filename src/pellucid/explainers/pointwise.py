"""Elementwise functions of another method's map, to be averaged: |M| and M^2.

What is averaged decides what an average cancels. Of pure noise with n = 50, |mean g| keeps 0.11 of its size, the mean
of |g| 0.80: only the signed mean lets noise cancel. So these are methods of their own, never options of a method.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.core.card import MethodCard
from pellucid.core.estimate import Estimate
from pellucid.core.explainer import Call, Explainer
from pellucid.core.model import Ask, Model
from pellucid.core.target import Targets
from pellucid.explainers.simple_gradient import SimpleGradient

__all__ = ["Absolute", "Squared", "squared"]


@dataclass(frozen=True, kw_only=True)
class Absolute(Explainer):
    """|M| of a base method, elementwise: non-negative, same unit. No standard error: |.| has no slope at zero.

    Example:
        >>> import torch, pellucid as pl
        >>> net = torch.nn.Linear(3, 2)
        >>> a = pl.Absolute(base=pl.SimpleGradient())(pl.TorchModel(net), torch.ones(1, 3), target=1)
        >>> torch.equal(a.scores[0], net.weight[1].abs())
        True
    """

    base: Explainer = field(default_factory=SimpleGradient)

    @property
    def card(self) -> MethodCard:
        card = self.base.card
        return replace(card, name=f"absolute-{card.name}", title=f"|{card.title}|", channels="max_abs", sampled=False)

    def check_features(self, features: tuple[int, ...]) -> None:
        self.base.check_features(features)

    def asks(self, model: Model, x: Float[Tensor, "b *features"]) -> Ask | None:
        return self.base.asks(model, x)

    def attribute(self, model: Model, x: Float[Tensor, "b *features"], targets: Targets, call: Call) -> Estimate:
        return _changed(self.base.attribute(model, x, targets, call), torch.abs)


@dataclass(frozen=True, kw_only=True)
class Squared(Explainer):
    """M^2 of a base method, elementwise: non-negative, in squared units.

    Example:
        >>> import torch, pellucid as pl
        >>> net = torch.nn.Linear(3, 2)
        >>> a = pl.Squared(base=pl.SimpleGradient())(pl.TorchModel(net), torch.ones(1, 3), target=1)
        >>> torch.equal(a.scores[0], net.weight[1] ** 2)
        True
    """

    base: Explainer = field(default_factory=SimpleGradient)

    @property
    def card(self) -> MethodCard:
        card = self.base.card
        return replace(
            card,
            name=f"squared-{card.name}",
            title=f"({card.title})^2",
            unit=squared(card.unit),
            channels="max_abs",
            sampled=False,
        )

    def check_features(self, features: tuple[int, ...]) -> None:
        self.base.check_features(features)

    def asks(self, model: Model, x: Float[Tensor, "b *features"]) -> Ask | None:
        return self.base.asks(model, x)

    def attribute(self, model: Model, x: Float[Tensor, "b *features"], targets: Targets, call: Call) -> Estimate:
        return _changed(self.base.attribute(model, x, targets, call), torch.square)


def squared(unit: str) -> str:
    """The unit of squares of what is in `unit`."""
    return f"({unit})^2"


def _changed(estimate: Estimate, change: Callable[[Tensor], Tensor]) -> Estimate:
    """The estimate of another quantity: what was known of the error of the first is not known of it."""
    return replace(estimate, values=change(estimate.values), standard_error=None, error=None, state={})
