"""Noise that depends on nothing but (seed, input, sample index): not on the batch, the order, the CPU or global state.

Sample i of an input is Philox(key = H(seed, input key), counter = [0, 0, 0, i]), drawn as standard normal float32.
The index stands in the counter's highest word: neighbouring samples can then never overlap, however long they are.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["NOISE", "Key", "normal", "uniform"]

NOISE = "philox-normal-float32"
"""The name of this stream in recipes."""

_BYTES = 16


@dataclass(frozen=True)
class Key:
    """128 bits that name a stream of noise. Pass one key to two calls and both see the same noise.

    Example:
        >>> import torch, pellucid as pl
        >>> pl.Key.of(torch.zeros(2, 2)) == pl.Key.of(torch.zeros(2, 2)) != pl.Key.of(torch.zeros(4))
        True
    """

    digest: bytes

    @classmethod
    def of(cls, x: Tensor) -> "Key":
        """The key of one input: a hash of its shape and its content as float32, whatever its layout or device."""
        content = np.ascontiguousarray(x.detach().to("cpu", torch.float32).numpy(), dtype="<f4")
        shape = ",".join(str(size) for size in x.shape)
        return cls(_hash(b"input", shape.encode() + b";", content.tobytes()))

    @classmethod
    def named(cls, text: str) -> "Key":
        """The key that a word stands for, to be shared by calls that are to be compared."""
        return cls(_hash(b"name", text.encode()))

    @classmethod
    def from_hex(cls, text: str) -> "Key":
        """The key that `hex` wrote into a recipe."""
        return cls(bytes.fromhex(text))

    @property
    def hex(self) -> str:
        """32 hexadecimal digits."""
        return self.digest.hex()

    def stream(self, seed: int) -> "Key":
        """H(seed, input key): the key of the noise that `seed` adds to this input."""
        return Key(_hash(b"seed", self.digest, seed.to_bytes(8, "little")))

    def child(self, index: int) -> "Key":
        """H(key, i): the input key of noisy copy i, for an explainer inside another."""
        return Key(_hash(b"child", self.digest, index.to_bytes(8, "little")))


def normal(stream: Key, index: int, shape: tuple[int, ...], out: np.ndarray | None = None) -> np.ndarray:
    """Sample `index` of the stream: independent standard normal float32 values of this shape, contiguous; in `out` if
    there is a place for them.
    """
    bits = np.random.Philox(key=np.frombuffer(stream.digest, dtype="<u8"), counter=[0, 0, 0, index])
    return np.random.Generator(bits).standard_normal(shape, dtype=np.float32, out=out)


def uniform(stream: Key, index: int, count: int) -> np.ndarray:
    """Sample `index` of the stream as independent float64 values in [0, 1)."""
    bits = np.random.Philox(key=np.frombuffer(stream.digest, dtype="<u8"), counter=[0, 0, 0, index])
    return np.random.Generator(bits).random(count)


def _hash(purpose: bytes, *parts: bytes) -> bytes:
    # The purpose keeps apart hashes of different things whose bytes happen to be the same.
    state = hashlib.blake2b(digest_size=_BYTES, person=purpose)
    for part in parts:
        state.update(part)
    return state.digest()
