"""Layer-wise relevance propagation: the score, handed back from each operation to its operands until it reaches the
input.

    R_i = sum_j R_ij,   sum_i R_ij = R_j      (Bach et al. 2015, eq. 2 and 3)

Signed, shape of the input, in units of the score. The rules of `_rules.py` say how weighted sums divide what they have;
all else that a network executes follows one rule each:

    rearranged, pooled, added     in proportion to the summands; a maximum gives all to the largest
    activations                   hand on what they get: the message times f(x) / x
    products                      all to the signal if the other is a gate, a sigmoid (Arras et al. 2017); else half
                                  to each (Achtibat et al. 2024, eq. 15)
    softmax                       its derivative (Achtibat et al. 2024, eq. 13)
    layer, group, instance norm   the spread counts as a constant (Ali et al. 2022)

What biases and stabilisers absorb is lost: `residual` is the sum of the map less the score.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.core.baseline import Constant
from pellucid.core.card import Applicability, Cost, MethodCard, Needs, Scope, Stage
from pellucid.core.estimate import Estimate
from pellucid.core.executed import derivative
from pellucid.core.explainer import Call
from pellucid.core.model import Inputs, Model, as_input
from pellucid.core.operation import Edge, Kind, Operation
from pellucid.core.random import Key
from pellucid.core.rule import Assigned, Keep, Rule, RuleBook, Sent
from pellucid.core.target import Targets, TargetSpec, settle
from pellucid.errors import ArgumentError
from pellucid.explainers._affine import Affine, sums
from pellucid.explainers._ruled import Ruled
from pellucid.explainers._rules import AlphaBeta, Epsilon, Flat, Gamma, SumRule, ZBox, ZPlus, divided

__all__ = ["LRP", "Leak"]

_PLAIN = frozenset({Kind.LAYOUT, Kind.SUM, Kind.ADD, Kind.MAX, Kind.SCALE})
_SMALL = 1e-6
_GATES = ("sigmoid", "hardsigmoid", "reciprocal", "rsqrt")
"""What is multiplied with one of these is divided by a number, or let through by a gate."""


class Leak(NamedTuple):
    """The relevance that an operation got and that which it handed on."""

    module: str
    what: str
    rule: str
    arrived: float
    handed_on: float


@dataclass(frozen=True, kw_only=True)
class LRP(Ruled):
    """Relevance handed back through every executed operation (Bach et al. 2015).

    `convolution` and `dense` are the rules of convolutions and of matrix products, `first` that of sums taken of the
    input itself (None: as the others); `named` gives rules to the modules whose names match a pattern, such as
    (("features.*", Gamma(0.1)),), of which the first match counts.

    Raises:
        ArgumentError: a rule that is none, or that cannot stand there.
        RuleError: the network executes an operation that has no rule; the message names it and its module.

    Example:
        >>> import torch, pellucid as pl
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8, bias=False), torch.nn.ReLU(), torch.nn.Linear(8, 2, False))
        >>> a = pl.LRP.epsilon(0.0)(pl.TorchModel(net), torch.rand(1, 3), target=0)
        >>> bool(a.residual.abs() < 1e-5)
        True
    """

    convolution: SumRule = field(default_factory=ZPlus)
    dense: SumRule = field(default_factory=Epsilon)
    first: SumRule | None = field(default_factory=Flat)
    named: tuple[tuple[str, SumRule], ...] = ()

    def __post_init__(self) -> None:
        rules = {"convolution": self.convolution, "dense": self.dense} | {f"named[{p!r}]": r for p, r in self.named}
        for name, rule in rules.items():
            if not isinstance(rule, SumRule):
                raise ArgumentError(f"`{name}` is a rule, such as pl.Epsilon(). Got {rule!r}.")
            if rule.lands:
                raise ArgumentError(f"{type(rule).__name__} stands at inputs: give it as `first`, not as `{name}`.")
        if self.first is not None and not isinstance(self.first, SumRule):
            raise ArgumentError(f"`first` is a rule, such as pl.Flat(), or None. Got {self.first!r}.")

    @classmethod
    def epsilon(cls, epsilon: float = 1e-6) -> "LRP":
        """The epsilon rule everywhere; 0 is LRP-0, which is Input x Gradient where all activations are ReLUs."""
        rule = Epsilon(epsilon)
        return cls(convolution=rule, dense=rule, first=None)

    @classmethod
    def epsilon_plus(cls) -> "LRP":
        """Zennit's EpsilonPlus: positive summands in convolutions, epsilon in dense layers."""
        return cls(first=None)

    @classmethod
    def epsilon_alpha2_beta1(cls) -> "LRP":
        """Zennit's EpsilonAlpha2Beta1."""
        return cls(convolution=AlphaBeta(), first=None)

    @classmethod
    def epsilon_alpha2_beta1_flat(cls) -> "LRP":
        """Zennit's EpsilonAlpha2Beta1Flat."""
        return cls(convolution=AlphaBeta())

    @classmethod
    def epsilon_gamma_box(cls, low: float | None = None, high: float | None = None) -> "LRP":
        """Zennit's EpsilonGammaBox; the box is black to white, or from `low` to `high` in the model's own units."""
        box = ZBox() if low is None or high is None else ZBox(Constant(low), Constant(high))
        return cls(convolution=Gamma(), first=box)

    @classmethod
    def attn_lrp(cls) -> "LRP":
        """AttnLRP for vision transformers: gamma 0.25 in convolutions, 0.05 in dense layers (Achtibat et al. 2024)."""
        return cls(convolution=Gamma(0.25), dense=Gamma(0.05), first=None)

    @property
    def card(self) -> MethodCard:
        return MethodCard(
            name="lrp",
            title="Layer-wise Relevance Propagation" if self == LRP() else f"LRP, {self._rules()}",
            scope=Scope.LOCAL,
            stage=Stage.POST_HOC,
            applicability=Applicability.MODEL_SPECIFIC,
            needs=Needs.SCORES | Needs.GRADIENTS | Needs.OPERATIONS,
            cost=Cost(forward=1, backward=1),
            reference="Bach et al. 2015, doi:10.1371/journal.pone.0130140",
            unit="score",
            channels="sum",
            caveats=(
                "networks of operations that have rules",
                "biases and stabilisers absorb relevance: see `residual`",
            ),
        )

    def _rules(self) -> str:
        first = "" if self.first is None else f", {_short(self.first)} first"
        sums = (
            _short(self.convolution)
            if self.convolution == self.dense
            else (f"{_short(self.convolution)} and {_short(self.dense)}")
        )
        return f"{sums}{first}{', some by name' if self.named else ''}"

    def book(self, model: Model, x: Float[Tensor, "b *features"]) -> "Relevance":
        first = None if self.first is None else self.first.at(x, model.preprocess)
        return Relevance(self.convolution, self.dense, first, self.named)

    def leaks(self, model: Model, x: Inputs, target: TargetSpec = None) -> list[Leak]:
        """What each operation gets of the first input's relevance and what it hands on, in the order in which they ran.

        What is missing was absorbed by biases and stabilisers; all that is missing is the map's `residual`. Operations
        that only rearrange numbers hand on what they get, and are left out.

        Raises:
            MissingNeed: the model does not offer what the method needs.
            RuleError: the network executes an operation that has no rule.
        """
        self.check_needs(model)
        given = as_input(x)
        with model.undisturbed(Key.named("leaks"), given.packing) as quiet:
            placed = quiet.place(given.tensor[:1])
            targets = settle(target, quiet.prediction(placed))
            book = _Leaking(self.book(quiet, placed))
            found = quiet.rule_pass(placed, targets, book)
        measured = sorted(tuple(one.flatten().tolist()) for one in found.seen)
        return [Leak(*book.names[int(index)], arrived, handed) for index, arrived, handed in measured]

    def attribute(self, model: Model, x: Float[Tensor, "b *features"], targets: Targets, call: Call) -> Estimate:
        found = model.rule_pass(x, targets, self.book(model, x))
        scores = x.to(found.messages.dtype) * found.messages
        if found.landed is not None:
            scores = scores + found.landed
        residual = scores.flatten(1).sum(1).double() - found.scores.double()
        return Estimate.exact(scores, residual=residual, notes={"score": tuple(found.scores.tolist())})


