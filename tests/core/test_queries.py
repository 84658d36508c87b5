"""The engine of black-box methods, on a question whose answers are known."""

import math

import numpy as np
import pytest
import torch

import pellucid as pl
from pellucid.core.queries import Answers, Fit, Question, Run, affordable
from pellucid.core.target import Targets


class Numbers(Question):
    """Query q asks about the number q mod `distinct`, `width` times with copy c adding c; the fit is their mean."""

    def __init__(self, *, size=1, width=1, least=1, end=None, distinct=None):
        self.size, self.width, self.least, self.end, self.distinct = size, width, least, end, distinct

    def rows(self, queries, copies):
        values = [self.number(q) + c for q, c in zip(queries, copies, strict=True)]
        return torch.tensor(values, dtype=torch.float64)[:, None]

    def number(self, query):
        return query % self.distinct if self.distinct else query

    def codes(self, queries):
        return [str(self.number(query)).encode() for query in queries] if self.distinct else None

    def fit(self, scores):
        known = scores[np.isfinite(scores)]
        variance = known.var(ddof=1) / len(known) if len(known) > 1 else np.inf
        return Fit(np.array([known.mean()]), np.array([variance]))


TARGET = Targets((pl.ClassScore(0),), pl.OutputKind.REGRESSION)
LIKE = torch.zeros(1, 1, dtype=torch.float64)


class Counting:
    """A function that counts its rows, and fails on some numbers."""

    def __init__(self, fails=(), answers=lambda rows: rows):
        self.rows, self.given, self.sizes, self.fails, self.answers = 0, 0, [], set(fails), answers

    def __call__(self, rows):
        self.given += len(rows)
        if self.fails & set(rows[:, 0].tolist()):
            raise ValueError("not this number")
        self.rows += len(rows)
        self.sizes.append(len(rows))
        return self.answers(rows)


def answers_of(question, function, *, micro_batch=4, known=()):
    model = pl.FunctionModel(function, output="regression", micro_batch=micro_batch)
    return Answers(model, question, TARGET, LIKE, np.array(known, dtype=np.float64))


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 7, 100])
def test_answers_come_in_the_order_of_the_queries(micro_batch):
    count = Counting()
    found = answers_of(Numbers(), count, micro_batch=micro_batch).upto(11)
    assert found.tolist() == list(range(11))
    assert max(count.sizes) <= micro_batch


def test_pieces_are_of_nearly_equal_size():
    count = Counting()
    answers_of(Numbers(), count, micro_batch=4).upto(9)
    assert count.sizes == [3, 3, 3]


def test_what_is_known_is_not_asked_again():
    count = Counting()
    answers = answers_of(Numbers(), count, known=[0, 1, 2])
    assert answers.upto(5).tolist() == [0, 1, 2, 3, 4]
    assert count.rows == 2
    assert answers.upto(2).tolist() == [0, 1]
    assert count.rows == 2


def test_queries_that_ask_the_same_are_asked_once():
    count = Counting()
    answers = answers_of(Numbers(distinct=3), count)
    assert answers.upto(5).tolist() == [0, 1, 2, 0, 1]
    assert answers.upto(8).tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert count.rows == 3


def test_an_answer_is_the_mean_over_the_copies_of_a_query():
    count = Counting()
    found = answers_of(Numbers(width=3), count, micro_batch=4).upto(3)
    assert found.tolist() == [1, 2, 3]  # q + mean of 0, 1, 2
    assert count.rows == 9


def test_a_row_that_fails_has_no_score_and_spoils_no_other():
    answers = answers_of(Numbers(), Counting(fails=[5]), micro_batch=4)
    found = answers.upto(9)
    assert np.isnan(found[5])
    assert np.delete(found, 5).tolist() == [0, 1, 2, 3, 4, 6, 7, 8]
    assert "not this number" in answers.failures[0]


def test_scores_that_are_not_finite_are_none():
    answers = answers_of(Numbers(), Counting(answers=lambda rows: np.where(rows == 2, np.inf, rows)))
    assert np.isnan(answers.upto(6)[2])
    assert "NaN or infinity" in answers.failures[0]


