"""Segments that follow what is seen: superpixels of a photo's colours, by scikit-image."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pellucid.core.checks import check_choice, check_count
from pellucid.core.input import Preprocess
from pellucid.core.segments import Segments
from pellucid.errors import ArgumentError

__all__ = ["Superpixels"]


@dataclass(frozen=True, kw_only=True)
class Superpixels(Segments):
    """Superpixels of each picture: about `count` by `slic` (Achanta et al. 2012), or as many as `felzenszwalb`
    (Felzenszwalb & Huttenlocher 2004) finds at a `scale` that follows from the count.

    Raises:
        ArgumentError: a setting out of range; when used, inputs that are no pictures of one or three channels.

    Example:
        >>> import torch, pellucid as pl
        >>> halves = torch.zeros(1, 3, 16, 16)
        >>> halves[..., 8:] = 1
        >>> pl.Superpixels(count=4).labels(halves)[0, 0].tolist()
        [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1]
    """

    count: int = 50
    method: Literal["slic", "felzenszwalb"] = "slic"

    def __post_init__(self) -> None:
        check_count("count", self.count)
        check_choice("method", self.method, ("slic", "felzenszwalb"))

    def labels(self, x: Float[Tensor, "b *features"], preprocess: Preprocess | None = None) -> Int[Tensor, "b *places"]:
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise ArgumentError(
                f"Superpixels are of pictures (B, 1 or 3, H, W). Got {tuple(x.shape)}. For other inputs take Patches() "
                "or Columns()."
            )
        if not torch.isfinite(x).all():
            raise ArgumentError(
                "Superpixels are of finite colours, but the input holds NaN or infinity. Mend the input."
            )
        colours = _colours(x, preprocess)
        return torch.stack([torch.from_numpy(self._of(one)) for one in colours]).to(x.device)

    def _of(self, colours: Float[np.ndarray, "h w c"]) -> Int[np.ndarray, "h w"]:
        from skimage.measure import label
        from skimage.segmentation import felzenszwalb, slic

        if self.method == "slic":
            found = slic(colours, n_segments=self.count, start_label=0, channel_axis=-1)
        else:
            area = colours.shape[0] * colours.shape[1] / self.count
            found = felzenszwalb(colours, scale=area / 4, sigma=0.5, min_size=max(int(area / 4), 1), channel_axis=-1)
        # Numbers without gaps, and a segment is in one piece.
        whole = label(found, background=-1, connectivity=1)
        return np.unique(whole, return_inverse=True)[1].reshape(found.shape).astype(np.int64)


def _colours(x: Float[Tensor, "b c h w"], preprocess: Preprocess | None) -> Float[np.ndarray, "b h w c"]:
    """The pictures in 0 .. 1 as they were before the model's normalisation; of bare tensors, each stretched to it."""
    values = x.detach().cpu().double()
    if preprocess is None:
        low, high = values.amin((1, 2, 3), keepdim=True), values.amax((1, 2, 3), keepdim=True)
    else:
        low, high = preprocess.level(0.0), preprocess.level(1.0)
    span = high - low
    scaled = (values - low) / torch.where(span == 0, 1.0, span)
    return scaled.clamp(0, 1).movedim(1, -1).numpy()
