"""Shrunk maps against the formula written out with PyWavelets, and their error against the true one."""

import numpy as np
import pytest
import pywt
import torch
from tests.oracles import Recorder, normal, smooth, stream_of, uniform
from torch import nn

import pellucid as pl
from pellucid.core.estimate import Estimate
from pellucid.core.estimator import Estimator, Finished, Variance, sample
from pellucid.core.factored import beside_some
from pellucid.core.moments import Moments
from pellucid.core.recipe import decode, encode


def estimated(values: np.ndarray, estimator: Estimator, plain: np.ndarray | None = None) -> Estimate:
    """Of draws (inputs, draws, C, H, W), and of the plain maps beside them if there are any."""
    size = estimator.how(100).size
    draws, beside = (None if v is None else torch.from_numpy(v).float() for v in (values, plain))
    return sample(stream_of(draws, 512, values.shape[1] * size, plain=beside), estimator)


def finished(values: np.ndarray, estimator: Estimator, plain: np.ndarray | None = None) -> Finished:
    moments = Moments(torch.from_numpy(values[:, 0]), 2)
    for i in range(values.shape[1]):
        beside = None if plain is None or not beside_some(i) else torch.from_numpy(plain[:, i])
        moments.add(torch.from_numpy(values[:, i]), beside)
    return estimator.finish(moments)


