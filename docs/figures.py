"""Draw every figure and table of README and docs: `make figures`.

The cat and the coffee cup ship with scikit-image (CC0). The dog and banana, and the photos of the stability table, are
read from ../shared/data, whose licences do not allow the photos themselves in here: of them only maps are shown.
"""

import copy
import csv
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from scipy.stats import bootstrap
from skimage import data
from tests import networks
from tools.generate import filled

import pellucid as pl
from pellucid.metrics.stability import Stability, stability
from pellucid.modalities.image.draw import Drawing, Panel, compose
from pellucid.modalities.image.heatmap import to_heatmap
from pellucid.modalities.image.picture import map_panel, metadata, method_title, on_one_scale, title_of

HERE = Path(__file__).parent
SHARED = HERE.parents[1] / "shared" / "data"
PHOTOS = 20
ESTIMATORS = (pl.Mean(), pl.Shrunk(pl.Factored()))
DOG, BANANA = 222, 954  # kuvasz, the likeliest dog of the picture, and banana, its likeliest class


def cat(model: pl.Model) -> None:
    """The page that `pellucid explain cat.png` draws, and its comparison."""
    x = model.read(data.chelsea())
    by_default = pl.SmoothGrad(estimator=pl.Shrunk(pl.Factored()))  # of the command line
    pl.page([by_default(model, x)]).save(HERE / "img" / "cat.smooth-grad.png")
    results = stability(model, x, [pl.SimpleGradient(), pl.SmoothGrad()], copies=2)
    noise = "Copies at noise level 0.02; independent noise for input and copies."
    pl.comparison_page(results, noise=noise).save(HERE / "img" / "cat.compare.png")


def estimators(model: pl.Model) -> None:
    """The maps of a coffee cup by two estimators and three numbers of samples; and how the error of the best falls."""
    x = model.read(data.coffee())
    converged = pl.SmoothGrad(n_samples=1008, seed=1)(model, x)
    rows = [[pl.SmoothGrad(n_samples=n, estimator=e)(model, x) for n in (8, 16, 48)] for e in ESTIMATORS]
    estimators_page(rows, converged).save(HERE / "img" / "estimators.png")
    pl.convergence(rows[-1][-1]).save(HERE / "img" / "convergence.png")


def estimators_page(rows: list[list[pl.Attribution]], converged: pl.Attribution) -> Drawing:
    """A row of maps for each estimator, then the converged map and the photo; all on the converged map's scale."""
    limit = to_heatmap(converged).limit

    def panel(a: pl.Attribution, words: str) -> Panel:
        title = f"{words}, n = {a.samples_used}\nestimated error {float(a.estimated_error):.2f}"
        return replace(map_panel(a, to_heatmap(a, limit=limit)), title=title)

    def compared(a: pl.Attribution, words: str) -> Panel:
        one = panel(a, words)
        return replace(one, title=f"{one.title}, found {difference(a, converged):.2f}")

    view = converged.views[0]
    left, top, right, bottom = (round(side) for side in view.geometry["box"])
    photo = Panel(
        view.preview.numpy()[top:bottom, left:right], f"the photo as the model sees it\n{title_of(converged)}"
    )
    last = [panel(converged, "plain mean, other noise"), photo]
    panels = [
        [*(compared(a, estimator.words or "plain mean") for a in maps), beside]
        for maps, estimator, beside in zip(rows, ESTIMATORS, last, strict=True)
    ]
    caption = (
        "SmoothGrad of one photo at noise level 0.15. First three columns: seed 0; upper right: seed 1, nearly "
        "converged. All maps on the scale of that one, which ends at the 99th percentile of its own pixels. Estimated "
        "error: relative RMS error as the samples themselves show it. Found: the difference from that map, without the "
        "part that is its own error."
    )
    return compose(panels, metadata([*(a for maps in rows for a in maps), converged]), caption)


