"""One game for all: the score of a photo as a function of which of its parts are present, and who estimates what of it.

Nothing is asked of the network twice. So peers and estimators that ask the same cost it once, but each is counted for
all that it asked. References are two independent halves without bias, so that in <m - a, m - b> their noise cancels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from contenders import photos
from torch import Tensor

import pellucid as pl
from networks import cifar_pictures, cifar_resnet
from pellucid.core.random import Key
from pellucid.explainers._odd_process import fit_weights
from pellucid.explainers._queried import Budgeted, Place, painted
from pellucid.explainers._shapley_process import neighbourhood, parts
from pellucid.explainers.lime import surrogate

RESNET, LITE0 = "ResNet-20", "EfficientNet-Lite0"
PHOTOS = (50, 150, 250)
PICTURES = range(10, 30, 2)
"""The second and third CIFAR picture of every other class: none was looked at while the kernels were chosen."""

CLEAN = 1
"""Of a budget, the call on the photo itself."""

_ROWS = 96  # that are made at once


# --- photos ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Photo:
    """A network, one input, and the class on top."""

    name: str
    model: pl.TorchModel
    x: Tensor

    @cached_property
    def target(self) -> int:
        """The class on top."""
        return int(self.model.predict(self.x).outputs.argmax())

    @cached_property
    def absent(self) -> Tensor:
        """What stands in for what is absent: the mean colour."""
        return pl.FeatureMean().values(self.x)


def photos_of(case: str) -> list[Photo]:
    """The photos of a network."""
    if case == LITE0:
        model = pl.TorchModel(pl.load("efficientnet-lite0").net)
        return [Photo(f"photo {i}", model, x) for i, x in zip(PHOTOS, photos(PHOTOS), strict=True)]
    pictures, model = cifar_pictures(max(PICTURES) + 1), pl.TorchModel(cifar_resnet(20))
    return [Photo(f"picture {i}", model, pictures[i : i + 1]) for i in PICTURES]


# --- games -------------------------------------------------------------------------------------------------------


class Known:
    """Scores by what was asked, and how often anybody asked."""

    def __init__(self, photo: Photo) -> None:
        self.photo, self.asked = photo, 0
        self._scores: dict[bytes, float] = {}

    def of(self, codes: Sequence[bytes], rows: Callable[[list[int]], Tensor], *, probability: bool) -> np.ndarray:
        """The score of each code; `rows` makes the inputs of those that are new."""
        self.asked += len(codes)
        fresh = list({code: i for i, code in enumerate(codes) if code not in self._scores}.values())
        for start in range(0, len(fresh), _ROWS):
            chosen = fresh[start : start + _ROWS]
            outputs = self.photo.model.predict(rows(chosen)).outputs.double()
            found = (outputs.softmax(1) if probability else outputs)[:, self.photo.target]
            self._scores.update(zip([codes[i] for i in chosen], found.tolist(), strict=True))
        return np.array([self._scores[code] for code in codes])


class Game:
    """The logit of the class on top as a function of which patches are present, (m, S) -> (m,)."""

    def __init__(self, photo: Photo, cells: int | tuple[int, int] = 7) -> None:
        self.photo, self.known = photo, Known(photo)
        self.sides = (cells, cells) if isinstance(cells, int) else cells
        self.players = int(np.prod(self.sides))
        self.labels = pl.Patches(cells).labels(photo.x)[0]

    def __call__(self, masks: Any) -> np.ndarray:
        present = np.asarray(masks).reshape(-1, self.players) > 0.5

        def rows(chosen: list[int]) -> Tensor:
            kept = torch.from_numpy(present[chosen])[:, self.labels]
            return torch.where(kept[:, None], self.photo.x, self.photo.absent)

        return self.known.of([row.tobytes() for row in np.packbits(present, axis=1)], rows, probability=False)

    def explained(self, kind: type[pl.KernelSHAP] | type[pl.LIME], budget: int, seed: int, **more: Any) -> "Estimate":
        """What pellucid finds on a picture that has one place for each patch."""
        before = self.known.asked
        method = kind(segments=pl.Patches(self.sides), baseline=pl.Zeros(), budget=budget, seed=seed, **more)
        found = method(pl.FunctionModel(self, output="regression"), self._picture)
        error = found.standard_error
        variance = None if error is None else error.flatten().numpy() ** 2
        return Estimate(found.scores.flatten().numpy(), self.known.asked - before, variance)

    def place(self, seed: int) -> Place:
        """That picture as a question sees it, with random numbers that are a reference's own."""
        labels = torch.arange(self.players).view(self.sides)
        ones = self._picture
        return Place(ones, torch.zeros_like(ones), labels, Key.named("reference").stream(seed))

    @property
    def _picture(self) -> Tensor:
        return torch.ones(1, 1, *self.sides, dtype=torch.float64)


