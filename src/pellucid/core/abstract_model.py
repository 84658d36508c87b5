"""A model as explainers see it: what it offers, in how many rows at once, and what a recipe says of it."""

import copy
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Self

from jaxtyping import Float
from torch import Tensor

from pellucid.core.card import Cost, Needs
from pellucid.core.checks import check_choice, check_count
from pellucid.core.input import Input, Preprocess
from pellucid.core.label import Labels
from pellucid.core.memory import Watch
from pellucid.core.network import Ask, BiasPass, FactoredGradient, LayerPass
from pellucid.core.packing import Packing
from pellucid.core.prediction import OutputKind, Prediction, recognise
from pellucid.core.random import Key
from pellucid.core.rule import RuleBook, RulePass, Told
from pellucid.core.target import Targets
from pellucid.core.tuning import Tuning, sizes_up_to, tuned
from pellucid.errors import ArgumentError, MemoryLimit, MissingNeed, ModelError

__all__ = ["MOST_ROWS", "UNKNOWN", "Inputs", "Model", "as_input"]

UNKNOWN = "unknown"
"""The fingerprint of a model of which nothing but its outputs is known."""

MOST_ROWS = 512
_BYTES = 6 * 4 * 3 * 224 * 224
"""Six copies of a 224-pixel photo in float32, twelve in bfloat16: more were measured to take as long for each, in more
memory, which must be cleared first. Twice as many where no gradient is asked: a tenth of the time less."""


Inputs = Input | Tensor | Mapping[str, Tensor] | Sequence[Tensor]
"""What a caller may write: an Input, a tensor, or several tensors for a network that takes several."""


