"""Colours, overlays and pages, asked pixel by pixel."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pellucid.core.input import View
from pellucid.errors import OutputError
from pellucid.modalities.image.draw import (
    Drawing,
    Panel,
    _coloured,
    _fitted,
    _wrapped,
    colours,
    compose,
    inscribed,
    overlay_pixels,
    reduced,
)
from pellucid.modalities.image.heatmap import Heatmap, spread

SIDE = 448  # of a panel
CRIMSON = (220, 20, 60)
SCALES = {
    True: _coloured(np.linspace(-1, 1, 2001)[None], True)[0],
    False: _coloured(np.linspace(0, 1, 2001)[None], False)[0],
}


def heat(values: object, *, signed: bool = False, limit: float = 1.0, **facts: object) -> Heatmap:
    return Heatmap(np.array(values, dtype=np.float64), signed, limit, 0.0, "sum" if signed else "max_abs", **facts)


def photo(high: int, wide: int, box: tuple[float, ...] | None = None, value: int = 100) -> View:
    """The view of an evenly grey photo."""
    pixels = torch.full((high, wide, 3), value, dtype=torch.uint8)
    return View("image", {"box": list(box or (0, 0, wide, high)), "size": [high, wide]}, pixels)


def spot(rows: int, columns: int, row: int, column: int) -> Heatmap:
    values = np.zeros((rows, columns))
    values[row, column] = 1.0
    return heat(values)


def noise_pixels(high: int, wide: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (high, wide, 3), dtype=np.uint8)


def holds(pixels: np.ndarray, colour: tuple[int, ...]) -> bool:
    return bool((pixels == np.array(colour, dtype=np.uint8)).all(-1).any())


def where(page: np.ndarray, part: np.ndarray) -> tuple[int, int]:
    """Row and column at which `part` stands in `page`, pixel for pixel."""
    high, wide = part.shape[:2]
    rows, columns = np.nonzero((page == part[0, 0]).all(-1))
    for top, left in zip(rows.tolist(), columns.tolist(), strict=True):
        if np.array_equal(page[top : top + high, left : left + wide], part):
            return top, left
    raise AssertionError("it is not in the page")


# colours


def test_zero_of_an_unsigned_map_is_exactly_black():
    assert colours(heat([[0.0, 1.0]]))[0, 0].tolist() == [0, 0, 0]


def test_zero_of_a_signed_map_is_exactly_neutral_and_nearly_white():
    red, green, blue = colours(heat([[0.0]], signed=True))[0, 0].tolist()
    assert red == green == blue >= 240


def test_brightness_only_rises_from_zero_to_the_limit():
    luma = SCALES[False] @ np.array([0.2126, 0.7152, 0.0722])
    assert np.diff(luma).min() >= -0.5  # a rounded channel
    assert np.diff(luma[::100]).min() > 4


def test_what_speaks_for_is_red_and_what_speaks_against_is_as_dark_a_blue():
    against, a_little, much = colours(heat([[-1.0, 0.5, 1.0]], signed=True))[0].astype(int)
    assert much[0] > much[2]
    assert against[2] > against[0]
    assert a_little.sum() > much.sum()


def test_what_lies_beyond_the_limit_has_its_colour():
    low, limit, beyond, far = colours(heat([[1.0, 2.0, 2.1, 1e30]], limit=2.0))[0].tolist()
    assert low != limit == beyond == far
    signed = colours(heat([[-2.0, -9.0]], limit=2.0, signed=True))[0].tolist()
    assert signed[0] == signed[1]


def test_two_maps_on_one_limit_keep_their_ratio():
    """0.25 of a limit of 1 is drawn as 0.5 of a limit of 2, whatever else is in the map."""
    assert colours(heat([[0.25, 1.0]]))[0, 0].tolist() == colours(heat([[0.5, 0.5]], limit=2.0))[0, 0].tolist()
    assert colours(heat([[1e-6, 1e-6]])).tolist() == colours(heat([[0.0, 0.0]])).tolist()


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("certain", [None, np.array([[False, True]])])
def test_what_is_not_finite_has_a_colour_that_is_far_from_the_whole_scale(signed, broken, certain):
    first, second = colours(heat([[broken, 0.5]], signed=signed, certain=certain))[0].astype(int)
    assert np.abs(SCALES[signed].astype(int) - first).sum(-1).min() > 150
    assert second.tolist() == colours(heat([[0.5]], signed=signed))[0, 0].tolist()


def test_a_map_without_a_scale_is_drawn_as_zero():
    assert not colours(heat([[0.0, 0.0]], limit=0.0)).any()


@pytest.mark.parametrize("signed", [False, True])
def test_uncertain_pixels_are_grey_and_certain_ones_as_ever(signed):
    values = np.linspace(-1 if signed else 0, 1, 10).reshape(2, 5)
    certain = np.zeros((2, 5), dtype=bool)
    certain[0, :3] = True
    plain, drawn = colours(heat(values, signed=signed)), colours(heat(values, signed=signed, certain=certain))
    np.testing.assert_array_equal(drawn[certain], plain[certain])
    grey = drawn[~certain]
    assert (grey == grey[:, :1]).all()
    assert 80 < grey.min() <= grey.max() < 150  # neither black, where nothing is, nor the white of a signed zero


# overlay


@pytest.mark.parametrize(("high", "wide"), [(1, 1), (1, 500), (500, 1), (37, 91), (300, 20)])
def test_an_overlay_has_exactly_the_photos_size(high, wide):
    assert overlay_pixels(photo(high, wide), spot(5, 7, 2, 3)).shape == (high, wide, 3)


@pytest.mark.parametrize(
    ("box", "high", "wide", "rows", "columns", "row", "column"),
    [
        ((35, 0, 175, 140), 140, 210, 7, 7, 2, 5),  # features of 20 x 20, cropped left and right
        ((0, 35, 140, 175), 210, 140, 7, 7, 5, 2),  # cropped above and below
        ((10.5, 3.25, 150.5, 73.25), 80, 160, 5, 10, 1, 7),  # a box between pixels
        ((0, 0, 240, 90), 90, 240, 9, 8, 4, 3),  # squashed: features of 10 x 30
        ((0, 0, 60, 60), 60, 60, 60, 60, 20, 40),  # one pixel a feature
    ],
)
def test_a_hot_features_centroid_is_its_centre_in_the_photo(box, high, wide, rows, columns, row, column):
    left, top, right, bottom = box
    view = photo(high, wide, box)
    empty = overlay_pixels(view, heat(np.zeros((rows, columns))))
    change = np.abs(overlay_pixels(view, spot(rows, columns, row, column)).astype(float) - empty).sum(-1)
    y, x = (np.indices(change.shape) + 0.5) * change / change.sum()
    assert x.sum() == pytest.approx(left + (column + 0.5) * (right - left) / columns, abs=0.5)
    assert y.sum() == pytest.approx(top + (row + 0.5) * (bottom - top) / rows, abs=0.5)


@pytest.mark.parametrize(("pixels", "low", "high", "cells"), [(100, 0, 100, 10), (101, 7.5, 90.25, 13), (40, 4, 36, 8)])
def test_enlarging_reproduces_a_ramp_between_the_outer_centres(pixels, low, high, cells):
    """The value of each cell is the place of its centre in the photo; so must each pixel's be."""
    size = (high - low) / cells
    ramp = low + (np.arange(cells) + 0.5) * size
    places = np.arange(pixels) + 0.5
    inner = (places >= low + size / 2) & (places <= high - size / 2)
    np.testing.assert_allclose((spread(pixels, low, high, cells) @ ramp)[inner], places[inner], rtol=1e-5)


