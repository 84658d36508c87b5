"""A model as explainers see it, and the only place that touches a network.

Whatever a call does to a network (evaluation mode, frozen parameters, gradient mode) is undone when it ends, also by an
error; the global random state is given back as it was (core/guard.py). A process serves one call at a time.
"""

import copy
import difflib
import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pellucid.core.card import Cost, Needs
from pellucid.core.checks import check_choice, check_count
from pellucid.core.cuts import Cut, at_once, averaged, description, find_cuts, named_cut
from pellucid.core.folding import Pair, find_pairs, folded
from pellucid.core.guard import one_call_at_a_time, same_network, same_random_state
from pellucid.core.heap import kept_heap
from pellucid.core.input import Input, Preprocess
from pellucid.core.label import Labels
from pellucid.core.prediction import OutputKind, Prediction, recognise
from pellucid.core.random import Key, normal
from pellucid.core.target import Targets
from pellucid.errors import ArgumentError, CutError, MemoryLimit, MissingNeed, ModelError

__all__ = ["UNKNOWN", "FactoredGradient", "Model", "TorchModel"]

UNKNOWN = "unknown"
"""The fingerprint of a model of which nothing but its outputs is known."""

_ROWS, _ROW_SIZE, _MOST_ROWS = 4, 3 * 224 * 224, 512
"""Four copies of a 224-pixel photo: more were measured to take as long for each, and their memory must be cleared."""


class FactoredGradient(NamedTuple):
    """Gradients of rows (B, *features) with their factors averaged over groups, the plain ones, and the cuts."""

    factored: Tensor
    plain: Tensor | None
    cuts: str