@dataclass(frozen=True, eq=False)
class Relevance(RuleBook):
    """LRP's rules for the operations of one kind of input."""

    convolution: SumRule
    dense: SumRule
    first: SumRule | None
    named: tuple[tuple[str, SumRule], ...]

    @property
    def keep(self) -> Keep:
        values = frozenset({Kind.AFFINE, Kind.ACTIVATION, Kind.RECTIFIER, Kind.NORM})
        return Keep(values, values - {Kind.NORM} | {Kind.SCALE}, named=True)

    @property
    def footprint(self) -> Hashable:
        return type(self), self.convolution, self.dense, type(self.first), self.named

    def assign(self, operations: Sequence[Operation], beside: Sequence[Operation] = ()) -> Mapping[Operation, Assigned]:
        return dict(self._assigned(operations))

    def _assigned(self, operations: Sequence[Operation]) -> Iterator[tuple[Operation, Assigned]]:
        inputs = _of_the_input(operations)
        members: set[Operation] = set()
        for affine in sums(operations):
            rule = self._rule(affine, affine.operation in inputs)
            words = f"{rule}, the sum of {' + '.join(one.what for one in (affine.operation, *affine.after))}"
            yield affine.operation, Assigned(_Sum(affine, rule), words if affine.after else repr(rule))
            for one in affine.after:
                members.add(one)
                yield one, Assigned(_ToTheSum(affine), f"part of the {affine.operation.what} before")
        gates = _gates(operations)
        for one in operations:
            if one not in members and one.kind is not Kind.AFFINE:
                gated = one.kind is Kind.PRODUCT and sum(operand.edge in gates for operand in one.operands) == 1
                yield one, Assigned(_Gated(gates), "all to the signal") if gated else self._other(one)

    def _rule(self, affine: Affine, first: bool) -> SumRule:
        for pattern, rule in self.named:
            if fnmatchcase(affine.operation.module, pattern):
                return rule
        if first and self.first is not None:
            return self.first
        return self.convolution if affine.is_convolution else self.dense

    def _other(self, one: Operation) -> Assigned:
        if one.kind in _PLAIN or one.what == "relu":
            return Assigned(None, "derivative")
        if one.kind in (Kind.RECTIFIER, Kind.ACTIVATION):
            return Assigned(_handed_on, "handed on, f(x) / x")
        if one.kind is Kind.SOFTMAX:
            return Assigned(None, "derivative")
        if one.kind is Kind.PRODUCT and one.what == "div":
            return Assigned(_numerator, "all to the numerator")
        if one.kind in (Kind.PRODUCT, Kind.MATMUL):
            return Assigned(_halved, "half to each")
        if one.kind is Kind.NORM:
            return Assigned(_spread_constant, "the spread as a constant")
        where = f"the module {one.module!r}" if one.module else "the network"
        return Assigned(
            None,
            "no rule",
            f"LRP has no rule for the operation {one.what!r} of {where}. `pellucid check --method lrp` lists them all. "
            "Take a method that needs gradients only, such as IntegratedGradients().",
        )


