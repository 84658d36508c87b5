"""From raw maps to one number a pixel and a scale. A linear network's gradient is its weight: any map can be made."""

import pytest
import torch
from tests.oracles import Constant, Linear, conv_net, uniform

import pellucid as pl
from pellucid.modalities.image.heatmap import CHANNELS, reduce_channels, to_heatmap


def mapped(values: torch.Tensor) -> pl.Attribution:
    """The attribution whose scores are these values (C, H, W), through the whole call and its diagnosis."""
    weight = values.reshape(1, -1)
    return pl.SimpleGradient()(
        pl.TorchModel(Linear(weight)), torch.ones(1, *values.shape, dtype=values.dtype), target=0
    )


def counting() -> torch.Tensor:
    """One channel of 10 x 20 whose magnitudes are 1 to 200, every other one negative."""
    return (torch.arange(1.0, 201.0) * torch.tensor([1.0, -1.0]).repeat(100)).reshape(1, 10, 20)


@pytest.mark.parametrize(
    ("channels", "expected"),
    [
        ("max_abs", [5, 4]),
        ("sum_abs", [9, 9]),
        ("abs_sum", [1, 9]),  # |3 - 5 + 1|, |-2 - 4 - 3|
        ("sum", [-1, -9]),
        ("mean", [-1 / 3, -3]),
    ],
)
def test_channels_become_one_number(channels, expected):
    """Two pixels: (3, -5, 1) and (-2, -4, -3)."""
    scores = torch.tensor([[[3.0, -2.0]], [[-5.0, -4.0]], [[1.0, -3.0]]])
    assert reduce_channels(scores, channels).tolist() == [pytest.approx(expected)]
    assert to_heatmap(mapped(scores), channels=channels).values.tolist() == [pytest.approx(expected)]


def test_only_sum_and_mean_are_signed():
    a = mapped(uniform(3, 4, 4))
    assert [name for name in CHANNELS if to_heatmap(a, channels=name).signed] == ["sum", "mean"]


@pytest.mark.parametrize("channels", ["max_abs", "sum"])
def test_the_limit_is_the_99th_percentile_of_the_magnitudes(channels):
    """Of 1 .. 200: 1 + 0.99 * 199 = 198.01, and 199 and 200 lie beyond it: 1 %. Signs change neither."""
    heat = to_heatmap(mapped(counting()), channels=channels)
    assert heat.limit == pytest.approx(198.01)
    assert heat.clipped == pytest.approx(0.01)


def test_another_percentile_is_another_limit():
    heat = to_heatmap(mapped(counting()), percentile=50)
    assert (heat.limit, heat.clipped) == (pytest.approx(100.5), pytest.approx(0.5))
    assert to_heatmap(mapped(counting()), percentile=100).limit == 200


def test_a_given_limit_is_kept_and_the_clipped_share_is_that_beyond_it():
    """Of 1 .. 200, 161 .. 200 are over 160: 40 of 200."""
    heat = to_heatmap(mapped(counting()), limit=160)
    assert (heat.limit, heat.clipped) == (160, pytest.approx(0.2))
    assert to_heatmap(mapped(counting()), limit=1e6).clipped == 0


def test_the_values_themselves_are_never_scaled_or_clipped():
    heat = to_heatmap(mapped(counting()), channels="sum")
    assert heat.values.flatten().tolist() == counting().flatten().tolist()


def test_the_scale_follows_the_map_and_is_not_stretched_to_it():
    """Pure noise a millionth as large gets a limit a millionth as large; on one limit it is a millionth as bright."""
    noise = torch.randn(3, 30, 30, generator=torch.Generator().manual_seed(0))
    large, small = to_heatmap(mapped(noise)), to_heatmap(mapped(noise * 1e-6))
    assert small.limit == pytest.approx(1e-6 * large.limit, rel=1e-5)
    shared = to_heatmap(mapped(noise * 1e-6), limit=large.limit)
    assert shared.values.max() / shared.limit == pytest.approx(1e-6 * large.values.max() / large.limit, rel=1e-5)


def test_the_least_value_is_no_end_of_the_scale():
    """Values of 100 to 101 are all bright; a scale from the least to the largest would draw some of them black."""
    heat = to_heatmap(mapped(100 + uniform(1, 20, 20)))
    assert heat.values.min() / heat.limit > 0.98


def test_a_map_with_one_pixel_in_a_thousand_is_visible():
    """The 99th percentile is zero: it would draw nothing. The largest value is the limit instead."""
    values = torch.zeros(1, 25, 40)
    values[0, 3, 4] = -7.0
    heat = to_heatmap(mapped(values))
    assert (heat.limit, heat.clipped, heat.blank) == (7.0, 0.0, "")


