"""What a network adds: the biases of its modules, and where in a pass they are added. Used by network.py alone.

A norm that uses running statistics multiplies and adds, y = g (x - m) / sqrt(v + eps) + b: it adds b - g m / sqrt(v +
eps). One that takes its statistics from the input adds b alone.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pellucid.core.folding import unfolded
from pellucid.core.layer import as_written, modules_of

__all__ = ["Added", "biases"]

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)  # noqa: SLF001  # all that there are
_LAST_AXIS = (nn.Linear, nn.LayerNorm)


class Added(NamedTuple):
    """What was added to what: the tensor `at` after it, and the `bias` in a shape that multiplies it."""

    at: Tensor
    bias: Tensor


@contextmanager
def biases(net: nn.Module) -> Iterator[list[Added]]:
    """Within, each bias that is added is noted, in the order in which the modules run."""
    added: list[Added] = []
    with ExitStack() as stack:
        modules = set(modules_of(net).values())
        stack.enter_context(as_written(net))
        stack.enter_context(unfolded(modules))

        def note(module: nn.Module, args: Any, output: Any) -> Any:
            bias = _bias(module)
            if bias is None or not isinstance(output, Tensor) or not output.requires_grad:
                return output
            last = _on_last_axis(module, bias, output)
            if last is None:
                return output  # a stranger's module, which does something else with it
            shape = bias.shape if last else (1, -1, *(1,) * (output.ndim - 2))
            added.append(Added(output, bias.detach().view(shape).to(_digits(output))))
            return output.clone()  # the network may write into what it gets

        for module in modules:
            scripted = isinstance(module, torch.jit.ScriptModule)
            wrapped = "_orig_mod" in module._modules  # noqa: SLF001  # it shows the bias of the module inside as its own
            if not wrapped and (isinstance(module, _NORMS) or (not scripted and isinstance(_own(module), Tensor))):
                stack.callback(module.register_forward_hook(note).remove)
        yield added


def _on_last_axis(module: nn.Module, bias: Tensor, output: Tensor) -> bool | None:
    """Whether the bias lies along the last axes of what the module gives, or along its channels; None if neither."""
    if type(module) in _LAST_AXIS:
        return True
    channels = bias.ndim == 1 and output.ndim >= 2 and output.shape[1] == len(bias)
    if not isinstance(module, _LAST_AXIS):
        return False if channels else None
    last = tuple(output.shape[output.ndim - bias.ndim :]) == tuple(bias.shape)  # a module of one's own may turn axes
    return None if channels == last else last


def _digits(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _own(module: nn.Module) -> Any:
    return getattr(module, "bias", None)


def _bias(module: nn.Module) -> Tensor | None:
    bias = _own(module)
    if isinstance(module, _NORMS) and not module.training and module.running_mean is not None:
        assert module.running_var is not None  # noqa: S101  # torch keeps both or none
        gain = (module.running_var.double() + module.eps).rsqrt()
        gain = gain if module.weight is None else gain * module.weight.double()
        shift = -module.running_mean.double() * gain
        return (shift if bias is None else shift + bias.double()).to(module.running_mean.dtype)
    return bias if isinstance(bias, Tensor) else None
