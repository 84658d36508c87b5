"""What a network executed, operation by operation, and the way back through it by rules. Used by network.py alone.

Module hooks see modules: a ReLU that runs twice, a functional one, one in place, a residual sum are seen wrongly or not
at all. So the operations themselves are recorded, below autograd, where all spellings of a function are one operation;
the node that autograd made for each leads to those that come before. On the way back a rule may replace an operation's
derivative; all others are autograd's own, so that nothing is written twice.

Tried instead: a mode at torch's functions sees every spelling apart, and what a function calls inside not at all;
tracing (fx, export) takes seconds, and fails where Python decides by values; hooks on nodes alone know neither the
operands of a sum nor what goes into an activation. Recording costs about 15 microseconds an operation.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pellucid.core.layer import as_written, modules_of
from pellucid.core.operation import Cell, Edge, Kind, Operand, Operation, kind_of
from pellucid.core.rule import Assigned, Keep, RuleBook, Sent
from pellucid.errors import RuleError

__all__ = ["Executed", "assign", "derivative", "ordered", "recorded", "walk_back"]


@dataclass(eq=False)
class Executed:
    """The operations of one pass that depend on its input, in their order, and the operation of each node."""

    operations: list[Operation] = field(default_factory=list)
    by_node: dict[Any, Operation] = field(default_factory=dict)


@contextmanager
def recorded(net: nn.Module, keep: Keep) -> Iterator[Executed]:
    """Within, what the network executes is recorded."""
    running: list[str] = [""]
    with ExitStack() as stack:
        stack.enter_context(as_written(net))
        # Fused attention does not show its weights, a fused recurrent layer not its gates.
        stack.enter_context(torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH))
        if any(isinstance(module, nn.RNNBase) for module in net.modules()):
            # Not `flags`, which sets what it does not change too, and warns of it.
            enabled, *_ = torch.backends.mkldnn.set_flags(_enabled=False)
            stack.callback(torch.backends.mkldnn.set_flags, _enabled=enabled)
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        if keep.named:
            for name, module in modules_of(net).items():
                if name and not isinstance(module, torch.jit.ScriptModule):
                    first = module.register_forward_pre_hook(_Entered(running, name), prepend=True)
                    stack.callback(first.remove)
                    stack.callback(module.register_forward_hook(_Left(running), always_call=True).remove)
        recorder = stack.enter_context(_Recorder(keep, running))
        yield recorder.executed
        recorder.link()


class _Entered:
    def __init__(self, running: list[str], name: str) -> None:
        self.running, self.name = running, name

    def __call__(self, module: nn.Module, args: Any) -> None:
        self.running.append(self.name)


class _Left:
    def __init__(self, running: list[str]) -> None:
        self.running = running

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self.running.pop()


class _Recorder(TorchDispatchMode):
    def __init__(self, keep: Keep, running: Sequence[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.keep, self.running = keep, running
        self.executed = Executed()
        self._waiting: tuple[Any, ...] | None = None  # an operation that autograd has not made a node for yet
        self._cells: dict[int, list[Cell]] = {}  # by the memory that they show
        self._masks: dict[int, _Mask] = {}  # by the number of their tensor

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Otherwise torch imports its compiler, to keep it out of here: a second, and 70 MB. `as_written` does so too.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.link()
        schema = func._schema  # noqa: SLF001  # there is no other way to what an operation writes to
        given = [*args, *(kwargs.get(a.name, a.default_value) for a in schema.arguments[len(args) :])]
        tensors = [(at, t) for at, one in enumerate(given) for t in _tensors(one)]
        dependent = [t.requires_grad for _, t in tensors]
        if schema.is_mutable:
            for argument, one in zip(schema.arguments, given, strict=True):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    for tensor in _tensors(one):
                        self._save(tensor)
        name = schema.name.partition("::")[2].rstrip("_")  # `relu` of aten::relu_, `_softmax` of aten::_softmax
        if True not in dependent or not torch.is_grad_enabled():
            out = func(*args, **kwargs)
            if name == "_to_copy" and id(given[0]) in self._masks:  # (x > 0).float()
                self._masks[id(out)] = self._masks[id(given[0])]._replace(tensor=out)
            return out
        kind = Kind.RECTIFIER if self._rectifies(name, given) else kind_of(name, dependent, given)
        keeps = kind in self.keep.operands
        operands = []
        rest = given.copy()
        for (at, t), depends in zip(tensors, dependent, strict=True):
            if depends:
                rest[at] = None
                t = _whole(t) if schema.is_mutable else t  # noqa: PLW2901  # autograd's node is that of the whole
                cell = self._cell(t, written=schema.is_mutable) if keeps else None
                operands.append(Operand(at, (t.grad_fn, t.output_nr), tuple(t.shape), cell))
        out = func(*args, **kwargs)
        if name in _ABOVE | _BELOW and not schema.is_mutable and _is_zero(given[1]):
            self._masks[id(out)] = _Mask(out, name in _ABOVE, _edge(given[0]))
        given = [_whole(t) for t in _tensors(out)] if schema.is_mutable else out
        self._waiting = (kind, name, self.running[-1], tuple(operands), tuple(rest), given)
        return out

    def _rectifies(self, name: str, given: Sequence[Any]) -> bool:
        """Whether it lets x pass where x is above zero, and gives zero elsewhere."""
        if name == "mul":
            pairs = [(given[0], given[1], True), (given[1], given[0], True)]
        elif name == "where":
            pairs = [(given[1], given[0], True)] * _is_zero(given[2]) + [(given[2], given[0], False)] * _is_zero(
                given[1]
            )
        elif name == "masked_fill":
            pairs = [(given[0], given[1], False)] * _is_zero(given[2])
        else:
            return False
        masks = [(x, self._masks.get(id(mask)), passes) for x, mask, passes in pairs]
        return any(mask and mask.above is passes and mask.of == _edge(x) for x, mask, passes in masks)

    def link(self) -> None:
        """Note the node that autograd has made for the last operation."""
        if self._waiting is None:
            return
        kind, name, module, operands, args, out = self._waiting
        self._waiting = None
        first = next((t for t in _tensors(out) if t.grad_fn is not None), None)
        if first is None:
            return
        node = first.grad_fn
        if node in self.executed.by_node or node in (operand.edge[0] for operand in operands):
            return  # such as detach
        cell = self._cell(first, written=False) if kind in self.keep.outputs else None
        operation = Operation(kind, name, module, node, operands, args, tuple(first.shape), cell)
        self.executed.operations.append(operation)
        self.executed.by_node[node] = operation

    def _cell(self, tensor: Tensor, *, written: bool) -> Cell:
        value = tensor.detach()
        if written:
            return Cell(value.clone())
        cell = Cell(value)
        self._cells.setdefault(value.untyped_storage().data_ptr(), []).append(cell)
        return cell

    def _save(self, tensor: Tensor) -> None:
        """Before a tensor is written to: what is kept of its memory becomes a copy."""
        for cell in self._cells.pop(tensor.untyped_storage().data_ptr(), []):
            cell.value = cell.value.clone()


def _tensors(one: Any) -> list[Tensor]:
    if isinstance(one, Tensor):
        return [one]
    return [t for t in one if isinstance(t, Tensor)] if isinstance(one, list | tuple) else []


class _Mask(NamedTuple):
    """Where what an edge gave is above zero, or where it is not. It keeps its tensor, whose number no other gets."""

    tensor: Tensor
    above: bool
    of: Edge | None


_ABOVE, _BELOW = frozenset({"gt", "ge"}), frozenset({"lt", "le"})


def _is_zero(one: Any) -> bool:
    return one.numel() == 1 and not one.any() if isinstance(one, Tensor) else isinstance(one, int | float) and one == 0


def _edge(one: Any) -> Edge | None:
    return (one.grad_fn, one.output_nr) if isinstance(one, Tensor) and one.grad_fn is not None else None


def _whole(tensor: Tensor) -> Tensor:
    """What a tensor is a view of, if it shows all of it."""
    base = tensor._base  # noqa: SLF001  # torch has no public name for it
    return tensor if base is None or base.numel() != tensor.numel() else base


def walk_back(
    roots: list[Any], leaf: Tensor, executed: Executed, ends: list[Any], book: RuleBook,
    beside: Executed | None = None,
) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...]]:  # fmt: skip
    """The messages that reach `leaf` from a one at the node in `roots`, the relevance that landed, what rules saw.

    The nodes are taken out of the lists, and each let go of once it was passed, as autograd does it; `ends` are those
    of what the network gave. `beside` is the same pass for other rows. Where no rule is given, autograd's own
    derivative is taken.
    """
    end = torch.autograd.graph.get_gradient_edge(leaf).node
    root = roots.pop()
    order = ordered([root])
    assigned = assign(order, executed, ends, book, beside)
    for each in assigned.values():
        if each.refusal:
            raise RuleError(each.refusal)
    rules = {one.node: (one, each.rule) for one, each in assigned.items() if each.rule is not None}
    del assigned
    ends.clear()
    executed.operations.clear()  # they would keep all nodes, and what these have saved
    executed.by_node.clear()
    waiting = _Waiting()
    landed: Tensor | None = None
    seen: list[Tensor] = []
    [seed] = root._input_metadata  # noqa: SLF001  # torch has no public name for it
    waiting.send((root, 0), torch.ones(seed.shape, dtype=seed.dtype, device=seed.device))
    del root
    while order:
        node = order.pop()
        messages = waiting.taken(node)
        operation, rule = rules.pop(node, (None, None))
        if messages is None or node is end:
            continue
        sent = _derivative(node, messages) if operation is None or rule is None else rule(operation, messages)
        for edge, message, lands in sent:
            if edge is None:
                seen.append(message)
            elif lands:
                there = _moved(edge, message, end)
                landed = there if landed is None else landed + there
            else:
                waiting.send(edge, message)
        del node, operation, rule, messages, sent
    arrived = waiting.at(end)
    return torch.zeros_like(leaf) if arrived is None else arrived, landed, tuple(seen)


def assign(
    order: Sequence[Any], executed: Executed, ends: Sequence[Any], book: RuleBook, beside: Executed | None = None
) -> Mapping[Operation, Assigned]:
    """The rules of what leads to the target, by its nodes in their order; `ends` are those of what the network gave.

    Raises:
        RuleError: the method says nothing of such networks, or other rows take another way through this one.
    """
    others = executed.operations if beside is None else beside.operations
    if [one.what for one in others] != [one.what for one in executed.operations]:
        raise RuleError(
            "The network executes other operations for the baseline than for the input, so that they cannot be "
            "compared one by one. Take IntegratedGradients(), which compares inputs and outputs alone."
        )
    reached = set(order)
    inside = set(ends)  # of the network, and no part of the target
    pairs = [
        (replace(one, ends=True) if one.node in inside else one, other)
        for one, other in zip(executed.operations, others, strict=True)
        if one.node in reached
    ]
    unseen = []
    for node in reversed(order):
        if node in inside:
            inside.update(child for child, _ in node.next_functions)
            if node not in executed.by_node and node.next_functions:
                unseen.append(_unseen(node))
    operations = [*(one for one, _ in pairs), *unseen]
    given = book.assign(operations, [other for _, other in pairs] if beside else ())
    return {one: given.get(one, _OWN) for one in operations}


_OWN = Assigned(None, "derivative")
_LAYOUT = {"BackwardHookFunctionBackward", "AsStridedBackward0", "ViewBackward0"}
"""Nodes that hand on what they get: of modules with backward hooks, and of views whose memory was written to."""


def _unseen(node: Any) -> Operation:
    """What autograd knows of and nobody recorded: a function of the user's own, a write into part of a tensor."""
    kind = Kind.LAYOUT if node.name() in _LAYOUT else Kind.OTHER
    return Operation(kind, node.name(), "", node, (), (), (), None)


