"""Depthwise convolutions with strides stay in float32 under bfloat16 autocast on CPUs. Used by model.py alone.

oneDNN has no fast kernel for their gradient in bfloat16: on EfficientNet-Lite0 four such layers took half of a pass
there and back, so that bfloat16 was slower than float32. With them in float32 it is one and a half times as fast.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["strides_in_single"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@contextmanager
def strides_in_single(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within, such layers among these compute in float32 and give what autocast would have them give."""
    with ExitStack() as undo:
        for module in modules:
            if _is_slow(module):
                undo.callback(vars(module).pop, "forward")
                vars(module)["forward"] = _in_single(module)
        yield


def _is_slow(module: Any) -> bool:
    strided = type(module) in _CONVOLUTIONS and max(module.stride) > 1
    return strided and module.groups == module.in_channels > 1 and "forward" not in vars(module)


def _in_single(convolution: nn.Module) -> Any:
    forward = convolution.forward

    def run(x: Tensor) -> Tensor:
        if not torch.is_autocast_enabled("cpu"):
            as_it_was: Tensor = forward(x)
            return as_it_was
        with torch.autocast("cpu", enabled=False):
            single: Tensor = forward(x.float())
        return single.to(torch.get_autocast_dtype("cpu"))

    return run