class Model(ABC):
    """Anything that maps inputs (B, *features) to outputs (B, K). Explainers see no more than what it `offers`."""

    offers: Needs = Needs.SCORES
    name: str = "model"
    width: int = 1
    """How many devices share the rows."""

    fails_by_row: bool = False
    """Whether a batch that fails may hold rows that do not, worth to be found by smaller batches."""

    forward_only: bool = False
    """Within a call, that no gradient is asked: more rows go through at once."""

    packing: Packing | None = None
    """Within a call, how several tensors are packed into one row."""

    def __init__(
        self,
        *,
        preprocess: Preprocess | None,
        labels: Sequence[str] | None,
        output: str | None,
        micro_batch: int | None,
    ) -> None:
        if preprocess is not None and not isinstance(preprocess, Preprocess):
            raise ArgumentError(
                f"`preprocess` says how originals become inputs, e.g. pl.ImagePreprocess(size=224, mean=..., std=...). "
                f"Got {type(preprocess).__name__}. With a transform of your own, pass the tensors that it gives."
            )
        if output is not None:
            check_choice("output", output, [kind.value for kind in OutputKind])
        if micro_batch is not None:
            check_count("micro_batch", micro_batch)
        if isinstance(labels, str):
            raise ArgumentError(f"`labels` is a list with one name per class. Got the text {labels!r}.")
        self.preprocess = preprocess
        self.labels = None if labels is None else Labels(tuple(labels))
        self.output = None if output is None else OutputKind(output)
        self.micro_batch = micro_batch
        self.passes = Cost()
        self.trials = Cost()  # passes that found out how to run the model, and explain nothing
        self.recorded_rows: int | None = None  # of a recipe, in place of the rule
        self.planned = (1, 0)  # the most that a call asked of `rows`
        self.clock: Callable[[], float] = time.perf_counter
        self.sound: set[tuple[int, ...]] = set()  # shapes whose gradient the diagnosis found sound; shared with copies

    def read(self, sources: Any) -> Input:
        """The input of a file, an array or a picture, or of a list of them, prepared as the model expects.

        Raises:
            ModelError: the model was made without `preprocess`.
            InputError: something cannot be read.
        """
        if self.preprocess is None:
            raise ModelError(
                "This model does not know how its inputs are prepared. Give it preprocess=pl.ImagePreprocess(size=..., "
                "mean=..., std=...), or pass tensors."
            )
        return self.preprocess.read(sources)

    def predict(self, x: Inputs) -> Prediction:
        """The outputs for clean inputs, in micro-batches."""
        given = as_input(x)
        with self.undisturbed(Key.of(given.tensor), given.packing) as quiet:
            return quiet.prediction(quiet.place(given.tensor))

    def prediction(self, x: Tensor, ask: Ask | None = None) -> Prediction:
        """`predict` for a placed tensor inside a call; `ask` says what the method goes on from."""
        outputs = self.clean_outputs(x, ask)
        kind = self.output or recognise(outputs)
        count = kind.classes(outputs)
        labels = self.labels or Labels.numbered(count)
        if len(labels.names) != count:
            raise ArgumentError(
                f"Expected one label for each of the model's {count} outputs, but got {len(labels.names)}."
            )
        return Prediction(outputs, kind, labels)

    def rows(self, x: Tensor, together: int = 1, maps: int = 0) -> int:
        """How many rows like those of x go through the model at once: `micro_batch`, or by a rule that times nothing.

        Two at the least, on each device: a single row takes other kernels than a batch does, which round differently.
        `together` rows cannot be parted. A memory limit counts the moments of `maps` maps that are sampled of each
        input, and may leave fewer rows.

        Raises:
            MemoryLimit: `micro_batch`, or the memory limit, allows fewer than `together`.
        """
        self.planned = max(self.planned[0], together), max(self.planned[1], maps)
        if self.micro_batch is None:
            of_a_row = max(x[0].numel() * self.digit_bytes(x), 1)
            usual = max(min(max(_BYTES * (1 + self.forward_only) // of_a_row, 2), MOST_ROWS), together) * self.width
            return self._fitting(x, max(self.recorded_rows or usual, together), together, maps)
        if self.micro_batch < together:
            raise MemoryLimit(
                f"{together} samples must go through {self.name} together, but `micro_batch` is {self.micro_batch}. "
                "Raise it, or take smaller groups: Factored(group=...)."
            )
        return self._fitting(x, self.micro_batch, together, maps)

    def _fitting(self, x: Tensor, wanted: int, together: int, maps: int) -> int:
        """As many rows, or as the memory limit leaves."""
        return wanted

    def digit_bytes(self, x: Tensor) -> int:
        """The bytes of each number while inputs like x go through the model."""
        return x.element_size()

    def place(self, x: Tensor) -> Tensor:
        """X where and as the model takes it."""
        return x

    @contextmanager
    def undisturbed(self, key: Key, packing: Packing | None = None) -> Iterator[Self]:
        """The model for the length of one call on such inputs, with its own count of passes; afterwards all is as
        before.
        """
        quiet = copy.copy(self)
        quiet.packing = packing or self.packing
        quiet.passes, quiet.trials, quiet.planned = Cost(), Cost(), (1, 0)
        yield quiet

    def restart(self) -> None:  # noqa: B027  # most models draw nothing
        """Let a network that draws random numbers draw those of the call's beginning again."""

    @contextmanager
    def watched(self, inputs: int) -> Iterator[Watch | None]:
        """Within, the call explains so many inputs; gives the watch over its memory if there is a limit."""
        yield None

    @contextmanager
    def quick(self, x: Float[Tensor, "b *features"]) -> Iterator[None]:
        """Within, passes of inputs like x take less time and round differently. Only inside `undisturbed`."""
        yield

    def settle_precision(  # noqa: B027  # most models leave no choice
        self,
        x: Float[Tensor, "b *features"],
        halves: Callable[[], Sequence[Callable[["Model"], Tensor]]],
        about: Hashable,
        *,
        spread: bool,
    ) -> None:
        """Choose the precision of what follows in this call, if there is a choice: see precision.py.

        `halves` gives what computes the two halves of the samples with a model; what is found holds for the same
        weights, shapes and samples, which `about` tells from others. `spread` says that the spread of the samples is
        what is estimated. Only inside `undisturbed`.
        """

    @abstractmethod
    def outputs(self, x: Float[Tensor, "b *features"]) -> Float[Tensor, "b *k"]:
        """The outputs, without gradients. Only inside `undisturbed`."""

    def clean_outputs(self, x: Float[Tensor, "b *features"], ask: Ask | None) -> Float[Tensor, "b *k"]:
        """The outputs; if the method then asks for these rows as announced, their pass need not be made again."""
        return self.outputs(x)

    def scores(self, x: Float[Tensor, "b *features"], targets: Targets) -> Float[Tensor, " b"]:
        """Each row's target, without gradients. Only inside `undisturbed`."""
        if targets.layers:
            raise MissingNeed(f"{self.name} offers {self.offers}, but no activations: a neuron cannot be read.")
        return targets.score(self.outputs(x))

    def gradient(self, x: Float[Tensor, "b *features"], targets: Targets) -> Float[Tensor, "b *features"]:
        """The gradient of each row's target with respect to that row. Only inside `undisturbed`."""
        raise MissingNeed(f"{self.name} offers {self.offers}, but no gradients.")

    def factored_gradient(
        self,
        x: Float[Tensor, "b *features"],
        targets: Targets,
        group: int,
        cuts: int | tuple[str, ...],
        *,
        plain: bool,
    ) -> FactoredGradient:
        """Rows whose mean over each `group` neighbours is the gradient with its factors averaged apart at the cuts.

        The rows go through the model together, so there are no more than `rows` allows. Only inside `undisturbed`.

        Raises:
            CutError: the network cannot be cut, or not at the modules that were named.
        """
        raise MissingNeed(f"{self.name} offers {self.offers}, but no gradients.")

    def layer_pass(
        self, x: Float[Tensor, "b *features"], targets: Targets, layers: Sequence[str], *, gradients: bool
    ) -> LayerPass:
        """What the layers give for each row, and the gradient of its target by that. Only inside `undisturbed`.

        Raises:
            LayerError: a layer that there is not, that runs several times, or gives no row for each input.
        """
        raise MissingNeed(f"{self.name} offers {self.offers}, but no activations.")

    def bias_pass(self, x: Float[Tensor, "b *features"], targets: Targets) -> BiasPass:
        """The gradient, and each bias times the gradient where it is added. Only inside `undisturbed`."""
        raise MissingNeed(f"{self.name} offers {self.offers}, but no weights.")

    def rule_pass(
        self,
        x: Float[Tensor, "b *features"],
        targets: Targets,
        book: RuleBook,
        beside: Float[Tensor, "b *features"] | None = None,
    ) -> RulePass:
        """What reaches the input by rules in place of derivatives: see core/rule.py; rules may compare with a pass of
        the rows `beside`. Only inside `undisturbed`.

        Raises:
            RuleError: an operation that the method has no rule for.
        """
        raise MissingNeed(f"{self.name} offers {self.offers}, but no operations.")

    def told(
        self,
        x: Float[Tensor, "b *features"],
        targets: Targets,
        book: RuleBook,
        beside: Float[Tensor, "b *features"] | None = None,
    ) -> list[Told]:
        """What the network executes for these rows, and the rule of each operation. Only inside `undisturbed`."""
        raise MissingNeed(f"{self.name} offers {self.offers}, but no operations.")

    def tail(
        self, x: Float[Tensor, "b *features"], layer: str
    ) -> AbstractContextManager[tuple["Model", Float[Tensor, "b features"]]]:
        """Gives the model from this layer on, and the rows that it takes: see core/tail.py. Only inside `undisturbed`.

        Raises:
            LayerError: as `layer_pass`.
        """
        raise MissingNeed(f"{self.name} offers {self.offers}, but no modules.")

    def spatial_layer(self, x: Float[Tensor, "b *features"], reads: Sequence[str] = ()) -> str:
        """The last layer that gives a grid of cells for inputs like x; the last before layers that targets read. Only
        inside `undisturbed`.

        Raises:
            LayerError: there is none.
        """
        raise MissingNeed(f"{self.name} offers {self.offers}, but no modules.")

    def features(self, x: Float[Tensor, "b *features"]) -> tuple[int, ...]:
        """The shape of an input by which the grid of a layer is told."""
        return tuple(x.shape[1:])

    def coefficients(self) -> tuple[Float[Tensor, "k *features"], Float[Tensor, " k"]]:
        """The weights and intercepts of a model that is linear in its inputs."""
        raise MissingNeed(f"{self.name} offers {self.offers}, but no weights.")

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of all that decides the outputs, or UNKNOWN."""

    def run(self, x: Tensor) -> dict[str, Any]:
        """How the model runs inputs like x, for the recipe."""
        return {"micro_batch": self.rows(x, *self.planned), "output": self.output}

    def with_run(self, run: Mapping[str, Any]) -> "Model":
        """The same model run as a recipe recorded it, so far as it is a choice."""
        again = copy.copy(self)
        again.take_over(run)
        return again

    def take_over(self, run: Mapping[str, Any]) -> None:
        """Change this copy to run as recorded."""
        check_count("micro_batch", run["micro_batch"])
        self.micro_batch, self.recorded_rows = None, run["micro_batch"]
        self.output = None if run["output"] is None else OutputKind(run["output"])

    def tune(self, x: Inputs) -> Tuning:
        """Measure which micro-batch is fastest for inputs like x, in about ten seconds, and set `micro_batch` to it.

        A pass there and back is timed, or the outputs alone of a model without gradients.

        Raises:
            MemoryLimit: not even one row fits.

        Example:
            >>> import torch, pellucid as pl
            >>> model = pl.FunctionModel(lambda rows: rows.sum(1), output="regression")
            >>> tuning = model.tune(torch.rand(1, 5))
            >>> model.micro_batch == tuning.micro_batch
            True
        """
        given = as_input(x)
        with self.undisturbed(Key.named("tune"), given.packing) as quiet:
            placed = quiet.place(given.tensor[:1])
            with quiet.quick(placed):
                found = quiet._tuned(placed)  # noqa: SLF001  # the same model
        self.micro_batch = found.micro_batch
        return found

    def _tuned(self, x: Tensor) -> Tuning:
        def work(rows: int, precision: str) -> None:
            self.micro_batch = rows
            self.outputs(x.expand(rows, *x.shape[1:]))

        sizes, name = sizes_up_to(MOST_ROWS), "outputs"
        return tuned(work, sizes=sizes, precisions=(name,), fits=lambda *_: True, in_use=name, clock=self.clock)


def as_input(x: Any) -> Input:
    """X as an Input; a bare tensor has no original, a dict or tuple of tensors is packed into rows."""
    if isinstance(x, Input):
        return x
    if isinstance(x, Tensor):
        return Input(x)
    if isinstance(x, Mapping | tuple | list) and len(x) > 0:
        each = list(x.values()) if isinstance(x, Mapping) else list(x)
        if all(isinstance(part, Tensor) for part in each):
            return Input.of(x)
    raise ArgumentError(
        f"Expected an Input, a tensor (B, *features), or a dict or tuple of tensors, but got {type(x).__name__}. "
        "Files, arrays and pictures become inputs with model.read(...)."
    )
