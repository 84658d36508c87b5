"""From whatever a network takes and returns to the tensor of its outputs. Used by network.py alone."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.core.layer import modules_of
from pellucid.core.prediction import OutputKind
from pellucid.errors import ModelError

__all__ = ["Selection", "check_outputs", "selected", "takes_names"]

Selection = str | int | tuple[str | int, ...] | None
"""Which of the tensors that a network returns are its outputs; several are joined along their last axis."""


def selected(result: object, select: Selection, name: str) -> Tensor:
    """The outputs in what the network called `name` returned.

    Raises:
        ModelError: there is no such tensor.
    """
    if isinstance(select, tuple):
        parts = [selected(result, one, name) for one in select]
        if len({part.shape[:-1] for part in parts}) != 1:
            raise ModelError(
                f"Expected outputs that can be joined along their last axis, but {name} returned "
                f"{' and '.join(str(tuple(part.shape)) for part in parts)} at {select}."
            )
        return torch.cat(parts, -1)
    chosen: object = result
    if select is not None:
        try:  # a tensor has rows, and none of them is the outputs
            chosen = None if isinstance(result, Tensor) else result[select]  # type: ignore[index]
        except (KeyError, IndexError, TypeError):
            chosen = None
    if isinstance(chosen, Tensor):
        return chosen
    if isinstance(result, Mapping):
        choices: list[Any] = [key for key, value in result.items() if isinstance(value, Tensor)]
    elif isinstance(result, list | tuple):
        choices = [i for i, value in enumerate(result) if isinstance(value, Tensor)]
    else:
        choices = []
    hint = f"Say which one: TorchModel(net, select={choices[0]!r})." if choices else "Wrap it to return a tensor."
    if isinstance(result, Tensor):
        hint = "Leave `select` out."
    raise ModelError(
        f"Expected a tensor of outputs, but {name} returned a {type(result).__name__}"
        f"{f' with tensors at {choices}' if choices else ''}"
        f"{f', which has no tensor at {select!r}' if select is not None else ''}. {hint}"
    )


def check_outputs(outputs: Tensor, rows: int, kind: OutputKind | None, name: str) -> None:
    """Raises ModelError unless these are outputs of so many rows: (B, K), maps (B, K, ...), or boxes (B, N, 4 + K)."""
    got = f"{name} returned {tuple(outputs.shape)}"
    if kind is OutputKind.DETECTION:
        if outputs.ndim != 3 or len(outputs) != rows or outputs.shape[2] < 5:
            raise ModelError(
                f"Expected (B, N, 4 + K) for {rows} inputs, N boxes (left, top, right, bottom) with K class scores "
                f"each, but {got}. Where boxes and scores are two tensors, name both: select=('boxes', 'scores')."
            )
    elif kind is OutputKind.SEGMENTATION:
        if outputs.ndim < 3 or len(outputs) != rows:
            raise ModelError(f"Expected class scores of places, (B, K, ...), for {rows} inputs, but {got}.")
    elif outputs.ndim not in ((2, 4) if kind is None else (2,)) or len(outputs) != rows:
        raise ModelError(
            f"Expected outputs (B, K) for {rows} inputs, but {got}. Wrap the network so that it returns one row of "
            "scores for each input; or say output='segmentation' for (B, K, ...), output='detection' for boxes "
            "(B, N, 4 + K)."
        )


def takes_names(net: nn.Module, names: Iterable[str]) -> bool:
    """Whether forward() takes these as arguments by name, rather than one dict."""
    try:
        inspect.signature(modules_of(net)[""].forward).bind(**dict.fromkeys(names))
    except TypeError:
        return False
    return True
