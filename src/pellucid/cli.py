"""The command line. Results go to standard output and files, everything else to standard error.

Exit codes: 0 all done, 1 some input failed (the others are done), 2 wrong usage, 130 stopped by Ctrl-C.
torch is not imported before a command needs it, so that help is there at once.
"""

import json
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from pellucid.errors import PellucidError, TargetError

if TYPE_CHECKING:
    from pellucid.core.attribution import Attribution
    from pellucid.core.diagnosis import Finding
    from pellucid.core.explainer import Explainer, Progress
    from pellucid.core.input import Input
    from pellucid.core.model import Model
    from pellucid.modalities.image.heatmap import Channels

__all__ = ["main"]

_CHANNELS = ("max_abs", "sum_abs", "abs_sum", "sum", "mean")
Report = Callable[["Progress"], None] | None


class _Numbers(click.ParamType[Any]):
    """One number, or several between commas."""

    name = "NUMBER[,…]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            numbers = tuple(float(part) for part in value.split(","))
        except ValueError:
            self.fail(f"expected one number, or several between commas, but got {value!r}.", param, ctx)
        return numbers[0] if len(numbers) == 1 else numbers


class _Size(click.ParamType[Any]):
    """A side, or HEIGHTxWIDTH."""

    name = "SIDE|HxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            sides = tuple(int(part) for part in value.lower().split("x"))
        except ValueError:
            sides = ()
        if len(sides) not in (1, 2) or min(sides) < 1:
            self.fail(f"expected a side such as 224, or HEIGHTxWIDTH, but got {value!r}.", param, ctx)
        return sides[0] if len(sides) == 1 else sides


