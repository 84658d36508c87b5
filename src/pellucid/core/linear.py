"""Networks that are one linear map of their inputs: checked by their outputs, since parts do not show what is done."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pellucid.core.random import Key, normal
from pellucid.errors import MissingNeed

__all__ = ["linear_map"]


def linear_map(net: nn.Module, name: str, outputs: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """The weights and intercepts of a network whose outputs are W x + b.

    Raises:
        MissingNeed: it has other layers than one torch.nn.Linear, or does something else with it.
    """
    layers = [m for m in net.modules() if not isinstance(m, nn.Sequential | nn.Flatten | nn.Identity)]
    if len(layers) != 1 or not isinstance(layers[0], nn.Linear):
        raise MissingNeed(
            f"Coefficients belong to a linear model: one torch.nn.Linear, with Flatten or Identity beside it. "
            f"{name} has {', '.join(type(m).__name__ for m in layers[:4]) or 'no layer'}. "
            "For other networks take a gradient method, e.g. pl.SmoothGrad()."
        )
    weight = layers[0].weight.detach().clone()
    bias = torch.zeros(len(weight)).to(weight) if layers[0].bias is None else layers[0].bias.detach().clone()
    x = torch.from_numpy(normal(Key.named("linear"), 0, (2, *weight.shape[1:]))).to(weight)
    found, expected = outputs(x), x.flatten(1) @ weight.flatten(1).T + bias
    tolerance = 100 * torch.finfo(weight.dtype).eps * float(expected.abs().max() + 1)
    if found.shape != expected.shape or float((found - expected).abs().max()) > tolerance:
        raise MissingNeed(
            f"{name} has coefficients, but its outputs are not W x + b. Take a gradient or a black-box method."
        )
    return weight, bias
