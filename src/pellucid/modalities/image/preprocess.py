"""From a picture to the tensor that a network was trained on, and where each of its pixels lies in the picture."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image

from pellucid.core.checks import check_choice, check_count
from pellucid.core.input import Input, Preprocess, View
from pellucid.errors import ArgumentError, InputError, PellucidError
from pellucid.modalities.image.read import Picture, PictureSource, read_picture

__all__ = ["ImagePreprocess"]

_FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
}
_PLANES = {"rgb": 3, "bgr": 3, "gray": 1}


@dataclass(frozen=True, kw_only=True)
class ImagePreprocess(Preprocess):
    """Crop, resize in one step with antialiasing, and (value / 255 - mean) / std, channels first.

    `size` is a side or (height, width). `resize="crop"` takes the largest centred part of the input's proportions
    times `crop` (0.875 is the usual 256 -> 224), "squash" the whole picture, distorting it. `mean` and `std` are in
    units of 0 .. 1, one number or one a channel; `channels` is the order that the network expects.

    Raises:
        ArgumentError: a setting out of range.

    Example:
        >>> import numpy as np, pellucid as pl
        >>> prepare = pl.ImagePreprocess(size=4, mean=0.5, std=0.5)
        >>> x = prepare.read(np.full((8, 16, 3), 255, dtype=np.uint8))
        >>> x.tensor.shape, float(x.tensor.max()), x.views[0].geometry["box"]
        (torch.Size([1, 3, 4, 4]), 1.0, [4.0, 0.0, 12.0, 8.0])
    """

    size: int | tuple[int, int]
    mean: float | tuple[float, ...] = 0.0
    std: float | tuple[float, ...] = 1.0
    resize: Literal["crop", "squash"] = "crop"
    crop: float = 1.0
    interpolation: Literal["bicubic", "bilinear", "nearest"] = "bicubic"
    channels: Literal["rgb", "bgr", "gray"] = "rgb"

    def __post_init__(self) -> None:
        for name in ("size", "mean", "std", "crop"):  # lists and arrays would be neither hashable nor fit for a recipe
            value = getattr(self, name)
            plain = value.tolist() if hasattr(value, "tolist") else value
            object.__setattr__(self, name, tuple(plain) if isinstance(plain, list) else plain)
        for side in self._shape:
            check_count("size", side)
        if len(self._shape) != 2:
            raise ArgumentError(f"`size` is one side or (height, width). Got {self.size!r}.")
        check_choice("resize", self.resize, ("crop", "squash"))
        check_choice("interpolation", self.interpolation, tuple(_FILTERS))
        check_choice("channels", self.channels, tuple(_PLANES))
        if not _is_number(self.crop) or not 0 < self.crop <= 1:
            raise ArgumentError(
                f"`crop` is the share of the picture's side that is kept, over 0 up to 1. Got {self.crop!r}."
            )
        for name in ("mean", "std"):
            value = getattr(self, name)
            each = value if isinstance(value, tuple) else (value,)
            if len(each) not in (1, _PLANES[self.channels]) or not all(_is_number(one) for one in each):
                raise ArgumentError(
                    f"`{name}` is one finite number, or one for each of {_PLANES[self.channels]} channels. "
                    f"Got {value!r}."
                )
        if (np.abs(self._mean) > 1).any():
            raise ArgumentError(
                f"`mean` is in units of 0 .. 1, as torchvision and timm state it. Got {self.mean!r}. "
                "Divide mean and std of 0 .. 255 by 255."
            )
        if (self._std <= 0).any():
            raise ArgumentError(f"`std` is over zero. Got {self.std!r}.")

    @property
    def _shape(self) -> tuple[int, ...]:
        return self.size if isinstance(self.size, tuple) else (self.size, self.size)

    @property
    def _mean(self) -> np.ndarray:
        return np.atleast_1d(np.asarray(self.mean, dtype=np.float64))

    @property
    def _std(self) -> np.ndarray:
        return np.atleast_1d(np.asarray(self.std, dtype=np.float64))

    def level(self, value: float) -> torch.Tensor:
        each = (value - self._mean) / self._std
        planes = np.broadcast_to(each, (_PLANES[self.channels],))
        return torch.from_numpy(planes.reshape(-1, 1, 1).copy())

    @property
    def bounds(self) -> tuple[float, float]:
        return float((-self._mean / self._std).min()), float(((1 - self._mean) / self._std).max())

    def read(
        self,
        sources: PictureSource | list[PictureSource],
        on_error: Callable[[PellucidError], None] | None = None,
    ) -> Input:
        """The input of one picture or of a list of them: files, PIL images, arrays.

        `on_error` is told of each picture that cannot be read, and the others are still read.

        Raises:
            InputError: a picture cannot be read (without `on_error`), or none can.
        """
        rows, views, names, notes = [], [], [], []
        for source in sources if isinstance(sources, list | tuple) else [sources]:
            try:
                picture = read_picture(source)
            except InputError as error:
                if on_error is None:
                    raise
                on_error(error)
                continue
            row, view = self.prepare(picture)
            rows.append(row)
            views.append(view)
            names.append(picture.name)
            notes.append(picture.notes)
        if not rows:
            raise InputError("Expected at least one picture that can be read, but there was none.")
        return Input(torch.stack(rows), tuple(names), tuple(views), tuple(notes))

    def prepare(self, picture: Picture) -> tuple[torch.Tensor, View]:
        """One picture's tensor (C, H, W) and the way back to it."""
        high, wide = picture.pixels.shape[:2]
        box = self._box(high, wide)
        left, top = math.floor(box[0]), math.floor(box[1])
        # Cut first: filters reach beyond the box that they are given.
        image = Image.fromarray(picture.pixels[top : math.ceil(box[3]), left : math.ceil(box[2])])
        if self.channels == "gray":
            image = image.convert("L")
        height, width = self._shape
        inner = (box[0] - left, box[1] - top, box[2] - left, box[3] - top)
        resized = image.resize((width, height), _FILTERS[self.interpolation], box=inner)
        values = np.asarray(resized, dtype=np.float64).reshape(height, width, -1)
        if self.channels == "bgr":
            values = values[:, :, ::-1]
        scaled = (values / 255 - self._mean) / self._std
        row = torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1), dtype=np.float32))
        geometry = {"box": list(box), "size": [high, wide]}
        return row, View("image", geometry, torch.from_numpy(picture.pixels))

    def _box(self, high: int, wide: int) -> tuple[float, float, float, float]:
        """The part of the picture that is kept: left, top, right, bottom, in its pixels."""
        if self.resize == "squash":
            return (0.0, 0.0, float(wide), float(high))
        height, width = self._shape
        left = (wide - min(wide, high * width / height) * self.crop) / 2
        top = (high - min(high, wide * height / width) * self.crop) / 2
        return (left, top, wide - left, high - top)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
