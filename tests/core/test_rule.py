"""Books of rules, and what a pass by them gives."""

import math

import pytest
import torch
from tests.oracles import uniform

import pellucid as pl
from pellucid.core.checks import check_number
from pellucid.core.rule import Assigned, Keep, RuleBook, RulePass, Sent


def test_by_default_nothing_is_kept_or_named_and_nothing_has_landed():
    assert Keep() == Keep(frozenset(), frozenset(), named=False)
    assert hash(Keep()) == hash(Keep(frozenset()))
    assert Sent((None, 0), torch.ones(1)).landed is False


def test_a_book_says_what_it_keeps_and_assigns():
    with pytest.raises(TypeError, match="abstract"):
        RuleBook()
    assert Assigned(None, "its own derivative") == Assigned(None, "its own derivative")


def test_shares_of_the_rows_are_joined_in_order():
    messages, landed, scores, beside = (uniform(5, 3, seed=i) for i in range(4))
    parts = [RulePass(messages[p], landed[p], scores[p, 0], beside[p, 0]) for p in (slice(0, 2), slice(2, 5))]
    whole = RulePass.joined(parts, lambda each: torch.cat(list(each)))
    assert torch.equal(whole.messages, messages)
    assert whole.landed is not None
    assert torch.equal(whole.landed, landed)
    assert torch.equal(whole.scores, scores[:, 0])
    assert whole.beside is not None
    assert torch.equal(whole.beside, beside[:, 0])


def test_what_no_share_has_the_whole_has_not():
    parts = [RulePass(torch.ones(n, 3), None, torch.ones(n)) for n in (2, 1)]
    whole = RulePass.joined(parts, lambda each: torch.cat(list(each)))
    assert whole.messages.shape == (3, 3)
    assert whole.landed is None
    assert whole.beside is None


# the numbers that rules take


@pytest.mark.parametrize("value", [0, 1, -2, 0.25, -1e300, True + 0])
def test_a_finite_number_is_one(value):
    check_number("gamma", value)


@pytest.mark.doors
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, "1", None, True, 1j, torch.ones(())])
def test_what_is_no_finite_number_is_refused(value):
    with pytest.raises(pl.ArgumentError, match=r"`gamma` is a finite number\. Got "):
        check_number("gamma", value)


@pytest.mark.doors
def test_a_number_below_the_least_is_refused():
    check_number("gamma", 0.5, least=0.5)
    with pytest.raises(pl.ArgumentError, match=r"`gamma` is a finite number, 0\.5 or more\. Got 0\.49\."):
        check_number("gamma", 0.49, least=0.5)
