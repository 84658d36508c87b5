"""From pixels to the tensor. Where the size is the picture's own nothing is interpolated: values are known by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import pellucid as pl
from pellucid.core.recipe import decode, encode

NOISE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
}


def box(prepare: pl.ImagePreprocess, high: int, wide: int) -> list[float]:
    """Left, top, right, bottom of what is kept of a picture of this size."""
    return prepare.read(np.zeros((high, wide, 3), np.uint8)).views[0].geometry["box"]


def pixel(*rgb: int, **options: object) -> list[float]:
    """The channels of a picture of one pixel."""
    row = pl.ImagePreprocess(size=1, **options).read(np.array([[rgb]], np.uint8)).tensor
    return row[0, :, 0, 0].tolist()


def test_each_value_is_v_over_255_minus_mean_over_std_to_the_last_bit():
    picture = np.arange(16 * 16 * 3, dtype=np.uint16).astype(np.uint8).reshape(16, 16, 3)  # every value from 0 to 255
    x = pl.ImagePreprocess(size=16, mean=0.485, std=0.229).read(picture).tensor[0]
    expected = ((picture / 255 - 0.485) / 0.229).astype(np.float32)
    assert x.dtype == torch.float32
    np.testing.assert_array_max_ulp(x.permute(1, 2, 0).numpy(), expected, maxulp=1)


def test_the_embedded_model_gets_v_minus_127_over_128(lite0):
    picture = np.random.default_rng(1).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    x = lite0.read(picture).tensor[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(x, (picture.astype(np.float64) - 127) / 128, rtol=0, atol=1e-7)


def test_mean_and_std_are_one_a_channel():
    """51 / 255 = 0.2, 102 / 255 = 0.4, 153 / 255 = 0.6."""
    found = pixel(51, 102, 153, mean=(0.1, 0.2, 0.3), std=(1.0, 0.5, 0.1))
    assert found == pytest.approx([0.1, 0.4, 3.0], abs=1e-6)


def test_bgr_gives_blue_first_and_its_own_mean():
    """The first mean is for the first channel that the network gets, which is blue: 51 / 255 - 0.2 = 0."""
    assert pixel(255, 0, 51, channels="bgr", mean=(0.2, 0.0, 0.0)) == pytest.approx([0.0, 0.0, 1.0], abs=1e-6)


def test_gray_is_the_luma_of_itu_601():
    """0.299 of red's 255 is 76.2, 0.587 of green's 149.7, 0.114 of blue's 29.1; rounded to 8 bits."""
    found = [pixel(*rgb, channels="gray") for rgb in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    assert [255 * value for (value,) in found] == pytest.approx([76, 150, 29], abs=1e-4)


@pytest.mark.parametrize(
    ("options", "high", "wide", "expected"),
    [
        ({"size": 4}, 8, 16, [4, 0, 12, 8]),  # the middle square
        ({"size": 4}, 16, 8, [0, 4, 8, 12]),
        ({"size": 4}, 7, 10, [1.5, 0, 8.5, 7]),  # not shifted to whole pixels
        ({"size": 224, "crop": 0.875}, 256, 256, [16, 16, 240, 240]),  # 256 -> 224
        ({"size": 224, "crop": 0.875}, 256, 512, [144, 16, 368, 240]),
        ({"size": (2, 4)}, 8, 8, [0, 2, 8, 6]),  # twice as wide as high
        ({"size": (4, 2)}, 8, 8, [2, 0, 6, 8]),
        ({"size": (2, 4)}, 8, 100, [42, 0, 58, 8]),
        ({"size": (2, 4), "resize": "squash"}, 7, 31, [0, 0, 31, 7]),
        ({"size": (2, 4), "resize": "squash", "crop": 0.5}, 7, 31, [0, 0, 31, 7]),
    ],
)
def test_the_crop_is_the_largest_centred_box_of_the_inputs_proportions(options, high, wide, expected):
    assert box(pl.ImagePreprocess(**options), high, wide) == expected


side = st.integers(1, 6000)


@settings(derandomize=True, database=None, deadline=None, max_examples=500)
@given(high=side, wide=side, size=st.tuples(side, side), crop=st.sampled_from([1.0, 0.875, 1 / 3]))
def test_the_box_lies_inside_centred_with_the_right_shape_and_touches_an_edge(high, wide, size, crop):
    left, top, right, bottom = pl.ImagePreprocess(size=size, crop=crop)._box(high, wide)
    assert 0 <= left < right <= wide
    assert 0 <= top < bottom <= high
    assert (left + right, top + bottom) == (pytest.approx(wide, rel=1e-12), pytest.approx(high, rel=1e-12))
    assert (right - left) * size[0] == pytest.approx((bottom - top) * size[1], rel=1e-6)
    assert max((right - left) / wide, (bottom - top) / high) == pytest.approx(crop, rel=1e-9)


def test_a_picture_of_the_inputs_proportions_is_kept_whole_to_the_last_bit():
    """Rounding must not leave a hair outside: the page would say that something was cropped."""
    for side in range(1, 2000):
        assert pl.ImagePreprocess(size=49)._box(side, side) == (0, 0, side, side)
        assert pl.ImagePreprocess(size=(21, 49))._box(3 * side, 7 * side) == (0, 0, 7 * side, 3 * side)


def test_squashing_takes_the_whole_picture_in():
    """Left half black, right half white, squashed to two pixels."""
    picture = np.zeros((2, 40, 3), np.uint8)
    picture[:, 20:] = 255
    x = pl.ImagePreprocess(size=(1, 2), resize="squash", interpolation="nearest").read(picture).tensor
    assert x[0, 0].tolist() == [[0.0, 1.0]]


def test_size_is_height_then_width():
    assert pl.ImagePreprocess(size=(3, 5)).read(NOISE).tensor.shape == (1, 3, 3, 5)


@pytest.mark.parametrize("interpolation", list(RESAMPLING))
def test_it_equals_cutting_and_then_resizing_with_pillow(interpolation):
    """Of 40 x 60 the middle 40 x 40, by 4."""
    x = pl.ImagePreprocess(size=10, interpolation=interpolation).read(NOISE).tensor[0].permute(1, 2, 0)
    cut = Image.fromarray(NOISE).crop((10, 0, 50, 40)).resize((10, 10), RESAMPLING[interpolation])
    np.testing.assert_allclose(x, np.asarray(cut) / 255, rtol=0, atol=1e-6)


def test_what_lies_outside_the_box_changes_nothing():
    """The box of 7 x 10 is 1.5 .. 8.5: columns 0 and 9 are not seen, however far filters reach."""
    picture = NOISE[:7, :10].copy()
    before = pl.ImagePreprocess(size=3).read(picture).tensor
    picture[:, [0, 9]] = 255 - picture[:, [0, 9]]
    assert torch.equal(before, pl.ImagePreprocess(size=3).read(picture).tensor)


def test_reducing_averages_and_does_not_pick_single_pixels():
    """A fine checkerboard of black and white becomes grey."""
    checkers = np.indices((64, 64)).sum(0) % 2 * np.uint8(255)
    x = pl.ImagePreprocess(size=8).read(checkers.astype(np.uint8)).tensor
    assert float((x - 0.5).abs().max()) < 0.01


@pytest.mark.parametrize(("row", "column"), [(0, 0), (3, 5), (7, 2), (4, 4)])
@pytest.mark.parametrize("options", [{"size": 8}, {"size": 8, "crop": 0.5}, {"size": (8, 10), "resize": "squash"}])
@pytest.mark.parametrize(("high", "wide"), [(160, 240), (240, 160), (97, 131)])
def test_a_bright_spot_is_found_in_its_feature_and_from_there_in_the_picture(row, column, options, high, wide):
    prepare = pl.ImagePreprocess(**options)
    rows, columns = prepare.read(np.zeros((high, wide, 3), np.uint8)).tensor.shape[2:]
    left, top, right, bottom = box(prepare, high, wide)
    x, y = left + (column + 0.5) * (right - left) / columns, top + (row + 0.5) * (bottom - top) / rows
    picture = np.zeros((high, wide, 3), np.uint8)
    picture[int(y) - 2 : int(y) + 3, int(x) - 2 : int(x) + 3] = 255
    found = prepare.read(picture).tensor[0, 0]
    assert divmod(int(found.argmax()), columns) == (row, column)


def test_a_picture_of_one_pixel_fills_the_input_with_its_colour():
    x = pl.ImagePreprocess(size=5).read(np.array([[[0, 51, 255]]], np.uint8)).tensor
    for channel, value in enumerate((0.0, 0.2, 1.0)):
        assert float((x[0, channel] - value).abs().max()) < 1e-6


def test_of_a_single_row_the_middle_pixel_is_enlarged():
    """1 x 5 for a square input: the box is the middle pixel, 2 .. 3, whose neighbours are not blended in."""
    row = np.array([[0, 0, 255, 0, 0]], np.uint8)
    assert float(pl.ImagePreprocess(size=3).read(row).tensor.min()) == 1.0
    assert float(pl.ImagePreprocess(size=3).read(row.T).tensor.min()) == 1.0


@pytest.mark.parametrize(("high", "wide"), [(1, 1000), (1000, 1), (1, 2), (3, 1), (2, 999)])
@pytest.mark.parametrize("crop", [1.0, 0.875])
def test_the_narrowest_pictures_are_enlarged(high, wide, crop):
    x = pl.ImagePreprocess(size=(24, 32), crop=crop).read(np.full((high, wide, 3), 255, np.uint8))
    assert x.tensor.shape == (1, 3, 24, 32)
    assert float(x.tensor.min()) == 1.0


def test_bounds_are_the_least_and_largest_of_any_channel():
    """Black gives -0.5 / 0.25 = -2, -0.25 and -0.25 / 0.1 = -2.5; white 2, 0.75 and 7.5."""
    prepare = pl.ImagePreprocess(size=2, mean=(0.5, 0.25, 0.25), std=(0.25, 1.0, 0.1))
    assert prepare.bounds == pytest.approx((-2.5, 7.5))
    both = [prepare.read(np.full((2, 2), value, np.uint8)).tensor for value in (0, 255)]
    assert (float(both[0].min()), float(both[1].max())) == pytest.approx(prepare.bounds)


def test_a_list_gives_a_row_a_view_and_notes_for_each_picture(tmp_path):
    path = tmp_path / "cat.png"
    Image.fromarray(NOISE).save(path)
    x = pl.ImagePreprocess(size=4).read([NOISE[:8, :8], str(path), np.ones((5, 6))])
    assert x.sources == ("array", str(path), "array")
    assert [view.geometry["size"] for view in x.views] == [[8, 8], [40, 60], [5, 6]]
    assert x.notes == ((), (), ("fractions rounded to 8 bits",))
    assert torch.equal(x.tensor[1:2], pl.ImagePreprocess(size=4).read(path).tensor)


def test_the_view_holds_the_picture_itself_and_a_copy_of_it():
    picture = NOISE.copy()
    x = pl.ImagePreprocess(size=4).read(picture)
    picture[:] = 0
    assert (x.views[0].kind, x.views[0].preview.tolist()) == ("image", NOISE.tolist())


def test_with_on_error_the_others_are_read_and_each_failure_is_told():
    told = []
    bad = np.full((2, 2), 7.0)
    x = pl.ImagePreprocess(size=4).read([bad, NOISE, "no such file.png"], on_error=told.append)
    assert len(x) == len(x.views) == len(x.notes) == 1
    assert [type(error) for error in told] == [pl.InputError, pl.InputError]
    assert "no such file.png" in str(told[1])


@pytest.mark.doors
def test_one_bad_picture_stops_the_reading_without_on_error():
    with pytest.raises(pl.InputError, match="cannot be opened"):
        pl.ImagePreprocess(size=4).read([NOISE, "no such file.png"])


@pytest.mark.doors
@pytest.mark.parametrize("sources", [[], ["no such file.png"]])
def test_nothing_readable_is_an_error_of_its_own(sources):
    with pytest.raises(pl.InputError, match="at least one picture that can be read"):
        pl.ImagePreprocess(size=4).read(sources, on_error=lambda error: None)


@pytest.mark.doors
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"size": 0}, "`size` is a whole number, 1 or more. Got 0"),
        ({"size": 2.5}, "`size` is a whole number, 1 or more. Got 2.5"),
        ({"size": "224"}, "`size` is a whole number, 1 or more. Got '224'"),
        ({"size": (4, -1)}, "Got -1"),
        ({"size": (4,)}, r"one side or \(height, width\). Got \(4,\)"),
        ({"size": (3, 4, 4)}, r"one side or \(height, width\). Got \(3, 4, 4\)"),
        ({"mean": (0.5, 0.5)}, r"one for each of 3 channels. Got \(0.5, 0.5\)"),
        ({"mean": (0.5, 0.5, 0.5), "channels": "gray"}, "one for each of 1 channels"),
        ({"mean": float("nan")}, "`mean` is one finite number.* Got nan"),
        ({"mean": "0.5"}, "`mean` is one finite number.* Got '0.5'"),
        ({"mean": None}, "`mean` is one finite number.* Got None"),
        ({"std": (0.2, float("inf"), 0.2)}, "`std` is one finite number"),
        ({"std": 0}, "`std` is over zero. Got 0"),
        ({"std": (0.2, -0.2, 0.2)}, "`std` is over zero"),
        ({"crop": 0}, "over 0 up to 1. Got 0"),
        ({"crop": 1.2}, "over 0 up to 1. Got 1.2"),
        ({"crop": "most"}, "over 0 up to 1. Got 'most'"),
        ({"resize": "fit"}, "`resize` is one of 'crop', 'squash'. Got 'fit'"),
        ({"interpolation": "lanczos"}, "`interpolation` is one of .* Got 'lanczos'"),
        ({"channels": "rgba"}, "`channels` is one of 'rgb', 'bgr', 'gray'. Got 'rgba'"),
    ],
)
def test_wrong_settings_say_what_was_expected_and_what_came(wrong, words):
    with pytest.raises(pl.ArgumentError, match=words):
        pl.ImagePreprocess(**{"size": 4, **wrong})


