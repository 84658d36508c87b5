"""The attention weights that a network executed, and what layers of attention make of each other's tokens.

An attention is a softmax whose result is multiplied with a matrix: rows of weights A (B, H, T, T), of which row t says
what token t takes from each token. It is found in what was executed, so that it does not matter how it was written.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.core.card import Applicability, Cost, MethodCard, Modality, Needs, Per, Scope, Stage
from pellucid.core.estimate import Estimate
from pellucid.core.executed import derivative
from pellucid.core.explainer import Call
from pellucid.core.grid import grid_of
from pellucid.core.model import Ask, Model
from pellucid.core.operation import Kind, Operation
from pellucid.core.rule import Assigned, Keep, RuleBook, Sent
from pellucid.core.target import Targets
from pellucid.errors import LayerError, RuleError
from pellucid.explainers._ruled import Ruled

__all__ = ["AttentionMap", "attention_card", "identity_like"]


_MOST_PREFIX = 8
"""Class, distillation and register tokens."""

_NONE = (
    "The network executed no attention on the way to the target: no softmax whose rows are multiplied with a matrix. "
    "Take a method for networks of its kind: pl.methods(model=model) lists them."
)


@dataclass(frozen=True)
class _Witness(RuleBook):
    """Autograd's derivatives, and a look at each attention and the gradient by it on the way."""

    @property
    def keep(self) -> Keep:
        return Keep(outputs=frozenset({Kind.SOFTMAX}), embedded=True)

    def assign(self, operations: Sequence[Operation], beside: Sequence[Operation] = ()) -> Mapping[Operation, Assigned]:
        found = {one: Assigned(_look, "seen") for one in operations if one.node in _attending(operations)}
        if not found:
            raise RuleError(_NONE)
        for one in found:
            if len(one.shape) < 3 or one.shape[-1] != one.shape[-2]:
                where = f"the module {one.module!r}" if one.module else "the network"
                raise RuleError(
                    f"Expected tokens that attend to each other, (..., T, T), but the attention of {where} is "
                    f"{tuple(one.shape)}."
                )
        if len({one.shape[-1] for one in found}) > 1 or len({one.shape[:-2] for one in found}) > 1:
            shapes = " and ".join(sorted({str(tuple(one.shape)) for one in found}))
            raise RuleError(
                f"Expected every attention to be among the same tokens, but they are {shapes}. Windows and pyramids of "
                "tokens cannot be multiplied: take SimpleGradient() or LRP.attn_lrp()."
            )
        return found


def _attending(operations: Sequence[Operation]) -> set[object]:
    """The nodes of the softmaxes whose result, rearranged or scaled, is multiplied with a matrix from the right."""
    source: dict[object, object] = {}
    found = set()
    for one in operations:
        if one.kind is Kind.SOFTMAX and one.what != "_log_softmax" and one.args[1] in (-1, len(one.shape) - 1):
            source[one.node] = one.node
        elif one.kind in (Kind.LAYOUT, Kind.SCALE) and len(one.operands) == 1 and one.operands[0].edge[0] in source:
            source[one.node] = source[one.operands[0].edge[0]]
        elif one.kind is Kind.MATMUL and one.operands[0].at == 0 and one.operands[0].edge[0] in source:
            found.add(source[one.operands[0].edge[0]])
    return found


def _look(operation: Operation, messages: Sequence[Tensor | None]) -> list[Sent]:
    message = messages[0]
    assert message is not None  # noqa: S101  # one output
    return [Sent(None, operation.output), Sent(None, message), *derivative(operation, messages)]


