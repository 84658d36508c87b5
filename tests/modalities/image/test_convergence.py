"""The fall of a map's error: its numbers in closed form, and its picture pixel by pixel."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tests.oracles import Constant, Linear, Quadratic, conv_net, stream_of, uniform

import pellucid as pl
from pellucid.core.estimator import sample
from pellucid.core.recipe import Recipe, encode
from pellucid.modalities.image import draw
from pellucid.modalities.image.convergence import _ticks, curves

CRIMSON, BLUE, GREY = (220, 20, 60), (33, 102, 172), (128, 128, 128)
LEFT, TOP, WIDE, HIGH = 76, 106, 448, 300  # the axes in the page
TOY = pl.TorchModel(conv_net(), name="toy")
PHOTO = uniform(1, 3, 16, 16)


def quadratic(signal: float = 0.5, sigma: float = 1.0, **settings: object) -> pl.Attribution:
    """The gradient of sum x^2 / 2 is x, so the map is the signal and a sample's noise has the spread sigma."""
    x = torch.where(uniform(1, 3, 40, 40) < 0.5, -signal, signal)
    explain = pl.SmoothGrad(noise_level=pl.NoiseLevel.absolute(sigma), **settings)
    return explain(pl.TorchModel(Quadratic(torch.ones(4800))), x, 1)


def explained(estimator: pl.Estimator, n_samples: int = 24) -> pl.Attribution:
    return pl.SmoothGrad(n_samples=n_samples, estimator=estimator)(TOY, PHOTO, 0)


@pytest.fixture
def written(monkeypatch) -> list[str]:
    """Every text that is put on the page."""
    texts = []
    real = draw.Sheet.write

    def write(self: draw.Sheet, x: float, y: float, text: str, size: float, room: float, **style: object) -> None:
        texts.append(text)
        real(self, x, y, text, size, room, **style)

    monkeypatch.setattr(draw.Sheet, "write", write)
    return texts