def test_beyond_the_outer_centres_the_outer_cells_go_on():
    weights = spread(10, 0, 10, 2)  # centres at 2.5 and 7.5
    assert weights[:2].tolist() == [[1, 0], [1, 0]]
    assert weights[8:].tolist() == [[0, 1], [0, 1]]


def test_reducing_loses_no_cell():
    """90 cells on 9 pixels: 10 cells a pixel, and each counts as much as any other but for the ends."""
    weights = spread(9, 0, 9, 90)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(weights.sum(0)[15:75], 0.1, rtol=1e-5)
    assert weights.sum(0).min() > 0.03


def test_a_map_of_zeros_leaves_the_photo_grey_and_even():
    pixels = overlay_pixels(photo(30, 40), heat(np.zeros((5, 5))))
    assert len(np.unique(pixels)) == 1


def test_the_overlay_shows_the_photo_where_the_map_is_zero():
    view = photo(20, 20)
    view.preview[:, 10:] = 200
    left, right = overlay_pixels(view, heat(np.zeros((5, 5))))[0, [0, 19], 0].tolist()
    assert right - left > 60


def test_at_the_limit_the_overlay_has_the_colour_of_the_scale():
    assert overlay_pixels(photo(20, 20), heat(np.ones((5, 5))))[7, 7].tolist() == SCALES[False][-1].tolist()
    signed = overlay_pixels(photo(20, 20), heat(-np.ones((5, 5)), signed=True))
    assert signed[7, 7].tolist() == SCALES[True][0].tolist()