@dataclass(frozen=True, eq=False)
class _Leaking(RuleBook):
    """The rules of a book, with the relevance that goes into each and comes out."""

    inner: Relevance
    names: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def keep(self) -> Keep:
        return Keep(frozenset(Kind), frozenset(Kind), named=True)

    def assign(self, operations: Sequence[Operation], beside: Sequence[Operation] = ()) -> Mapping[Operation, Assigned]:
        found = {}
        given = self.inner.assign(operations)
        for one in operations:
            each = given[one]
            if one.kind is Kind.LAYOUT or each.refusal or isinstance(each.rule, _ToTheSum):
                found[one] = each
            else:
                found[one] = replace(each, rule=_Measured(len(self.names), each.rule))
                self.names.append((one.module, one.what, each.words))
        return found


@dataclass(frozen=True, eq=False)
class _Measured:
    """A rule, and what it makes of relevance: its number, what arrived and what it handed on."""

    number: int
    rule: Rule | None

    def __call__(self, operation: Operation, messages: Sequence[Tensor | None]) -> list[Sent]:
        sent = derivative(operation, messages) if self.rule is None else self.rule(operation, messages)
        z = self.rule.affine.z if isinstance(self.rule, _Sum) else operation.output
        message = messages[0]
        assert message is not None  # noqa: S101  # of several outputs rules know the first
        values = {operand.edge: operand.value for operand in operation.operands}
        handed = [
            part.sum() if lands else (part * values[edge]).sum() for edge, part, lands in sent if edge is not None
        ]
        numbers = (self.number, float((message * z).sum()), float(sum(handed)))
        return [*sent, Sent(None, torch.tensor([numbers], dtype=torch.float64))]


def _short(rule: SumRule) -> str:
    """The rule with its numbers, for a title."""
    numbers = [f"{value:g}" for value in vars(rule).values() if isinstance(value, int | float)]
    return f"{type(rule).__name__}({', '.join(numbers)})" if numbers else type(rule).__name__


def _gates(operations: Sequence[Operation]) -> frozenset[Edge]:
    """What gates gave, wherever layout has moved it."""
    found: set[Edge] = set()
    nodes: set[object] = set()
    for one in operations:
        opens = one.kind is Kind.ACTIVATION and one.what in _GATES
        if opens or (one.kind is Kind.LAYOUT and one.operands and all(o.edge[0] in nodes for o in one.operands)):
            nodes.add(one.node)
        found.update(operand.edge for operand in one.operands if operand.edge[0] in nodes)
    return frozenset(found)


@dataclass(frozen=True, eq=False)
class _Gated:
    """The rule of a product with a gate, which counts as a constant."""

    gates: frozenset[Edge]

    def __call__(self, operation: Operation, messages: Sequence[Tensor | None]) -> list[Sent]:
        return [sent for sent in derivative(operation, messages) if sent.edge not in self.gates]