class _Waiting:
    """Messages on their way, for each output of each node."""

    def __init__(self) -> None:
        self._messages: dict[Any, list[Tensor | None]] = {}

    def send(self, edge: Edge, message: Tensor) -> None:
        node, number = edge
        message = _fitted(message, edge)
        there = self._messages.setdefault(node, [None] * len(node._input_metadata))  # noqa: SLF001  # as above
        before = there[number]
        there[number] = message if before is None else before + message

    def taken(self, node: Any) -> list[Tensor | None] | None:
        # What has arrived at the end stays for the end.
        return self._messages.get(node) if not node.next_functions else self._messages.pop(node, None)

    def at(self, node: Any) -> Tensor | None:
        return self._messages.get(node, [None])[0]


def ordered(roots: Sequence[Any]) -> list[Any]:
    """All nodes that lead to these, each after all that it leads on from: autograd's numbers count for each thread."""
    order: list[Any] = []
    found = set(roots)
    stack = [(root, iter(root.next_functions)) for root in found]
    while stack:
        node, children = stack[-1]
        child = next((c for c, _ in children if c is not None and c not in found), None)
        if child is None:
            order.append(node)
            stack.pop()
        else:
            found.add(child)
            stack.append((child, iter(child.next_functions)))
    return order


def derivative(operation: Operation, messages: Sequence[Tensor | None]) -> list[Sent]:
    """What an operation's own derivative makes of messages to its outputs."""
    return _derivative(operation.node, messages)


