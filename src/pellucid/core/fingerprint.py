"""What a network is: a hash of its structure and weights, and cheap marks that tell when to hash anew. For model.py.

Hashing takes as long as a pass. The marks change with every write that autograd sees, and the sums with nearly every
one that it does not.
"""

import hashlib
import re
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["hash_of", "marks", "tensors_of"]

_SMALL = 2**14
"""Tensors up to this size are summed together: most of the time for one of them is its call."""


def tensors_of(net: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers by name, in one order; buffers also where they are not saved."""
    found: dict[Tensor, str] = {}  # each once, under its first name
    for name, module in net.named_modules():  # in one walk: each takes a quarter of a millisecond
        for held in (module._parameters, module._buffers):  # noqa: SLF001  # the public ones walk again
            for own, tensor in held.items():
                if tensor is not None:
                    found.setdefault(tensor, f"{name}.{own}" if name else own)
    return sorted((name, tensor) for tensor, name in found.items())


def marks(net: nn.Module) -> Any:
    """A value that is another one once the network has changed."""
    tensors = tensors_of(net)
    large = [t for _, t in tensors if t.numel() > _SMALL]
    small: dict[Any, list[Tensor]] = {}
    for _, t in tensors:
        if t.numel() <= _SMALL:
            small.setdefault((t.dtype, t.device), []).append(t.detach().flatten())
    sums = [_word_sum(t) for t in (*large, *(torch.cat(each) for each in small.values()))]
    return repr(net), tuple((n, id(t), t.data_ptr(), _writes(t)) for n, t in tensors), tuple(sums)


def hash_of(net: nn.Module) -> str:
    """32 hexadecimal digits of its structure and of every byte of its weights."""
    digest = hashlib.blake2b(digest_size=16)
    # The structure without the addresses that some representations hold.
    digest.update(re.sub(r" at 0x[0-9a-f]+", "", repr(net)).encode())
    for name, tensor in tensors_of(net):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _writes(tensor: Tensor) -> int:
    """How often a tensor was written to, as far as autograd saw; inference tensors do not count."""
    return -1 if tensor.is_inference() else tensor._version  # noqa: SLF001  # torch has no public name for it


def _word_sum(tensor: Tensor) -> int:
    """The sum of a tensor's bytes as whole numbers, which wraps around."""
    flat = tensor.detach().contiguous().flatten()
    words = flat.view({8: torch.int64, 4: torch.int32, 2: torch.int16}.get(flat.element_size(), torch.uint8))
    return int(words.sum(dtype=torch.int64))
