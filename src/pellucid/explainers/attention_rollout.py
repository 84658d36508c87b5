"""Attention rollout: the attention of all layers, multiplied.

    A~ = (mean_h A_h + I) / 2,   R = A~_L ... A~_2 A~_1        (Abnar & Zuidema 2020, eq. 1)

One number for each token, 0 or more, summing to 1 with the tokens of no place: the share of the token at the end (the
class token, or the mean of all) that came from each token at the beginning, if nothing but attention moved it. It does
not depend on the target.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from pellucid.core.card import MethodCard
from pellucid.explainers._attention import AttentionMap, attention_card, identity_like

__all__ = ["AttentionRollout"]


@dataclass(frozen=True, kw_only=True)
class AttentionRollout(AttentionMap):
    """The product of all layers' attention, each averaged over its heads and with the residual path (Abnar 2020).

    Raises:
        RuleError: the network executes no attention, or not all among the same tokens.
        LayerError: the tokens are no grid of places of the input.

    Example:
        >>> import torch, pellucid as pl
        >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> net = torch.nn.Sequential(layer, torch.nn.Flatten(), torch.nn.Linear(5 * 8, 2))
        >>> a = pl.AttentionRollout()(pl.TorchModel(net), torch.rand(1, 5, 8), target=0)
        >>> a.scores.shape, round(float(a.scores.sum()), 5)
        (torch.Size([1, 1, 5]), 1.0)
    """

    @property
    def card(self) -> MethodCard:
        return attention_card(
            "attention-rollout",
            "Attention Rollout",
            "Abnar & Zuidema 2020, arXiv:2005.00928",
            "the same for every target",
            unit="share",
        )

    def flow(
        self, attentions: Sequence[Float[Tensor, "b h t t"]], gradients: Sequence[Float[Tensor, "b h t t"]]
    ) -> Float[Tensor, "b t t"]:
        flow = identity_like(attentions[0][:, 0])
        for attention in attentions:
            flow = (attention.mean(1) + identity_like(flow)) / 2 @ flow
        return flow
