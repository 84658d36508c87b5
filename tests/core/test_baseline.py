import pickle

import pytest
import torch
from tests.oracles import uniform

import pellucid as pl
from pellucid.core.baseline import standing_in
from pellucid.core.packing import pack
from pellucid.core.recipe import decode, encode

PREPARE = pl.ImagePreprocess(size=4, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0))


def test_zeros_and_constants_fill_the_shape():
    x = uniform(2, 3, 4)
    assert torch.equal(pl.Zeros().values(x), torch.zeros(2, 3, 4))
    assert torch.equal(pl.Constant(0.5).values(x), torch.full((2, 3, 4), 0.5))


def test_the_mean_is_that_of_each_inputs_channel():
    x = uniform(2, 3, 4, 5)
    values = pl.FeatureMean().values(x)
    torch.testing.assert_close(values[1, 2], x[1, 2].mean().expand(4, 5))


def test_the_mean_of_a_vector_is_over_its_features():
    assert pl.FeatureMean().values(torch.tensor([[1.0, 3.0]])).tolist() == [[2.0, 2.0]]


@pytest.mark.parametrize("baseline", [pl.Constant(0.5), pl.Pixel(0.5), pl.BlackOrZero(), pl.Blur(2.0), pl.Zeros()])
def test_baselines_have_recipes(baseline):
    assert decode(encode(baseline)) == baseline


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_pixel_is_what_reading_makes_of_it(dtype):
    """(value - mean) / std of each channel."""
    x = uniform(2, 3, 4, 4, dtype=dtype)
    for value, expected in ((0.0, [-1.0, -1.0, 0.0]), (1.0, [1.0, 3.0, 0.5]), (0.5, [0.0, 1.0, 0.25])):
        values = pl.Pixel(value).values(x, PREPARE)
        assert torch.equal(values, torch.tensor(expected, dtype=dtype).view(3, 1, 1).expand_as(x))
        assert values.is_contiguous(), "it is written to"


def test_white_is_the_picture_that_is_white():
    white = torch.full((8, 8, 3), 255, dtype=torch.uint8).numpy()
    torch.testing.assert_close(pl.Pixel(1.0).values(uniform(1, 3, 4, 4), PREPARE), PREPARE.read(white).tensor)


def test_black_or_zero_is_black_where_black_is_known():
    x = uniform(2, 3, 4, 4)
    assert torch.equal(pl.BlackOrZero().values(x, PREPARE), pl.Pixel(0.0).values(x, PREPARE))
    assert torch.equal(pl.BlackOrZero().values(x), torch.zeros_like(x))


@pytest.mark.doors
@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), True, "black", 255])
def test_a_pixel_runs_from_black_to_white(value):
    with pytest.raises(pl.ArgumentError, match=r"from 0 \(black\) to 1 \(white\). Got"):
        pl.Pixel(value)


@pytest.mark.doors
def test_without_preprocessing_a_pixel_is_refused():
    with pytest.raises(pl.ArgumentError, match=r"Pixel\(value=0.0\) is a value in the original.*Constant\(value\)"):
        pl.Pixel(0.0).values(uniform(1, 3, 4, 4))


@pytest.mark.parametrize("axes", [1, 2])
def test_a_blur_is_gaussian_along_each_axis_and_within_each_channel(axes):
    """A point becomes the product of a Gaussian along each axis, cut off at four sigma."""
    x = torch.zeros(2, 2, *[41] * axes, dtype=torch.float64)
    x[(1, 0, *[20] * axes)] = 3
    offsets = torch.arange(-20, 21, dtype=torch.float64)
    bell = torch.exp(-(offsets**2) / (2 * 2.5**2)) * (offsets.abs() <= 10)
    bell /= bell.sum()
    expected = 3 * (bell if axes == 1 else bell[:, None] * bell)
    blurred = pl.Blur(2.5).values(x)
    torch.testing.assert_close(blurred[1, 0], expected, rtol=1e-12, atol=1e-15)
    assert not bool(blurred[0].any())
    assert not bool(blurred[1, 1].any())


