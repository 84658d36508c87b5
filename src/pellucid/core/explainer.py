"""The one public call of every method, written once: needs, target, undisturbed model, formula, result."""

import platform
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.core.attribution import Attribution, Decision
from pellucid.core.card import Cost, MethodCard, Needs
from pellucid.core.diagnosis import Finding, diagnose, diagnose_estimate, diagnose_inputs, diagnose_map, of_inputs
from pellucid.core.estimate import Estimate, Interrupted
from pellucid.core.input import Input
from pellucid.core.label import Labels
from pellucid.core.memory import Watch
from pellucid.core.model import Ask, Inputs, Model, as_input
from pellucid.core.prediction import OutputKind, Prediction
from pellucid.core.random import NOISE, Key
from pellucid.core.recipe import Recipe, Value, encode
from pellucid.core.stopping import Until
from pellucid.core.target import ClassScore, Targets, TargetSpec, settle
from pellucid.errors import ArgumentError, MissingNeed, ModelError

__all__ = ["Call", "Explainer", "GlobalExplainer", "Method", "Progress"]


@dataclass(frozen=True)
class Progress:
    """How far a call is: `done` of `total` samples, all inputs together; with Until the total is an expectation.

    `error` is the relative error of the map that was last looked at (after 16, 24, 36 ... samples), or None. Under a
    memory limit the first report, with `done` 0, tells the predicted peak of the call in `memory`, in bytes.
    """

    done: int
    total: int
    error: float | None = None
    memory: int | None = None


@dataclass(frozen=True, eq=False)
class Call:
    """What a method may know besides model, inputs and targets: the noise key of each input, whom to tell (and whether
    anybody listens), the estimate to which samples are to be added, and the model calls that were made for each input
    before, which count against a budget of calls.
    """

    keys: tuple[Key, ...]
    report: Callable[[int, int, float | None], None] = lambda done, total, error: None
    listening: bool = False
    earlier: Estimate | None = None
    spent: int = 0


class Method(ABC, Value):
    """A frozen value of settings. Model and data are arguments of the call."""

    @property
    @abstractmethod
    def card(self) -> MethodCard:
        """What the method claims about itself with these settings."""

    def check_needs(self, model: Model) -> None:
        """Raises MissingNeed, before any work, if the model does not offer what the method needs."""
        if not isinstance(model, Model):
            raise ArgumentError(
                f"Expected a pellucid Model, but got {type(model).__name__}. Wrap a network as pl.TorchModel(net), a "
                "function as pl.FunctionModel(f)."
            )
        if missing := self.card.needs & ~model.offers:
            raise MissingNeed(
                f"{self.card.title} needs {missing}, but {model.name} offers {model.offers}. "
                "pl.methods(model=model) lists the methods that fit it."
            )


class Explainer(Method):
    """A local method: explains the decision on each input. Abstract: a method implements `attribute`."""

    def __call__(
        self,
        model: Model,
        x: Inputs,
        target: TargetSpec = None,
        *,
        key: Key | str | None = None,
        progress: Callable[[Progress], None] | None = None,
        earlier: Estimate | None = None,
    ) -> Attribution:
        """The explanation of each input's decision.

        `x` is an Input, a tensor (B, *features), or for a network of several inputs a dict or tuple of tensors.
        `target` is None (each input's top class), an index, a label, a Target, or a list of these, one for each input.
        `key` replaces the noise key of every input, so that two calls share their noise (common random numbers).
        `progress` is called as samples are done. `earlier` is an estimate to go on from: see `Attribution.extend`.

        Raises:
            MissingNeed: the model does not offer what the method needs.
            TargetError: a target that this model does not have.
            ArgumentError: inputs that are not floating point or have no batch dimension.
            Interrupted: Ctrl-C, of methods that keep what was done.
        """
        self.check_needs(model)
        given = as_input(x)
        self.check_features(tuple(given.tensor.shape[1:]))
        inputs = tuple(Key.of(one) for one in given.tensor)
        keys = inputs if key is None else (_as_key(key),) * len(given)

        def report(done: int, total: int, error: float | None) -> None:
            if progress is not None:
                progress(Progress(done, total, error))

        weights = model.fingerprint()
        with (
            model.undisturbed(keys[0], given.packing) as quiet,
            quiet.watched(len(given)) as watch,
            quiet.quick(placed := quiet.place(given.tensor)),
        ):
            quiet.forward_only = scores_only = not self.card.needs & ~Needs.SCORES
            prediction = quiet.prediction(placed, self.asks(quiet, placed))
            targets = settle(target, prediction)
            scores = quiet.scores(placed, targets) if targets.layers else targets.score(prediction.outputs)
            findings = diagnose_inputs(placed, model.preprocess.bounds if model.preprocess else None, self.card.needs)
            found, probed = diagnose(quiet, placed, prediction, targets, self.card.needs)
            findings += found
            if watch is not None and progress is not None:
                samples = self.card.cost.forward * len(given)
                watch.tell = lambda peak: progress(Progress(0, samples, None, peak))
            quiet.restart()  # whether or not the prediction's pass serves for the method
            if scores_only and not bool(scores.isfinite().any()):
                raise ModelError(
                    f"{model.name} answers with NaN or infinity on the input itself: there is no decision to explain. "
                    "Check the weights and the scale of the input."
                )
            decisions = tuple(decide(prediction, targets, given.sources, scores))
            settled = _Settled(
                given, placed, inputs, keys, weights, prediction, targets, decisions, tuple(findings), probed, watch
            )
            spent = (quiet.passes.forward + probed.forward) // len(given)
            call = Call(keys, report, progress is not None, earlier, spent)
            try:
                return settled.result(quiet, self, self.attribute(quiet, placed, targets, call))
            except (Interrupted, ModelError) as stop:
                if stop.method is self:  # and not one that this one runs
                    stop.attributions = tuple(
                        settled.result(quiet, method, estimate, slice(i, i + 1)) for i, method, estimate in stop.parts
                    )
                raise

    def asks(self, model: Model, x: Float[Tensor, "b *features"]) -> Ask | None:
        """What the method asks first of a pass of the inputs themselves, so that the prediction's serves for it too."""
        return None

    def check_features(self, features: tuple[int, ...]) -> None:
        """Raises ArgumentError, before any work, for inputs of a shape that the method cannot explain."""

    def extended(self, taken: Sequence[int], draws: int, more: int | Until) -> "Explainer":
        """The method that one long run would have had, after one that took `taken` samples, the first in `draws`.

        Raises:
            ArgumentError: nothing is sampled.
        """
        raise ArgumentError(f"{self.card.title} samples nothing, so there is nothing to add to.")

    @abstractmethod
    def attribute(self, model: Model, x: Float[Tensor, "b *features"], targets: Targets, call: Call) -> Estimate:
        """The formula: raw signed scores of each input, with their error if they are sampled."""