def difference(a: pl.Attribution, converged: pl.Attribution) -> float:
    """The relative RMS error of a map, as an independent, converged plain mean shows it."""
    noise = float(converged.standard_error.double().square().mean())
    power = float(converged.scores.double().square().mean()) - noise
    apart = float((a.scores.double() - converged.scores.double()).square().mean())
    return math.sqrt(max(apart - noise, 0) / power)


def dog_banana(model: pl.Model) -> None:
    """The maps of a picture with a dog in its left half and a banana in its right half, for each of the two."""
    x = model.read(SHARED / "pictures" / "dog_banana.png")
    maps = [pl.SmoothGrad()(model, x, target) for target in (DOG, BANANA)]
    panels = []
    for a, heat in zip(maps, on_one_scale(maps), strict=True):
        power = a.scores.abs().sum((0, 1, 2))
        left = float(power[:112].sum() / power.sum())
        title = f"{title_of(a)}\n{left:.0%} of |score| left, {1 - left:.0%} right"
        panels.append(replace(map_panel(a, heat), title=title))
    caption = "One picture, a dog in its left half and bananas in its right half. SmoothGrad, 50 samples."
    compose([panels], metadata(maps), caption).save(HERE / "img" / "dog_banana.png")


GALLERY = (
    pl.SimpleGradient(), pl.SmoothGrad(), pl.InputXGradient(), pl.IntegratedGradients(),
    pl.SmoothGrad(base=pl.IntegratedGradients(n_steps=10), n_samples=20), pl.GuidedIntegratedGradients(),
    pl.FullGrad(), pl.CAM(), pl.GradCAM(), pl.GradCAMPlusPlus(), pl.LayerCAM(layer=("stages.2", "stages.4", "head")),
    pl.EigenCAM(), pl.ScoreCAM(), pl.AblationCAM(), pl.SmoothGrad(base=pl.HiResCAM(layer="stages.4")),
)  # fmt: skip


def gallery(model: pl.Model) -> None:
    """Fifteen methods' maps of the cat."""
    x = model.read(data.chelsea())
    drawing = pl.gallery([explain(model, x) for explain in GALLERY])
    saved(drawing, "gallery.png")


RELEVANCE = (
    pl.GuidedBackprop(),
    pl.GuidedGradCAM(),
    pl.LRP(),
    pl.LRP.epsilon(0.25),
    pl.LRP.epsilon_gamma_box(),
    pl.ExcitationBackprop(),
    pl.DeepLIFT(baseline=pl.FeatureMean()),
)


def relevance(model: pl.Model) -> None:
    """The methods of relevance on the cat."""
    x = model.read(data.chelsea())
    drawing = pl.gallery([explain(model, x) for explain in RELEVANCE])
    saved(drawing, "relevance.png")


BLACK_BOXES = (
    pl.Occlusion(),
    pl.KernelSHAP(estimator=pl.PairedGP(), budget=1024),
    pl.KernelSHAP(estimator=pl.PairedGP(), budget=1024, segments=pl.Superpixels(count=50)),
    pl.DebiasedRISE(estimator=pl.PairedGP(), budget=1024),
    pl.LIME(budget=1024),
    pl.StochasticGradient(segments=pl.Patches(7), budget=1024),
    pl.SmallestChange(),
)


def black_boxes(model: pl.Model) -> None:
    """The cat by methods that see scores only."""
    x = model.read(data.chelsea())
    saved(pl.gallery([explain(model, x) for explain in BLACK_BOXES]), "black_box.png")


RANDOMISED = (pl.SimpleGradient(), pl.LRP.epsilon(0.25), pl.GuidedBackprop())
BLOCKS = ("classifier", "head", "stages.6", "stages.4", "stages.2", "stem")