def _derivative(node: Any, messages: Sequence[Tensor | None]) -> list[Sent]:
    if isinstance(node, torch.autograd.function.BackwardCFunction):
        return _by_the_engine(node, messages)
    made = node(*messages)
    parts = made if isinstance(made, tuple) else (made,)
    each = zip(node.next_functions, parts, strict=True)
    return [Sent(edge, _fitted(part, edge)) for edge, part in each if edge[0] is not None and part is not None]


def _by_the_engine(node: Any, messages: Sequence[Tensor | None]) -> list[Sent]:
    """The derivative of a function of the user's own, which cannot be called: fifty times as slow."""
    edge = torch.autograd.graph.GradientEdge
    given = [(edge(node, number), message) for number, message in enumerate(messages) if message is not None]
    places = list(dict.fromkeys(place for place in node.next_functions if place[0] is not None))
    parts = torch.autograd.grad(
        [one for one, _ in given],
        [edge(*place) for place in places],
        [message for _, message in given],
        retain_graph=True,
        allow_unused=True,
    )
    return [Sent(place, part) for place, part in zip(places, parts, strict=True) if part is not None]


def _fitted(part: Tensor, edge: Edge) -> Tensor:
    """A gradient in the shape and type of what it is the gradient of, as autograd's engine makes it after each node."""
    node, number = edge
    meta = node._input_metadata[number]  # noqa: SLF001  # as above
    summed = part if part.shape == meta.shape else part.sum_to_size(meta.shape)
    return summed.to(meta.dtype)


def _moved(edge: Edge, relevance: Tensor, end: Any) -> Tensor:
    """Relevance of an input that only layout has changed, in the input's own layout."""
    node, number = edge
    if node is end:
        return relevance
    messages: list[Tensor | None] = [None] * len(node._input_metadata)  # noqa: SLF001  # as above
    messages[number] = relevance
    [(before, moved, _)] = _derivative(node, messages)
    assert before is not None  # noqa: S101  # a derivative goes somewhere
    return _moved(before, moved, end)
