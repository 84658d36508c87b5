import pytest
import torch
from tests.oracles import conv_net, uniform

import pellucid as pl
from pellucid.core.recipe import decode, encode

TABLE = torch.tensor([[1.0, 3.0, 2.0]], dtype=torch.float64)
PICTURE = uniform(1, 2, 5, 7, seed=1, dtype=torch.float64)
W = uniform(2, 5, 7, seed=2, dtype=torch.float64) - 0.4


def model(f, **settings) -> pl.FunctionModel:
    return pl.FunctionModel(f, **{"output": "regression", "takes": "torch"} | settings)


def linear(rows: torch.Tensor) -> torch.Tensor:
    return (rows * W).sum((1, 2, 3))


def pairs(rows: torch.Tensor) -> torch.Tensor:
    return linear(rows) + 3 * rows[:, 0, 0, 0] * rows[:, 1, 4, 6]


def sliding(**settings) -> pl.SlidingOcclusion:
    return pl.SlidingOcclusion(**{"window": 3, "stride": 2, "baseline": pl.Zeros()} | settings)


def by_definition(f, x: torch.Tensor, baseline: torch.Tensor, corners: list[tuple], window: tuple) -> torch.Tensor:
    """Each window taken away in turn: the fall of the score, over the number of windows around each place."""
    total, count = torch.zeros(x.shape[2:], dtype=x.dtype), torch.zeros(x.shape[2:], dtype=x.dtype)
    for corner in corners:
        place = tuple(slice(start, start + side) for start, side in zip(corner, window, strict=True))
        away = x.clone()
        away[(0, slice(None), *place)] = baseline[(0, slice(None), *place)]
        total[place] += (f(x) - f(away))[0]
        count[place] += 1
    return total / count


# ------------------------------------------------------------------ segments
def test_of_a_linear_score_it_is_each_columns_part():
    weights = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
    a = pl.Occlusion(baseline=pl.Constant(1.0))(model(lambda rows: rows @ weights), TABLE)
    torch.testing.assert_close(a.scores[0], weights * (TABLE[0] - 1))


def test_of_a_product_each_has_all_of_it():
    a = pl.Occlusion(baseline=pl.Zeros())(model(lambda rows: rows[:, 0] * rows[:, 1]), TABLE)
    assert a.scores.tolist() == [[3.0, 3.0, 0.0]]


def test_a_segment_goes_with_all_its_channels_and_places():
    a = pl.Occlusion(segments=pl.Patches((1, 2)), baseline=pl.Zeros())(model(linear), PICTURE)
    halves = (PICTURE[0] * W).sum((0, 1))
    expected = torch.cat([halves[:3].sum().expand(3), halves[3:].sum().expand(4)]).expand(5, 7)
    torch.testing.assert_close(a.scores[0, 0], expected)
    assert a.by_segment.shape == (2,)


def test_a_group_of_columns_goes_together():
    a = pl.Occlusion(segments=pl.Columns(groups=((0, 2),)), baseline=pl.Zeros())(
        model(lambda rows: rows[:, 0] * rows[:, 2] + rows[:, 1]), TABLE
    )
    assert a.scores.tolist() == [[2.0, 3.0, 2.0]]


def test_places_of_no_segment_stay_and_have_no_value():
    held = pl.SegmentMap.of(torch.tensor([0, -1, 1]))
    a = pl.Occlusion(segments=held, baseline=pl.Zeros())(model(lambda rows: rows.prod(1)), TABLE)
    assert a.scores.tolist() == [[6.0, 0.0, 6.0]]


def test_the_score_is_averaged_over_a_background():
    background = pl.Background.of(uniform(4, 3, seed=3, dtype=torch.float64))
    f = model(lambda rows: rows[:, 0] ** 2 + rows[:, 1])
    a = pl.Occlusion(baseline=background)(f, TABLE)
    means = (background.rows**2).mean(0)[0], background.rows.mean(0)[1]
    torch.testing.assert_close(a.scores[0], torch.stack([1 - means[0], 3 - means[1], 0 * means[0]]))


def test_a_call_for_each_segment_and_two_for_the_input():
    a = pl.Occlusion()(pl.TorchModel(conv_net()), uniform(1, 3, 9, 9))
    assert a.cost.forward == 2 + 49
    assert a.stopped == "nothing is sampled"
    assert a.standard_error is None


def test_a_segment_without_a_score_is_zero_and_is_named():
    f = model(lambda rows: torch.where(rows[:, 1] == 0, torch.nan, rows.sum(1)))
    a = pl.Occlusion(baseline=pl.Zeros())(f, TABLE)
    assert a.scores.tolist() == [[1.0, 0.0, 2.0]]
    assert any("segments whose absence has no score: 1." in finding.message for finding in a.findings)


def test_without_a_score_of_the_input_there_is_nothing_to_compare_with():
    calls = []

    def f(rows):
        calls.append(len(rows))
        whole = rows.sum(1)
        return whole if len(calls) < 3 else torch.where((rows == TABLE).all(1), torch.nan, whole)

    with pytest.raises(pl.ModelError, match="the score of the input itself"):
        pl.Occlusion(baseline=pl.Zeros())(model(f), TABLE)


def test_inputs_of_a_batch_are_explained_by_themselves():
    both = torch.cat([PICTURE, PICTURE + 1])
    for method in (pl.Occlusion(segments=pl.Patches(2)), sliding()):
        together = method(model(pairs), both).scores
        for row in range(2):
            torch.testing.assert_close(together[row : row + 1], method(model(pairs), both[row : row + 1]).scores)


# ------------------------------------------------------------------ windows
CORNERS = [(i, j) for i in (0, 2) for j in (0, 2, 4)]