class Model(ABC):
    """Anything that maps inputs (B, *features) to outputs (B, K). Explainers see no more than what it `offers`."""

    offers: Needs = Needs.SCORES
    name: str = "model"

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
        self.recorded_rows: int | None = None  # of a recipe, in place of the rule
        self.passes = Cost()
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

    def predict(self, x: Input | Tensor) -> Prediction:
        """The outputs for clean inputs, in micro-batches."""
        given = as_input(x)
        with self.undisturbed(Key.of(given.tensor)) as quiet:
            return quiet.prediction(quiet.place(given.tensor))

    def prediction(self, x: Tensor) -> Prediction:
        """`predict` for a placed tensor inside a call."""
        outputs = self.outputs(x)
        labels = self.labels or Labels(tuple(f"class {i}" for i in range(outputs.shape[1])))
        if len(labels.names) != outputs.shape[1]:
            raise ArgumentError(
                f"Expected one label for each of the model's {outputs.shape[1]} outputs, but got {len(labels.names)}."
            )
        return Prediction(outputs, self.output or recognise(outputs), labels)

    def rows(self, x: Tensor, together: int = 1) -> int:
        """How many rows like those of x go through the model at once: `micro_batch`, or by a rule that times nothing.

        Two at the least: a single row takes other kernels than a batch does, which round differently. `together` rows
        cannot be parted.

        Raises:
            MemoryLimit: `micro_batch` is smaller than `together`.
        """
        if self.micro_batch is None:
            usual = min(max(_ROWS * _ROW_SIZE // max(x[0].numel(), 1), 2), _MOST_ROWS)
            return max(self.recorded_rows or usual, together)
        if self.micro_batch < together:
            raise MemoryLimit(
                f"{together} samples must go through {self.name} together, but `micro_batch` is {self.micro_batch}. "
                "Raise it, or take smaller groups: Factored(group=...)."
            )
        return self.micro_batch

    def place(self, x: Tensor) -> Tensor:
        """X where and as the model takes it."""
        return x

    @contextmanager
    def undisturbed(self, key: Key) -> Iterator[Self]:
        """The model for the length of one call, with its own count of passes; afterwards all is as before."""
        quiet = copy.copy(self)
        quiet.passes = Cost()
        yield quiet

    @contextmanager
    def quick(self, x: Float[Tensor, "b *features"]) -> Iterator[None]:
        """Within, passes of inputs like x take less time and round differently. Only inside `undisturbed`."""
        yield

    @abstractmethod
    def outputs(self, x: Float[Tensor, "b *features"]) -> Float[Tensor, "b k"]:
        """The outputs, without gradients. Only inside `undisturbed`."""

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

    def coefficients(self) -> tuple[Float[Tensor, "k *features"], Float[Tensor, " k"]]:
        """The weights and intercepts of a model that is linear in its inputs."""
        raise MissingNeed(f"{self.name} offers {self.offers}, but no weights.")

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of all that decides the outputs, or UNKNOWN."""

    def run(self, x: Tensor) -> dict[str, Any]:
        """How the model runs inputs like x, for the recipe."""
        return {"micro_batch": self.rows(x), "output": self.output}

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


class TorchModel(Model):
    """Any PyTorch network from one tensor (B, *features) to outputs (B, K) or (B,).

    `preprocess` reads originals, `labels` names the classes, `output` declares what the outputs are ("logits",
    "probabilities", "regression"; recognised by their values if left out), `select` picks the tensor out of a dict or
    tuple. `mode="as-is"` keeps each module's training mode; the default explains in evaluation mode and restores.
    `device` other than the network's own works on a copy; `precision="bfloat16"` is autocast.

    Raises:
        ArgumentError: a setting that does not exist, labels that do not fit.
        ModelError: not a network, or one whose parameters are not initialised.

    Example:
        >>> import torch, pellucid as pl
        >>> model = pl.TorchModel(torch.nn.Linear(4, 2), labels=["no", "yes"])
        >>> pl.SimpleGradient()(model, torch.zeros(3, 4), target="yes").scores.shape
        torch.Size([3, 4])
    """

    offers = Needs.SCORES | Needs.GRADIENTS | Needs.ACTIVATIONS | Needs.MODULES | Needs.WEIGHTS

    def __init__(
        self,
        net: nn.Module,
        *,
        preprocess: Preprocess | None = None,
        labels: Sequence[str] | None = None,
        output: Literal["logits", "probabilities", "regression"] | None = None,
        select: str | int | None = None,
        mode: Literal["eval", "as-is"] = "eval",
        device: str | torch.device | None = None,
        precision: Literal["bfloat16"] | None = None,
        micro_batch: int | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(preprocess=preprocess, labels=labels, output=output, micro_batch=micro_batch)
        if not isinstance(net, nn.Module):
            raise ModelError(
                f"TorchModel takes a torch.nn.Module. Got {type(net).__name__}. For a prediction function write "
                "pl.FunctionModel(f); for a file pl.load(path)."
            )
        check_choice("mode", mode, ("eval", "as-is"))
        if precision is not None:
            check_choice("precision", precision, ("bfloat16",))
        if any(isinstance(p, nn.parameter.UninitializedParameter) for p in net.parameters()):
            raise ModelError(
                "The network has lazy modules that no input has initialised yet. Run it once, then explain."
            )
        self.select, self.mode, self.precision = select, mode, precision
        self.name = name or type(net).__name__
        own = next((tensor.device for tensor in (*net.parameters(), *net.buffers())), torch.device("cpu"))
        self.device = own if device is None else _device(device)
        self.net = net if self.device == own else copy.deepcopy(net).to(self.device)
        self.was_training = False
        self._hashed: tuple[Any, str] | None = None
        self.plain: set[tuple[int, ...]] = set()  # shapes that the network cannot take in channels_last; with copies
        self.is_quick = False
        self.pairs: dict[tuple[int, ...], tuple[Pair, ...]] = {}  # norms that can be folded; with copies

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the parameters; float32 for a network without any."""
        floating = (p.dtype for p in (*self.net.parameters(), *self.net.buffers()) if p.is_floating_point())
        return next(floating, torch.get_default_dtype())

    def place(self, x: Tensor) -> Tensor:
        # An inference tensor cannot take part in autograd, and nobody wants gradients in a tensor of their own.
        with torch.inference_mode(False):
            return x.detach().clone().to(self.device, self.dtype)

    @contextmanager
    def undisturbed(self, key: Key) -> Iterator[Self]:
        with ExitStack() as stack:
            stack.enter_context(one_call_at_a_time())
            was_training = any(getattr(module, "training", False) for module in self.net.modules())
            stack.enter_context(same_random_state(self.device, int.from_bytes(key.digest[:8], "little")))
            stack.enter_context(same_network(self.net, evaluate=self.mode == "eval"))
            stack.enter_context(kept_heap(self.device))
            stack.enter_context(torch.inference_mode(False))
            quiet = stack.enter_context(super().undisturbed(key))
            quiet.was_training = was_training
            yield quiet

    @contextmanager
    def quick(self, x: Float[Tensor, "b *features"]) -> Iterator[None]:
        if self.is_quick:  # an explainer inside another
            yield
            return
        shape = tuple(x.shape[1:])
        if shape not in self.pairs:
            passes = self.passes  # those that follow are not the explanation's
            with torch.enable_grad():
                self.pairs[shape] = find_pairs(self.net, lambda: self._forward(self._laid_out(x[:1]).requires_grad_()))
            self.passes = passes
        with folded(self.pairs[shape]):
            self.is_quick = True
            try:
                yield
            finally:
                self.is_quick = False

    def outputs(self, x: Float[Tensor, "b *features"]) -> Float[Tensor, "b k"]:
        with torch.no_grad():
            parts = [self._forward(self._laid_out(part)) for part in torch.split(x, self.rows(x))]
        return torch.cat(parts)

    def gradient(self, x: Float[Tensor, "b *features"], targets: Targets) -> Float[Tensor, "b *features"]:
        if Needs.GRADIENTS not in self.offers:
            return super().gradient(x, targets)
        size = self.rows(x)
        parts = [
            _as_map(self._gradient(self._laid_out(x[start : start + size]), targets[start : start + size]))
            for start in range(0, len(x), size)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _gradient(self, x: Tensor, targets: Targets) -> Tensor:
        leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            score = targets.score(self._forward(leaf)).sum()
        self.passes += Cost(backward=len(leaf))
        if not score.requires_grad:  # a constant function, or one computed under no_grad: the diagnosis says so
            return torch.zeros_like(leaf)
        with self._named_errors(leaf):
            return torch.autograd.grad(score, leaf, allow_unused=True, materialize_grads=True)[0].detach()

    def factored_gradient(
        self,
        x: Float[Tensor, "b *features"],
        targets: Targets,
        group: int,
        cuts: int | tuple[str, ...],
        *,
        plain: bool,
    ) -> FactoredGradient:
        if Needs.GRADIENTS not in self.offers:
            return super().factored_gradient(x, targets, group, cuts, plain=plain)
        leaf = self._laid_out(x).requires_grad_()
        with torch.enable_grad(), self._watched(cuts if isinstance(cuts, tuple) else ()) as outputs:
            score = targets.score(self._forward(leaf)).sum()
        if not score.requires_grad:
            raise CutError(f"No gradient reaches the input of {self.name}, so there is nothing to factor.")
        named = [named_cut(name, found, len(leaf)) for name, found in outputs.items()]
        places = named if isinstance(cuts, tuple) else find_cuts(score, len(leaf), cuts)
        self.passes += Cost(backward=len(leaf) * (1 + plain))
        with self._named_errors(leaf):
            beside = torch.autograd.grad(score, leaf, retain_graph=True)[0] if plain else None
            with averaged(places, group):
                factored = torch.autograd.grad(score, leaf)[0]
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
        if x.ndim != 4 or tuple(x.shape[1:]) in self.plain:
            return x.clone(memory_format=torch.contiguous_format)
        return x.clone(memory_format=torch.channels_last)

    def coefficients(self) -> tuple[Float[Tensor, "k *features"], Float[Tensor, " k"]]:
        if Needs.WEIGHTS not in self.offers:
            return super().coefficients()
        layers = [m for m in self.net.modules() if not isinstance(m, nn.Sequential | nn.Flatten | nn.Identity)]
        if len(layers) != 1 or not isinstance(layers[0], nn.Linear):
            raise MissingNeed(
                f"Coefficients belong to a linear model: one torch.nn.Linear, with Flatten or Identity beside it. "
                f"{self.name} has {', '.join(type(m).__name__ for m in layers[:4]) or 'no layer'}. "
                "For other networks take a gradient method, e.g. pl.SmoothGrad()."
            )
        weight = layers[0].weight.detach().clone()
        bias = torch.zeros(len(weight)).to(weight) if layers[0].bias is None else layers[0].bias.detach().clone()
        check_linear(self, weight, bias)
        return weight, bias

    def fingerprint(self) -> str:
        tensors = sorted([*self.net.named_parameters(), *self.net.named_buffers()])
        # Hashing takes as long as a pass. The marks change with every write that autograd sees, and the sums with
        # nearly every one that it does not.
        marks = repr(self.net), tuple((n, id(t), t.data_ptr(), _writes(t), _word_sum(t)) for n, t in tensors)
        if self._hashed is None or self._hashed[0] != marks:
            self._hashed = marks, self._hash(tensors)
        return self._hashed[1]

    def _hash(self, tensors: Sequence[tuple[str, Tensor]]) -> str:
        digest = hashlib.blake2b(digest_size=16)
        # The structure without the addresses that some representations hold; buffers also where they are not saved.
        digest.update(re.sub(r" at 0x[0-9a-f]+", "", repr(self.net)).encode())
        for name, tensor in tensors:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def run(self, x: Tensor) -> dict[str, Any]:
        return {
            **super().run(x),
            "device": str(self.device),
            "precision": self.precision or str(self.dtype).removeprefix("torch."),
            "mode": self.mode,
            "select": self.select,
            "layout": "channels_last" if x.ndim == 4 and tuple(x.shape[1:]) not in self.plain else "contiguous",
            "threads": torch.get_num_threads(),
            "folded": len(self.pairs.get(tuple(x.shape[1:]), ())),
        }

    def take_over(self, run: Mapping[str, Any]) -> None:
        super().take_over(run)
        check_choice("mode", run["mode"], ("eval", "as-is"))
        self.mode, self.select = run["mode"], run["select"]
        self.precision = "bfloat16" if run["precision"] == "bfloat16" and self.dtype != torch.bfloat16 else None

    def _forward(self, x: Tensor) -> Tensor:
        """The outputs for x, which must be a copy: the network may write into what it is given."""
        self.passes += Cost(forward=len(x))
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
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision is not None):
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


def _writes(tensor: Tensor) -> int:
    """How often a tensor was written to, as far as autograd saw; inference tensors do not count."""
    return -1 if tensor.is_inference() else tensor._version  # noqa: SLF001  # torch has no public name for it


def _word_sum(tensor: Tensor) -> int:
    """The sum of a tensor's bytes as whole numbers, which wraps around."""
    flat = tensor.detach().contiguous().flatten()
    words = flat.view({8: torch.int64, 4: torch.int32, 2: torch.int16}.get(flat.element_size(), torch.uint8))
    return int(words.sum(dtype=torch.int64))


def _as_map(gradient: Tensor) -> Tensor:
    """Contiguous, and in single precision at the least: half has too few digits to accumulate, too small a range."""
    return gradient.detach().to(torch.promote_types(gradient.dtype, torch.float32)).contiguous()


def check_linear(model: Model, weight: Tensor, bias: Tensor) -> None:
    """Raises MissingNeed unless the model's outputs are W x + b, which its parts alone do not show."""
    x = torch.from_numpy(normal(Key.named("linear"), 0, (2, *weight.shape[1:]))).to(weight)
    found, expected = model.outputs(x), x.flatten(1) @ weight.flatten(1).T + bias
    tolerance = 100 * torch.finfo(weight.dtype).eps * float(expected.abs().max() + 1)
    if found.shape != expected.shape or float((found - expected).abs().max()) > tolerance:
        raise MissingNeed(
            f"{model.name} has coefficients, but its outputs are not W x + b. Take a gradient or a black-box method."
        )


def as_input(x: Input | Tensor) -> Input:
    """X as an Input; a bare tensor has no original."""
    if isinstance(x, Input):
        return x
    if isinstance(x, Tensor):
        return Input(x)
    raise ArgumentError(
        f"Expected an Input or a tensor (B, *features), but got {type(x).__name__}. Files, arrays and pictures become "
        "inputs with model.read(...)."
    )


def _device(name: str | torch.device) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch asserts that CUDA was compiled in
        reason = str(error).partition("\n")[0]
        raise ArgumentError(f"`device` is one of this machine, such as cpu or cuda. Got {name!r}: {reason}") from error