def window(size: int) -> np.ndarray:
    """One in the middle, fading to the edges."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return np.exp(-(x**2 + y**2) / (2 * (size / 5) ** 2))


@pytest.fixture
def bands_alone(monkeypatch):
    """Sharp values are shrunk like others."""
    monkeypatch.setattr("pellucid.modalities.image.shrunk.kept", lambda mean, noise, shrunk, draws: (shrunk, 0.0))


# --- the formula


def by_hand(draws: np.ndarray) -> tuple[np.ndarray, float]:
    """The shrunk map and its squared error of draws (n, h, w) in one colour, S / (S + V) band by band."""
    n = len(draws)
    groups = [draws[k::8].mean(0) for k in range(min(n, 8))]
    counts = [len(draws[k::8]) for k in range(min(n, 8))]
    levels = min(4, pywt.dwtn_max_level(draws.shape[1:], "sym4"))
    whole, *parts = [pywt.wavedec2(map_, "sym4", "symmetric", levels) for map_ in (draws.mean(0), *groups)]
    left = noise = 0.0

    def scaled(mean: np.ndarray, each: list[np.ndarray]) -> np.ndarray:
        nonlocal left, noise
        v = sum(c * ((g - mean) ** 2).sum() for c, g in zip(counts, each, strict=True)) / ((len(each) - 1) * n)
        s = max((mean**2).sum() - v, 0.0)
        left, noise = left + s * v / (s + v), noise + v
        return mean * s / (s + v)

    def triple(level: int) -> tuple[np.ndarray, ...]:
        return tuple(scaled(whole[level][i], [part[level][i] for part in parts]) for i in range(3))

    shrunk = [scaled(whole[0], [part[0] for part in parts]), *(triple(level) for level in range(1, levels + 1))]
    map_ = pywt.waverec2(shrunk, "sym4", "symmetric")[: draws.shape[1], : draws.shape[2]]
    return map_, left / noise * draws.var(0, ddof=1).mean() / n


@pytest.mark.parametrize("n", [3, 8, 19, 40])
@pytest.mark.parametrize("size", [8, 13])
def test_a_picture_too_small_for_a_band_is_scaled_as_a_whole(n, size, bands_alone):
    draws = 0.3 * smooth(1, size, size) + normal(n, 1, size, size, seed=1)
    values, squared = by_hand(draws[:, 0])
    result = finished(draws[None], pl.Shrunk())
    np.testing.assert_allclose(result.values[0, 0], values, rtol=0, atol=1e-5 * np.abs(values).max())
    np.testing.assert_allclose(result.squared(1), squared, rtol=1e-4)


@pytest.mark.parametrize("n", [4, 19, 40])
def test_each_band_is_scaled_by_the_share_of_its_power_that_is_signal(n, bands_alone):
    """A spot far from the edges of 100 pixels, whose bands hold no reflections of it."""
    draws = np.zeros((n, 1, 100, 100))
    draws[:, :, 46:54, 46:54] = 0.5 * smooth(1, 8, 8, width=1.0) + normal(n, 1, 8, 8, seed=1)
    values, squared = by_hand(draws[:, 0])
    result = finished(draws[None], pl.Shrunk())
    np.testing.assert_allclose(result.values[0, 0], values, rtol=0, atol=1e-5 * np.abs(values).max())
    np.testing.assert_allclose(result.squared(1), squared, rtol=1e-3)


def test_with_more_draws_the_error_falls_as_the_gains_would_change(bands_alone):
    """S V/t / (S + V/t) of the one band that a picture of 8 pixels has."""
    draws = 0.3 * smooth(1, 8, 8) + normal(20, 1, 8, 8, seed=1)
    mean = draws.mean(0)
    v = draws.var(0, ddof=1).mean() / 20
    groups = np.stack([draws[k::8].mean(0) for k in range(8)])
    counts = np.array([len(draws[k::8]) for k in range(8)])
    spread = (counts[:, None, None, None] * (groups - mean) ** 2).sum() / 7 / 20
    s = max((mean**2).sum() - spread, 0.0)
    result = finished(draws[None], pl.Shrunk())
    for times in (0.25, 1.0, 3.0, 100.0):
        expected = v / times * s / (s + spread / times)
        np.testing.assert_allclose(result.squared(times), expected, rtol=1e-4)
        np.testing.assert_allclose(result.plain(times), v / times, rtol=1e-6)


def test_the_colours_may_be_mixed_before_or_after(bands_alone):
    """Signal and noise are parted in colours of their own, so turning those of the input turns the map."""
    turn = np.array([[1.0, 0.4, -0.2], [0.3, 0.8, 0.1], [-0.5, 0.2, 1.5]])
    draws = 0.3 * smooth(3, 24, 24) + normal(20, 3, 24, 24, seed=1)
    plain = finished(draws[None], pl.Shrunk()).values[0].numpy()
    mixed = finished(np.einsum("cd,ndhw->nchw", turn, draws)[None], pl.Shrunk()).values[0].numpy()
    expected = np.einsum("cd,dhw->chw", turn, plain)
    np.testing.assert_allclose(mixed, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_signal_in_one_colour_is_kept_apart_from_noise_in_another():
    """All signal in red + green, all noise in red - green: the map is nearly free of noise."""
    signal, noise = smooth(1, 24, 24), 5 * normal(16, 1, 24, 24, seed=1)
    draws = np.concatenate([signal + noise, signal - noise], 1) + 0.01 * normal(16, 2, 24, 24, seed=2)
    truth = np.concatenate([signal, signal])
    found = estimated(draws[None], pl.Shrunk()).values[0].numpy()
    assert ((found - truth) ** 2).mean() < 0.02 * ((draws.mean(0) - truth) ** 2).mean()


# --- sharp values


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n", [8, 24])
@pytest.mark.parametrize("base", [pl.Mean(), pl.Antithetic(), pl.Factored(group=2)])
def test_one_sharp_pixel_of_ten_standard_errors_keeps_its_height(base, n, seed):
    """Of what was measured at least 80 %, though the band around it is all noise."""
    draws = normal(1, n, 3, 31, 33, seed=seed)
    draws[:, :, 1, 10, 20] += 10 / np.sqrt(n)
    plain = 2 * normal(1, n, 3, 31, 33, seed=seed + 50) if isinstance(base, pl.Factored) else None
    values = estimated(draws, pl.Shrunk(base), plain).values[0]
    assert float(values[1, 10, 20]) >= 0.8 * draws.mean(1)[0, 1, 10, 20]
    rest = values.clone()
    rest[1, 10, 20] = 0
    assert float(rest.square().mean()) < 0.1 * (draws.mean(1) ** 2).mean()


def test_without_that_the_pixel_would_be_lost(bands_alone):
    """The band alone takes it for noise: what the rule is for."""
    draws = normal(1, 24, 3, 31, 33)
    draws[:, :, 1, 10, 20] += 10 / np.sqrt(24)
    assert float(estimated(draws, pl.Shrunk()).values[0, 1, 10, 20]) < 0.5 * draws.mean(1)[0, 1, 10, 20]


def test_what_is_kept_is_part_of_the_error():
    """A map of sharp values alone is not shrunk, and its error is that of the mean."""
    draws = 50 * np.sign(normal(3, 16, 16)) + normal(1, 16, 3, 16, 16, seed=1)
    result = finished(draws, pl.Shrunk())
    np.testing.assert_allclose(result.values, draws.mean(1), rtol=1e-6)
    np.testing.assert_allclose(result.squared(1), draws.var(1, ddof=1).mean() / 16, rtol=1e-2)
    np.testing.assert_allclose(result.squared(4), draws.var(1, ddof=1).mean() / 64, rtol=1e-2)


def test_the_share_that_is_kept_has_all_of_its_noise(monkeypatch):
    """Of the noise a quarter is kept, and of the rest what the gains leave."""
    monkeypatch.setattr("pellucid.modalities.image.shrunk.kept", lambda mean, noise, shrunk, draws: (shrunk, 0.25))
    draws = 0.3 * smooth(1, 8, 8) + normal(8, 1, 8, 8, seed=1)
    left, noise = by_hand(draws[:, 0])[1], draws.var(0, ddof=1).mean() / 8
    np.testing.assert_allclose(finished(draws[None], pl.Shrunk()).squared(1), 0.75 * left + 0.25 * noise, rtol=1e-4)
    assert left < 0.8 * noise


# --- noise alone, and none


@pytest.mark.parametrize("n", [8, 16, 40])
def test_of_noise_alone_nothing_is_left_and_the_error_is_infinite(n):
    """No signal yet, in 18 of 20 runs at the least; the map's power is under a twentieth of the mean's in all."""
    draws = normal(20, n, 3, 32, 32, seed=n)
    found = estimated(draws, pl.Shrunk())
    assert int(torch.isinf(found.error).sum()) >= 18
    share = found.values.square().mean((1, 2, 3)).numpy() / (draws.mean(1) ** 2).mean((1, 2, 3))
    assert share.max() < 0.05


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 13, 13)])
@pytest.mark.parametrize("n", [8, 16])
def test_noise_that_was_shrunk_to_nothing_is_not_called_certain(shape, n):
    """In small pictures often no band shows signal: the map is empty, and that is no knowledge of it."""
    found = estimated(normal(40, n, *shape, seed=n), pl.Shrunk())
    empty = (found.values == 0).flatten(1).all(1)
    assert int(empty.sum()) >= 2
    assert torch.isinf(found.error[empty]).all()
    assert int(torch.isinf(found.error).sum()) >= 36


@pytest.mark.parametrize("base", [pl.Mean(), pl.Antithetic()])
@pytest.mark.parametrize("size", [(1, 1), (9, 5), (32, 32)])
def test_without_noise_the_map_is_the_mean_and_has_no_error(base, size):
    map_ = normal(2, 1, 3, *size).astype(np.float32)
    found = estimated(np.repeat(map_, 6, 1), pl.Shrunk(base))
    assert np.array_equal(found.values, map_[:, 0])
    assert found.error.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("size", [(h, w) for h in (1, 2, 5, 9) for w in (1, 3, 8)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_smallest_pictures_are_shrunk_too(size, channels):
    draws = normal(1, 10, channels, *size)
    found = estimated(draws, pl.Shrunk())
    assert torch.isfinite(found.values).all()
    assert float(found.values.square().sum()) <= (draws.mean(1) ** 2).sum() * (1 + 1e-5)


def test_a_dead_colour_does_no_harm(bands_alone):
    """A network that looks at one colour alone: the others have neither signal nor noise."""
    draws = np.zeros((1, 16, 3, 20, 20))
    draws[:, :, 1] = smooth(1, 20, 20) + normal(1, 16, 20, 20)
    found = estimated(draws, pl.Shrunk()).values[0]
    alone = estimated(draws[:, :, 1:2], pl.Shrunk()).values[0]
    assert float(found[[0, 2]].abs().max()) < 1e-6
    torch.testing.assert_close(found[1], alone[0], rtol=0, atol=1e-4)


def test_a_map_that_is_not_finite_is_left_as_it_is():
    draws = normal(1, 8, 3, 16, 16)
    draws[:, 3, 0, 4, 4] = np.nan
    found = estimated(draws, pl.Shrunk())
    assert int(found.values.isnan().sum()) == 1
    assert found.error.tolist() == [torch.inf]


def test_a_single_draw_shows_nothing():
    found = estimated(normal(1, 1, 3, 8, 8), pl.Shrunk())
    assert found.error is None
    assert found.standard_error is None


# --- its error


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("shape", ["even", "in the middle"])
def test_of_a_smooth_signal_the_error_falls_far_and_is_known(size, shape):
    """Noise of 3 in each of 16 draws of a signal of 1: true over estimated error, median of 20 runs."""
    envelope = np.ones((size, size)) if shape == "even" else window(size)
    truth = smooth(20, 3, size, size) * envelope
    draws = truth[:, None] + 3 * normal(20, 16, 3, size, size, seed=1) * envelope
    found = estimated(draws, pl.Shrunk())
    squared = ((found.values.numpy() - truth) ** 2).mean((1, 2, 3))
    assert (squared < 0.3 * ((draws.mean(1) - truth) ** 2).mean((1, 2, 3))).all()
    ratio = np.sqrt(squared / (truth**2).mean((1, 2, 3))) / found.error.numpy()
    assert 0.8 < np.median(ratio) < 1.25


def test_what_is_said_of_four_times_the_samples_is_true_of_them():
    truth = smooth(20, 3, 32, 32) * window(32)
    draws = truth[:, None] + 3 * normal(20, 64, 3, 32, 32, seed=1) * window(32)
    foreseen = finished(draws[:, :16], pl.Shrunk()).squared(4.0).numpy()
    squared = ((estimated(draws, pl.Shrunk()).values.numpy() - truth) ** 2).mean((1, 2, 3))
    assert 0.8 < np.median(np.sqrt(squared / foreseen)) < 1.25


def test_the_bias_of_a_factored_map_is_part_of_the_error():
    """Factored draws with noise of 1 and a smooth bias of 0.4, plain ones with noise of 3."""
    truth, off = smooth(20, 3, 32, 32), 0.4 * smooth(20, 3, 32, 32, seed=7)
    draws = (truth + off)[:, None] + normal(20, 12, 3, 32, 32, seed=1)
    plain = truth[:, None] + 3 * normal(20, 12, 3, 32, 32, seed=2)
    found = estimated(draws, pl.Shrunk(pl.Factored(group=2)), plain)
    squared = ((found.values.numpy() - truth) ** 2).mean((1, 2, 3))
    ratio = np.sqrt(squared / (truth**2).mean((1, 2, 3))) / found.error.numpy()
    assert 0.8 < np.median(ratio) < 1.25
    result = finished(draws, pl.Shrunk(pl.Factored(group=2)), plain)
    np.testing.assert_allclose(result.squared(1e12), result.bias, rtol=1e-6)


def test_a_bias_is_shrunk_as_the_signal_is():
    """By sum w^2 S / sum S: all of it passes where there is little noise, a part where there is as much as signal."""
    truth, off = smooth(10, 1, 8, 8), 0.5
    for noise, least, most in ((0.01, 0.99, 1.0), (np.sqrt(20), 0.1, 0.5)):
        draws = (truth + off)[:, None] + noise * normal(10, 20, 1, 8, 8, seed=1)
        plain = truth[:, None] + 0.01 * normal(10, 20, 1, 8, 8, seed=2)
        inner, result = (finished(draws, e, plain) for e in (pl.Factored(), pl.Shrunk(pl.Factored())))
        passed = (result.bias / inner.bias)[inner.bias > 0].numpy()
        assert least <= np.median(passed) <= most
        if noise > 1:  # one band: w = S / (S + V), with V and S of the groups
            mean = draws.mean(1)[:, 0]
            groups = np.stack([draws[:, k::8, 0].mean(1) for k in range(8)], 1)
            counts = np.array([len(range(k, 20, 8)) for k in range(8)])[None, :, None, None]
            v = (counts * (groups - mean[:, None]) ** 2).sum((1, 2, 3)) / 7 / 20
            s = np.maximum((mean**2).sum((1, 2)) - v, 0)
            expected = np.where(s > 0, (s / (s + v)) ** 2, 1.0)[(inner.bias > 0).numpy()]
            np.testing.assert_allclose(passed, expected, rtol=1e-4)


def test_until_stops_sooner_than_the_mean_does():
    truth = smooth(1, 3, 32, 32)
    draws = torch.from_numpy(truth[:, None] + 3 * normal(1, 400, 3, 32, 32, seed=1)).float()
    until = pl.Until(error=0.5, at_most=400)
    shrunk, plain = (sample(stream_of(draws, 64, until), e) for e in (pl.Shrunk(), pl.Mean()))
    assert shrunk.samples[0] < plain.samples[0]
    assert float(shrunk.error) <= 0.5
    counted = sample(stream_of(draws, 64, shrunk.samples[0]), pl.Shrunk())
    assert torch.equal(counted.values, shrunk.values)


# --- in a call


def net() -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2),
        )  # fmt: skip


MODEL = pl.TorchModel(net())
X = uniform(3, 3, 20, 20)
EVERY = [pl.Shrunk(), pl.Shrunk(pl.Antithetic()), pl.Shrunk(pl.Factored())]
everyone = pytest.mark.parametrize("estimator", EVERY, ids=lambda e: e.words)


def smoothed(estimator: Estimator, n: int = 16, **settings) -> pl.SmoothGrad:
    return pl.SmoothGrad(n_samples=n, estimator=estimator, **settings)


@everyone
def test_inputs_of_a_batch_are_shrunk_each_by_its_own_noise(estimator):
    x = torch.cat([X[:1], -3 * X[1:2], X[2:].square()])
    together = smoothed(estimator)(MODEL, x)
    assert together.standard_error is None
    for row in range(3):
        alone = smoothed(estimator)(MODEL, x[row : row + 1])
        assert float((together.scores[row] - alone.scores[0]).abs().max()) <= 1e-5 * float(alone.scores.abs().max())
        torch.testing.assert_close(together.estimate.error[row], alone.estimate.error[0], rtol=1e-3, atol=0)


@everyone
def test_the_draws_are_those_of_the_base(estimator):
    shrunk, plain = (smoothed(e)(MODEL, X) for e in (estimator, estimator.base))
    assert torch.equal(shrunk.estimate.state["mean"], plain.estimate.state["mean"])
    assert (
        shrunk.samples_used == plain.samples_used if len(X) == 1 else shrunk.estimate.samples == plain.estimate.samples
    )
    assert smoothed(estimator).card.cost == smoothed(estimator.base).card.cost
    assert not torch.allclose(shrunk.scores, plain.scores)


@everyone
def test_extending_equals_one_long_run_and_a_run_is_reproduced(estimator, tmp_path):
    first = smoothed(estimator)(MODEL, X)
    stored = pl.Attribution.load(first.save(tmp_path / "a.safetensors"))
    whole = smoothed(estimator.settled(estimator.how(16).size), 40)(MODEL, X)
    for longer in (first.extend(MODEL, X, 24), stored.extend(MODEL, X, 24)):
        assert torch.equal(longer.scores, whole.scores)
        assert torch.equal(longer.estimate.error, whole.estimate.error)
        assert longer.recipe.explainer == whole.recipe.explainer
    again = stored.reproduce(MODEL, X)
    assert torch.equal(again.scores, first.scores)
    assert torch.equal(again.estimate.error, first.estimate.error)


@everyone
def test_settings_go_into_a_recipe_and_back(estimator):
    assert decode(encode(estimator)) == estimator
    assert decode(encode(smoothed(estimator, 8))).estimator == estimator


def test_a_caption_says_what_was_done():
    assert [e.words for e in EVERY] == [
        "wavelet-shrunk",
        "antithetic pairs, wavelet-shrunk",
        "factored, wavelet-shrunk",
    ]


def test_a_base_may_be_any_method_that_gives_images():
    a = smoothed(pl.Shrunk(), base=pl.Squared())(MODEL, X[:1])
    assert float(a.scores.square().sum()) < float(a.estimate.state["mean"].square().sum())


@pytest.mark.doors
@pytest.mark.parametrize("base", [pl.Shrunk(), pl.Combined(), Variance(), pl.Mean, "mean", None])
def test_what_cannot_be_shrunk_is_refused(base):
    with pytest.raises(pl.ArgumentError, match=r"`base` is Mean\(\), Antithetic\(\) or Factored\(\), to be shrunk"):
        pl.Shrunk(base)


@pytest.mark.doors
@pytest.mark.parametrize(("estimator", "least"), [(pl.Shrunk(pl.Antithetic()), 2), (pl.Shrunk(pl.Factored()), 4)])
def test_the_fewest_samples_are_those_of_the_base(estimator, least):
    with pytest.raises(pl.ArgumentError, match=f"{least} or more"):
        smoothed(estimator, least - 1)


@pytest.mark.doors
@pytest.mark.parametrize("estimator", [*EVERY, pl.Combined()], ids=lambda e: e.words)
@pytest.mark.parametrize("shape", [(6,), (2, 3)])
def test_what_is_no_image_is_refused_before_any_pass(estimator, shape):
    recorder = Recorder(6)
    with pytest.raises(pl.ArgumentError, match=r"is for images \(B, C, H, W\)"):
        smoothed(estimator)(pl.TorchModel(recorder), uniform(2, *shape))
    assert recorder.batches == []
