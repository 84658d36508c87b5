"""A network on one device, and the passes through it. Used by model.py alone.

Whatever a stranger's network raises comes out as a ModelError with its cause kept.
"""

import difflib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pellucid.core.cuts import Cut, at_once, averaged, description, find_cuts, named_cut
from pellucid.core.target import Targets
from pellucid.errors import CutError, ModelError

__all__ = ["FactoredGradient", "Network"]


class FactoredGradient(NamedTuple):
    """Gradients of rows (B, *features) with their factors averaged over groups, the plain ones, and the cuts."""

    factored: Tensor
    plain: Tensor | None
    cuts: str


@dataclass(frozen=True, eq=False)
class Network:
    """A network and how it is run. `plain` are the shapes that it cannot take in channels_last, learnt as it runs.

    Rows are taken from whatever device they are on; what is returned is on the network's own.
    """

    net: nn.Module
    device: torch.device
    name: str
    select: str | int | None
    bfloat16: bool
    plain: set[tuple[int, ...]]

    def outputs(self, x: Tensor) -> Tensor:
        """The outputs (B, K), without gradients."""
        with torch.no_grad():
            return self._forward(self._laid_out(x))

    def outputs_as_asked(self, x: Tensor) -> Tensor:
        """The outputs (B, K) for rows that require gradients, in whatever gradient mode there is."""
        return self._forward(self._laid_out(x).requires_grad_())

    def scored(self, x: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        """A copy of the rows that can be differentiated by, and the sum of their targets."""
        leaf = self._laid_out(x).requires_grad_()
        with torch.enable_grad():
            score = targets.score(self._forward(leaf)).sum()
        return leaf, score

    def gradient(self, x: Tensor, targets: Targets) -> Tensor:
        """The gradient of each row's target with respect to that row; zero where none reaches it."""
        leaf, score = self.scored(x, targets)
        if not score.requires_grad:  # a constant function, or one computed under no_grad: the diagnosis says so
            return _as_map(torch.zeros_like(leaf))
        return _as_map(self.backward(leaf, score))

    def backward(self, leaf: Tensor, score: Tensor, *, keep: bool = False) -> Tensor:
        """The gradient of what `scored` gave; `keep` the graph for another."""
        with self._named_errors(leaf):
            [found] = torch.autograd.grad(score, leaf, retain_graph=keep, allow_unused=True, materialize_grads=True)
        return found.detach()

    def factored_gradient(
        self, x: Tensor, targets: Targets, group: int, cuts: int | tuple[str, ...], *, plain: bool
    ) -> FactoredGradient:
        """Rows whose mean over each `group` neighbours is the gradient with its factors averaged apart at the cuts."""
        with self._watched(cuts if isinstance(cuts, tuple) else ()) as outputs:
            leaf, score = self.scored(x, targets)
        if not score.requires_grad:
            raise CutError(f"No gradient reaches the input of {self.name}, so there is nothing to factor.")
        named = [named_cut(name, found, len(leaf), score) for name, found in outputs.items()]
        places = named if isinstance(cuts, tuple) else find_cuts(score, len(leaf), cuts)
        beside = self.backward(leaf, score, keep=True) if plain else None
        with averaged(places, group):
            factored = self.backward(leaf, score)
        return FactoredGradient(_as_map(factored), None if beside is None else _as_map(beside), description(places))

    @contextmanager
    def _watched(self, names: tuple[str, ...]) -> Iterator[dict[str, list[Cut | None]]]:
        """Where in the graph the modules of these names put what they give, while they run."""
        found: dict[str, list[Cut | None]] = {name: [] for name in names}
        known = dict(self.net.named_modules())
        with ExitStack() as stack:
            for name in names:
                if name not in known:
                    near = difflib.get_close_matches(name, known, n=3, cutoff=0.3)
                    hint = f" Did you mean {' or '.join(near)}?" if near else ""
                    raise CutError(f"{self.name} has no module {name!r}.{hint}")

                def watch(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
                    found[name].append(at_once(output))

                stack.callback(known[name].register_forward_hook(watch).remove)
            yield found

    def _laid_out(self, x: Tensor) -> Tensor:
        """A copy of x in the layout in which CPUs and GPUs convolve fastest, unless the network cannot take it."""
        x = x.detach().to(self.device)
        if x.ndim != 4 or tuple(x.shape[1:]) in self.plain:
            return x.clone(memory_format=torch.contiguous_format)
        return x.clone(memory_format=torch.channels_last)

    def _forward(self, x: Tensor) -> Tensor:
        """The outputs for x, which must be a copy: the network may write into what it is given."""
        # A network may write into its input, which a leaf of the graph does not allow.
        given = x.clone() if x.requires_grad else x
        with self._named_errors(x):
            try:
                result = self._run(given)
            except RuntimeError as error:
                if "view size" not in str(error) or x.ndim != 4 or tuple(x.shape[1:]) in self.plain:
                    raise
                # x.view(len(x), -1) after a convolution is common, and does not work in channels_last.
                self.plain.add(tuple(x.shape[1:]))
                result = self._run(given.contiguous())
        outputs = self._selected(result)
        if outputs.ndim == 1 and len(outputs) == len(x):
            outputs = outputs[:, None]
        if outputs.ndim != 2 or len(outputs) != len(x):
            raise ModelError(
                f"Expected outputs (B, K) for {len(x)} inputs, but {self.name} returned {tuple(outputs.shape)}. "
                "Wrap the network so that it returns one row of scores for each input."
            )
        return outputs.to(x.dtype)

    def _run(self, x: Tensor) -> object:
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bfloat16):
            return self.net(x)

    @contextmanager
    def _named_errors(self, x: Tensor) -> Iterator[None]:
        """Whatever a stranger's network raises, with its cause kept."""
        try:
            yield
        except Exception as error:
            raise ModelError(f"{self.name} failed on a batch of shape {tuple(x.shape)}: {error}") from error

    def _selected(self, result: object) -> Tensor:
        chosen = result
        if self.select is not None:
            try:
                chosen = result[self.select]  # type: ignore[index]  # what cannot be indexed is the error below
            except (KeyError, IndexError, TypeError):
                chosen = result
        if isinstance(chosen, Tensor) and (self.select is None or chosen is not result):
            return chosen
        if isinstance(result, Mapping):
            choices = [key for key, value in result.items() if isinstance(value, Tensor)]
        elif isinstance(result, list | tuple):
            choices = [i for i, value in enumerate(result) if isinstance(value, Tensor)]
        else:
            choices = []
        hint = f"Say which one: TorchModel(net, select={choices[0]!r})." if choices else "Wrap it to return a tensor."
        raise ModelError(
            f"Expected a tensor of outputs, but {self.name} returned a {type(result).__name__}"
            f"{f' with tensors at {choices}' if choices else ''}"
            f"{f', which has no tensor at {self.select!r}' if self.select is not None else ''}. {hint}"
        )


def _as_map(gradient: Tensor) -> Tensor:
    """Contiguous, and in single precision at the least: half has too few digits to accumulate, too small a range."""
    return gradient.detach().to(torch.promote_types(gradient.dtype, torch.float32)).contiguous()
