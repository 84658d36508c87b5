"""The command line. Results go to standard output and files, everything else to standard error.

Exit codes: 0 all done, 1 some input failed (the others are done), 2 wrong usage, 130 stopped by Ctrl-C.
torch is not imported before a command needs it, so that help is there at once.
"""

import io
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NoReturn, cast

import click

from pellucid.errors import ModelError, OutputError, PellucidError

if TYPE_CHECKING:
    from pellucid.core.attribution import Attribution
    from pellucid.core.card import MethodCard
    from pellucid.core.diagnosis import Finding
    from pellucid.core.explainer import Explainer, Progress
    from pellucid.core.input import Input
    from pellucid.core.model import Model
    from pellucid.core.rule import Told
    from pellucid.explainers._ruled import Ruled
    from pellucid.modalities.image.draw import Drawing
    from pellucid.modalities.image.heatmap import Channels

__all__ = ["main"]

_CHANNELS = ("max_abs", "sum_abs", "abs_sum", "sum", "mean")
_ESTIMATORS = ("auto", "mean", "antithetic", "shrunk", "factored", "shrunk-factored", "combined", "paired-gp",
               "regression", "plain", "centred", "pairs", "control-variate")  # fmt: skip
_FLAGS = {"noise_level": "--noise-level", "seed": "--seed", "estimator": "--estimator", "layer": "--layer",
          "baseline": "--baseline", "n_steps": "--steps", "segments": "--segments"}  # fmt: skip
_SAMPLED = ("--samples", "--error", "--noise-level", "--seed", "--estimator")
_BASELINES = ("black", "white", "grey", "mean", "blur", "zero")
_MOST = 2000  # samples for an error, unless --samples says otherwise
_MOST_CALLS = 4000  # likewise of --budget
_WIDTH = 24  # characters of a name beside a bar, so that both fit a narrow terminal

Report = Callable[[int, int, float | None], None]
"""Is told how many of how many steps are done, and the relative error of the map if it is known."""


@dataclass(frozen=True)
class _Said:
    """What is said of one input: an object for programs; or lines for people, and remarks on standard error."""

    data: dict[str, Any]
    lines: Sequence[str] = ()
    remarks: Sequence[str] = ()
    good: bool = True
    stopped: BaseException | None = None
    """What ended it, by Ctrl-C or a failure of the model; but there is something to show."""


def _numbers(text: str) -> float | tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise click.BadParameter(f"expected one number, or several between commas, but got {text!r}.") from error
    return numbers[0] if len(numbers) == 1 else numbers


def _size(text: str) -> int | tuple[int, ...]:
    sides = tuple(int(side) if side.isdecimal() else 0 for side in text.lower().split("x"))
    if len(sides) > 2 or 0 in sides:
        raise click.BadParameter(f"expected a side such as 224, or HEIGHTxWIDTH, but got {text!r}.")
    return sides[0] if len(sides) == 1 else sides


def _segments(text: str) -> str:
    """A rule for segments in words, checked; `_chosen` makes it."""
    name, _, count = text.lower().partition(":")
    sides = name.split("x")
    grid = not count and len(sides) <= 2 and all(side.isdecimal() and int(side) > 0 for side in sides)
    superpixels = name in ("slic", "felzenszwalb") and (not count or (count.isdecimal() and int(count) > 0))
    if not grid and not superpixels and text.lower() != "columns":
        raise click.BadParameter(f"expected 7, 7x9, slic:50, felzenszwalb:50 or columns, but got {text!r}.")
    return text.lower()


