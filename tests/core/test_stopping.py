import itertools
from dataclasses import replace

import pytest

import pellucid as pl
from pellucid.core.stopping import check_samples, counts, lengthened, most


def test_the_error_is_looked_at_after_16_24_36_samples_and_at_the_end():
    assert counts(pl.Until(error=0.5, at_most=100), 1) == [16, 24, 36, 54, 81, 100]
    assert counts(pl.Until(error=0.5, at_most=16), 1) == [16]
    assert counts(pl.Until(error=0.5, at_most=5), 1) == [5]


def test_each_look_is_one_and_a_half_times_the_one_before():
    looks = counts(pl.Until(error=0.5, at_most=2000), 1)
    assert looks[-1] == 2000
    assert all(abs(later - 1.5 * sooner) <= 1.5 for sooner, later in itertools.pairwise(looks[:-1]))


def test_counts_are_in_whole_draws():
    """With groups of 6: 18, 24, 36, 54, 84 of at most 100 samples, which are 16 groups."""
    assert counts(pl.Until(error=0.5, at_most=100), 6) == [3, 4, 6, 9, 14, 16]
    assert counts(50, 6) == [9]
    assert counts(48, 6) == [8]


def test_one_draw_is_never_looked_at():
    """It shows no spread."""
    assert counts(pl.Until(error=0.5, at_most=200), 32) == [2, 3, 4, 6]


def test_a_run_goes_on_from_what_was_taken():
    assert counts(pl.Until(error=0.5, at_most=100), 1, taken=30) == [36, 54, 81, 100]
    assert counts(pl.Until(error=0.5, at_most=100), 1, taken=36) == [36, 54, 81, 100]
    assert counts(pl.Until(error=0.5, at_most=100), 1, taken=120) == [120]
    assert counts(50, 1, taken=20) == [50]
    assert counts(50, 1, taken=60) == [60]


def test_nothing_stops_before_the_least_where_it_is_looked_at_too():
    assert counts(pl.Until(error=0.5, at_most=100, at_least=30), 1) == [30, 36, 54, 81, 100]
    assert counts(pl.Until(error=0.5, at_most=100, at_least=30), 1, taken=30) == [30, 36, 54, 81, 100]
    assert counts(pl.Until(error=0.5, at_most=100, at_least=30), 6) == [5, 6, 9, 14, 16]
    assert counts(pl.Until(error=0.5, at_most=100, at_least=120), 1) == [120]


def test_a_longer_run_is_what_one_run_would_have_been_asked_for():
    until = pl.Until(error=0.5, at_most=100)
    assert lengthened(50, [50, 50], 30) == 80
    assert lengthened(50, [54], 30) == 84  # whole groups were taken
    assert lengthened(until, [36, 54], 30) == pl.Until(error=0.5, at_most=100, further=30)
    assert lengthened(lengthened(until, [36], 30), [66], 4).further == 34
    assert lengthened(50, [50, 50], until) == replace(until, at_least=50)


def test_a_smaller_error_is_sought_where_one_run_would_have_looked():
    until, closer = pl.Until(error=0.5, at_most=100), pl.Until(error=0.2, at_most=400)
    assert lengthened(until, [36, 54], closer) == closer
    assert lengthened(replace(until, at_least=30), [30, 54], closer) == replace(closer, at_least=30)
    assert lengthened(closer, [36, 36], until) == replace(until, at_least=36)
    assert lengthened(replace(until, further=4), [40], closer) == replace(closer, at_least=40)


@pytest.mark.doors
@pytest.mark.parametrize("earlier", [pl.Until(error=0.1, at_most=100), pl.Until(error=0.5, at_most=100, further=4)])
def test_inputs_that_no_one_run_describes_are_extended_one_by_one(earlier):
    with pytest.raises(pl.ArgumentError, match=r"took 36, 54 samples, and no one run .* Extend them one by one"):
        lengthened(earlier, [54, 36, 54], pl.Until(error=0.3, at_most=100))


def test_the_most_samples_include_those_after_the_stop():
    assert most(7) == 7
    assert most(pl.Until(error=1, at_most=100, further=20)) == 120


@pytest.mark.doors
@pytest.mark.parametrize("error", [0, -1.0, float("nan"), float("inf"), "0.5", True])
def test_an_error_is_a_positive_number(error):
    with pytest.raises(pl.ArgumentError, match="`error` is the relative error to reach"):
        pl.Until(error=error, at_most=100)


@pytest.mark.doors
@pytest.mark.parametrize(
    "settings", [{"at_most": 1}, {"at_most": 2.5}, {"at_most": 10, "further": -1}, {"at_most": 10, "at_least": -1}]
)
def test_counts_out_of_range_are_refused(settings):
    with pytest.raises(pl.ArgumentError, match="is a whole number"):
        pl.Until(error=0.5, **settings)


@pytest.mark.doors
def test_at_most_must_be_said():
    with pytest.raises(TypeError, match="at_most"):
        pl.Until(error=0.5)


@pytest.mark.doors
@pytest.mark.parametrize("n", [0, -3, 2.0, "50", None, True])
def test_samples_are_a_count_or_an_until(n):
    with pytest.raises(pl.ArgumentError, match=r"1 or more, or pl.Until\(error=0.5, at_most=2000\)"):
        check_samples(n)