def holds(pixels: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool((pixels == np.array(colour, dtype=np.uint8)).all(-1).any())


# the numbers


def test_the_error_of_the_plain_mean_is_the_noise_over_the_signal_and_falls_as_one_over_root_n():
    """Noise of 1 over a signal of 0.5 is an error of 2 / sqrt(n)."""
    found = curves(quadratic(0.5, 1.0, n_samples=64))
    assert list(found.errors) == ["plain mean"]
    errors = found.errors["plain mean"]
    np.testing.assert_allclose(errors, 2 / np.sqrt(found.samples), rtol=0.03)
    np.testing.assert_allclose(errors * np.sqrt(found.samples), errors[found.now] * 8, rtol=1e-12)
    assert found.floor == 0


def test_the_curve_runs_from_a_sixteenth_to_sixteen_times_the_samples():
    found = curves(quadratic(n_samples=64))
    assert (found.samples[0], found.samples[found.now], found.samples[-1]) == (4, 64, 1024)
    np.testing.assert_allclose(np.diff(np.log2(found.samples)), 1 / 16)


def test_less_than_a_draw_is_not_shown():
    """24 samples are six groups of four, so four samples are the fewest that such a map can have."""
    found = curves(explained(pl.Factored(group=4)))
    assert 4 <= found.samples[0] < 4 * 2 ** (1 / 16)
    assert found.samples[-1] == 16 * 24
    assert found.samples[found.now] == 24


@pytest.mark.parametrize(
    ("estimator", "names"),
    [
        (pl.Mean(), ["plain mean"]),
        (pl.Antithetic(), ["antithetic pairs"]),
        (pl.Shrunk(), ["wavelet-shrunk", "plain mean of the same samples"]),
        (pl.Factored(), ["factored", "plain mean of the same samples"]),
        (pl.Shrunk(pl.Factored()), ["factored, wavelet-shrunk", "plain mean of the same samples"]),
        (pl.Combined(), ["plain and factored combined", "plain mean of the same samples"]),
    ],
    ids=lambda value: "" if isinstance(value, list) else repr(value),
)
def test_each_estimator_goes_through_the_present_error_and_never_rises(estimator, names):
    a = explained(estimator)
    found = curves(a)
    assert list(found.errors) == names
    own, *other = found.errors.values()
    assert own[found.now] == pytest.approx(float(a.estimated_error), rel=1e-9)
    assert (np.diff(own) <= 0).all()
    for plain in other:
        np.testing.assert_allclose(plain * np.sqrt(found.samples), plain[0] * math.sqrt(found.samples[0]), rtol=1e-9)


def test_beside_a_shrunk_map_stands_the_mean_that_was_shrunk():
    shrunk, mean = explained(pl.Shrunk()), explained(pl.Mean())
    found = curves(shrunk)
    assert found.errors["plain mean of the same samples"][found.now] == pytest.approx(float(mean.estimated_error))


def biased() -> pl.Attribution:
    """16 groups of 6 with a signal of 1, spread 0.3 and a bias of 0.25, beside plain maps without it."""
    rng = np.random.default_rng(0)
    truth = np.where(rng.random((1, 1, 3, 40, 40)) < 0.5, -1, 1)
    noise, other = rng.standard_normal((2, 1, 16, 3, 40, 40))
    values = torch.from_numpy(truth + 0.25 + 0.3 * noise)
    plain = torch.from_numpy(truth + 0.3 * noise + 0.5 * other)
    factored = pl.Factored(group=6)
    estimate = sample(stream_of(values, n_samples=96, plain=plain), factored)
    a = quadratic(n_samples=2)
    encoded = encode(pl.SmoothGrad(n_samples=96, estimator=factored))
    return replace(a, estimate=estimate, recipe=replace(a.recipe, explainer=encoded))


def test_a_factored_map_ends_at_its_bias():
    """The power of the factored map is 1 + 0.25^2; noise of 0.3^2 / 16 falls with the samples and the bias does not."""
    found = curves(biased())
    power = 1 + 0.25**2
    assert found.floor == pytest.approx(0.25 / math.sqrt(power), rel=0.03)
    own = found.errors["factored"] ** 2 - found.floor**2
    np.testing.assert_allclose(own, 0.09 / power * 6 / found.samples, rtol=0.03)


def test_what_is_predicted_for_four_times_the_samples_is_what_they_give():
    a = quadratic(0.5, 1.0, n_samples=32)
    found = curves(a)
    (predicted,) = found.errors["plain mean"][found.samples == 128]
    assert predicted == pytest.approx(float(quadratic(0.5, 1.0, n_samples=128).estimated_error), rel=0.05)


@pytest.mark.parametrize(
    ("explain", "name"), [(pl.VarGrad(n_samples=24), "variance"), (pl.SmoothGradSquared(n_samples=24), "plain mean")]
)
def test_methods_with_one_way_to_be_estimated_have_one_curve(explain, name):
    a = explain(TOY, PHOTO, 0)
    found = curves(a)
    assert list(found.errors) == [name]
    assert found.errors[name][found.now] == pytest.approx(float(a.estimated_error))


def test_without_a_signal_the_least_that_the_error_can_be_is_drawn():
    """The signal's power is at most what was found and two of its standard errors."""
    a = quadratic(1e-3, 1.0, n_samples=20)
    assert math.isinf(a.estimated_error)
    found = curves(a)
    assert found.bound
    finished = pl.Mean().finish(pl.core.moments.Moments.of(a.estimate.state, [0], a.scores, 2))
    most = float(finished.power + 2 * finished.power_error)
    noise = float(a.standard_error.double().square().mean())
    (errors,) = found.errors.values()
    assert errors[found.now] == pytest.approx(math.sqrt(noise / most), rel=1e-4)


@pytest.mark.parametrize(("low", "high", "ticks"), [
    (3, 48, [5, 10, 20]), (1, 16, [1, 2, 5, 10]), (0.15, 3.0, [0.2, 0.5, 1, 2]), (1e-3, 2e4, [1e-3, 1e-2, 0.1, 1, 10,
                                                                                        100, 1e3, 1e4]),
])  # fmt: skip
def test_ticks_are_round(low, high, ticks):
    assert _ticks(low, high) == ticks


# the picture


def test_the_dot_is_at_the_present_samples_and_error():
    """The samples run from n / 16 to 16 n, so n is in the middle; the errors from 1.2 times the largest on down."""
    a = quadratic(0.5, 1.0, n_samples=64)
    pixels = pl.convergence(a).pixels
    error = float(a.estimated_error)
    low, high = error / 4 / 1.2, error * 4 * 1.2
    y = TOP + HIGH * math.log(high / error) / math.log(high / low)
    rows, columns = np.nonzero((pixels[TOP : TOP + HIGH, LEFT + WIDE // 2 - 5 : LEFT + WIDE // 2 + 6] == BLUE).all(-1))
    assert np.ptp(rows) >= 8  # a dot, and not the line alone
    assert (rows.min() + rows.max() + 1) / 2 + TOP == pytest.approx(y, abs=1)
    assert (columns.min() + columns.max() + 1) / 2 == pytest.approx(5, abs=1)


def test_a_factored_map_has_two_curves_and_a_plain_one_has_one():
    two, one = (
        pl.convergence(explained(estimator)).pixels[TOP : TOP + HIGH, LEFT : LEFT + WIDE]
        for estimator in (pl.Factored(), pl.Mean())
    )
    assert holds(two, BLUE)
    assert holds(two, GREY)
    assert holds(one, BLUE)
    assert not holds(one, GREY)


def test_the_page_says_what_was_estimated_and_how(written):
    a = explained(pl.Shrunk(pl.Factored()), 48)
    pl.convergence(a)
    said = " ".join(written)
    assert "SmoothGrad (factored, wavelet-shrunk), 48 samples at noise level 0.15, seed 0" in said
    assert "Estimated from the spread of independent draws; the lines left and right of the dot are what the" in said
    assert {"n = 48", f"{float(a.estimated_error):.2g}", "samples", "relative error"} <= set(written)
    assert {"factored, wavelet-shrunk", "plain mean of the same samples"} <= set(written)


def test_a_bias_is_stated(written):
    pl.convergence(biased())
    assert "An estimated bias of 0.25 is in it, which more samples do not lower." in " ".join(written)


def test_errors_of_one_and_a_half_are_marked_where_they_are_in_the_picture(written):
    pl.convergence(quadratic(0.5, 1.0, n_samples=16))
    assert {"noise = signal", "noise = ½ signal"} <= set(written)
    written.clear()
    pl.convergence(quadratic(50.0, 1.0, n_samples=64))
    assert not any("noise =" in text for text in written)


@pytest.mark.parametrize(
    ("a", "words"),
    [
        (quadratic(1e-3, n_samples=20), "No signal can be told from noise yet, so the error is unknown. Dashed: the"),
        (quadratic(1e-3, n_samples=2), "No signal can be told from noise yet, so the error is unknown."),
        (pl.SmoothGrad(n_samples=8)(pl.TorchModel(Linear(uniform(2, 768))), PHOTO, 0), "Every draw gave the same map"),
        (pl.SmoothGrad(n_samples=8)(pl.TorchModel(Constant()), PHOTO, 0), "Every draw gave the same map"),
    ],
    ids=["no signal", "nothing known", "no noise", "nothing"],
)
def test_what_cannot_be_drawn_is_said(a, words, written):
    drawing = pl.convergence(a)
    assert words in " ".join(written)
    assert holds(drawing.pixels, CRIMSON)
    assert "of the dot" not in " ".join(written) or not curves(a).bound


def test_a_broken_map_is_said_to_be_broken(written):
    a = quadratic(n_samples=8)
    broken = replace(a, estimate=replace(a.estimate, values=a.scores * math.nan, error=torch.tensor([math.inf])))
    pl.convergence(broken)
    assert "The map holds NaN or infinite values, so its error is unknown." in " ".join(written)


@pytest.mark.parametrize("estimator", [pl.Mean(), pl.Shrunk(pl.Factored()), pl.Combined()], ids=repr)
def test_a_loaded_result_is_the_same_picture_and_carries_its_recipe(tmp_path, estimator):
    a = explained(estimator)
    loaded = pl.Attribution.load(a.save(tmp_path / "a.safetensors"))
    assert pl.convergence(loaded).png() == pl.convergence(a).png()
    with Image.open(pl.convergence(loaded).save(tmp_path / "a.png")) as image:
        assert Recipe(**json.loads(image.text["pellucid"])[0]) == a.recipe


def test_an_extended_result_is_that_of_one_long_run():
    longer = explained(pl.Mean(), 10).extend(TOY, PHOTO, 30)
    assert pl.convergence(longer).png() == pl.convergence(explained(pl.Mean(), 40)).png()


@pytest.mark.parametrize("signal", [1e-2, 1.0, 1e4])
def test_no_text_is_clipped(signal):
    """The outermost pixels of the page stay white, whatever the numbers beside the axes."""
    a = quadratic(signal, n_samples=50)
    named = replace(a, decisions=(replace(a.decision, label="a very long name " * 20),))
    pixels = pl.convergence(named).pixels
    for edge in (pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:]):
        assert (edge == 255).all()


def test_a_users_own_matplotlib_settings_change_nothing():
    import matplotlib as mpl

    a = quadratic(n_samples=16)
    with mpl.rc_context({"text.usetex": True, "lines.linewidth": 9, "axes.facecolor": "black"}):
        changed = pl.convergence(a).png()
    assert changed == pl.convergence(a).png()


# what has none


@pytest.mark.doors
@pytest.mark.parametrize(
    ("explain", "x", "words"),
    [
        (pl.SmoothGrad(n_samples=4), uniform(2, 3, 16, 16), r"one input is drawn, and this holds 2\. Write conver"),
        (pl.SimpleGradient(), PHOTO, r"no estimated error whose fall could be drawn \(nothing is sampled\)"),
        (pl.SmoothGrad(n_samples=1), PHOTO, r"no estimated error .*two or more samples"),
        (pl.Factored, PHOTO, r"no estimated error .*two or more samples"),
        (pl.SmoothGrad.zennit(), PHOTO, r"all of them noisy"),
    ],
    ids=["two inputs", "exact", "one sample", "one group", "a clean copy"],
)
def test_a_result_without_an_estimated_error_is_refused(explain, x, words):
    if explain is pl.Factored:
        explain = pl.SmoothGrad(n_samples=6, estimator=pl.Factored(group=6))
    with pytest.raises(pl.ArgumentError, match=words):
        pl.convergence(explain(TOY, x, 0))
