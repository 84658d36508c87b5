"""Baselines of which each sample draws one: the rows of a data set, or several rules for what absent means."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.core.baseline import Background, Baseline, standing_in
from pellucid.core.model import Model
from pellucid.errors import ArgumentError

__all__ = ["absent", "check_baselines", "drawn"]


def check_baselines(baselines: object) -> None:
    """Raises ArgumentError for what is neither a background nor a tuple of baselines."""
    several = isinstance(baselines, tuple) and baselines and all(isinstance(one, Baseline) for one in baselines)
    if not isinstance(baselines, Background) and not several:
        raise ArgumentError(
            f"`baselines` is pl.Background.of(rows), or a tuple such as (pl.Pixel(0.0), pl.Pixel(1.0)). Got "
            f"{baselines!r}."
        )


def absent(
    baselines: Background | tuple[Baseline, ...], model: Model, x: Float[Tensor, "b *features"]
) -> Float[Tensor, "n own *features"]:
    """The baselines of each input; those of a background are the same for all, (n, 1, *features)."""
    if not isinstance(baselines, Background):
        return torch.stack([standing_in(one, x, model.preprocess, model.packing) for one in baselines])
    rows, packing = baselines.rows, model.packing
    if packing is not None and sum(not held for held in packing.held) == 1:  # such as a layer
        [shape] = [shape for shape, held in zip(packing.shapes, packing.held, strict=True) if not held]
        if tuple(rows.shape[1:]) == shape:
            given = {packing.names[packing.drawn]: rows}
            held = {name: rows.new_zeros((len(rows), *part.shape[1:])) for name, part in packing.parts(x).items()}
            rows = packing.packed(list((held | given).values()))
    if rows.shape[1:] != x.shape[1:]:
        raise ArgumentError(
            f"Expected a background of inputs {tuple(x.shape[1:])}, but it holds {tuple(rows.shape[1:])}."
        )
    found = rows.to(x)[:, None]
    if packing is None:
        return found
    mask = packing.mask(x)
    return found * mask + x * (1 - mask)  # what is held stays each input's own


def drawn(starts: Float[Tensor, "n own *features"], where: np.ndarray, rows: Tensor) -> Float[Tensor, "m *features"]:
    """One baseline for each of the inputs `rows`, chosen by numbers in [0, 1)."""
    chosen = torch.from_numpy((where * len(starts)).astype(np.int64)).clamp(max=len(starts) - 1)
    return starts[chosen, rows if starts.shape[1] > 1 else torch.zeros_like(rows)]