def test_outside_the_crop_is_hatched_and_inside_not():
    """Two values outside, line and gap, apart enough to be seen; inside a third one alone."""
    pixels = overlay_pixels(photo(100, 200, (50, 0, 150, 100)), heat(np.zeros((5, 5))))[..., 0].astype(int)
    assert len(np.unique(pixels[:, 50:150])) == 1
    for outside in (pixels[:, :50], pixels[:, 150:]):
        gap, line = np.unique(outside).tolist()
        assert line - gap > 60
        assert 0.05 < (outside == line).mean() < 0.4
    assert pixels[0, 60] not in np.unique(pixels[:, :50])


@pytest.mark.parametrize("value", [0, 128, 255])
def test_the_hatching_is_seen_on_any_photo(value):
    outside = overlay_pixels(photo(100, 200, (50, 0, 150, 100), value), heat(np.zeros((5, 5))))[:, :50].astype(int)
    assert np.ptp(outside) > 60


def test_pixels_that_the_model_saw_in_part_are_not_hatched():
    """A single row of 1000 pixels: the box is 499.5 .. 500.5, half of the pixels 499 and 500."""
    pixels = overlay_pixels(photo(1, 1000, (499.5, 0, 500.5, 1)), heat(np.zeros((5, 5))))[0, :, 0]
    inside = pixels[499]
    assert np.flatnonzero(pixels == inside).tolist() == [499, 500]


def test_in_an_overlay_too_what_is_not_finite_has_a_colour_of_its_own():
    values = np.zeros((4, 4))
    values[1, 2] = np.nan
    pixels = overlay_pixels(photo(40, 40), heat(values))
    assert pixels[15, 25].tolist() == colours(heat([[np.nan]]))[0, 0].tolist()
    assert pixels[35, 5].tolist() == overlay_pixels(photo(40, 40), heat(np.zeros((4, 4))))[0, 0].tolist()


def test_a_photo_larger_than_a_panel_is_reduced_with_its_box():
    """1200 x 900 for a panel of 448: the box shrinks by the same 448 / 1200."""
    small = reduced(photo(900, 1200, (150, 0, 1050, 900)))
    assert small.preview.shape == (336, 448, 3)
    assert small.geometry["box"] == pytest.approx([56, 0, 392, 336])
    view = photo(448, 300)
    assert reduced(view) is view


# pages


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((224, 224), (448, 448)),
        ((9, 7), (441, 343)),  # times 49
        ((300, 300), (300, 300)),  # 1.49 would make some features wider than others
        ((1, 1), (448, 448)),
        ((1, 4000), (1, 448)),
        ((4000, 1), (448, 1)),
        ((1200, 1800), (299, 448)),
    ],
)
def test_a_panel_is_enlarged_by_a_whole_number_or_reduced(shape, expected):
    assert _fitted(np.zeros((*shape, 3), np.uint8)).shape[:2] == expected


def test_each_feature_is_a_square_of_its_colour_in_the_page():
    pixels = noise_pixels(16, 16)
    page = compose([[Panel(pixels, "a title")]], "").pixels
    where(page, pixels.repeat(28, 0).repeat(28, 1))