@dataclass(frozen=True, kw_only=True)
class AttentionMap(Ruled):
    """Abstract: a map of tokens, made of all attentions and of the gradients of the score by them."""

    @abstractmethod
    def flow(
        self, attentions: Sequence[Float[Tensor, "b h t t"]], gradients: Sequence[Float[Tensor, "b h t t"]]
    ) -> Float[Tensor, "b t t"]:
        """What each token at the end has of each token at the beginning; layers in the order in which they ran."""

    def book(self, model: Model, x: Float[Tensor, "b *features"]) -> RuleBook:
        return _Witness()

    def asks(self, model: Model, x: Float[Tensor, "b *features"]) -> Ask | None:
        return super().asks(model, x) if len(x) == 1 else None

    def attribute(self, model: Model, x: Float[Tensor, "b *features"], targets: Targets, call: Call) -> Estimate:
        # One by one: heads may come first in the axis of the rows, and all attentions of all inputs are too many.
        each = [x] if len(x) == 1 else [x[i : i + 1] for i in range(len(x))]
        return Estimate.exact(torch.cat([self._map(model, one, targets[i : i + 1]) for i, one in enumerate(each)]))

    def _map(self, model: Model, x: Float[Tensor, "1 *features"], targets: Targets) -> Float[Tensor, "1 1 *cells"]:
        """The map of one input."""
        together = [_of_heads(one) for one in self._attentions(model, x, targets)]
        flow = self.flow(together[1::2], together[::2])
        features = model.features(x)
        tokens = flow.shape[-1]
        if len(features) < 3:  # a sequence (T, C), or whole numbers (T,)
            prefix = tokens - features[0]
            if not 0 <= prefix < min(features[0], _MOST_PREFIX + 1):
                raise _no_places(tokens, features)
            row = flow[:, 0, prefix:] if prefix else _mean_of_read(flow, together[-2])
            return row.reshape(1, 1, features[0])
        grid = grid_of((1, tokens, 1), features)
        if grid is None:
            raise _no_places(tokens, features)
        row = flow[:, 0] if grid.prefix else _mean_of_read(flow, together[-2])
        return grid.maps(row[..., None])

    def _attentions(self, model: Model, x: Tensor, targets: Targets) -> list[Tensor]:
        """The gradient by each layer's attention and the attention itself, in the order in which layers ran."""
        found = model.rule_pass(x, targets, self.book(model, x))
        if not found.seen:  # nothing depends on the input
            raise RuleError(_NONE)
        return list(reversed(found.seen))


def _of_heads(one: Tensor) -> Float[Tensor, "1 h t t"]:
    """The attention of one input."""
    if one.ndim > 3 and sum(size > 1 for size in one.shape[:-2]) > 1:
        raise RuleError(
            f"Expected one attention of {one.shape[-1]} tokens for each head, but the network executes "
            f"{tuple(one.shape[:-2])} of them: it attends among windows. Take SimpleGradient() or LRP.attn_lrp()."
        )
    return one.reshape(1, -1, *one.shape[-2:])


def _mean_of_read(flow: Float[Tensor, "1 t t"], gradient: Float[Tensor, "1 h t t"]) -> Float[Tensor, "1 t"]:
    """The mean row of the tokens that the head reads: those of the last layer by whose attention the target changes.

    All of them, or some among the places themselves, such as the first of a text.
    """
    read = gradient.ne(0).any(1).any(-1)
    rows = flow[read] if read.any() else flow[0]
    return rows.mean(0, keepdim=True)


def _no_places(tokens: int, features: tuple[int, ...]) -> LayerError:
    return LayerError(
        f"Expected the {tokens} tokens to be places of inputs {features}, but they are no grid of theirs."
    )


def attention_card(name: str, title: str, reference: str, *caveats: str, unit: str) -> MethodCard:
    """The card of a member of the family."""
    return MethodCard(
        name=name,
        title=title,
        scope=Scope.LOCAL,
        stage=Stage.POST_HOC,
        applicability=Applicability.MODEL_SPECIFIC,
        needs=Needs.SCORES | Needs.GRADIENTS | Needs.OPERATIONS,
        cost=Cost(forward=1, backward=1),
        reference=reference,
        unit=unit,
        per=Per.CELL,
        modalities=frozenset({Modality.IMAGE, Modality.TEXT, Modality.AUDIO}),
        caveats=(
            "transformers whose attentions are all among all tokens; windows of one size are not told from heads",
            *caveats,
        ),
    )


def identity_like(flow: Tensor) -> Tensor:
    """The identity for each input, in the shape of a flow."""
    return torch.eye(flow.shape[-1], dtype=flow.dtype, device=flow.device).expand_as(flow).clone()