def test_a_model_that_fails_on_most_rows_is_an_error():
    with pytest.raises(pl.ModelError, match=r"failed on 4 of 6 altered inputs.*not this number.*baseline"):
        answers_of(Numbers(), Counting(fails=[1, 2, 3, 4])).upto(6)


def test_a_network_that_fails_is_not_asked_row_by_row():
    calls = []

    class Net(torch.nn.Module):
        def forward(self, x):
            calls.append(len(x))
            raise ValueError("broken")

    model = pl.TorchModel(Net(), output="regression", micro_batch=4)
    with pytest.raises(pl.ModelError, match="broken"):
        Answers(model, Numbers(), TARGET, LIKE).upto(8)
    assert calls == [4]


@pytest.mark.parametrize("at", [0, 1, 2])
def test_an_interruption_keeps_what_was_answered(at):
    count = Counting()

    def stops(rows):
        if len(count.sizes) == at:
            raise KeyboardInterrupt
        return count(rows)

    answers = answers_of(Numbers(distinct=7), stops, micro_batch=2)
    with pytest.raises(KeyboardInterrupt):
        answers.upto(12)
    assert answers.known.tolist() == list(range(2 * at))


def test_after_an_interruption_later_repetitions_of_what_is_known_are_known():
    def stops(rows):
        if 3 in rows:
            raise KeyboardInterrupt
        return rows

    class Early(Numbers):
        def number(self, query):
            return [0, 1, 0, 1, 3, 0][query]

    answers = answers_of(Early(distinct=9), stops, micro_batch=1)
    with pytest.raises(KeyboardInterrupt):
        answers.upto(6)
    assert answers.known.tolist() == [0, 1, 0, 1]


def run_of(question, budget, *, spent=0, answers=lambda rows: rows, **settings):
    count = Counting(answers=answers)
    run = Run(answers_of(question, count, micro_batch=64), budget, spent, "Method", **settings)
    run.count = count
    return run


def test_a_budget_leaves_out_what_was_spent_and_is_spent_in_whole_draws():
    run = run_of(Numbers(size=2, width=3), 40, spent=2)
    run.take()
    assert run.draws == 6  # of 6 calls each, within 38
    assert run.count.rows == 36
    assert run.stopped == "the budget of 40 model calls was spent"


def test_a_question_with_an_end_is_answered_whole():
    run = run_of(Numbers(size=4, end=2), 100)
    run.take()
    assert run.count.rows == 8
    assert run.stopped == "exact after all 8 calls that there are"


@pytest.mark.doors
@pytest.mark.parametrize("budget", [11, pl.Until(error=0.1, at_most=11)])
def test_a_budget_too_small_says_how_many(budget):
    with pytest.raises(pl.ArgumentError, match=r"`budget` is 12 model calls or more, for Method.*Got 11"):
        run_of(Numbers(size=2, least=5), budget, spent=2)


def alternating(rows):
    """1 +- 1/2: after n queries the mean is about 1 and the relative error 1 / (2 sqrt(n))."""
    return 1 + 0.5 * np.where(rows % 2 == 0, 1, -1)


def test_until_stops_at_the_first_look_with_a_smaller_error():
    run = run_of(Numbers(), pl.Until(error=0.09, at_most=500), answers=alternating)
    run.take()
    # s / sqrt(n) falls under 0.09 at n = 31; looks are at 16, 24, 36.
    assert run.draws == 36
    assert run.stopped.startswith("error 0.08")


def test_until_says_what_more_it_would_take():
    run = run_of(Numbers(), pl.Until(error=0.02, at_most=100), answers=alternating)
    run.take()
    assert run.draws == 100
    assert "for 0.02 about 5" in run.stopped  # 0.5^2 / 0.02^2 = 625 in all


def test_no_signal_is_said():
    run = run_of(Numbers(), pl.Until(error=0.02, at_most=100), answers=lambda rows: np.where(rows % 2 == 0, 1.0, -1.0))
    run.take()
    assert run.stopped == "no signal yet after 100 model calls, the most that were allowed"