def test_a_map_of_zeros_says_so_and_what_to_do():
    heat = to_heatmap(mapped(torch.zeros(3, 4, 4)))
    assert heat.limit == 0
    # A linear network of zero weight also gets no gradient to its input, which is the deeper reason.
    assert heat.blank.startswith("No gradient reaches the input of the network")


def test_a_zero_map_of_a_network_that_has_gradients_elsewhere_says_that_the_score_does_not_change():
    """ReLU(x) sums to zero gradient at -1, while the probe of the first input, 1, found one."""
    model = pl.TorchModel(torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Flatten()))
    pl.SimpleGradient()(model, torch.ones(1, 1, 2, 2), target=0)
    a = pl.SimpleGradient()(model, -torch.ones(1, 1, 2, 2), target=0)
    assert to_heatmap(a).blank.startswith("Every value of the map is exactly zero: near this input the explained score")


def test_a_network_without_gradient_says_so():
    a = pl.SimpleGradient()(pl.TorchModel(Constant()), uniform(1, 3, 4, 4), target=0)
    assert "Look for detach(), no_grad(), argmax" in to_heatmap(a).blank


def test_a_map_with_one_nan_says_how_many_and_keeps_the_scale_of_the_others():
    values = counting()
    values[0, 9, 19] = float("nan")  # in the place of 200: of 1 .. 199 the percentile is 1 + 0.99 * 198
    heat = to_heatmap(mapped(values))
    assert "1 of 200 values of the map are NaN or infinite" in heat.blank
    assert heat.limit == pytest.approx(197.02)


def test_a_map_of_nothing_but_nan_has_a_reason_and_no_scale():
    heat = to_heatmap(mapped(torch.full((1, 4, 4), float("inf"))))
    assert "16 of 16" in heat.blank
    assert (heat.limit, heat.clipped) == (0, 0)


def test_channels_that_cancel_in_the_sum_are_told_though_the_map_itself_is_not_zero():
    """(1, -1) sums to 0 at every pixel: no finding of the call speaks of it."""
    values = torch.stack([torch.ones(4, 4), -torch.ones(4, 4)])
    assert to_heatmap(mapped(values), channels="sum").blank == "Every value of the map is exactly zero."
    assert to_heatmap(mapped(values), channels="max_abs").blank == ""


@pytest.mark.doors
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"channels": "max"}, "`channels` is one of 'max_abs', 'sum_abs', .* Got 'max'"),
        ({"percentile": 0}, "`percentile` is over 0 up to 100. Got 0"),
        ({"percentile": 101}, "Got 101"),
        ({"limit": 0}, "`limit` is the value at the end of the colours, finite and over 0. Got 0"),
        ({"limit": -1.0}, "Got -1.0"),
        ({"limit": float("nan")}, "Got nan"),
        ({"limit": float("inf")}, "Got inf"),
    ],
)
def test_wrong_settings_say_what_was_expected_and_what_came(wrong, words):
    with pytest.raises(pl.ArgumentError, match=words):
        to_heatmap(mapped(uniform(3, 4, 4)), **wrong)


@pytest.mark.doors
@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (1, 5)])
def test_a_heatmap_is_of_one_image(shape):
    a = pl.SimpleGradient()(pl.TorchModel(Linear(uniform(1, 48 if len(shape) == 4 else 5))), uniform(*shape), target=0)
    with pytest.raises(pl.ArgumentError, match=r"one image's map \(1, C, H, W\). Got"):
        to_heatmap(a)


def test_a_map_of_cells_is_enlarged_between_the_centres_of_its_cells():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3, 2), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    a = pl.SignedGradCAM()(pl.TorchModel(net), uniform(1, 3, 15, 20))
    assert a.scores.shape[2:] == (7, 9)
    size = {"size": (15, 20), "mode": "bilinear", "align_corners": False}
    expected = torch.nn.functional.interpolate(a.scores.double(), **size)[0, 0]
    found = torch.from_numpy(to_heatmap(a).values)
    assert float((found - expected).abs().max()) < 1e-6 * float(expected.abs().max())


def test_the_channels_are_summed_where_the_card_says_that_they_add_up():
    model, x = pl.TorchModel(conv_net()), uniform(1, 3, 9, 9)
    assert to_heatmap(pl.InputXGradient()(model, x)).channels == "sum"
    assert to_heatmap(pl.Conductance(layer="2", n_steps=2)(model, x)).channels == "sum"
    assert to_heatmap(pl.SimpleGradient()(model, x)).channels == "max_abs"
    assert to_heatmap(pl.Absolute(base=pl.InputXGradient())(model, x)).channels == "max_abs"
    assert to_heatmap(pl.SmoothGrad(base=pl.InputXGradient(), n_samples=2)(model, x)).channels == "sum"
    assert to_heatmap(pl.InputXGradient()(model, x), channels="mean").channels == "mean"