@pytest.mark.doors
@pytest.mark.doors
@pytest.mark.parametrize("made", [list, tuple, np.array, torch.tensor])
def test_settings_in_lists_arrays_and_tensors_are_those_in_tuples(made):
    plain = pl.ImagePreprocess(size=(8, 4), mean=(0.25, 0.5, 0.75), std=(0.25, 0.5, 0.25))
    given = pl.ImagePreprocess(size=made([8, 4]), mean=made([0.25, 0.5, 0.75]), std=made([0.25, 0.5, 0.25]))
    assert given == plain
    assert hash(given) == hash(plain)
    assert decode(encode(given)) == plain


def test_every_setting_survives_the_recipe():
    prepare = pl.ImagePreprocess(
        size=(8, 4), mean=(0.1, 0.2, 0.3), std=0.5, resize="squash", crop=0.9, interpolation="nearest", channels="bgr"
    )
    assert decode(encode(prepare)) == prepare != pl.ImagePreprocess(size=(8, 4))


@pytest.mark.doors
def test_a_mean_of_0_to_255_is_refused_with_what_to_write():
    with pytest.raises(pl.ArgumentError, match=r"Divide mean and std of 0 .. 255 by 255"):
        pl.ImagePreprocess(size=8, mean=(123.7, 116.3, 103.5), std=(58.4, 57.1, 57.4))