def randomised(model: pl.Model) -> None:
    """Maps of the cat as the network's weights are drawn at random from its last block down (Adebayo et al. 2018)."""
    x = model.read(data.chelsea())
    own = model.predict(x).outputs.argmax(1).tolist()
    net = copy.deepcopy(model.net)
    generator = torch.Generator().manual_seed(0)
    names = [name for name, _ in net.named_parameters()][::-1]
    models, done = [("the network", model)], 0
    for block in BLOCKS:
        upto = max(i for i, name in enumerate(names) if name.startswith(f"{block}.")) + 1
        with torch.no_grad():
            for name in names[done:upto]:
                weight = net.get_parameter(name)
                drawn = torch.randn(weight.shape, generator=generator) * weight.std(correction=0) + weight.mean()
                weight.copy_(drawn)
        done = upto
        models.append((f"random from {block} up", pl.TorchModel(copy.deepcopy(net), preprocess=model.preprocess)))
    rows = []
    for explain in RANDOMISED:
        maps = [explain(each, x, target=own) for _, each in models]
        first = maps[0].scores.abs().sum(1)
        alike = [pl.rank_correlation(first, a.scores.abs().sum(1)) for a in maps]
        words = [f"{method_title(explain)}\n{title}, {r:.2f}" for (title, _), r in zip(models, alike, strict=True)]
        panels = [map_panel(a, to_heatmap(a, channels="sum_abs")) for a in maps]
        rows.append([replace(panel, title=title) for panel, title in zip(panels, words, strict=True)])
    caption = (
        "Maps of the cat for its class while weights are replaced by normal numbers of the same mean and spread, from "
        "the last block down; the number is the rank correlation of magnitudes with the network's own map. A map that "
        "explains what was learnt changes at once."
    )
    saved(compose(rows, metadata([]), caption), "randomised.png")


def saved(drawing: Drawing, name: str) -> None:
    """Written at a width that a page shows: photos at their own size would be megabytes."""
    info = PngImagePlugin.PngInfo()
    info.add_itxt("pellucid", drawing.metadata, zip=True)
    wide = 1120
    high = round(drawing.pixels.shape[0] * wide / drawing.pixels.shape[1])
    page = Image.fromarray(drawing.pixels).resize((wide, high), Image.Resampling.LANCZOS)
    page.save(HERE / "img" / name, pnginfo=info, optimize=True)


RESIDUAL_PHOTOS = 10
STEPS, BASELINES = (25, 50, 100, 200), {"black": pl.Pixel(0.0), "mean colour": pl.FeatureMean(), "blur": pl.Blur()}


def residual_table(model: pl.Model) -> str:
    """The relative residual of Integrated Gradients, a row a baseline, a column a number of steps."""
    files = sorted((SHARED / "ilsvrc2012-val-650" / "images").iterdir())[:RESIDUAL_PHOTOS]
    photos = [model.read(file) for file in files]
    head = f"| baseline | {' | '.join(f'{n} steps' for n in STEPS)} |\n|---|{'--:|' * len(STEPS)}\n"
    rows = []
    for name, baseline in BASELINES.items():
        cells = []
        for n in STEPS:
            maps = [pl.IntegratedGradients(baseline=baseline, n_steps=n)(model, x) for x in photos]
            shares = [abs(float(a.residual[0]) / a.recipe.notes["change"][0]) for a in maps]
            cells.append(f"{np.median(shares):.1%} ({max(shares):.0%})")
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return head + "\n".join(rows) + "\n"


COMPOSITES = {
    "`LRP()`": pl.LRP(),
    "`.epsilon(0)`": pl.LRP.epsilon(0.0),
    "`.epsilon_plus()`": pl.LRP.epsilon_plus(),
    "`.epsilon_alpha2_beta1_flat()`": pl.LRP.epsilon_alpha2_beta1_flat(),
    "`.epsilon_gamma_box()`": pl.LRP.epsilon_gamma_box(),
    "`.attn_lrp()`": pl.LRP.attn_lrp(),
}


