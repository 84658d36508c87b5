"""How much a map changes when the input hardly does and the prediction not at all.

Ghorbani et al. 2019 (arXiv:1710.10547) call a map fragile if a copy with the same prediction gets another one. Here the
copies are the input plus Gaussian noise of a small level; copies with another top class are passed over.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pellucid.core.attribution import Attribution
from pellucid.core.checks import check_count, check_seed
from pellucid.core.explainer import Explainer
from pellucid.core.input import Input
from pellucid.core.model import Model
from pellucid.core.random import Key, normal
from pellucid.core.target import TargetSpec, settle
from pellucid.errors import ArgumentError, ModelError
from pellucid.metrics.similarity import rank_correlation

__all__ = ["Stability", "noised_copies", "stability"]

_TRIES = 10


@dataclass(frozen=True, eq=False)
class Stability:
    """One method's maps of an input and of its copies, all towards the input's target.

    `rank_correlations` has, for each copy, Spearman's correlation of the raw signed maps of input and copy.
    """

    explainer: Explainer
    original: Attribution
    copies: tuple[Attribution, ...]
    rank_correlations: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean rank correlation over the copies."""
        return float(np.mean(self.rank_correlations))


def noised_copies(model: Model, x: Input, *, level: float, count: int, seed: int = 0) -> Input:
    """`count` copies of one input with noise of sigma = level x range, all with the input's top class.

    Raises:
        ModelError: too few copies keep the prediction.
    """
    check_count("count", count)
    check_seed(seed)
    if not 0 < level <= 1:
        raise ArgumentError(f"`level` is a fraction of the input's range, over 0 up to 1. Got {level!r}.")
    if len(x) != 1:
        raise ArgumentError(f"Copies are made of one input. Got {len(x)}.")
    stream = Key.of(x.tensor[0]).stream(seed).child(0)  # not the stream of any explainer with this seed
    sigma = level * float(x.tensor.max() - x.tensor.min())
    top = model.predict(x).top(1)[0][2]
    kept: list[torch.Tensor] = []
    for i in range(_TRIES * count):
        noise = torch.from_numpy(normal(stream, i, tuple(x.tensor.shape[1:]))).to(x.tensor)
        copy = x.tensor + sigma * noise
        if model.predict(copy).top(1)[0][2] == top:
            kept.append(copy)
        if len(kept) == count:
            return Input(torch.cat(kept), tuple(f"{x.sources[0]}, copy {n + 1}" for n in range(count)))
    raise ModelError(
        f"{x.sources[0]}: only {len(kept)} of {_TRIES * count} copies at noise level {level} keep the prediction, but "
        f"{count} were asked for. Take a lower level: this input lies near a decision boundary."
    )


def stability(
    model: Model,
    x: Input,
    explainers: Sequence[Explainer],
    *,
    target: TargetSpec = None,
    level: float = 0.02,
    copies: int = 3,
    seed: int = 0,
    shared_noise: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Stability]:
    """Each method's stability on one input.

    With `shared_noise` a sampled method uses the same noise for input and copies (common random numbers), which leaves
    only the effect of the change; otherwise its sampling error counts as instability too.

    Raises:
        ModelError: too few copies keep the prediction.
    """
    near = noised_copies(model, x, level=level, count=copies, seed=seed)
    settled = settle(target, model.predict(x)).each[0]
    key = Key.of(x.tensor[0]) if shared_noise else None
    results = []
    for done, explainer in enumerate(explainers):
        original = explainer(model, x, settled, key=key)
        maps = tuple(explainer(model, near, settled, key=key))
        alike = tuple(rank_correlation(original.scores[0], a.scores[0]) for a in maps)
        results.append(Stability(explainer, original, maps, alike))
        if progress is not None:
            progress(done + 1, len(explainers))
    return results
