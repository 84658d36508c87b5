"""The result of a call: raw signed scores, their error, the decision they explain and the recipe."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pellucid.core.card import Cost
from pellucid.core.checks import check_count
from pellucid.core.diagnosis import Finding, Severity
from pellucid.core.estimate import Estimate
from pellucid.core.input import Input, View
from pellucid.core.memory import Memory
from pellucid.core.model import UNKNOWN, Inputs, Model, as_input
from pellucid.core.packing import Packing
from pellucid.core.random import Key
from pellucid.core.recipe import Recipe, decode, encode
from pellucid.core.stopping import Until
from pellucid.core.target import Target
from pellucid.errors import ArgumentError, OutputError, RecipeError

__all__ = ["Attribution", "Decision"]

_FORMAT = 3
_METADATA = "pellucid"
_MOST_TEXT = 16 * 2**20

_UNVERIFIED = Finding(
    "unverified-model",
    Severity.NOTE,
    "This model has no weights that can be compared with the recipe's.",
    "Make sure that it is the one that the recipe was computed with.",
)


@dataclass(frozen=True)
class Decision:
    """What the model decided about one input, and what of it is explained.

    `score` is the explained number on the clean input, `probability` that of the target's class; None where there is
    none (a regression, a global explanation).
    """

    source: str
    target: Target
    label: str
    score: float | None
    probability: float | None


@dataclass(frozen=True, eq=False)
class Attribution:
    """Raw signed scores in the card's unit, with all that they rest on: of each feature (B, *features), or of each cell
    of a layer, (B, 1, h, w).

    Nothing is scaled, clipped or reduced: that belongs to drawing (`pl.heatmap`). `features` is the shape of one input;
    of several inputs packed into rows `packing` tells the parts, and `parts` gives them. `cost` counts the passes of
    the call, all inputs together. What the diagnosis of a shape and trials of how to run it took, once, is
    `diagnosis_cost`; `memory` is what a call under a memory limit took. Neither is stored.

    Example:
        >>> import torch, pellucid as pl
        >>> a = pl.SmoothGrad(n_samples=4)(pl.TorchModel(torch.nn.Linear(3, 2)), torch.rand(2, 3))
        >>> a.scores.shape, a.standard_error.max() < 1e-6, a[1].samples_used
        (torch.Size([2, 3]), tensor(True), 4)
    """

    estimate: Estimate
    decisions: tuple[Decision, ...]
    recipe: Recipe
    outputs: Tensor | None = None
    views: tuple[View, ...] = ()
    features: tuple[int, ...] = ()
    packing: Packing | None = None
    findings: tuple[Finding, ...] = ()
    cost: Cost = field(default_factory=Cost)
    diagnosis_cost: Cost = field(default_factory=Cost)
    memory: Memory | None = None

    def __len__(self) -> int:
        return len(self.decisions)

    def __getitem__(self, index: int) -> "Attribution":
        if not -len(self) <= index < len(self):
            raise IndexError(f"Attribution {index} of {len(self)}.")
        i = index % len(self)
        row = slice(i, i + 1)
        r = self.recipe
        return replace(
            self,
            estimate=self.estimate.row(i),
            decisions=self.decisions[row],
            recipe=replace(
                r,
                targets=r.targets[row],
                inputs=r.inputs[row],
                keys=r.keys[row],
                notes={name: values[row] for name, values in r.notes.items()},
            ),
            outputs=None if self.outputs is None else self.outputs[row],
            views=self.views[row],
            findings=tuple(replace(f, input=f.input and 0) for f in self.findings if f.input in (None, i)),
        )

    def __iter__(self) -> Iterator["Attribution"]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"<Attribution of {len(self)} by {self.recipe.explainer['type']}: {tuple(self.scores.shape)}>"

    @property
    def scores(self) -> Tensor:
        """Raw signed scores, (B, *features)."""
        return self.estimate.values

    @property
    def standard_error(self) -> Tensor | None:
        """The standard error of each score; None where nothing was sampled, or only once."""
        return self.estimate.standard_error

    @property
    def parts(self) -> dict[str, Tensor]:
        """The scores of each input of a network of several, by name (by number, if they were given as a tuple).

        Raises:
            ArgumentError: there is one input, or the scores are not of the inputs' features.
        """
        if self.packing is None or self.scores.shape[1:] != (sum(self.packing.sizes),):
            raise ArgumentError("Parts are of several inputs, with a score for every feature. Read `scores`.")
        return self.packing.explained(self.scores)

    @property
    def residual(self) -> Tensor | None:
        """What the scores leave of the sum that they should have (B,), in units of the explained score; None for
        methods that divide nothing among the features.

        For Integrated Gradients sum(scores) - (f(x) - f(baseline)), which falls with the number of steps.
        """
        return self.estimate.residual

    @property
    def decision(self) -> Decision:
        """The one decision that is explained. Raises ArgumentError for several inputs."""
        return self.decisions[self._only("decision")]

    @property
    def target(self) -> Target:
        """The one target that is explained. Raises ArgumentError for several inputs."""
        return self.decisions[self._only("target")].target

    @property
    def samples_used(self) -> int:
        """The samples that the map rests on, 0 if nothing is sampled. Raises ArgumentError for several inputs."""
        return self.estimate.samples[self._only("samples_used")]

    @property
    def stopped(self) -> str:
        """Why there were no more samples. Raises ArgumentError for several inputs."""
        return self.estimate.stopped[self._only("stopped")]

    @property
    def estimated_error(self) -> Tensor | None:
        """The relative RMS error of each map (B,): the root of its estimated squared error over its signal's power.

        1 means that as much is noise as is signal; infinite, that no signal can be told from noise yet. A bias of the
        estimator is included. None where nothing was sampled, or only once.
        """
        return self.estimate.error

    @property
    def segments(self) -> Tensor | None:
        """The number of each place's segment, (B, *places), -1 where it has none; None of methods without segments."""
        return self.estimate.state.get("segments")

    @property
    def by_segment(self) -> Tensor:
        """The score of each segment, (S,), in the order of their numbers. Raises ArgumentError for several inputs, or
        where there are no segments.
        """
        self._only("by_segment")
        if self.segments is None:
            raise ArgumentError(f"{self.recipe.explainer['type']} has no segments. Read `scores`.")
        labels, flat = self.segments[0].flatten(), self.scores[0].flatten()
        found = flat.new_zeros(int(labels.max()) + 1)
        inside = labels >= 0
        found[labels[inside].long()] = flat[inside]
        return found

    def _only(self, name: str) -> int:
        if len(self) != 1:
            raise ArgumentError(f"`{name}` is that of one input and this holds {len(self)}. Write a[i].{name}.")
        return 0

    def reproduce(self, model: Model, x: Inputs | None = None) -> "Attribution":
        """The recipe run again, on the same weights and the same inputs.

        Raises:
            RecipeError: other weights or inputs than those of the recipe, or a method that is not installed here.
        """
        explainer = _expect(callable, decode(self.recipe.explainer), "a method")
        again = self._model(model)
        if self.recipe.inputs:
            return self._checked(explainer(again, *self._inputs(x), key=self._shared_key()))
        targets = self._targets()
        whole: Attribution = explainer(again, x)
        rows = [i for i, decision in enumerate(whole.decisions) if decision.target in targets]
        return whole if len(rows) == len(whole) else whole[rows[0]]

    def extend(self, model: Model, x: Inputs, n: int | Until) -> "Attribution":
        """The same explanation with `n` more samples of each input, or until a smaller error: as one long run gives.

        A stored result can be extended after `load`; `cost` counts the passes of the extension alone.

        Raises:
            RecipeError: other weights or inputs than those of the recipe.
            ArgumentError: nothing was sampled; or the inputs of a batch have taken different numbers of samples, from
                which no one run goes on to this Until: one with a larger error, or after further samples.

        Example:
            >>> import torch, pellucid as pl
            >>> model, x = pl.TorchModel(torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU())), torch.rand(1, 3)
            >>> a = pl.SmoothGrad(n_samples=20)(model, x, 0).extend(model, x, 30)
            >>> torch.equal(a.scores, pl.SmoothGrad(n_samples=50)(model, x, 0).scores)
            True
        """
        if not isinstance(n, Until):
            check_count("n", n)
        explainer = _expect(callable, decode(self.recipe.explainer), "a method")
        draws = self.estimate.state["draws"].tolist() if "draws" in self.estimate.state else [0] * len(self)
        longer = explainer.extended(self.estimate.samples, max(draws[0], 1), n)
        if not all(draws):
            raise ArgumentError("This result kept no state to which samples can be added. Run the method with more.")
        again = self._model(model)
        placed = self.estimate.to(again.place(as_input(x).tensor).device)
        return self._checked(longer(again, *self._inputs(x), key=self._shared_key(), earlier=placed))

    def _model(self, model: Model) -> Model:
        """The model with the recipe's weights, run as recorded."""
        found = model.fingerprint()
        if found != self.recipe.weights:
            raise RecipeError(
                f"The recipe was computed with weights {self.recipe.weights} of {self.recipe.model}, but this model "
                f"has {found}. Load the network and the weights that it was made with."
            )
        try:
            return model.with_run(self.recipe.run)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RecipeError(f"The recipe says in no way that is known how it was run: {error!r}.") from error

    def _inputs(self, x: Inputs | None) -> tuple[Input, list[Target]]:
        """The recipe's inputs and their targets."""
        if x is None:
            raise ArgumentError("This recipe explains inputs: pass them, reproduce(model, x).")
        given = as_input(x)
        inputs = [Key.of(one).hex for one in given.tensor]
        if inputs != self.recipe.inputs:
            raise RecipeError(
                f"The recipe was computed for inputs {', '.join(self.recipe.inputs)}, but these are "
                f"{', '.join(inputs)}. Was another file read, or prepared in another way?"
            )
        return given, self._targets()

    def _targets(self) -> list[Target]:
        return [_expect(lambda t: isinstance(t, Target), decode(t), "a target") for t in self.recipe.targets]

    def _shared_key(self) -> Key | None:
        try:
            return Key.from_hex(self.recipe.keys[0]) if self.recipe.keys != self.recipe.inputs else None
        except (TypeError, ValueError, IndexError) as error:
            raise RecipeError(f"The recipe's noise keys are damaged: {error!r}.") from error

    def _checked(self, repeated: "Attribution") -> "Attribution":
        """The repeated result, with a word on weights that could not be compared."""
        if self.recipe.weights != UNKNOWN:
            return repeated
        return replace(repeated, findings=(*repeated.findings, _UNVERIFIED))

    def save(self, path: str | Path) -> Path:
        """Write everything to one safetensors file, with the recipe in its metadata. The same result, the same bytes.

        Raises:
            OutputError: the file cannot be written there.
        """
        e = self.estimate
        tensors = {"scores": e.values, "standard_error": e.standard_error, "error": e.error, "residual": e.residual}
        tensors |= {"outputs": self.outputs} | {f"state.{name}": part for name, part in e.state.items()}
        tensors |= {f"preview.{i}": view.preview for i, view in enumerate(self.views)}
        facts = {
            "format": _FORMAT,
            "recipe": vars(self.recipe),
            "samples": list(e.samples),
            "stopped": list(e.stopped),
            "decisions": [vars(d) | {"target": encode(d.target)} for d in self.decisions],
            "views": [{"kind": view.kind, "geometry": view.geometry} for view in self.views],
            "features": list(self.features),
            "packing": encode(self.packing),
            "findings": [vars(finding) for finding in self.findings],
            "cost": vars(self.cost),
        }
        text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
        kept = {n: t.detach().cpu().contiguous().clone() for n, t in tensors.items() if t is not None}
        try:
            save_file(kept, str(path), metadata={_METADATA: text})
        except (OSError, SafetensorError) as error:
            raise OutputError(
                f"{path}: cannot be written ({error}). Choose a folder that exists and is yours."
            ) from error
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> "Attribution":
        """Read what `save` wrote. Nothing in the file is executed.

        Raises:
            RecipeError: not such a file, or a damaged one.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                text = (file.metadata() or {}).get(_METADATA, "null")
                if len(text) > _MOST_TEXT:
                    raise RecipeError(f"{path}: its description is larger than {_MOST_TEXT // 2**20} MiB.")
                facts = json.loads(text)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
        except (OSError, SafetensorError, ValueError, RecursionError) as error:
            raise RecipeError(f"{path}: not a readable safetensors file ({error}).") from error
        if not isinstance(facts, dict) or facts.get("format") != _FORMAT:
            raise RecipeError(f"{path}: a safetensors file, but not one that Attribution.save of this version wrote.")
        try:
            return _assemble(facts, tensors)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
            raise RecipeError(f"{path}: the description in the file is damaged ({error!r}).") from error


def _expect(fits: Callable[[Any], bool], value: Any, what: str) -> Any:
    if not fits(value):
        raise RecipeError(f"Expected {what} in the recipe, but got {type(value).__name__}.")
    return value


def _assemble(facts: Mapping[str, Any], tensors: dict[str, Tensor]) -> Attribution:
    rows = {len(tensors["scores"]), len(facts["samples"]), len(facts["decisions"]), len(facts["recipe"]["targets"])}
    if len(rows) != 1:
        raise ValueError(f"its parts are of {sorted(rows)} inputs")
    return Attribution(
        estimate=Estimate(
            values=tensors["scores"],
            standard_error=tensors.get("standard_error"),
            samples=tuple(facts["samples"]),
            stopped=tuple(facts["stopped"]),
            error=tensors.get("error"),
            state={n.removeprefix("state."): t for n, t in tensors.items() if n.startswith("state.")},
            residual=tensors.get("residual"),
        ),
        decisions=tuple(Decision(**{**d, "target": decode(d["target"])}) for d in facts["decisions"]),
        recipe=Recipe(**facts["recipe"]),
        outputs=tensors.get("outputs"),
        views=tuple(View(v["kind"], v["geometry"], tensors[f"preview.{i}"]) for i, v in enumerate(facts["views"])),
        features=tuple(facts["features"]),
        packing=_expect(lambda p: p is None or isinstance(p, Packing), decode(facts["packing"]), "a packing"),
        findings=tuple(Finding(**{**f, "severity": Severity(f["severity"])}) for f in facts["findings"]),
        cost=Cost(**facts["cost"]),
    )
