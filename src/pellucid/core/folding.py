"""Batch norms folded into the convolutions before them, for the length of a call. Used by model.py alone.

In evaluation mode a batch norm multiplies each channel and adds to it, which the convolution can do as well:
norm(conv(x)) = conv'(x). A pass over every activation and one over its gradient are saved: measured on EfficientNet-
Lite0, a quarter of the time. Only pairs that the executed graph shows to be such are folded: each module runs once, and
nothing but the norm takes what the convolution gives. The outputs are compared; afterwards all is as before.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Folded", "Pair", "find_pairs", "folded", "is_plain", "together", "unfolded"]

Pair = tuple[nn.Module, nn.Module]
"""A convolution and the batch norm after it."""

Folded = tuple[nn.Parameter, nn.Parameter]
"""The weight and bias of a convolution that does what both do."""

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_SAME = 1e3  # units of rounding of the largest output; a wrong pair is off by far more
_TELLING = 0.01  # in half precision a comparison tells nothing


def find_pairs(net: nn.Module, forward: Callable[[], Tensor]) -> tuple[Pair, ...]:
    """The pairs in what `forward` runs, whose result must depend on its input with gradients; none if folding them
    changes the result.
    """
    ran: dict[nn.Module, list[Any]] = {}

    def watch(module: nn.Module, args: Any, output: Any) -> None:
        # At once: an activation in place would put itself where the norm stands.
        ran.setdefault(module, []).append(output.grad_fn if isinstance(output, Tensor) else None)

    with ExitStack() as stack:
        for module in net.modules():
            if is_plain(module):
                stack.callback(module.register_forward_hook(watch).remove)
        result = forward()
    if result.grad_fn is None or _SAME * torch.finfo(result.dtype).eps > _TELLING:
        return ()
    made = {nodes[0]: module for module, nodes in ran.items() if len(nodes) == 1 and nodes[0] is not None}
    takers, order = _takers(result.grad_fn)
    pairs = []
    for node in order:
        norm = made.get(node)
        inputs = [child for child, _ in node.next_functions if child is not None]
        if type(norm) not in _NORMS or len(inputs) != 1 or takers[inputs[0]] != 1:
            continue
        convolution = made.get(inputs[0])
        if type(convolution) in _CONVOLUTIONS and norm is not None and convolution is not None:
            pairs.append((convolution, norm))
    found = tuple(pairs)
    with torch.no_grad():
        expected = result.detach()
        with folded(found, [together(*pair) for pair in found]):
            off = (forward().detach() - expected).abs().max()
    return found if float(off) <= _SAME * torch.finfo(expected.dtype).eps * float(expected.abs().max()) else ()


@contextmanager
def folded(pairs: Sequence[Pair], weights: Sequence[Folded]) -> Iterator[None]:
    """Within, each convolution does what its norm did, with these weights, and the norm nothing."""
    with ExitStack() as undo:
        for (convolution, norm), (weight, bias) in zip(pairs, weights, strict=True):
            held = convolution._parameters  # noqa: SLF001  # assigning to a parameter would check and hook it
            undo.callback(held.update, dict(held))
            passing = _Passing(convolution, dict(held), {"weight": weight, "bias": bias})
            held.update(passing.inside)
            undo.callback(vars(norm).pop, "forward")
            vars(norm)["forward"] = passing
        yield


class _Passing:
    """The forward of a folded norm, which does nothing; and what its convolution held before and holds now."""

    def __init__(self, convolution: nn.Module, before: dict[str, Any], inside: dict[str, Any]) -> None:
        self.convolution, self.before, self.inside = convolution, before, inside

    def __call__(self, x: Tensor) -> Tensor:
        return x


@contextmanager
def unfolded(norms: Iterable[nn.Module], convolutions: Collection[nn.Module] | None = None) -> Iterator[None]:
    """Within, norms that are folded into these convolutions (or any) are as before: what they give is asked for."""
    with ExitStack() as undo:
        for norm in set(norms):
            passing = vars(norm).get("forward")
            if isinstance(passing, _Passing) and (convolutions is None or passing.convolution in convolutions):
                held = passing.convolution._parameters  # noqa: SLF001  # as in `folded`
                undo.callback(held.update, passing.inside)
                held.update(passing.before)
                undo.callback(vars(norm).update, forward=passing)
                del vars(norm)["forward"]
        yield


def together(convolution: Any, norm: Any) -> Folded:
    """The weight and bias of a convolution that does what both do."""
    with torch.no_grad():
        gain = (norm.running_var.double() + norm.eps).rsqrt()
        if norm.weight is not None:
            gain = gain * norm.weight.double()
        shift = -norm.running_mean.double() * gain
        if norm.bias is not None:
            shift = shift + norm.bias.double()
        if convolution.bias is not None:
            shift = shift + convolution.bias.double() * gain
        weight = convolution.weight
        # The vectors in double precision; of the weights themselves a rounding more costs nothing, their copies time.
        scaled = weight * gain.view(-1, *(1,) * (weight.ndim - 1)).to(weight.dtype)
    layout = torch.channels_last if weight.ndim == 4 else torch.contiguous_format
    frozen = scaled.contiguous(memory_format=layout), shift.to(weight.dtype)
    return nn.Parameter(frozen[0], requires_grad=False), nn.Parameter(frozen[1], requires_grad=False)


def is_plain(module: nn.Module) -> bool:
    """Whether the module is a convolution, or a norm that uses its running statistics, and does nothing besides."""
    hooked = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks  # noqa: SLF001
    if hooked or "forward" in vars(module):
        return False
    if type(module) in _NORMS:
        return not module.training and isinstance(module.running_mean, Tensor)
    return type(module) in _CONVOLUTIONS


def _takers(root: Any) -> tuple[dict[Any, int], list[Any]]:
    """How many operations take what each node gave, and all nodes."""
    count: dict[Any, int] = {root: 0}
    order, stack = [root], [root]
    while stack:
        for child, _ in stack.pop().next_functions:
            if child is None:
                continue
            if child not in count:
                order.append(child)
                stack.append(child)
            count[child] = count.get(child, 0) + 1
    return count, order
