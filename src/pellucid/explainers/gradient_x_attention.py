"""Gradient x attention: the attention that speaks for the target, added up through the layers.

    A_bar = mean_h (dS/dA * A)+,   R <- R + A_bar R,   R = I at first        (Chefer et al. 2021b, eq. 5 and 6)

One number for each token, 0 or more, in units of the score up to a factor: the row of R of the class token, or the mean
of all rows. What a token has of itself from the residual path alone, the identity at first, is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from pellucid.core.card import MethodCard
from pellucid.explainers._attention import AttentionMap, attention_card, identity_like

__all__ = ["GradientXAttention"]


@dataclass(frozen=True, kw_only=True)
class GradientXAttention(AttentionMap):
    """Each layer's attention times its gradient, what speaks for the target, added up (Chefer et al. 2021).

    Raises:
        RuleError: the network executes no attention, or not all among the same tokens.
        LayerError: the tokens are no grid of places of the input.

    Example:
        >>> import torch, pellucid as pl
        >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> net = torch.nn.Sequential(layer, torch.nn.Flatten(), torch.nn.Linear(5 * 8, 2))
        >>> pl.GradientXAttention()(pl.TorchModel(net), torch.rand(1, 5, 8), target=0).scores.shape
        torch.Size([1, 1, 5])
    """

    @property
    def card(self) -> MethodCard:
        return attention_card(
            "gradient-x-attention",
            "Gradient x Attention",
            "Chefer et al. 2021, arXiv:2103.15679",
            "what speaks against the target is cut off",
            unit="score, up to a factor",
        )

    def flow(
        self, attentions: Sequence[Float[Tensor, "b h t t"]], gradients: Sequence[Float[Tensor, "b h t t"]]
    ) -> Float[Tensor, "b t t"]:
        flow = identity_like(attentions[0][:, 0])
        for attention, gradient in zip(attentions, gradients, strict=True):
            flow = flow + (attention * gradient).clamp(min=0).mean(1) @ flow
        return flow - identity_like(flow)