def _of_the_input(operations: Sequence[Operation]) -> set[Operation]:
    """The operations that take the input as it is, but for its layout."""
    untouched: set[object] = set()
    found = set()
    for one in operations:
        # What no operation gave is the input itself.
        if one.operands and all(o.edge[0] is None or o.edge[0] in untouched for o in one.operands):
            if one.kind is Kind.LAYOUT:
                untouched.add(one.node)
            else:
                found.add(one)
    return found


@dataclass(frozen=True, eq=False)
class _Sum:
    """The rule at the operation that multiplies, for the sum as a whole."""

    affine: Affine
    rule: SumRule

    def __call__(self, operation: Operation, messages: Sequence[Tensor | None]) -> list[Sent]:
        [message] = messages
        assert message is not None  # noqa: S101  # one output, or it is not reached
        edge = operation.operands[0].edge
        if isinstance(self.rule, Epsilon):  # no other weights: autograd's own, once the message is divided
            z = self.affine.z
            message = divided(message, z, z, self.rule.epsilon)
            gain = self.affine.gain
            return derivative(operation, [message if gain is None else message * gain])
        return [Sent(edge, self.rule.back(self.affine, message), self.rule.lands)]


@dataclass(frozen=True, eq=False)
class _ToTheSum:
    """The rule of what scales and shifts a sum: on to the operation that multiplies, as what the whole sum gets."""

    affine: Affine

    def __call__(self, operation: Operation, messages: Sequence[Tensor | None]) -> list[Sent]:
        message = next(m for m in messages if m is not None)
        return [Sent((self.affine.operation.node, 0), self.affine.at_the_product(message))]


def _handed_on(operation: Operation, messages: Sequence[Tensor | None]) -> list[Sent]:
    x, message = operation.operands[0].value, messages[0]
    assert message is not None  # noqa: S101  # one output
    if operation.kind is Kind.RECTIFIER:  # zero below zero
        factor = x.clamp(min=torch.finfo(x.dtype).tiny)
        torch.div(operation.output, factor, out=factor)
        return [Sent(operation.operands[0].edge, factor.mul_(message))]
    small = x.abs() < _SMALL
    factor = operation.output / torch.where(small, 1, x)
    [sent] = derivative(operation, messages)
    return [Sent(sent.edge, torch.where(small, sent.message, message * factor))]


def _halved(operation: Operation, messages: Sequence[Tensor | None]) -> list[Sent]:
    return [Sent(edge, message / 2) for edge, message, _ in derivative(operation, messages)]


def _numerator(operation: Operation, messages: Sequence[Tensor | None]) -> list[Sent]:
    """The rule of a quotient, whose denominator counts as a constant."""
    above = operation.operands[0]
    return derivative(operation, messages)[:1] if above.at == 0 else []


def _spread_constant(operation: Operation, messages: Sequence[Tensor | None]) -> list[Sent]:
    x, message = operation.operands[0].value, messages[0]
    assert message is not None  # noqa: S101  # the norm itself; nothing differentiates its statistics
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        made = _normalised(operation, leaf)
        [found] = torch.autograd.grad(made, leaf, message)
    return [Sent(operation.operands[0].edge, found)]


def _normalised(operation: Operation, x: Tensor) -> Tensor:
    """What the norm gives, with its spread as a constant."""
    args, what = operation.args, operation.what
    if what in ("native_layer_norm", "_fused_rms_norm"):
        shape, weight, bias = args[1], args[2], args[3] if what == "native_layer_norm" else None
        eps = args[4] if what == "native_layer_norm" else args[3]
        axes = tuple(range(-len(shape), 0))
        middle = x.mean(axes, keepdim=True) if what == "native_layer_norm" else torch.zeros((), dtype=x.dtype)
        flat = x
        unit: tuple[int, ...] = tuple(shape)
    elif what == "native_batch_norm":  # with the statistics of the numbers at hand
        weight, bias, eps, flat = args[1], args[2], args[7], x
        axes = (0, *range(2, x.ndim))
        middle = x.mean(axes, keepdim=True)
        unit = (-1, *(1,) * (x.ndim - 2))
    else:  # group norm
        weight, bias, groups, eps = args[1], args[2], args[6], args[7]
        flat = x.reshape(len(x), groups, -1)
        axes = (-1,)
        middle = flat.mean(axes, keepdim=True)
        unit = (-1, *(1,) * (x.ndim - 2))
    centred = flat - middle
    spread = (centred.square().mean(axes, keepdim=True) + (eps or 0)).sqrt().detach()
    found = (centred / spread).view_as(x)
    found = found if weight is None else found * weight.view(unit)
    return found if bias is None else found + bias.view(unit)
