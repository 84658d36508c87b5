"""What the first page promises, on real photos and the embedded model."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

import pellucid as pl
from pellucid.metrics.stability import stability

DOG, BANANA = 222, 954  # kuvasz and banana: the likeliest dog and the likeliest class of dog_banana.png


def share(scores: torch.Tensor, part: np.ndarray) -> float:
    """The share of |score| that lies in a part of the picture."""
    size = torch.from_numpy(part)[None, None].float()
    inside = torch.nn.functional.interpolate(size, scores.shape[2:], mode="area") > 0.5
    total = scores.abs().sum(1, keepdim=True)
    return float(total[inside].sum() / total.sum())


@pytest.mark.parametrize("seed", range(3))
def test_each_class_of_a_dog_and_a_banana_is_explained_by_its_own_half(lite0, shared_data, seed):
    x = lite0.read(shared_data / "pictures" / "dog_banana.png")
    left = np.zeros((448, 448), dtype=bool)
    left[:, :224] = True
    dog, banana = (pl.SmoothGrad(seed=seed)(lite0, x, target).scores for target in (DOG, BANANA))
    assert share(dog, left) > 0.5
    assert share(banana, ~left) > 0.5
    assert share(dog, left) - share(banana, left) >= 0.25


def test_smooth_grad_is_more_stable_than_the_simple_gradient(lite0, shared_data):
    """Rank correlation of the signed maps of a photo and its copy at noise level 0.02, independent noise, 10 photos."""
    from scipy.stats import bootstrap

    folder = shared_data / "ilsvrc2012-val-650"
    with (folder / "boxes.csv").open() as file:
        names = iter(sorted({row["file"] for row in csv.DictReader(file)})[30::31])
    gains: list[float] = []
    while len(gains) < 10:
        x = lite0.read(folder / "images" / next(names))
        try:
            simple, smooth = stability(lite0, x, [pl.SimpleGradient(), pl.SmoothGrad()], level=0.02, copies=1)
        except pl.ModelError:  # no copy keeps the prediction: nothing to compare
            continue
        gains.append(smooth.mean - simple.mean)
    assert sum(gain > 0 for gain in gains) >= 9
    interval = bootstrap((gains,), np.mean, rng=np.random.default_rng(0)).confidence_interval
    assert interval.low > 0


def test_the_same_seed_gives_the_same_map_in_any_company(lite0, chelsea):
    from skimage import data

    explain = pl.SmoothGrad(n_samples=6)
    alone = explain(lite0, lite0.read(chelsea)).scores[0]
    together = explain(lite0, lite0.read([data.coffee(), chelsea])).scores[1]
    assert float((alone - together).abs().max()) <= 1e-5 * float(alone.abs().max())


def test_a_cat_is_seen_as_a_cat(lite0, chelsea):
    assert {index for _, _, index in lite0.predict(lite0.read(chelsea)).top(3)} == {281, 282, 285}


ESTIMATORS = (pl.Shrunk(), pl.Factored(), pl.Shrunk(pl.Factored()), pl.Combined())


def calibration(lite0: pl.Model, files: list[Path], counts: tuple[int, ...], reference: int) -> dict[str, float]:
    """The median over the photos of true over estimated error, against two halves of a plain mean of other noise."""
    ratios: dict[str, list[float]] = {}
    for file in files:
        x = lite0.read(file)
        a, b = (pl.SmoothGrad(n_samples=reference, seed=seed)(lite0, x).scores.double() for seed in (1000, 1001))
        for estimator in ESTIMATORS:
            for n in counts:
                found = pl.SmoothGrad(n_samples=n, estimator=estimator)(lite0, x)
                m = found.scores.double()
                true = float(((m - a) * (m - b)).mean() / (a * b).mean())  # free of the halves' own noise
                ratios.setdefault(f"{estimator}, n = {n}", []).append(true**0.5 / float(found.estimated_error))
    return {name: float(np.median(values)) for name, values in ratios.items()}


def test_estimated_errors_are_those_that_are_found(lite0, shared_data):
    files = sorted((shared_data / "ilsvrc2012-val-650" / "images").iterdir())[25::130]
    found = calibration(lite0, files, (16, 48), 120)
    assert len(files) == 5
    assert {name: ratio for name, ratio in found.items() if not 0.8 <= ratio <= 1.25} == {}


@pytest.mark.slow
def test_estimated_errors_are_those_that_are_found_on_more_photos(lite0, shared_data):
    files = sorted((shared_data / "ilsvrc2012-val-650" / "images").iterdir())[25::52]
    found = calibration(lite0, files, (16, 48, 400), 500)
    assert len(files) >= 12
    assert {name: ratio for name, ratio in found.items() if not 0.8 <= ratio <= 1.25} == {}


BLACK_BOXES = [
    pl.Occlusion(),
    pl.DebiasedRISE(estimator=pl.PairedGP(), budget=512),
    pl.KernelSHAP(estimator=pl.PairedGP(), budget=512),
]


def positive_share(scores: torch.Tensor, part: np.ndarray) -> float:
    """The share of what speaks for the class that lies in a part of the picture."""
    return share(scores.clamp(min=0), part)


@pytest.mark.parametrize("explain", BLACK_BOXES, ids=lambda explain: explain.card.name)
def test_black_boxes_too_explain_each_class_by_its_own_half(lite0, shared_data, explain):
    x = lite0.read(shared_data / "pictures" / "dog_banana.png")
    right = np.zeros((448, 448), dtype=bool)
    right[:, 224:] = True
    dog, banana = (positive_share(explain(lite0, x, target).scores, right) for target in (DOG, BANANA))
    assert banana > 0.5 > dog
    assert banana - dog >= 0.25


@pytest.mark.slow
@pytest.mark.parametrize("explain", BLACK_BOXES, ids=lambda explain: explain.card.name)
def test_on_ten_photos_black_boxes_point_at_the_object(lite0, shared_data, explain):
    """The share of what speaks for the class within the boxes of the object, over the boxes' share of the area."""
    folder = shared_data / "ilsvrc2012-val-650"
    with (folder / "boxes.csv").open() as file:
        rows = list(csv.DictReader(file))
    gains = []
    for name in sorted({row["file"] for row in rows})[30::62][:10]:
        x = lite0.read(folder / "images" / name)
        inside = np.zeros((227, 227), dtype=bool)
        for row in rows:
            if row["file"] == name:
                wide, high = 227 / float(row["orig_w"]), 227 / float(row["orig_h"])
                x0, x1 = float(row["x0"]) * wide, float(row["x1"]) * wide
                y0, y1 = float(row["y0"]) * high, float(row["y1"]) * high
                inside[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))] = True
        target = int(next(row["class_index"] for row in rows if row["file"] == name))
        gains.append(positive_share(explain(lite0, x, target).scores, inside) - float(inside.mean()))
    assert np.mean(gains) > 0
    assert sum(gain > 0 for gain in gains) >= 8
