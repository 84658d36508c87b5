"""Keeps what a call does to a network and to the global random state from outlasting the call. Used by model.py alone.

Each fact is put back by a callback of its own, so that one that cannot be put back does not keep the others from it.
What a network writes in place into its own weights through `.data` is the one thing that is not noticed.
"""

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pellucid.errors import ModelError

__all__ = ["one_call_at_a_time", "same_network", "same_random_state"]

# Modes, flags and random states belong to the process, and networks share modules: one lock for all.
_lock = threading.RLock()


@contextmanager
def one_call_at_a_time() -> Iterator[None]:
    """Calls from several threads wait for each other; a call may hold others within it."""
    with _lock:
        yield


@contextmanager
def same_network(net: nn.Module, *, evaluate: bool) -> Iterator[None]:
    """The network with frozen parameters, in evaluation mode if asked for; afterwards in the state it had.

    Raises:
        ModelError: its parameters were made under inference mode and cannot take part in gradients.
    """
    modules = list(net.modules())  # each walk through a network takes a quarter of a millisecond
    parameters = {id(p): p for m in modules for p in m._parameters.values() if p is not None}.values()  # noqa: SLF001
    buffers = {id(b): b for m in modules for b in m._buffers.values() if b is not None}.values()  # noqa: SLF001
    if any(parameter.is_inference() for parameter in parameters):
        raise ModelError(
            "The network was built under torch.inference_mode, so that no gradient can pass its parameters. "
            "Build or load it outside of it."
        )
    with ExitStack() as undo:
        undo.callback(_put_back_each, _put_back_names, [kept for module in modules for kept in _held(module, undo)])
        undo.callback(_put_back_each, _put_back_values, [(buffer, buffer.detach().clone()) for buffer in buffers])
        kept = [(parameter, parameter.requires_grad, parameter.grad, parameter.data) for parameter in parameters]
        undo.callback(_put_back_each, _put_back_parameter, kept)
        for module in modules:
            # Set directly: train() and eval() may be overridden, and raise in exported programs.
            if evaluate and getattr(module, "training", False):
                module.training = False
        for parameter in parameters:
            if parameter.requires_grad:
                parameter.requires_grad_(False)
        yield


def _put_back_each(put_back: Callable[..., None], kept: Sequence[tuple[Any, ...]]) -> None:
    """Each of them, also if one cannot be put back; then its error. A callback for each took milliseconds a call."""
    failed = None
    for one in kept:
        try:
            put_back(*one)
        except Exception as error:  # noqa: BLE001  # whatever a stranger's tensor does; the others are still to be done
            failed = failed or error
    if failed is not None:
        raise failed


_Names = dict[str, object]


def _held(module: nn.Module, undo: ExitStack) -> Iterator[tuple[_Names, _Names | None]]:
    """The names that a module holds, and what they stand for; None for none at all, so that little is made."""
    if isinstance(module, torch.jit.ScriptModule):  # its attributes live in C++
        if hasattr(module, "training"):  # a frozen one has no mode
            undo.callback(setattr, module, "training", module.training)
        return
    held = vars(module)
    for names in (held["_buffers"], held["_parameters"], held["_modules"], held):
        yield names, dict(names) if names else None


def _put_back_names(held: _Names, before: _Names | None) -> None:
    """What forward() cached, counted, registered or replaced."""
    if before is None:
        held.clear()
        return
    for name in held.keys() - before.keys():
        del held[name]
    held.update(before)


def _put_back_values(buffer: Tensor, before: Tensor) -> None:
    if torch.equal(buffer, before):
        return
    same = (buffer == before) | ((buffer != buffer) & (before != before))  # NaN is equal to NaN here
    if not bool(same.all()):
        with torch.no_grad():
            buffer.copy_(before)


def _put_back_parameter(parameter: nn.Parameter, required: bool, grad: Tensor | None, data: Tensor) -> None:
    if parameter.data_ptr() != data.data_ptr():  # forward() assigned to parameter.data
        parameter.data = data
    if parameter.requires_grad != required:
        parameter.requires_grad_(required)
    if parameter.grad is not grad:
        parameter.grad = grad


@contextmanager
def same_random_state(device: torch.device, seed: int) -> Iterator[None]:
    """Networks that draw random numbers draw the same ones in every call, and nobody else notices."""
    with ExitStack() as undo:
        undo.callback(np.random.set_state, np.random.get_state())
        undo.callback(random.setstate, random.getstate())
        on_gpu = device.type == "cuda"
        undo.enter_context(torch.random.fork_rng([device] if on_gpu else []))
        seed_all(device, seed)
        yield


def seed_all(device: torch.device, seed: int) -> None:
    """Begin the random numbers that networks draw."""
    # Not torch.manual_seed, which seeds every accelerator there is, also those whose state is not kept.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