def leak_table(model: pl.Model, x: pl.Input, stage: Callable[[str], str], target: int | None = None) -> str:
    """What each composite loses in each stage, in hundredths of the score, and what arrives at the input."""
    columns = []
    for explain in COMPOSITES.values():
        leaks = explain.leaks(model, x, target)
        lost: dict[str, float] = {}
        for one in leaks:
            lost[stage(one.module)] = lost.get(stage(one.module), 0.0) + one.arrived - one.handed_on
        score = leaks[-1].arrived
        columns.append({name: value / score for name, value in lost.items()})
    rows = [f"| stage | {' | '.join(COMPOSITES)} |", f"|---|{'--:|' * len(COMPOSITES)}"]
    for name in columns[0]:
        if all(abs(column[name]) < 5e-4 for column in columns):  # nothing but zeros
            continue
        rows.append(f"| {name} | {' | '.join(f'{column[name]:.1%}' for column in columns)} |")
    rows.append(f"| **input** | {' | '.join(f'**{1 - sum(column.values()):.1%}**' for column in columns)} |")
    return "\n".join(rows) + "\n"


def leak_tables(model: pl.Model) -> str:
    """Of the cat, on EfficientNet-Lite0 and on SqueezeNet, whose weights `make test` fetches."""

    def stage(module: str) -> str:
        return ".".join(module.split(".")[: 2 if module.startswith("stages") else 1])

    def fire(module: str) -> str:
        first = module.split(".", maxsplit=1)[0]
        return f"fire {first}" if "." in module else first

    squeezenet = networks.squeezenet()
    squeezenet.preprocess = pl.ImagePreprocess(size=227, mean=(104 / 255, 117 / 255, 123 / 255), std=1 / 255)
    x = pl.Input(networks.as_squeezenet_takes(networks.photos(227)[:1]))
    first = leak_table(model, model.read(data.chelsea()), stage)
    return f"EfficientNet-Lite0:\n\n{first}\nSqueezeNet 1.1:\n\n{leak_table(squeezenet, x, fire)}"


ENERGY_PHOTOS, LARGEST_BOX = 100, 0.5
POINTING = (
    pl.SimpleGradient(), pl.SmoothGrad(estimator=pl.Shrunk(pl.Factored()), n_samples=48), pl.InputXGradient(),
    pl.IntegratedGradients(), pl.FullGrad(), pl.GradCAM(), pl.GradCAMPlusPlus(), pl.HiResCAM(), pl.XGradCAM(),
    pl.LayerCAM(), pl.EigenCAM(), pl.AblationCAM(),
)  # fmt: skip


def boxed(model: pl.Model) -> list[tuple[pl.Input, int, np.ndarray]]:
    """Photos whose boxes cover less than half of what the model sees: input, true class, pixels inside a box."""
    folder = SHARED / "ilsvrc2012-val-650"
    with (folder / "boxes.csv").open() as file:
        rows = list(csv.DictReader(file))
    found: list[tuple[pl.Input, int, np.ndarray]] = []
    for name in sorted({row["file"] for row in rows}):
        x = model.read(folder / "images" / name)
        high, wide = x.views[0].geometry["size"]
        left, top, right, bottom = x.views[0].geometry["box"]
        inside = np.zeros(x.tensor.shape[2:], dtype=bool)
        own = [row for row in rows if row["file"] == name]
        for row in own:
            across, down = float(row["orig_w"]), float(row["orig_h"])
            x0, x1 = ((float(row[k]) / across * wide - left) / (right - left) * inside.shape[1] for k in ("x0", "x1"))
            y0, y1 = ((float(row[k]) / down * high - top) / (bottom - top) * inside.shape[0] for k in ("y0", "y1"))
            inside[max(round(y0), 0) : max(round(y1), 0), max(round(x0), 0) : max(round(x1), 0)] = True
        if 0 < inside.mean() < LARGEST_BOX:
            found.append((x, int(own[0]["class_index"]), inside))
        if len(found) == ENERGY_PHOTOS:
            break
    return found


def energy(a: pl.Attribution, inside: np.ndarray) -> float:
    """The share of a map's energy inside: the magnitude of an unsigned map, the positive part of a signed one."""
    values = np.clip(to_heatmap(a).values, 0, None)
    return float(values[inside].sum() / values.sum()) if values.any() else float(inside.mean())