def _model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which model, and what its file does not say."""
    options = [
        click.option("--model", "model_name", default="efficientnet-lite0", show_default=True,
                     help="The embedded model, file.py:function, package.module:function, or program.pt2."),
        click.option("--size", type=_Size(), help="Side of the model's input, or HEIGHTxWIDTH."),
        click.option("--mean", type=_Numbers(), help="Mean of the preprocessing, in 0..1, one or one a channel."),
        click.option("--std", type=_Numbers(), help="Standard deviation of the preprocessing, likewise."),
        click.option("--resize", type=click.Choice(["crop", "squash"]), help="How a photo becomes the model's shape."),
        click.option("--labels", type=click.Path(path_type=Path), help="A text file with one class name a line."),
        click.option("--trust-model", is_flag=True, help="Load a .pt2 file even if it can run code on loading."),
        click.option("--device", help="cpu, cuda, cuda:1 …; the network's own if left out."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pellucid")
def cli() -> None:
    """Show why a trained model decided, how certain that picture is, and whether it deserves trust."""


@cli.command()
@click.argument("inputs", nargs=-1, required=True)
@click.option(
    "--method", default="smooth-grad", show_default=True, help="A name from `pellucid methods --scope local`."
)
@click.option("--target", help="Class to explain: a label or an index; each input's top class if left out.")
@click.option("--targets", type=click.IntRange(1), help="Explain the N likeliest classes, side by side.")
@click.option("--samples", type=click.IntRange(1), help="Samples of a sampled method.  [default: the method's]")
@click.option("--noise-level", type=float, help="Noise as a fraction of the input's range.  [default: the method's]")
@click.option("--seed", type=click.IntRange(0), help="Seed of the noise.  [default: 0]")
@click.option("--view", type=click.Choice(["page", "heatmap", "overlay"]), default="page", show_default=True,
              help="A page with everything, the map alone, or the overlay at the photo's own size.")  # fmt: skip
@click.option("--channels", type=click.Choice(_CHANNELS), default="max_abs", show_default=True,
              help="How the colour channels become one map; sum and mean keep the sign.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), help="The picture's name, for a single input.")
@click.option("--save", type=click.Path(path_type=Path), help="Folder to keep the raw maps in (.safetensors).")
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each input on standard output.")
@click.option("--no-picture", is_flag=True, help="Draw nothing.")
@click.option("--force", is_flag=True, help="Replace files that exist.")
@_model_options
def explain(
    inputs: tuple[str, ...], method: str, target: str | None, targets: int | None, samples: int | None,
    noise_level: float | None, seed: int | None, view: str, channels: "Channels", out: Path | None, save: Path | None,
    as_json: bool, no_picture: bool, force: bool, **model_options: Any,
) -> None:  # fmt: skip
    """Explain the decision on each of INPUTS (pictures) and draw it."""
    if out is not None and len(inputs) > 1:
        raise click.UsageError(f"--out names one picture, but there are {len(inputs)} inputs. Leave it out.")
    if target is not None and targets is not None:
        raise click.UsageError("--target and --targets exclude each other.")
    if out is not None and out.suffix.lower() != ".png":
        raise click.UsageError(f"--out {out}: pictures are saved as .png, which keeps the recipe with the picture.")
    explainer = _explainer(method, n_samples=samples, noise_level=noise_level, seed=seed)
    model = _model(**model_options)
    if target is not None:
        _check_target(model, target)
    pictures = [out] if out else _distinct([f"{Path(name).stem}.{explainer.card.name}" for name in inputs], ".png")
    maps: list[Path | None] = [None] * len(inputs)
    if save is not None:
        maps = [save / p.with_suffix(".safetensors").name for p in pictures]
        _make_folder(save)

    def one(name: str, report: Report) -> None:
        i = next(indices)
        picture, raw = None if no_picture else pictures[i], maps[i]
        for path in (picture, raw):
            _keep_existing(path, force)
        x = model.read(name)
        chosen: Any = target
        if targets:
            chosen = [index for _, _, index in model.predict(x).top(targets)]
            x = _repeated(x, len(chosen))
        a = explainer(model, x, chosen, progress=report)
        if picture is not None:
            _draw(a, view, channels).save(picture)
        if raw is not None:
            a.save(raw)
        if as_json:
            click.echo(json.dumps(_as_data(name, a, picture, raw)))
        else:
            _tell(name, a, x, [path for path in (picture, raw) if path is not None])

    indices = iter(range(len(inputs)))
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
        fitting = [_card_data(card) for card in found.fitting]
        excluded = [{**_card_data(e.card), "reasons": list(e.reasons)} for e in found.excluded]
        click.echo(json.dumps({"fitting": fitting, "excluded": excluded}))
        return
    width = max((len(card.name) for card in (*found.fitting, *(e.card for e in found.excluded))), default=0)
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
@click.argument("inputs", nargs=-1, required=True)
@click.option(
    "--methods", "names", default="simple-gradient,smooth-grad", show_default=True, help="Names, with commas."
)
@click.option("--target", help="Class to explain: a label or an index; the top class if left out.")
@click.option("--copies", type=click.IntRange(1), default=2, show_default=True, help="Noised copies to compare with.")
@click.option("--copy-noise", type=float, default=0.02, show_default=True, help="Their noise, a fraction of the range.")
@click.option("--shared-noise", is_flag=True, help="Sampled methods use the same noise for input and copies.")
@click.option("--samples", type=click.IntRange(1), help="Samples of the sampled methods.  [default: the method's]")
@click.option("--seed", type=click.IntRange(0), help="Seed of all noise.  [default: 0]")
@click.option("--out", type=click.Path(path_type=Path), help="The picture's name, for a single input.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each input on standard output.")
@click.option("--force", is_flag=True, help="Replace files that exist.")
@_model_options
def compare(
    inputs: tuple[str, ...], names: str, target: str | None, copies: int, copy_noise: float, shared_noise: bool,
    samples: int | None, seed: int | None, out: Path | None, as_json: bool, force: bool, **model_options: Any,
) -> None:  # fmt: skip
    """Draw methods side by side for each input and for slightly noised copies with the same prediction."""
    from pellucid.metrics.stability import stability
    from pellucid.modalities.image.picture import comparison_page

    if out is not None and len(inputs) > 1:
        raise click.UsageError(f"--out names one picture, but there are {len(inputs)} inputs. Leave it out.")
    if not 0 < copy_noise <= 1:
        raise click.UsageError(f"--copy-noise is a fraction of the input's range, over 0 up to 1. Got {copy_noise}.")
    explainers = [_explainer(n, n_samples=samples, seed=seed, partly=True) for n in names.split(",")]
    model = _model(**model_options)
    if target is not None:
        _check_target(model, target)
    pictures = [out] if out else _distinct([f"{Path(name).stem}.compare" for name in inputs], ".png")
    noise = "the same noise for input and copies" if shared_noise else "independent noise for input and copies"

    def one(name: str, report: Report) -> None:
        picture = pictures[next(indices)]
        _keep_existing(picture, force)
        x = model.read(name)
        settings: dict[str, Any] = {
            "level": copy_noise,
            "copies": copies,
            "seed": seed or 0,
            "shared_noise": shared_noise,
        }
        results = stability(model, x, explainers, target=target, **settings)
        comparison_page(results, noise=f"Copies at noise level {copy_noise}; {noise}.").save(picture)
        if as_json:
            alike = {r.explainer.card.name: list(r.rank_correlations) for r in results}
            click.echo(json.dumps({"input": name, "rank_correlation": alike, "picture": str(picture), **settings}))
            return
        click.echo(f"{name}: {results[0].original.decision.label} -> {picture}")
        for result in results:
            each = ", ".join(f"{value:.2f}" for value in result.rank_correlations)
            click.echo(f"  {result.explainer.card.name}: rank correlation with the copies {each}")

    indices = iter(range(len(inputs)))
    _each(inputs, one, as_json)


@cli.command()
@click.argument("inputs", nargs=-1, required=True)
@click.option("--target", help="Class to explain: a label or an index; each input's top class if left out.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each input on standard output.")
@_model_options
def check(inputs: tuple[str, ...], target: str | None, as_json: bool, **model_options: Any) -> None:
    """Is this model fit to be explained on INPUTS, and what to do if not? Exit code 1 if it is not."""
    from pellucid.catalogue import methods as find_methods
    from pellucid.core.diagnosis import Severity
    from pellucid.explainers.simple_gradient import SimpleGradient

    model = _model(**model_options)
    unfit = []

    def one(name: str, report: Report) -> None:
        x = model.read(name)
        a = SimpleGradient()(model, x, target)
        top = model.predict(x).top(5)
        fit = not any(finding.severity is Severity.ERROR for finding in a.findings)
        if not fit:
            unfit.append(name)
        if as_json:
            found = [{**vars(f), "input": name} for f in a.findings]
            click.echo(json.dumps({"input": name, "model": model.name, "fit": fit, "top": top, "findings": found}))
            return
        click.echo(f"{name}: {model.name} says " + ", ".join(f"{label} {value:.1%}" for label, value, _ in top[:3]))
        click.echo(f"  offers {model.offers}; {len(find_methods(model=model))} methods fit; this check took {a.cost}")
        for finding in a.findings:
            click.echo(f"  {finding.severity}: {finding}")
        click.echo("  fit to be explained" if fit else "  not fit to be explained as it is")

    _each(inputs, one, as_json)
    if unfit:
        sys.exit(1)


def main() -> NoReturn:
    """The console script."""
    try:
        sys.exit(cli.main(standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("Stopped.", err=True)
        sys.exit(130)
    except PellucidError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)
    except BrokenPipeError:
        sys.stderr.close()  # nobody reads on; say nothing
        sys.exit(1)


def _each(inputs: Sequence[str], one: Callable[[str, Report], None], as_json: bool) -> None:
    """Every input, whatever happens to the others; then the exit code."""
    failed = 0
    done = 0
    with _progress(len(inputs)) as report_for:
        try:
            for name in inputs:
                try:
                    one(name, report_for(name))
                    done += 1
                except PellucidError as error:
                    failed += 1
                    line = str(error) if name in str(error) else f"{name}: {error}"
                    click.echo(f"Error: {line}", err=True)
                    if as_json:
                        click.echo(json.dumps({"input": name, "error": line}))
                except Exception:  # noqa: BLE001  # a defect of pellucid: told in full, and the other inputs still run
                    failed += 1
                    click.echo(f"Error: {name}: a defect of pellucid; please report what follows.", err=True)
                    click.echo(traceback.format_exc(), err=True)
        except KeyboardInterrupt:
            click.echo(f"Stopped. {done} of {len(inputs)} inputs are done; what was written stays.", err=True)
            sys.exit(130)
    if failed:
        sys.exit(1)


@contextmanager
def _progress(count: int) -> Iterator[Callable[[str], Report]]:
    """A live line on a terminal; nothing in a pipe."""
    if not sys.stderr.isatty():
        yield lambda name: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        number = iter(range(1, count + 1))

        def report_for(name: str) -> Report:
            place = f"[{next(number)}/{count}] " if count > 1 else ""
            bar.reset(task, description=f"{place}{Path(name).name}".replace("[", "\\["), total=None)
            return lambda progress: bar.update(task, completed=progress.done, total=progress.total)

        yield report_for


def _explainer(name: str, *, partly: bool = False, **settings: Any) -> "Explainer":
    """The method with the settings that were given; `partly` leaves out those that it does not have."""
    from dataclasses import fields

    from pellucid.catalogue import find
    from pellucid.core.explainer import Explainer

    try:
        method = find(name)
        if not issubclass(method, Explainer):
            raise click.UsageError(f"{name} is global: it explains a model, not an input. Use it from Python.")
        known = {f.name for f in fields(method)}  # type: ignore[arg-type]  # every method is a dataclass
        given = {key: value for key, value in settings.items() if value is not None}
        surplus = [] if partly else [key for key in given if key not in known]
        if surplus:
            flags = {"n_samples": "--samples", "noise_level": "--noise-level", "seed": "--seed"}
            raise click.UsageError(
                f"{name} has no {' and no '.join(flags[key] for key in surplus)}: nothing is sampled."
            )
        return method(**{key: value for key, value in given.items() if key in known})
    except PellucidError as error:
        raise click.UsageError(str(error)) from error


def _model(
    model_name: str, size: Any, mean: Any, std: Any, resize: str | None, labels: Path | None, trust_model: bool,
    device: str | None,
) -> "Model":  # fmt: skip
    from pellucid.models.description import Description, read_labels
    from pellucid.models.load import DEFAULT, load

    given = {"size": size, "mean": mean, "std": std, "resize": resize}
    settings = tuple((name, value) for name, value in given.items() if value is not None)
    if model_name == DEFAULT and (settings or labels):
        raise click.UsageError(
            f"{DEFAULT} knows its preprocessing and labels; --size, --mean … are for your own model."
        )
    try:
        description = Description(settings, read_labels(labels) if labels else None)
        return load(model_name, description=description, trust=trust_model, device=device)
    except PellucidError as error:
        raise click.UsageError(str(error)) from error


def _check_target(model: "Model", target: str) -> None:
    try:
        if model.labels is not None:
            model.labels.find(target)
    except TargetError as error:
        raise click.UsageError(str(error)) from error


def _distinct(stems: Sequence[str], suffix: str) -> list[Path]:
    """A file in this folder for each stem; equal stems are numbered."""
    taken: set[str] = set()
    names = []
    for stem in stems:
        first, _, method = stem.rpartition(".")
        name, number = stem, 2
        while name.lower() in taken:
            name, number = f"{first}-{number}.{method}", number + 1
        taken.add(name.lower())
        names.append(Path(name + suffix))
    return names


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.UsageError(f"--save {folder}: cannot be made ({error.strerror}).") from error


def _keep_existing(path: Path | None, force: bool) -> None:
    from pellucid.errors import OutputError

    if path is not None and path.exists() and not force:
        raise OutputError(f"{path} exists and is kept. Give --force to replace it, or another name.")


def _repeated(x: "Input", times: int) -> "Input":
    from pellucid.core.input import Input

    return Input(
        x.tensor.repeat(times, *(1,) * (x.tensor.ndim - 1)), x.sources * times, x.views * times, x.notes * times
    )


def _draw(a: "Attribution", view: str, channels: "Channels") -> Any:
    from pellucid.modalities.image.picture import heatmap, overlay, page

    if view == "overlay":
        return overlay(a, channels=channels)
    return heatmap(a, channels=channels) if view == "heatmap" else page(list(a), channels=channels)


def _tell(name: str, a: "Attribution", x: "Input", written: Sequence[Path]) -> None:
    decisions = ", ".join(d.label if d.probability is None else f"{d.label} {d.probability:.1%}" for d in a.decisions)
    click.echo(f"{name}: {decisions}" + (f" -> {', '.join(map(str, written))}" if written else ""))
    for note in x.notes[0]:
        click.echo(f"  note: {note}", err=True)
    for finding in _once(a.findings):
        click.echo(f"  {finding.severity}: {finding}", err=True)


def _once(findings: Sequence["Finding"]) -> list["Finding"]:
    """Findings about several rows of one photo, told once."""
    return list({finding.code: finding for finding in findings}.values())


def _as_data(name: str, a: "Attribution", picture: Path | None, raw: Path | None) -> dict[str, Any]:
    from pellucid.core.recipe import encode

    return {
        "input": name,
        "method": a.recipe.explainer["type"],
        "decisions": [{**vars(d), "target": encode(d.target)} for d in a.decisions],
        "samples_used": list(a.estimate.samples),
        "stopped": a.estimate.stopped,
        "passes": vars(a.cost),
        "findings": [vars(f) for f in a.findings],
        "picture": None if picture is None else str(picture),
        "map": None if raw is None else str(raw),
        "recipe": vars(a.recipe),
    }


def _card_data(card: Any) -> dict[str, Any]:
    plain = {name: str(getattr(card, name)) for name in ("name", "title", "scope", "access", "stage", "applicability")}
    return {
        **plain,
        "needs": str(card.needs).split(" and "),
        "cost": vars(card.cost),
        "sampled": card.sampled,
        "modalities": sorted(card.modalities),
        "reference": card.reference,
        "caveats": list(card.caveats),
    }