# --- estimates ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """What somebody found, with how many calls; the squared standard errors, if it tells them."""

    values: np.ndarray
    calls: int
    variance: np.ndarray | None = None


def pellucid_kernel(estimator: Any) -> Callable[[Game, int, int], Estimate]:
    """KernelSHAP by one of pellucid's estimators."""
    return lambda game, calls, seed: game.explained(pl.KernelSHAP, calls, seed, estimator=estimator)


def _counted(find: Callable[[Game, int, int], np.ndarray]) -> Callable[[Game, int, int], Estimate]:
    def run(game: Game, calls: int, seed: int) -> Estimate:
        before = game.known.asked
        values = np.asarray(find(game, calls, seed), dtype=np.float64)
        return Estimate(values, game.known.asked - before)

    return run


def shap_kernel(**regularised: Any) -> Callable[[Game, int, int], Estimate]:
    """KernelExplainer of shap, which draws from NumPy's global state."""

    def find(game: Game, calls: int, seed: int) -> np.ndarray:
        import shap

        np.random.seed(seed)  # noqa: NPY002  # it has no seed of its own
        explain = shap.KernelExplainer(game, np.zeros((1, game.players)))
        return explain.shap_values(np.ones((1, game.players)), nsamples=calls, silent=True, **regularised)[0]

    return _counted(find)


def shap_permutation(game: Game, calls: int, seed: int) -> np.ndarray:
    """PermutationExplainer of shap: whole orders and their reverses."""
    import shap

    masker = shap.maskers.Independent(np.zeros((1, game.players)), max_samples=1)
    explain = shap.PermutationExplainer(game, masker, seed=seed)
    return explain(np.ones((1, game.players)), max_evals=calls, silent=True).values[0]


def shapiq_kernel(game: Game, calls: int, seed: int) -> np.ndarray:
    """KernelSHAP of shapiq with pairs and sizes drawn uniformly, as by leverage: its best."""
    import shapiq

    uniform = np.ones(game.players + 1)
    approximator = shapiq.KernelSHAP(game.players, pairing_trick=True, sampling_weights=uniform, random_state=seed)
    return approximator.approximate(budget=calls, game=game).get_n_order_values(1)


SHAP, SHAP_PLAIN, SHAPIQ = (
    "shap KernelExplainer",
    "shap KernelExplainer, l1_reg=0",
    "shapiq KernelSHAP, leverage, pairs",
)
PEERS: dict[str, Callable[[Game, int, int], Estimate]] = {
    SHAP: shap_kernel(),
    SHAP_PLAIN: shap_kernel(l1_reg=0),
    "shap PermutationExplainer": _counted(shap_permutation),
    SHAPIQ: _counted(shapiq_kernel),
}


def shapiq_exact(game: Game) -> np.ndarray:
    """The values from all sets, by shapiq."""
    import shapiq

    return shapiq.ExactComputer(game, game.players)("SV", 1).get_n_order_values(1)


# --- references --------------------------------------------------------------------------------------------------

Halves = tuple[np.ndarray, np.ndarray]