def test_edges_are_continued_so_that_one_colour_stays_as_it_is():
    x = torch.full((1, 3, 5, 6), 0.7)
    torch.testing.assert_close(pl.Blur(3.0).values(x), x)
    half = pl.Blur(1.0).values(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, x.bfloat16())


@pytest.mark.doors
@pytest.mark.parametrize("sigma", [0, -1.0, float("inf"), float("nan"), True, "3"])
def test_a_blur_has_a_width(sigma):
    with pytest.raises(pl.ArgumentError, match=r"`sigma` is a number of pixels, over 0. Got"):
        pl.Blur(sigma)


@pytest.mark.doors
def test_vectors_have_nothing_to_blur():
    with pytest.raises(pl.ArgumentError, match=r"pictures \(B, C, H, W\) or signals \(B, C, T\). Got \(2, 3\)"):
        pl.Blur().values(uniform(2, 3))


# backgrounds


def test_a_background_is_known_by_its_content():
    rows = uniform(5, 3)
    background = pl.Background.of(rows)
    assert background == pl.Background.of(rows.clone()) != pl.Background.of(rows[:4])
    assert background.count == 5
    assert decode(encode(background)) == background
    assert torch.equal(decode(encode(background)).rows, rows)
    given = rows.clone()
    rows.zero_()
    assert torch.equal(background.rows, given), "what is written into the user's tensor does not change it"


def test_a_background_of_several_inputs_holds_rows():
    parts = {"picture": uniform(4, 3, 2, 2), "ids": torch.arange(4)[:, None]}
    assert torch.equal(pl.Background.of(parts).rows, pack(parts)[0])
    assert torch.equal(pl.Background.of(tuple(parts.values())).rows, pack(parts)[0])


@pytest.mark.doors
@pytest.mark.parametrize("rows", [torch.ones(3), torch.ones(0, 3), torch.ones(2, 3, dtype=torch.long)])
def test_a_background_is_rows_of_floating_point(rows):
    with pytest.raises(pl.ArgumentError, match=r"A background is a tensor \(N, \*features\) of inputs. Got"):
        pl.Background.of(rows)


@pytest.mark.doors
def test_a_background_that_was_not_made_here_is_asked_for_again():
    with pytest.raises(pl.RecipeError, match=r"background 00ff of 7 inputs is not here. Make it again: Background.of"):
        _ = pl.Background("00ff", 7).rows


# several inputs


def test_each_part_has_its_own_stand_in_and_held_ones_stay():
    parts = {"a": uniform(2, 2, 3), "ids": torch.tensor([[4, 5], [6, 7]]), "b": uniform(2, 4, seed=1)}
    rows, packing = pack(parts)
    absent = packing.given(standing_in(pl.FeatureMean(), rows, None, packing))
    assert torch.equal(absent[1], parts["ids"])
    torch.testing.assert_close(absent[0], parts["a"].mean(2, keepdim=True).expand(2, 2, 3))
    torch.testing.assert_close(absent[2], parts["b"].mean(1, keepdim=True).expand(2, 4))
    zeros = standing_in(pl.Zeros(), rows, None, packing)
    assert torch.equal(zeros, rows * (1 - packing.mask(rows)))


def test_one_input_has_the_stand_in_of_its_baseline():
    x = uniform(2, 3, 4, 4)
    assert torch.equal(standing_in(pl.Pixel(1.0), x, PREPARE, None), pl.Pixel(1.0).values(x, PREPARE))


def test_a_background_travels_with_its_rows_and_tells_types_apart():
    single, double = uniform(3, 2), uniform(3, 2).double()
    one, other = pl.Background.of(single), pl.Background.of(double)
    assert one.digest != other.digest
    assert (one.rows.dtype, other.rows.dtype) == (torch.float32, torch.float64)
    sent = pickle.dumps(one)
    pl.Background._kept.pop(one.digest)
    assert torch.equal(pickle.loads(sent).rows, single)
