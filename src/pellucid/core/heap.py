"""Keeps the memory that a call frees at hand until the call ends, instead of giving it back after each operation.

glibc maps every block of some megabytes from the kernel and returns it when it is freed. A network on the CPU asks for
hundreds of such blocks in each pass, and the kernel clears each page anew: measured, 40 % of the time of EfficientNet-
Lite0's passes of 12 rows. Within a call freed blocks stay in the heap; afterwards they go back, unless they are few:
768 MiB may stay for the next call, which would clear them anew (measured, a fifth of the time of a gradient of six
photos). Blocks of 32 MiB are then mapped again, as glibc does by itself once a program has freed one. Elsewhere, on a
GPU, and where the user has set glibc's own variables, nothing is done.
"""

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

__all__ = ["kept_heap"]

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4  # of malloc.h
_NEVER = 2**31 - 1
_MIB = 2**20
_LEFT = 768 * _MIB  # may stay for the next call: clearing it again takes as long as some samples
_SET_BY_USER = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_",
                "GLIBC_TUNABLES", "LD_PRELOAD")  # fmt: skip

_depth = [0]  # calls within calls; one thread holds the lock of all calls


@contextmanager
def kept_heap(device: torch.device) -> Iterator[None]:
    """What is freed within stays in the process; the outermost call gives it back."""
    libc = _glibc() if device.type == "cpu" else None
    if libc is None:
        yield
        return
    _depth[0] += 1
    if _depth[0] == 1:
        _set(libc, mmap_max=0, trim=_NEVER, pad=64 * _MIB)
    try:
        yield
    finally:
        _depth[0] -= 1
        if _depth[0] == 0:
            _set(libc, mmap_max=65536, trim=_LEFT, pad=_MIB // 8)
            libc.mallopt(_MMAP_THRESHOLD, 32 * _MIB)
            if _free_bytes(libc) > _LEFT:
                libc.malloc_trim(0)


def _set(libc: Any, *, mmap_max: int, trim: int, pad: int) -> None:
    libc.mallopt(_MMAP_MAX, mmap_max)
    libc.mallopt(_TRIM_THRESHOLD, trim)
    libc.mallopt(_TOP_PAD, pad)


class _MallInfo(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "top",
        )
    )


def _free_bytes(libc: Any) -> int:
    """What the heap holds and nobody uses; without a way to know, as much as there can be."""
    try:
        info = libc.mallinfo2  # since glibc 2.33
    except AttributeError:
        return _NEVER
    info.restype = _MallInfo
    return int(info().fordblks)


@cache
def _glibc() -> ctypes.CDLL | None:
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _SET_BY_USER):
        return None
    return ctypes.CDLL(None)
