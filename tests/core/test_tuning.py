"""The fastest micro-batch, by clocks that the networks here turn themselves."""

from collections.abc import Callable

import pytest
import torch
from tests.oracles import conv_net, uniform
from torch import Tensor, nn

import pellucid as pl
from pellucid.core.tuning import Timing, Tuning, sizes_up_to, tuned


class Clocked(nn.Module):
    """A network whose passes take as long as `seconds(rows, half)` says; backward passes take none."""

    def __init__(self, seconds: Callable[[int, bool], float]) -> None:
        super().__init__()
        self.net = conv_net()
        self.seconds = seconds
        self.now = [0.0]

    def forward(self, x: Tensor) -> Tensor:
        self.now[0] += self.seconds(len(x), torch.is_autocast_enabled("cpu"))
        return self.net(x)


def model_of(net: Clocked, **settings: object) -> pl.TorchModel:
    model = pl.TorchModel(net, **settings)
    model.clock = lambda: net.now[0]
    return model


def best_at(size: int) -> Callable[[int, bool], float]:
    """Each sample takes the least time with so many rows, in float32, and twice as many in bfloat16."""
    return lambda rows, half: 1e-3 * rows * (1 + abs(rows - size * (1 + half)))


def test_the_fastest_of_the_precision_in_use_is_set_and_recorded():
    net, x = Clocked(best_at(8)), uniform(3, 3, 9, 9)
    model = model_of(net)
    tuning = model.tune(x)
    assert (model.micro_batch, tuning.precision) == (8, "float32")
    a = pl.SmoothGrad(n_samples=10)(model, x[:1])
    assert a.recipe.run["micro_batch"] == 8
    assert a.diagnosis_cost == pl.Cost(1, 1)
    half = model_of(net, precision="bfloat16")
    assert (half.tune(x).precision, half.micro_batch) == ("bfloat16", 16)


def test_under_auto_the_precision_in_use_is_the_one_that_was_chosen():
    net, x = Clocked(best_at(8)), uniform(1, 3, 9, 9)
    model = model_of(net, precision="auto")
    assert model.tune(x).precision == "float32"
    pl.SmoothGrad(n_samples=10)(model, x)
    [chosen] = [test.precision for test in model.tested.values()]
    assert model.tune(x).precision == chosen


def test_the_network_is_as_it_was_and_so_is_its_model():
    net = Clocked(best_at(4))
    model = model_of(net, memory_limit="1GiB")
    model.tune(uniform(1, 3, 9, 9))
    assert net.training
    assert all(p.requires_grad for p in net.parameters())
    assert (model.precision, model.memory_limit, model.passes) == (None, 2**30, pl.Cost())


def test_other_precisions_than_float32_are_timed_alone():
    net = Clocked(best_at(4))
    net.net.double()
    tuning = model_of(net).tune(uniform(1, 3, 9, 9).double())
    assert {t.precision for t in tuning.timings} == {"float64"}


def test_a_model_without_gradients_is_tuned_by_its_outputs():
    net = Clocked(best_at(4))
    model = model_of(net)
    model.offers = pl.Needs.SCORES
    assert model.tune(uniform(1, 3, 9, 9)).micro_batch == 4


def test_sizes_keep_to_the_memory_limit():
    net, x = Clocked(lambda rows, half: 1.0 + 1e-4 * rows), uniform(1, 3, 96, 96)
    model = model_of(net, memory_limit="150MiB")
    sizes = sorted({t.micro_batch for t in model.tune(x).timings if t.precision == "float32"})
    within = [rows for rows in sizes_up_to(512) if model.predicted_peak(x, rows) <= 150 * 2**20]
    assert 2 <= len(within) < 9
    assert sizes == within[: len(sizes)]


@pytest.mark.doors
def test_a_limit_below_one_row_is_refused():
    model = model_of(Clocked(best_at(4)), memory_limit="1MiB")
    with pytest.raises(pl.MemoryLimit, match="one row"):
        model.tune(uniform(1, 3, 9, 9))
    assert model.micro_batch is None


class Bench:
    """A clock, and work that turns it."""

    def __init__(self, seconds: Callable[[int, str, int], float]) -> None:
        self.now = 0.0
        self.seconds = seconds
        self.done: list[tuple[int, str]] = []

    def work(self, rows: int, precision: str) -> None:
        self.done.append((rows, precision))
        self.now += self.seconds(rows, precision, self.done.count((rows, precision)))

    def tuned(self, sizes: list[int], precisions: tuple[str, ...] = ("a",), **settings: object) -> Tuning:
        known = {"fits": lambda rows, precision: True, "in_use": precisions[0]} | settings
        return tuned(self.work, sizes=sizes, precisions=precisions, clock=lambda: self.now, **known)


def test_the_round_in_which_everything_warms_up_does_not_count():
    bench = Bench(lambda rows, precision, times: 1.0 if rows == 2 and times == 1 else 0.01 * rows)
    first = bench.tuned([2, 4]).timings[0]
    assert (first.seconds, first.rounds) == (pytest.approx(0.01), 7)


def test_the_first_round_does_not_count_where_there_is_time_for_one_more_only():
    found = Bench(lambda rows, precision, times: 4.5 if times == 1 else 4.0).tuned([2, 4])
    assert found.timings == (Timing(2, "a", 2.0, 1),)


def test_one_slow_round_does_not_decide():
    bench = Bench(lambda rows, precision, times: 0.02 if (rows, times) == (2, 3) else 0.001 * rows * (2 - (rows == 2)))
    assert bench.tuned([2, 4]).micro_batch == 2


def test_sizes_and_precisions_take_turns():
    bench = Bench(lambda rows, precision, times: 0.001)
    bench.tuned([2, 4], ("a", "b"))
    assert bench.done == [(2, "a"), (2, "b"), (4, "a"), (4, "b")] * 8


@pytest.mark.parametrize("seconds", [0.02, 0.2, 1.0, 9.0])
def test_it_takes_ten_seconds_at_most_unless_one_pass_does(seconds):
    bench = Bench(lambda rows, precision, times: seconds * rows / 2)
    tuning = bench.tuned(sizes_up_to(512), ("a", "b"))
    assert bench.now <= max(10.0, 2 * seconds)
    assert tuning.timings


def test_a_size_that_fits_in_one_precision_only_is_timed_in_that():
    bench = Bench(lambda rows, precision, times: 0.001)
    tuning = bench.tuned([2, 4, 8], ("a", "b"), fits=lambda rows, precision: rows <= 2 * (1 + (precision == "b")))
    assert {(t.micro_batch, t.precision) for t in tuning.timings} == {(2, "a"), (2, "b")}
    other = bench.tuned([2, 4, 8], ("a", "b"), fits=lambda rows, precision: rows <= 2 * (1 + (precision == "a")))
    assert {(t.micro_batch, t.precision) for t in other.timings} == {(2, "a"), (2, "b"), (4, "a")}


def test_the_table_reads_as_one():
    timings = (Timing(2, "float32", 0.0281, 7), Timing(2, "bfloat16", 0.0244, 7), Timing(4, "float32", 0.0269, 6))
    assert str(Tuning(timings, "float32", 4)).splitlines() == [
        "micro-batch   float32  bfloat16   (ms for each sample)",
        "          2      28.1      24.4",
        "          4      26.9         -   <- set, float32",
    ]
    assert repr(Tuning(timings, "float32", 4)) == str(Tuning(timings, "float32", 4))


def test_sizes_are_powers_of_two():
    assert sizes_up_to(16) == [2, 4, 8, 16]
    assert sizes_up_to(31) == [2, 4, 8, 16]