def energy_table(model: pl.Model) -> str:
    """Energy in the box, a row a method, with a 95 % bootstrap interval over the photos."""
    photos = boxed(model)
    uniform = [float(inside.mean()) for _, _, inside in photos]
    head = f"| method | energy in the box, {len(photos)} photos | 95 % interval |\n|---|--:|---|\n"
    rows = [f"| a uniform map | {np.mean(uniform):.2f} | |"]
    for explain in POINTING:
        shares = [energy(explain(model, x, target), inside) for x, target, inside in photos]
        interval = bootstrap((shares,), np.mean, rng=np.random.default_rng(0)).confidence_interval
        rows.append(f"| {method_title(explain)} | {np.mean(shares):.2f} | {interval.low:.2f} to {interval.high:.2f} |")
    return head + "\n".join(rows) + "\n"


def measured(model: pl.Model) -> list[list[Stability]]:
    """Both methods on photos of ImageNet's validation set, of which a noised copy keeps the prediction."""
    folder = SHARED / "ilsvrc2012-val-650"
    with (folder / "boxes.csv").open() as file:
        names = iter(sorted({row["file"] for row in csv.DictReader(file)})[30::27])
    results: list[list[Stability]] = []
    while len(results) < PHOTOS:
        x = model.read(folder / "images" / next(names))
        try:
            results.append(stability(model, x, [pl.SimpleGradient(), pl.SmoothGrad()], copies=1))
        except pl.ModelError:  # it lies on a decision boundary: no copy keeps the prediction
            continue
    return results


def stability_table(model: pl.Model) -> str:
    """Rank correlation of the signed maps of photo and copy, a row a photo, and the mean gain with its interval."""
    rows, gains = [], []
    for simple, smooth in measured(model):
        gains.append(smooth.mean - simple.mean)
        decision = simple.original.decision
        photo = Path(decision.source).stem.removeprefix("ILSVRC2012_val_")
        rows.append(f"| {photo} | {decision.label} | {simple.mean:.2f} | {smooth.mean:.2f} | {gains[-1]:+.2f} |")
    interval = bootstrap((gains,), np.mean, rng=np.random.default_rng(0)).confidence_interval
    head = "| photo | top class | Simple Gradient | SmoothGrad | gain |\n|---|---|--:|--:|--:|\n"
    better = sum(gain > 0 for gain in gains)
    return (
        f"{head}{chr(10).join(rows)}\n\nSmoothGrad is the more stable one on {better} of {len(gains)} photos; its mean "
        f"gain is {np.mean(gains):.3f}, with a 95 % bootstrap interval {interval.low:.3f} to {interval.high:.3f}.\n"
    )


def main() -> None:
    """Draw what can be drawn here, and say what cannot."""
    (HERE / "img").mkdir(exist_ok=True)
    model = pl.load("efficientnet-lite0")
    cat(model)
    estimators(model)
    gallery(model)
    relevance(model)
    black_boxes(model)
    randomised(model)
    if missing := networks.without_sdist():
        print(json.dumps({"left as it is": "relevance.md", "why": missing}))
    else:
        page = HERE / "relevance.md"
        page.write_text(filled(page, "leaks", leak_tables(model)))
    if not SHARED.is_dir():
        print(
            json.dumps(
                {
                    "left as they are, without ../shared/data": [
                        "img/dog_banana.png",
                        "stability.md",
                        "gradients.md",
                        "activation_maps.md",
                    ]
                }
            )
        )
        return
    dog_banana(model)
    page = HERE / "stability.md"
    page.write_text(filled(page, "table", stability_table(model)))
    page = HERE / "gradients.md"
    page.write_text(filled(page, "residuals", residual_table(model)))
    page = HERE / "activation_maps.md"
    page.write_text(filled(page, "energy", energy_table(model)))


if __name__ == "__main__":
    main()