def test_a_place_has_the_mean_of_the_windows_around_it():
    base = torch.full_like(PICTURE, 0.25)
    found = sliding(baseline=pl.Constant(0.25))(model(pairs), PICTURE).scores
    torch.testing.assert_close(found[0, 0], by_definition(pairs, PICTURE, base, CORNERS, (3, 3)))


def test_axes_may_have_windows_and_steps_of_their_own_and_the_last_may_reach_over_the_edge():
    corners = [(i, j) for i in (0, 1, 2, 3) for j in (0, 3, 6)]  # the last covers one column of 7
    found = sliding(window=(2, 3), stride=(1, 3))(model(pairs), PICTURE)
    torch.testing.assert_close(
        found.scores[0, 0], by_definition(pairs, PICTURE, torch.zeros_like(PICTURE), corners, (2, 3))
    )
    assert found.recipe.notes["windows"] == [12.0]
    assert found.cost.forward == 1 + 1 + 12


def test_windows_that_do_not_overlap_are_segments():
    x = uniform(1, 2, 6, 6, seed=4, dtype=torch.float64)
    f = model(lambda rows: rows.flatten(1).cumprod(1).sum(1))
    torch.testing.assert_close(
        sliding(window=2)(f, x).scores, pl.Occlusion(segments=pl.Patches(3), baseline=pl.Zeros())(f, x).scores
    )


def test_of_a_side_no_longer_than_the_window_there_is_one():
    found = sliding(window=32, stride=16)(model(linear), PICTURE)
    torch.testing.assert_close(found.scores[0, 0], linear(PICTURE).expand(5, 7))
    assert found.recipe.notes["windows"] == [1.0]


def test_signals_and_volumes_have_windows():
    signal = uniform(2, 3, 10, seed=5, dtype=torch.float64)
    f = lambda rows: (rows**2).flatten(1).sum(1)  # noqa: E731
    found = sliding(window=4, stride=3)(model(f), signal).scores
    assert found.shape == (2, 1, 10)
    expected = by_definition(f, signal[1:], torch.zeros_like(signal[1:]), [(0,), (3,), (6,)], (4,))
    torch.testing.assert_close(found[1, 0], expected)
    volume = uniform(1, 1, 4, 5, 3, seed=6, dtype=torch.float64)
    assert sliding(window=2, stride=1)(model(f), volume).scores.shape == (1, 1, 4, 5, 3)


def test_a_window_without_a_score_is_left_out_of_the_mean():
    x = torch.ones(1, 1, 6, dtype=torch.float64)
    f = model(lambda rows: torch.where((rows[:, 0, 3:5] == 0).all(1), torch.nan, (rows[:, 0] * torch.arange(6)).sum(1)))
    a = sliding(window=2, stride=1)(f, x)
    assert a.scores[0, 0].tolist() == [1.0, 2.0, 4.0, 5.0, 9.0, 9.0]
    b = sliding(window=2, stride=2)(model(lambda rows: torch.where(rows[:, 0, 2] == 0, torch.nan, rows.sum((1, 2)))), x)
    assert b.scores[0, 0].tolist() == [2.0, 2.0, 0.0, 0.0, 2.0, 2.0]
    assert any("2 places of which no window has a score" in finding.message for finding in b.findings)


def test_windows_are_averaged_over_a_background():
    background = pl.Background.of(uniform(3, 2, 5, 7, seed=7, dtype=torch.float64))
    found = sliding(baseline=background)(model(linear), PICTURE).scores[0, 0]
    each = [by_definition(linear, PICTURE, row[None], CORNERS, (3, 3)) for row in background.rows]
    torch.testing.assert_close(found, torch.stack(each).mean(0))


@pytest.mark.parametrize("rows", [1, 2, 500])
def test_the_rows_at_once_change_nothing(rows):
    expected = sliding()(model(pairs), PICTURE).scores
    torch.testing.assert_close(sliding()(model(pairs, micro_batch=rows), PICTURE).scores, expected)


@pytest.mark.doors
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"window": 0}, "`window`"),
        ({"stride": 0}, "`stride`"),
        ({"window": ()}, "`window`"),
        ({"stride": 2.0}, "`stride`"),
        ({"window": 2, "stride": 3}, "no more than `window`"),
        ({"window": (4, 4), "stride": (2, 5)}, "no more than `window`"),
        ({"window": (4, 4), "stride": (2, 2, 2)}, "a number for each axis"),
        ({"baseline": 0.0}, "`baseline`"),
    ],
)
def test_wrong_settings_are_named(settings, said):
    with pytest.raises(pl.ArgumentError, match=said):
        sliding(**settings)


@pytest.mark.doors
@pytest.mark.parametrize(("shape", "window"), [((1, 6), 2), ((1, 3, 6), (2, 2)), ((1, 3, 6, 6), (2, 2, 2))])
def test_inputs_that_windows_do_not_fit_are_refused(shape, window):
    f = model(lambda rows: rows.flatten(1).sum(1))
    with pytest.raises(pl.ArgumentError, match="Windows slide over the axes"):
        sliding(window=window, stride=1)(f, uniform(*shape))


def test_several_tensors_have_no_windows():
    f = model(lambda a, b: a.flatten(1).sum(1) + b.flatten(1).sum(1))
    with pytest.raises(pl.ArgumentError, match="several tensors take Occlusion"):
        sliding()(f, {"a": uniform(1, 3, 6, 6), "b": uniform(1, 4)})


def test_recipes_bring_them_back():
    for method in (pl.Occlusion(segments=pl.Patches(3)), sliding(window=(4, 3), stride=(2, 1))):
        assert decode(encode(method)) == method