@dataclass(frozen=True, eq=False)
class _Settled:
    """What is known of the inputs of a call before the method runs."""

    given: Input
    placed: Tensor
    inputs: tuple[Key, ...]
    keys: tuple[Key, ...]
    weights: str
    prediction: Prediction
    targets: Targets
    decisions: tuple[Decision, ...]
    findings: tuple[Finding, ...]
    probed: Cost
    watch: Watch | None

    def result(self, model: Model, method: Explainer, estimate: Estimate, of: slice = slice(None)) -> Attribution:
        """The result of the method, of all inputs or of some."""
        own = diagnose_map(estimate.values, method.card.per) + diagnose_estimate(estimate)
        device = self.given.tensor.device
        return Attribution(
            estimate=estimate.to(device),
            decisions=self.decisions[of],
            outputs=self.prediction.outputs[of].to(device),
            views=self.given.views[of],
            features=tuple(self.given.tensor.shape[1:]),
            packing=self.given.packing,
            findings=(*of_inputs(self.findings, range(len(self.given))[of]), *own),
            cost=model.passes,
            diagnosis_cost=self.probed + model.trials,
            memory=None if self.watch is None else self.watch.memory(),
            recipe=recipe_of(
                method, model, self.weights, self.placed, self.targets[of], self.inputs[of], self.keys[of],
                estimate.notes,
            ),
        )  # fmt: skip


class GlobalExplainer(Method):
    """A global method: explains the model itself, over a data set if it needs one. A method implements `explain`."""

    def __call__(self, model: Model, data: Inputs | None = None) -> Attribution:
        """The explanation of each of the model's K outputs, one row for each.

        Raises:
            MissingNeed: the model does not offer what the method needs.
        """
        self.check_needs(model)
        given = None if data is None else as_input(data)
        inputs = () if given is None else tuple(Key.of(one) for one in given.tensor)
        weights = model.fingerprint()
        with model.undisturbed(Key.named("global")) as quiet:
            estimate = self.explain(quiet, None if given is None else quiet.place(given.tensor))
            count = len(estimate.values)
            targets = Targets(tuple(ClassScore(i) for i in range(count)), model.output or OutputKind.LOGITS)
            names = (model.labels or Labels.numbered(count)).names
            if len(names) != count:
                raise ArgumentError(f"Expected one label for each of {count} outputs, but got {len(names)}.")
            return Attribution(
                estimate=estimate,
                decisions=tuple(Decision("the model", t, names[i], None, None) for i, t in enumerate(targets)),
                findings=tuple(diagnose_map(estimate.values)),
                cost=quiet.passes,
                recipe=recipe_of(self, quiet, weights, estimate.values, targets, inputs, (), estimate.notes),
            )

    @abstractmethod
    def explain(self, model: Model, data: Float[Tensor, "b *features"] | None) -> Estimate:
        """The formula: raw signed scores (K, *features), a row for each output."""


def decide(
    prediction: Prediction, targets: Targets, sources: Sequence[str], scores: Float[Tensor, " b"]
) -> list[Decision]:
    """What was decided about each input, in words and numbers."""
    known = prediction.kind in (OutputKind.LOGITS, OutputKind.PROBABILITIES)
    return [
        Decision(
            source=source,
            target=target,
            label=target.describe(prediction.labels),
            score=float(scores[row]),
            probability=float(prediction.probabilities[row, target.classes[0]]) if known and target.classes else None,
        )
        for row, (target, source) in enumerate(zip(targets, sources, strict=True))
    ]


def recipe_of(
    method: Method,
    model: Model,
    weights: str,
    x: Tensor,
    targets: Targets,
    inputs: tuple[Key, ...],
    keys: tuple[Key, ...],
    notes: Mapping[str, tuple[float | str, ...]],
) -> Recipe:
    """All that is needed to run this call again. `weights` is the model's fingerprint from before the call."""
    return Recipe(
        explainer=encode(method),
        targets=[encode(target) for target in targets],
        inputs=[key.hex for key in inputs],
        keys=[key.hex for key in keys],
        weights=weights,
        model=model.name,
        run={**model.run(x), "noise": NOISE},
        preprocess=encode(model.preprocess),
        versions=dict(_versions()),
        notes={name: list(values) for name, values in notes.items()},
    )


@cache
def _versions() -> Mapping[str, str]:
    return {
        "pellucid": version("pellucid"),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def _as_key(key: Any) -> Key:
    if isinstance(key, Key):
        return key
    if isinstance(key, str):
        return Key.named(key)
    raise ArgumentError(f"`key` is a pl.Key or a word that stands for one. Got {type(key).__name__}.")