def _together(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_inputs = click.argument("inputs", nargs=-1, required=True)
_target = click.option("--target", help="Class to explain: a label or an index; the top class if left out.")
_sampling = _together(
    click.option(
        "--samples",
        type=click.IntRange(1),
        help="Samples of a sampled method; with --error the most.  [default: the method's; with --error 2000]",
    ),
    click.option(
        "--error",
        type=click.FloatRange(0, min_open=True),
        metavar="NUMBER",
        help="Sample until the map's relative error is at most this: 0.5 leaves a quarter of its power to noise.",
    ),
    click.option(
        "--estimator",
        type=click.Choice(_ESTIMATORS),
        metavar="NAME",
        help="How the sampled quantity is approximated.  [default: auto; of SmoothGrad's mean shrunk-factored where "
        "the network can be cut, otherwise shrunk; of Shapley values and debiased RISE paired-gp]",
    ),
    click.option(
        "--budget",
        type=click.IntRange(1),
        metavar="CALLS",
        help="Model calls for each input by a black-box method; with --error the most.  [default: the "
        "method's; with --error 4000]",
    ),
    click.option("--seed", type=click.IntRange(0), help="Seed of the noise.  [default: 0]"),
)
_settings = _together(
    click.option("--layer", help="Layer of an activation map; the last with a grid of cells if left out. Several, with "
                 "commas, are fused."),
    click.option("--baseline", type=click.Choice(_BASELINES), help="What absent means, in the picture's own values.  "
                 "[default: the method's]"),
    click.option("--steps", type=click.IntRange(1), help="Steps on the way from the baseline.  [default: the "
                 "method's]"),
    click.option("--segments", type=_segments, metavar="7|7x9|slic:50|…", help="What is taken away together: a grid "
                 "of patches, superpixels by slic or felzenszwalb, or columns.  [default: 7x7 patches]"),
)  # fmt: skip
_output = _together(
    click.option("--out", type=click.Path(path_type=Path), help="The picture's name (.png), for a single input."),
    click.option("--json", "as_json", is_flag=True, help="One JSON object for each input on standard output."),
    click.option("--force", is_flag=True, help="Replace files that exist."),
)
_model = _together(
    click.option("--model", "model_name", default="efficientnet-lite0", show_default=True,
                 help="The embedded model; file.py:function or package.module:function, which builds a network or "
                 "takes a batch and predicts; program.pt2, model.onnx; or the address of an endpoint, http://... . A "
                 "model.toml beside the file may hold what is not given below."),
    click.option("--size", type=_size, metavar="SIDE|HxW", help="Side of the model's input, or its height and width."),
    click.option("--mean", type=_numbers, metavar="NUMBER[,…]",
                 help="Mean of the preprocessing, in 0..1; one number, or one a channel."),
    click.option("--std", type=_numbers, metavar="NUMBER[,…]",
                 help="Standard deviation of the preprocessing, likewise."),
    click.option("--resize", type=click.Choice(["crop", "squash"]), help="How a photo becomes the model's shape."),
    click.option("--labels", type=click.Path(path_type=Path), help="A text file with one class name a line."),
    click.option("--trust-model", is_flag=True, help="Load a file even if it can run code on loading."),
    click.option("--device", help="cpu, cuda, cuda:1 …; the network's own if left out."),
    click.option("--precision", type=click.Choice(["bfloat16", "auto"]),
                 help="bfloat16, or auto to take it where a test of eight samples says that it pays."),
    click.option("--memory-limit", metavar="SIZE", help="The most that an explanation may take, such as 2GiB."),
)  # fmt: skip


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pellucid")
def cli() -> None:
    """Show why a trained model decided, how certain that picture is, and whether it deserves trust."""


@cli.command(epilog="Names that begin with a dash go last, behind --.")
@_inputs
@click.option("--method", default="smooth-grad", show_default=True, help="A local one of `pellucid methods`.")
@_target
@click.option("--targets", type=click.IntRange(1), help="Explain the N likeliest classes, side by side.")
@_sampling
@_settings
@click.option("--noise-level", type=float, help="Noise as a fraction of the input's range.  [default: the method's]")
@click.option("--view", type=click.Choice(["page", "heatmap", "overlay"]), default="page", show_default=True,
              help="A page with everything, the map alone, or the overlay at the photo's own size.")  # fmt: skip
@click.option("--channels", type=click.Choice(_CHANNELS), help="How the colour channels become one map; sum and mean "
              "keep the sign.  [default: the method's]")  # fmt: skip
@click.option("--save", type=click.Path(path_type=Path), help="Folder to keep the raw maps in (.safetensors).")
@click.option("--no-picture", is_flag=True, help="Draw nothing; for --save and --json.")
@_output
@_model
def explain(
    inputs: tuple[str, ...], method: str, target: str | None, targets: int | None, samples: int | None,
    error: float | None, estimator: str | None, noise_level: float | None, budget: int | None, seed: int | None,
    layer: str | None, baseline: str | None, steps: int | None, segments: str | None, view: str,
    channels: "Channels | None", out: Path | None, save: Path | None, as_json: bool, no_picture: bool, force: bool,
    **model_options: Any,
) -> None:  # fmt: skip
    """Draw why the model decided as it did on each picture."""
    if target is not None and targets is not None:
        raise click.UsageError("--target and --targets exclude each other.")
    if view == "overlay" and targets is not None and targets > 1:
        raise click.UsageError("--view overlay shows a single class. Leave out --targets, or --view.")
    if no_picture and (out is not None or not (save or as_json)):
        raise click.UsageError("--no-picture leaves nothing to keep. Give --save FOLDER or --json, and no --out.")
    chosen: dict[str, Any] = {"noise_level": noise_level, "seed": seed, "estimator": estimator}
    chosen |= _chosen(layer, baseline, steps, segments)
    [explainer] = _explainers([method], samples=samples, budget=budget, error=error, **chosen)
    from pellucid.core.estimate import Interrupted
    from pellucid.errors import ModelError

    pictures = _pictures(inputs, explainer.card.name, out)
    folder = None if save is None else _folder(save)
    model = _loaded(target, **model_options)

    def one(i: int, name: str, report: Report) -> _Said:
        picture = None if no_picture else pictures[i]
        raw = None if folder is None else folder / pictures[i].with_suffix(".safetensors").name
        written = [path for path in (picture, raw) if path is not None]
        _check_free(written, inputs, force)
        x, chosen = _with_targets(model, model.read(name), target, targets)
        strict = estimator not in (None, "auto")
        stopped: Interrupted | ModelError | None = None
        try:
            a, remark = _explained(explainer, model, x, chosen, report, strict=strict)
        except (Interrupted, ModelError) as stop:  # what was asked of the model is kept
            if len(stop.attributions) != 1:
                raise
            (a,), remark, stopped = stop.attributions, [], stop
        if picture is not None:
            _write(picture, _draw(a, view, channels).save)
        if raw is not None:
            _write(raw, a.save)
        says = ", ".join(_amount(d.label, d.score, d.probability) for d in a.decisions) + _certainty(a)
        line = f"{_shown(name)}: {says}" + (f" -> {', '.join(map(_shown, written))}" if written else "")
        few = [f"the model has no more than {len(a)} classes."] if targets and len(a) < targets else []
        taken = [] if a.memory is None else [f"memory: {_mib(a.memory.measured)} were taken."]
        notes = [*x.notes[0], *few, *(() if error is None else dict.fromkeys(a.estimate.stopped)), *taken]
        data = _as_data(name, a, picture, raw) | {"notes": [*x.notes[0], *remark]}
        return _Said(data, [line], _remarks(notes, a.findings), stopped=stopped)

    _each(inputs, one, as_json)


@cli.command()
@click.option("--scope", type=click.Choice(["local", "global"]))
@click.option("--access", type=click.Choice(["white-box", "black-box"]))
@click.option("--stage", type=click.Choice(["intrinsic", "post-hoc"]))
@click.option("--applicability", type=click.Choice(["model-specific", "model-agnostic"]))
@click.option("--modality", type=click.Choice(["image", "text", "audio", "table"]))
@click.option("--budget", type=click.IntRange(0), help="The most passes (forward plus backward) for one input.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def methods(as_json: bool, **query: Any) -> None:
    """List the methods that fit, and why the others do not."""
    from pellucid.catalogue import methods as find_methods

    found = find_methods(**query)
    if as_json:
        excluded = [{**_card_data(e.card), "reasons": e.reasons} for e in found.excluded]
        click.echo(_json({"fitting": [_card_data(card) for card in found.fitting], "excluded": excluded}))
        return
    width = max(len(card.name) for card in (*found.fitting, *(e.card for e in found.excluded)))
    for card in found.fitting:
        axes = ", ".join((card.scope, card.access, card.stage, card.applicability))
        click.echo(f"{card.name:<{width}}  {axes}; {card.cost}; {card.reference}")
    if not found.fitting:
        click.echo("No method fits.")
    if found.excluded:
        click.echo("\nExcluded:")
    for left_out in found.excluded:
        click.echo(f"{left_out.card.name:<{width}}  {'; '.join(left_out.reasons)}")


@cli.command()
@_inputs
@click.option("--methods", "names", default="simple-gradient,smooth-grad", show_default=True,
              help="Names, with commas.")  # fmt: skip
@_target
@click.option(
    "--copies",
    type=click.IntRange(0),
    default=2,
    show_default=True,
    help="Noised copies to compare with; 0 draws a gallery of the maps alone.",
)
@click.option("--copy-noise", type=click.FloatRange(0, 1, min_open=True), default=0.02, show_default=True,
              help="Their noise, a fraction of the input's range.")  # fmt: skip
@click.option("--shared-noise", is_flag=True, help="Sampled methods use the same noise for input and copies.")
@_sampling
@_settings
@_output
@_model
def compare(
    inputs: tuple[str, ...], names: str, target: str | None, copies: int, copy_noise: float, shared_noise: bool,
    samples: int | None, error: float | None, estimator: str | None, budget: int | None, seed: int | None,
    layer: str | None, baseline: str | None, steps: int | None, segments: str | None, out: Path | None,
    as_json: bool, force: bool, **model_options: Any,
) -> None:  # fmt: skip
    """Draw methods side by side, on pictures and noised copies.

    The copies have the same prediction. Each map's rank correlation with the picture's own stands beside it.
    """
    from pellucid.metrics.stability import stability
    from pellucid.modalities.image.picture import comparison_page, gallery

    # The comparison is of the methods as they are defined, so the paper's mean unless another is asked for.
    chosen = {"seed": seed, "estimator": estimator or "mean"} | _chosen(layer, baseline, steps, segments)
    also = ("seed", *(() if estimator else ("estimator",)))
    explainers = _explainers(names.split(","), also, samples=samples, budget=budget, error=error, **chosen)
    pictures = _pictures(inputs, "compare", out)
    model = _loaded(target, **model_options)
    settings: dict[str, Any] = {"level": copy_noise, "copies": copies, "seed": seed or 0, "shared_noise": shared_noise}
    noise = "the same noise for input and copies" if shared_noise else "independent noise for input and copies"

    def one(i: int, name: str, report: Report) -> _Said:
        picture = pictures[i]
        _check_free([picture], inputs, force)
        x = model.read(name)

        def told(done: int, total: int) -> None:
            report(done, total, None)

        if not copies:
            maps = []
            for done, explainer in enumerate(explainers, 1):
                maps.append(explainer(model, x, target))
                told(done, len(explainers))
            _write(picture, gallery(maps).save)
            drawn = {"input": name, "methods": [e.card.name for e in explainers], "picture": str(picture)}
            line = f"{_shown(name)}: {maps[0].decision.label} -> {_shown(picture)}"
            return _Said(drawn, [line], _remarks(x.notes[0], [f for a in maps for f in a.findings]))
        results = stability(model, x, explainers, target=target, progress=told, **settings)
        _write(picture, comparison_page(results, noise=f"Copies at noise level {copy_noise}; {noise}.").save)
        alike = {r.explainer.card.name: r.rank_correlations for r in results}
        data = {"input": name, "rank_correlation": alike, "picture": str(picture), **settings}
        lines = [f"{_shown(name)}: {results[0].original.decision.label} -> {_shown(picture)}"]
        for method, values in alike.items():
            lines.append(f"  {method}: rank correlation with the copies {', '.join(f'{v:.2f}' for v in values)}")
        return _Said(data, lines, _remarks(x.notes[0], [f for r in results for f in r.original.findings]))

    _each(inputs, one, as_json)


@cli.command()
@_inputs
@_target
@click.option(
    "--method",
    help="List what the network executes, and the rule of this method for each operation: one of "
    "those that replace derivatives, such as lrp or deep-lift.",
)
@click.option("--baseline", type=click.Choice(_BASELINES), help="What absent means for the method.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each input on standard output.")
@_model
def check(
    inputs: tuple[str, ...], target: str | None, method: str | None, baseline: str | None, as_json: bool,
    **model_options: Any,
) -> None:  # fmt: skip
    """Say whether a model is fit to be explained, or what to do.

    Exit code 1 if it is not, on any of INPUTS.
    """
    if method is None and baseline is not None:
        raise click.UsageError("--baseline is a method's: give --method too.")
    ruled = None if method is None else _ruled(method, baseline)
    from pellucid.catalogue import methods as find_methods
    from pellucid.core.card import Needs
    from pellucid.core.diagnosis import Severity
    from pellucid.core.segments import Patches
    from pellucid.explainers.occlusion import Occlusion
    from pellucid.explainers.simple_gradient import SimpleGradient

    model = _loaded(target, **model_options)
    offers = str(model.offers).replace(" and ", ", ")
    fitting = len(find_methods(scope="local", model=model))
    # What asks least of each kind of model: one gradient, or the whole picture taken away.
    tried = SimpleGradient() if Needs.GRADIENTS in model.offers else Occlusion(segments=Patches(1))

    def one(i: int, name: str, report: Report) -> _Said:
        x = model.read(name)
        a = tried(model, x, target)
        prediction = model.predict(x)
        probable = a.decision.probability is not None
        top: list[dict[str, Any]] = [
            {"index": k, "label": prediction.labels.short(k), "probability": value if probable else None,
             "score": float(prediction.outputs[0, k]) if probable else value}
            for _, value, k in prediction.top(5)
        ]  # fmt: skip
        told = [] if ruled is None else ruled.operations(model, x, target)
        fit = all(finding.severity is not Severity.ERROR for finding in a.findings)
        fit = fit and not any(one.refused for one in told)
        says = ", ".join(_amount(best["label"], best["score"], best["probability"]) for best in top[:3])
        lines = [
            f"{_shown(name)}: {model.name} says {says}",
            f"  offers {offers}; {fitting} local methods fit; this check took {a.cost}",
            *(f"  {finding.severity}: {finding}" for finding in a.findings),
            f"  {'fit to be explained' if fit else 'not fit to be explained as it is'}",
            *(() if ruled is None else _operations(ruled.card.title, told)),
        ]
        findings = [{**vars(finding), "input": name} for finding in a.findings]
        data = {"input": name, "model": model.name, "fit": fit, "top": top, "findings": findings}
        if ruled is not None:
            data["operations"] = [one._asdict() for one in told]
        return _Said(data, lines, _remarks(x.notes[0], ()), good=fit)

    _each(inputs, one, as_json)


def _ruled(name: str, baseline: str | None) -> "Ruled":
    """The method of that name, if it is one of rules."""
    from pellucid.catalogue import registered
    from pellucid.explainers._ruled import Ruled

    [found] = _explainers([name], **_chosen(None, baseline, None))
    if not isinstance(found, Ruled):
        those = ", ".join(key for key, method in registered().items() if issubclass(method, Ruled))
        raise click.UsageError(f"{found.card.name} has no list of rules of its own. These have: {those}.")
    return found


def _operations(title: str, told: "Sequence[Told]") -> list[str]:
    """A line for each operation: where, what, of which shape, and its rule."""
    rows = [(one.module or "-", one.what, "x".join(map(str, one.shape[1:])) or "-", one.rule) for one in told]
    wide = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    without = sum(one.refused for one in told)
    said = f"{without} have no rule" if without else "each has a rule"
    return [
        f"  {title}: {len(told)} operations, {said}",
        *(
            "    " + "  ".join([*(text.ljust(w) for text, w in zip(row[:3], wide, strict=True)), row[3]])
            for row in rows
        ),
    ]


def main() -> NoReturn:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # files and classes have names that not every terminal can show
            stream.reconfigure(errors="backslashreplace")
    try:
        sys.exit(cli.main(prog_name="pellucid", standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        if isinstance(error, click.NoSuchOption):
            for name in (word for word in sys.argv if word.startswith("-") and Path(word).exists()):
                click.echo(f"For the file of that name write .{os.sep}{name}", err=True)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("Stopped.", err=True)
        sys.exit(130)
    except PellucidError as error:
        click.echo(f"Error: {_line(error)}", err=True)
        sys.exit(2)
    except OSError as error:
        click.echo(f"Error: {_line(error)}", err=True)  # of standard output, such as a full disk
        # What is still buffered would fail again at exit, with an exit code of Python's own.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _each(inputs: Sequence[str], one: Callable[[int, str, Report], _Said], as_json: bool) -> None:
    """Every input, whatever happens to the others; then the exit code."""
    bad = 0
    for i, name in enumerate(inputs):
        place = f"{i + 1}/{len(inputs)} " if len(inputs) > 1 else ""
        try:
            with _progress(place + _shown(Path(name).name)) as report:
                said = one(i, name, report)
        except KeyboardInterrupt:
            click.echo(f"Stopped. {i - bad} of {len(inputs)} inputs are done; what was written stays.", err=True)
            sys.exit(130)
        except Exception as error:  # noqa: BLE001  # the other inputs are still to be done
            said = _failure(name, error)
        bad += not said.good
        for line in [_json(said.data)] if as_json else said.lines:
            click.echo(line)
        for remark in () if as_json else said.remarks:
            click.echo(f"  {remark}", err=True)
        kept = f"What was asked by then for {_shown(name)} is written."
        if isinstance(said.stopped, KeyboardInterrupt):
            click.echo(f"Stopped. {i - bad} of {len(inputs)} inputs are done. {kept}", err=True)
            sys.exit(130)
        if said.stopped is not None:
            click.echo(f"Error: {_shown(name)}: {_line(said.stopped)} {kept}", err=True)
            bad += 1
    if bad:
        sys.exit(1)


def _failure(name: str, error: Exception) -> _Said:
    """One line on standard error; after it, if pellucid itself is at fault, what its developers need."""
    text = "not enough memory for this input." if isinstance(error, MemoryError) else _line(error)
    defect = not isinstance(error, PellucidError | MemoryError)
    if defect:
        text = f"a defect of pellucid ({type(error).__name__}: {text}). Please report what follows."
    line = text if text.startswith((f"{name}: ", repr(name))) else f"{_shown(name)}: {text}"
    click.echo(f"Error: {line}", err=True)
    if defect:
        click.echo("".join(traceback.format_exception(error)), err=True)
    return _Said({"input": name, "error": line}, good=False)


@contextmanager
def _progress(what: str) -> Iterator[Report]:
    """A live line on a terminal, nothing in a pipe. What a user's own code prints goes to standard error."""
    if sys.stderr is None or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        with redirect_stdout(sys.stderr):
            yield lambda done, total, error: None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar, redirect_stdout(sys.stderr):
        short = what if len(what) <= _WIDTH else what[: _WIDTH - 1] + "…"
        task = bar.add_task(escape(short), total=None, count="")

        def show(done: int, total: int, error: float | None) -> None:
            known = "" if error is None else ", no signal yet" if error == float("inf") else f", error {error:.2g}"
            bar.update(task, completed=done, total=total, count=f"{done}/{total}{known}")

        yield show


def _explainers(
    names: Sequence[str], also: Sequence[str] = (), *, samples: int | None = None, budget: int | None = None,
    error: float | None = None, **settings: Any,
) -> list["Explainer"]:  # fmt: skip
    """The methods, each with those settings that it has. What none has (nor the command `also`) is a mistake."""
    from pellucid.catalogue import find
    from pellucid.core.explainer import Explainer

    known: dict[type[Explainer], set[str]] = {}
    for name in names:
        method = find(name)
        if not issubclass(method, Explainer):
            raise click.UsageError(f"{name} is global: it explains a model, not an input. Use it from Python.")
        known[method] = {f.name for f in fields(method)}  # type: ignore[arg-type]  # every method is a dataclass
    given = {key: value for key, value in settings.items() if value is not None}
    has = set(also).union(*known.values())
    counts = (("--samples", samples, {"n_samples"}), ("--budget", budget, {"budget"}),
              ("--error", error, {"n_samples", "budget"}))  # fmt: skip
    surplus = [flag for flag, value, of in counts if value is not None and not has & of]
    surplus += [_FLAGS[key] for key in given if key not in has]
    if surplus:
        why = ""
        if surplus[0] == "--samples" and "budget" in has:
            why = ": its samples are model calls, --budget"
        elif surplus[0] in _SAMPLED and not has & {"n_samples", "budget"}:
            why = ": nothing is sampled"
        raise click.UsageError(f"{', '.join(names)} has no {' and no '.join(surplus)}{why}.")
    stops = {"n_samples": _stop(samples, error), "budget": _stop(budget, error, _MOST_CALLS)}
    given |= {key: stop for key, stop in stops.items() if stop is not None}
    name, count = given.pop("estimator", "auto"), given.get("n_samples")
    return [
        method(**{key: given[key] for key in given if key in own}
               | ({"estimator": _estimator(method, name, count, also)} if "estimator" in own else {}))
        for method, own in known.items()
    ]  # fmt: skip


def _chosen(layer: str | None, baseline: str | None, steps: int | None, segments: str | None = None) -> dict[str, Any]:
    """The settings of maps of layers, of ways from a baseline and of segments."""
    if (layer, baseline, steps, segments) == (None,) * 4:
        return {}
    from pellucid.core.baseline import Blur, FeatureMean, Pixel, Zeros
    from pellucid.core.segments import Columns, Patches
    from pellucid.modalities.image.superpixels import Superpixels

    known = {"black": Pixel(0.0), "white": Pixel(1.0), "grey": Pixel(0.5), "mean": FeatureMean(), "blur": Blur()}
    rule: Any = None
    if segments is not None:
        kind, _, count = segments.partition(":")
        sides = tuple(map(int, kind.split("x"))) if kind[0].isdecimal() else ()
        if sides:
            rule = Patches(sides[0] if len(sides) == 1 else sides)
        else:
            rule = Columns() if kind == "columns" else Superpixels(count=int(count or 50), method=cast("Any", kind))
    names = () if layer is None else tuple(name.strip() for name in layer.split(","))
    if layer is not None and not all(names):
        raise click.UsageError(f"--layer is the name of a module, or several between commas. Got {layer!r}.")
    return {
        "layer": names[0] if len(names) == 1 else names or None,
        "baseline": None if baseline is None else (known | {"zero": Zeros()})[baseline],
        "n_steps": steps,
        "segments": rule,
    }


def _stop(samples: int | None, error: float | None, otherwise: int = _MOST) -> Any:
    """The number of samples, or of model calls, or when to stop."""
    if error is None:
        return samples
    from pellucid.core.stopping import Until

    if samples is not None and samples < 2:
        raise click.UsageError("--error needs at least two samples to see a spread. Raise --samples, or leave it out.")
    return Until(error=error, at_most=samples or otherwise)


def _estimator(method: Any, name: str, n_samples: Any = None, also: Sequence[str] = ()) -> Any:
    """The method's estimator of that name; `auto` is the best that so few samples allow."""
    own = getattr(method, "estimators", None)
    if own is not None:
        if name not in own and "estimator" in also:  # not asked for, or for other methods
            name = "auto"
        if name not in own:
            raise click.UsageError(f"{method().card.name} has no --estimator {name}. It has {', '.join(own)}.")
        return own[name]
    return _of_copies(name, n_samples)


def _of_copies(name: str, n_samples: Any) -> Any:
    """An estimator of the mean over noisy copies."""
    from pellucid.core.estimator import Antithetic, Mean
    from pellucid.core.factored import Factored
    from pellucid.modalities.image.combined import Combined
    from pellucid.modalities.image.shrunk import Shrunk

    best = Shrunk(Factored())
    few = getattr(n_samples, "at_most", n_samples) or _MOST
    enough = few >= (18 if hasattr(n_samples, "at_most") else 4)  # three groups show an error
    known: dict[str, Any] = {
        "auto": best if enough else Shrunk() if few > 1 else Mean(),
        "mean": Mean(),
        "antithetic": Antithetic(),
        "shrunk": Shrunk(),
        "factored": Factored(),
    }
    known |= {"shrunk-factored": best, "combined": Combined()}
    if name not in known:
        raise click.UsageError(f"SmoothGrad has no --estimator {name}. It has {', '.join(known)}.")
    return known[name]


def _explained(
    explainer: "Explainer", model: "Model", x: "Input", target: Any, report: Report, *, strict: bool
) -> tuple["Attribution", list[str]]:
    """The explanation, and what is to be said of how it was made."""
    from pellucid.errors import CutError, MemoryLimit

    def told(so_far: "Progress") -> None:
        if so_far.memory is not None:  # before the run
            click.echo(f"  memory: about {_mib(so_far.memory)} at most", err=True)
        report(so_far.done, so_far.total, so_far.error)

    try:
        return explainer(model, x, target, progress=told), []
    except (CutError, MemoryLimit) as reason:
        if (
            strict
            or hasattr(explainer, "budget")
            or "estimator" not in {f.name for f in fields(cast("Any", explainer))}
        ):
            raise
        other: Explainer = replace(cast("Any", explainer), estimator=_of_copies("shrunk", None))
        first = str(reason).partition(". ")[0]
        return other(model, x, target, progress=told), [f"{first}. So the map is shrunk, but not factored."]


def _certainty(a: "Attribution") -> str:
    """The relative error of the maps, where it is known, and how they were estimated; or what they sum to."""
    if a.estimated_error is None:
        if len(a) > 1:
            return ""
        from pellucid.modalities.image.picture import completeness, proved

        said = completeness(a) or proved(a)
        return f"; {said}" if said else ""
    from pellucid.core.recipe import decode

    errors = a.estimated_error.tolist()
    known = [f"{value:.2g}" if value < float("inf") else "no signal yet" for value in errors]
    estimator = getattr(decode(a.recipe.explainer), "estimator", None)
    how = f" ({estimator.words})" if estimator is not None and estimator.words else ""
    return f"; error {', '.join(known)}{how}"


def _loaded(
    target: str | None, *, model_name: str, labels: Path | None, trust_model: bool, device: str | None,
    precision: Any, memory_limit: str | None, **given: Any,
) -> "Model":  # fmt: skip
    """The model; a target that it has not is refused before any work."""
    with _progress(f"loading {model_name}"):
        from pellucid.models.description import Description, read_labels
        from pellucid.models.load import load

        settings = tuple((name, value) for name, value in given.items() if value is not None)
        description = Description(settings, read_labels(labels) if labels else None)
        model = load(
            model_name, description=description, trust=trust_model, device=device, precision=precision,
            memory_limit=memory_limit,
        )  # fmt: skip
    if model.preprocess is None:
        raise ModelError(
            f"{model_name}: the command line reads pictures, and this model does not say how they become its inputs "
            "(rows of a table?). Explain it from Python: pl.load(...) and tensors; or return it with preprocess=... ."
        )
    if target is not None and model.labels is not None:
        model.labels.find(target)
    return model


def _pictures(inputs: Sequence[str], kind: str, out: Path | None) -> list[Path]:
    """A picture's name for each input, in this folder; stems that are equal but for case are numbered."""
    if out is not None:
        if len(inputs) > 1:
            raise click.UsageError(f"--out names one picture, but there are {len(inputs)} inputs. Leave it out.")
        if out.suffix.lower() != ".png":
            raise click.UsageError(f"--out {out}: pictures are saved as .png, which keeps the recipe with the picture.")
        if not out.parent.is_dir():
            raise click.UsageError(f"--out {out}: there is no folder {out.parent}.")
        return [out]
    stems: dict[str, str] = {}
    for first in (Path(name).stem for name in inputs):
        stem, number = first, 2
        while stem.lower() in stems:
            stem, number = f"{first}-{number}", number + 1
        stems[stem.lower()] = stem
    return [Path(f"{stem}.{kind}.png") for stem in stems.values()]


def _folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.UsageError(f"--save {path}: no folder can be made there ({error.strerror}).") from error
    return path


def _check_free(paths: Sequence[Path], inputs: Sequence[str], force: bool) -> None:
    """Before any work: nothing of the user's is lost by writing there, and it can be done."""
    for path in paths:
        try:
            if path.exists() and any(Path(name).exists() and path.samefile(name) for name in inputs):
                raise OutputError(f"{_shown(path)} is one of the inputs and is kept. Choose another name with --out.")
            if path.exists() and not force:
                raise OutputError(f"{_shown(path)} exists and is kept. Give --force to replace it, or another name.")
            if not os.access(path.parent, os.W_OK):
                raise OutputError(f"{_shown(path)}: the folder does not allow writing. Work in one that is yours.")
        except OSError as error:
            raise OutputError(f"{_shown(path)}: not a possible name here ({error.strerror}).") from error


def _write(path: Path, save: Callable[[Path], object]) -> None:
    """The whole file or none, whatever interrupts it."""
    try:
        with TemporaryDirectory(prefix=".pellucid-", dir=path.parent) as folder:
            part = Path(folder) / f"part{path.suffix}"
            save(part)
            part.replace(path)
    except OutputError as error:
        raise OutputError(str(error).replace(str(part), str(path))) from error
    except OSError as error:
        raise OutputError(f"{_shown(path)}: cannot be written ({error.strerror}).") from error


def _with_targets(model: "Model", x: "Input", target: str | None, targets: int | None) -> tuple["Input", Any]:
    """The input and its target; of several targets the input repeated, and the likeliest classes."""
    from pellucid.core.input import Input

    if targets is None:
        return x, target
    prediction = model.predict(x)
    shown = prediction.kind != "segmentation"  # of which classes that are nowhere have no region
    chosen = [index for _, value, index in prediction.top(targets) if shown or value > 0]
    n = len(chosen)
    return Input(x.tensor.repeat(n, *(1,) * (x.tensor.ndim - 1)), x.sources * n, x.views * n, x.notes * n), chosen


def _draw(a: "Attribution", view: str, channels: "Channels | None") -> "Drawing":
    from pellucid.modalities.image.picture import heatmap, overlay, page

    if view == "overlay":
        return overlay(a, channels=channels)
    return heatmap(a, channels=channels) if view == "heatmap" else page(list(a), channels=channels)


def _remarks(notes: Sequence[str], findings: Sequence["Finding"]) -> list[str]:
    """Notes on the input, and what of the findings should change the trust in a map, each once."""
    once = {finding.code: finding for finding in findings if finding.severity != "note"}
    return [f"note: {note}" for note in notes] + [f"{finding.severity}: {finding}" for finding in once.values()]


def _amount(label: str, score: float | None, probability: float | None) -> str:
    return f"{label} {score:.4g}" if probability is None else f"{label} {probability:.1%}"


def _mib(count: int) -> str:
    from pellucid.core.memory import in_mib

    return f"{in_mib(count)} MiB"


def _shown(name: str | Path) -> str:
    """A file's name on one line, without what would act on a terminal."""
    return str(name) if str(name).isprintable() else repr(str(name))


def _line(error: BaseException) -> str:
    """An error on one line, without what files and servers put into it to act on a terminal."""
    from pellucid.models.told import one_line

    return one_line(str(error), sys.maxsize)


def _json(data: dict[str, Any]) -> str:
    # JSON has neither NaN nor infinity: null
    return json.dumps(json.loads(json.dumps(data), parse_constant=lambda constant: None))


def _as_data(name: str, a: "Attribution", picture: Path | None, raw: Path | None) -> dict[str, Any]:
    from pellucid.core.recipe import encode

    return {
        "input": name,
        "method": a.recipe.explainer["type"],
        "decisions": [{**vars(d), "target": encode(d.target)} for d in a.decisions],
        "samples_used": a.estimate.samples,
        "stopped": a.estimate.stopped,
        "residual": None if a.residual is None else a.residual.tolist(),
        "estimated_error": None if a.estimated_error is None else a.estimated_error.tolist(),
        "passes": vars(a.cost),
        "memory": None if a.memory is None else vars(a.memory),
        "findings": [vars(finding) for finding in a.findings],
        "picture": picture and str(picture),
        "map": raw and str(raw),
        "recipe": vars(a.recipe),
    }


def _card_data(card: "MethodCard") -> dict[str, Any]:
    needs, modalities = str(card.needs).split(" and "), sorted(card.modalities)
    return {**vars(card), "access": card.access, "needs": needs, "cost": vars(card.cost), "modalities": modalities}