def shapley_halves(game: Game, pilot: int, half: int) -> Halves:
    """Shapley values by regression on `half` calls each, of what a process of `pilot` other calls leaves of the game.

    The process' own values are exact and serve both: whatever its kernels are wrong about, regression mends. So the
    halves have no bias that an estimate by those kernels could share.
    """
    place = game.place(0)
    # Without the kernels of many windows, which take most of the time: a control variate need not be the best.
    kernels = [part for part in parts(neighbourhood(place.labels.numpy())) if len(getattr(part, "windows", ())) < 2]
    first, halves = _pairs(game, seed=0, calls=pilot)
    process = fit_weights([part.gram(first) for part in kernels], halves)
    weighted = [weight * part.values(first)[0] for weight, part in zip(process.weights, kernels, strict=True)]
    known = sum(weighted) @ process.alpha

    def one(seed: int) -> np.ndarray:
        signs, halves = _pairs(game, seed, half)
        both = np.concatenate([signs, first])
        grams = (part.gram(both)[: len(signs), len(signs) :] for part in kernels)
        told = sum(weight * gram for weight, gram in zip(process.weights, grams, strict=True)) @ process.alpha
        return known + pl.Regression().shapley(signs, halves - told, place).values

    return one(1), one(2)


def _pairs(game: Game, seed: int, calls: int) -> tuple[np.ndarray, np.ndarray]:
    """The signs of sets, the full one first, and half the difference of each one's score and its complement's."""
    question = pl.KernelSHAP(budget=calls).question(game.place(seed), calls)
    masks = question.masks(range(calls))  # type: ignore[attr-defined]
    scores = game(masks)
    return np.where(masks[::2], 1.0, -1.0), (scores[::2] - scores[1::2]) / 2


def lime_halves(game: Game, calls: int, times: int) -> Halves:
    """What LIME's coefficients with so many calls are about: the same minimum over `times` as many masks, in which the
    whole input and the penalty weigh as much.
    """
    method = pl.LIME()

    def one(seed: int) -> np.ndarray:
        question = method.question(game.place(seed), calls)
        drawn = question.masks(range(1, 1 + (calls - 1) * times))  # type: ignore[attr-defined]
        masks = np.concatenate([np.ones((times, game.players), dtype=bool), drawn])
        return surrogate(masks, game(masks), method.width, times * method.penalty, whole=True).values

    return one(1), one(2)


# --- random masks ------------------------------------------------------------------------------------------------


class RandomGame:
    """The probability of the class on top under random masks."""

    def __init__(self, photo: Photo) -> None:
        self.photo, self.known = photo, Known(photo)
        places = torch.arange(photo.x[0, 0].numel()).view(photo.x.shape[2:])
        self._place = (photo.x, photo.absent, places)

    def explained(self, method: Budgeted) -> Estimate:
        """What a method of random masks finds with its budget."""
        place = Place(*self._place, Key.named(self.photo.name).stream(method.seed))
        calls = method.budget - CLEAN if isinstance(method.budget, int) else 0
        question = method.question(place, calls)
        asked = range(calls // question.size * question.size)
        codes = question.codes(asked)
        assert codes is not None  # noqa: S101  # of masks there are
        scores = self.known.of(codes, lambda chosen: question.rows(chosen, [0] * len(chosen)), probability=True)
        fit = question.fit(scores)
        variance = None if fit.variance is None else painted(fit.variance, place).flatten().numpy()
        return Estimate(painted(fit.values, place).flatten().numpy(), len(asked) + CLEAN, variance)


def rise_halves(game: RandomGame, half: int) -> Halves:
    """The mean over complementary pairs, which has no bias."""
    methods = [pl.DebiasedRISE(estimator=pl.Pairs(), budget=half, seed=seed) for seed in (1000, 1001)]
    a, b = (game.explained(method).values for method in methods)
    return a, b


def squared(values: np.ndarray, halves: Halves) -> float:
    """Squared error over the reference's power, both free of the reference's noise."""
    a, b = halves
    return float((values - a) @ (values - b) / (a @ b))


def apart(halves: Halves) -> float:
    """The squared distance of the halves over their power."""
    a, b = halves
    return float((a - b) @ (a - b) / (a @ b))