def test_further_calls_come_after_the_stop():
    run = run_of(Numbers(), pl.Until(error=0.09, at_most=500, further=10), answers=alternating)
    run.take()
    assert run.draws == 46
    assert run.stopped.endswith("; then 10 more")


def test_a_run_tells_rows_and_error():
    told = []
    run = run_of(Numbers(), 10, answers=alternating, listening=True)
    run.report = lambda rows, error: told.append((rows, error))
    run.take()
    assert sum(rows for rows, _ in told) == 10
    assert told[-1][1] == run.fitted.relative()


def test_the_relative_error_is_of_the_signal_alone():
    # Power 4 - 1 = 3 per value with an error of 1: sqrt(1 / 3).
    fit = Fit(np.full(1000, 2.0), np.full(1000, 1.0))
    assert math.isclose(fit.relative(), math.sqrt(1 / 3))


def test_noise_alone_has_no_relative_error():
    values = np.random.default_rng(0).standard_normal(1000)
    assert Fit(values, np.ones(1000)).relative() == math.inf


def test_values_that_share_their_errors_are_fewer():
    # Signal of 1.05 of its noise: many values of their own would show it, four do not.
    fit = Fit(np.full(1000, 1.5), np.ones(1000))
    assert fit.relative() < math.inf
    assert Fit(np.full(1000, 1.5), np.ones(1000), independent=4).relative() == math.inf


def test_an_exact_fit_has_no_error_and_one_that_shows_none_an_infinite_one():
    assert Fit(np.ones(3), np.zeros(3)).relative() == 0
    assert Fit(np.ones(3), None).relative() == math.inf


def test_no_budget_is_no_limit():
    assert affordable(None, 5) > 10**15
    assert affordable(3, 5) == 0
    assert affordable(pl.Until(error=1, at_most=9), 5) == 4


def test_scores_that_have_not_differed_yet_are_no_signal():
    assert Fit(np.zeros(3), np.zeros(3)).relative() == math.inf
    assert Fit(np.zeros(3), np.zeros(3), exact=True).relative() == 0


def test_values_of_which_some_have_no_error_have_none_together():
    assert Fit(np.ones(3), np.array([0.1, np.nan, 0.1])).relative() == math.inf


def test_until_takes_as_many_as_it_must_even_beyond_the_most():
    run = run_of(Numbers(), pl.Until(error=0.5, at_most=20, at_least=50), answers=alternating)
    run.take()
    assert run.draws == 50


def test_where_many_rows_fail_few_are_asked_at_once():
    count = Counting(fails=range(0, 400, 4))
    answers_of(Numbers(), count, micro_batch=64).upto(400)
    # The pieces of 58, 29, 14, 7 are halved until what fails stands alone; after that one row more at each failure.
    assert count.given <= 400 + 58 * 6 + 29 * 5 + 14 * 4 + 7 * 3 + 400


def test_a_row_that_fails_leaves_the_pieces_large():
    count = Counting(fails=[100])
    found = answers_of(Numbers(), count, micro_batch=64).upto(4000)
    assert np.flatnonzero(np.isnan(found)).tolist() == [100]
    assert count.given <= 4000 + 64 * 6
    assert min(count.sizes[-50:]) > 50


def test_a_function_that_takes_few_rows_at_once_is_not_given_more_again():
    count = Counting()

    def takes_eight(rows):
        if len(rows) > 8:
            count.given += len(rows)
            raise ValueError("too many")
        return count(rows)

    found = answers_of(Numbers(), takes_eight, micro_batch=64).upto(400)
    assert found.tolist() == list(range(400))
    assert count.given <= 400 + 58 + 2 * 29 + 4 * 15


def test_what_need_not_be_asked_is_told_as_done():
    told = []
    answers = answers_of(Numbers(distinct=3), Counting())
    answers.tell = told.append
    answers.upto(8)
    assert sum(told) == 8


def test_a_run_looks_only_where_its_error_can_be_believed():
    question = Numbers()
    question.believed = 60
    run = run_of(question, pl.Until(error=0.5, at_most=500), answers=alternating)
    run.take()
    assert run.draws == 81  # the first of 16, 24, 36, 54, 81 ... beyond
