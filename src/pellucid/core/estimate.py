"""What was estimated: a map of each input and what is known of its error."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

__all__ = ["BATCHES", "Estimate", "Interrupted", "batch_sizes"]

BATCHES = 16
"""Draw i belongs to batch i mod 16; the sums of the batches are kept, to tell a map from noise."""


@dataclass(frozen=True, eq=False)
class Estimate:
    """An estimated map (B, *features) and what is known of its error.

    `standard_error` is None where nothing was sampled, where it cannot be known (a single draw) or where the estimator
    has none per element. `error` (B,) is the relative RMS error of each map: root of estimated squared error over
    signal power, infinite where no signal can be told from noise yet; None as above. `samples` counts those of each
    input, 0 for a closed form; `stopped` says why there were no more. `state` holds what was accumulated, so that
    samples can be added later; `notes` are facts of each input for the recipe. `residual` (B,) is what the scores leave
    of the sum that they should have, for methods that divide a number among the features; None for others. `remarks`
    are what a user should know of how each map came about.
    """

    values: Tensor
    standard_error: Tensor | None = None
    samples: tuple[int, ...] = ()
    stopped: tuple[str, ...] = ()
    error: Tensor | None = None
    state: Mapping[str, Tensor] = field(default_factory=dict)
    notes: Mapping[str, tuple[float | str, ...]] = field(default_factory=dict)
    residual: Tensor | None = None
    remarks: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def exact(
        cls,
        values: Tensor,
        *,
        notes: Mapping[str, tuple[float | str, ...]] | None = None,
        residual: Tensor | None = None,
    ) -> "Estimate":
        """A map that is computed, not sampled."""
        stopped = ("nothing is sampled",) * len(values)
        return cls(values, samples=(0,) * len(values), stopped=stopped, notes=notes or {}, residual=residual)

    @property
    def batch_means(self) -> Tensor | None:
        """The means of the 16 batches of draws, (B, 16, *features), zero where a batch is empty; None without any."""
        if "batch_sums" not in self.state:
            return None
        sums = self.state["batch_sums"]
        if sums.ndim > self.values.ndim + 1:  # plain and factored draws beside each other: the plain have no bias
            sums = sums[:, :, 0]
        sizes = torch.stack([batch_sizes(int(n)) for n in self.state["draws"]]).clamp(min=1).to(sums.device)
        return (sums / sizes.view(*sizes.shape, *(1,) * (sums.ndim - 2))).to(sums.dtype)

    def row(self, i: int) -> "Estimate":
        """The estimate of one input."""
        rows = slice(i, i + 1)
        return replace(
            self,
            values=self.values[rows],
            standard_error=_known(self.standard_error, rows),
            samples=self.samples[rows],
            stopped=self.stopped[rows],
            error=None if self.error is None else self.error[rows],
            state={name: part[rows] for name, part in self.state.items()},
            notes={name: values[rows] for name, values in self.notes.items()},
            residual=None if self.residual is None else self.residual[rows],
            remarks=self.remarks[rows],
        )

    def to(self, device: torch.device) -> "Estimate":
        """The same estimate on another device."""
        return replace(
            self,
            values=self.values.to(device),
            standard_error=None if self.standard_error is None else self.standard_error.to(device),
            error=None if self.error is None else self.error.to(device),
            state={name: part.to(device) for name, part in self.state.items()},
            residual=None if self.residual is None else self.residual.to(device),
        )


def _known(errors: Tensor | None, rows: slice) -> Tensor | None:
    """The standard errors of these inputs, unless none of them has any."""
    return None if errors is None or bool(errors[rows].isnan().all()) else errors[rows]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in the middle of a black-box method. Nothing is lost: `attributions` are the results of the inputs that
    were done, and of the last one as far as it was, each with the recipe of so many model calls. Of what is exact only
    once it is whole (Shapley values from all sets, occlusion) nothing is kept of the last one.

    `method` is the one that was interrupted, `parts` are (input, method of so many calls, estimate).

    Example:
        >>> import torch, pellucid as pl
        >>> def slow(rows, calls=[]):
        ...     calls.append(len(rows))
        ...     if len(calls) == 9:
        ...         raise KeyboardInterrupt
        ...     return rows
        >>> try:
        ...     pl.KernelSHAP()(pl.FunctionModel(slow, micro_batch=20), torch.ones(1, 30), 0)
        ... except pl.Interrupted as stop:
        ...     print(stop.attributions[0].stopped)
        interrupted after 122 model calls
    """

    def __init__(self, method: Any, parts: Sequence[tuple[int, Any, Estimate]]) -> None:
        super().__init__()
        self.method, self.parts = method, tuple(parts)
        self.attributions: tuple[Any, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.method, self.parts), {"attributions": self.attributions}


def batch_sizes(draws: int) -> Tensor:
    """How many of the draws each batch holds, (16,)."""
    return torch.tensor([len(range(batch, draws, BATCHES)) for batch in range(BATCHES)])