def test_panels_stand_in_rows_and_columns_without_touching():
    panels = [[Panel(noise_pixels(448, 448) // 2 + 20 * (3 * i + j), "t") for j in range(3)] for i in range(2)]
    page = compose(panels, "").pixels
    places = [[where(page, panel.pixels) for panel in row] for row in panels]
    for row in places:
        assert len({top for top, _ in row}) == 1
        assert all(b - a > SIDE for (_, a), (_, b) in pairwise(row))
    assert places[1][0][0] - places[0][0][0] > SIDE
    assert [left for _, left in places[0]] == [left for _, left in places[1]]
    assert page.shape[1] == places[0][2][1] + SIDE + places[0][0][1]  # the same margin on both sides


@pytest.mark.parametrize("title", ["W" * 60, "many words " * 30, "W" * 500, "two\nlines"])
def test_a_title_stays_within_its_panels_column(title):
    pixels = noise_pixels(448, 448)
    page = compose([[Panel(pixels, title), Panel(255 - pixels, "")]], "").pixels
    top, left = where(page, pixels)
    ink = (page[: top - 2] < 200).any(-1)
    assert ink.any()
    columns = np.flatnonzero(ink.any(0))
    assert left - 2 <= columns.min()
    assert columns.max() <= left + SIDE + 2
    assert not ink[0].any()


def test_text_below_panels_does_not_reach_the_next_row():
    """Notes of many lines: the rows of pixels just above the next title are white."""
    noisy, other = noise_pixels(448, 448), 255 - noise_pixels(448, 448)
    rows = [[Panel(noisy, "", "word " * 60)], [Panel(other, "")]]
    page = compose(rows, "").pixels
    top, below = where(page, noisy)[0], where(page, other)[0]
    ink = (page[top + SIDE + 2 : below - 2] < 200).any((1, 2))
    assert ink.sum() > 30
    assert not ink[-10:].any()


def test_labels_are_text_and_never_formulas():
    """Between two $ matplotlib would set a formula, and fail on this one."""
    compose([[Panel(noise_pixels(8, 8), r"US$ \frac{ and $x_", r"$\nope$")]], "", r"$\nope$")


def test_a_users_own_matplotlib_settings_do_not_break_the_page():
    import matplotlib as mpl

    with mpl.rc_context({"text.usetex": True, "figure.dpi": 300, "axes.facecolor": "black"}):
        changed = compose([[Panel(noise_pixels(8, 8), "a_title")]], "", "a caption").pixels
    np.testing.assert_array_equal(changed, compose([[Panel(noise_pixels(8, 8), "a_title")]], "", "a caption").pixels)


def test_the_colour_bar_runs_over_the_whole_scale_as_wide_as_a_panel():
    for signed in (False, True):
        page = compose(
            [[Panel(np.zeros((8, 8, 3), np.uint8), "", bar=heat(np.ones((8, 8)), signed=signed))]], ""
        ).pixels
        steps = np.linspace(-1 if signed else 0, 1, SIDE)
        where(page, _coloured(np.tile(steps, (10, 1)), signed))


def test_a_blank_map_has_its_reason_in_place_of_a_colour_bar():
    zero = heat(np.zeros((8, 8)), limit=0.0, blank="Every value is zero.")
    page = compose([[Panel(colours(zero), "map", bar=zero)]], "").pixels
    assert holds(page, CRIMSON)
    assert not holds(page, tuple(SCALES[False][-1]))
    other = compose([[Panel(colours(zero), "map", bar=replace(zero, blank="Another reason."))]], "").pixels
    assert not np.array_equal(page, other)
    assert not holds(compose([[Panel(colours(zero), "map", bar=replace(zero, blank=""))]], "").pixels, CRIMSON)


def test_a_text_can_be_written_over_a_picture_of_any_size():
    for high, wide in ((1, 1), (3, 200), (200, 3), (120, 500)):
        pixels = np.zeros((high, wide, 3), np.uint8)
        assert inscribed(pixels, "The map holds NaN.").shape == pixels.shape
        assert not pixels.any(), "the picture given is left as it is"
    written = inscribed(np.zeros((120, 500, 3), np.uint8), "The map holds NaN.")
    assert holds(written, CRIMSON)
    assert not written[:60].any()  # along the lower edge


def test_a_long_text_keeps_its_line_breaks_and_says_where_it_was_cut():
    assert _wrapped("one two\nthree", 40, 3) == "one two\nthree"
    assert _wrapped("one two three four", 9, 3) == "one two\nthree\nfour"
    assert _wrapped("one two three four", 9, 2) == "one two\nthree …"
    assert _wrapped("x" * 30, 9, 2) == "xxxxxxxxx\nxxxxxxx …"
    assert _wrapped("", 9, 2) == ""


# files


def test_the_recipes_stand_in_the_pngs_text(tmp_path):
    metadata = json.dumps([{"model": "ä $ 猫"}] * 3)
    path = Drawing(noise_pixels(9, 9), metadata).save(tmp_path / "a.png")
    with Image.open(path) as image:
        assert image.text["pellucid"] == metadata
        np.testing.assert_array_equal(np.asarray(image), noise_pixels(9, 9))


def test_saving_twice_gives_the_same_bytes(tmp_path):
    def draw() -> Drawing:
        return compose([[Panel(noise_pixels(8, 8), "title", bar=heat(np.ones((8, 8))))]], '{"a":1}', "caption")

    first, second = draw().save(tmp_path / "a.png"), draw().save(tmp_path / "b.PNG")
    assert first.read_bytes() == second.read_bytes()


def test_a_notebook_shows_the_png():
    drawing = Drawing(noise_pixels(4, 4), "")
    assert drawing._repr_png_() == drawing.png()
    assert drawing.png().startswith(b"\x89PNG")


@pytest.mark.doors
@pytest.mark.parametrize("name", ["a.jpg", "a", "a.png.txt"])
def test_other_formats_would_lose_the_recipe_and_are_refused(name, tmp_path):
    with pytest.raises(OutputError, match=r"saved as \.png, which keeps the recipe"):
        Drawing(noise_pixels(4, 4), "").save(tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.doors
@pytest.mark.parametrize("place", ["missing/a.png", "file/a.png", "folder.png"])
def test_a_place_that_cannot_be_written_is_named(place, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OutputError, match=r"a\.png: cannot be written|folder\.png: cannot be written"):
        Drawing(noise_pixels(4, 4), "").save(Path(tmp_path / place))
