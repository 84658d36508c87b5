"""What every black-box method that samples promises of its runs, on tables, signals and pictures."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from tests.oracles import uniform

import pellucid as pl
from pellucid.catalogue import registered
from pellucid.explainers._queried import Budgeted

SHAPES = {"table": (2, 6), "signal": (2, 2, 12), "picture": (2, 3, 8, 9)}


def small(method: type[Budgeted]) -> Budgeted:
    few = {"budget": 160, "seed": 5, "segments": pl.PatchesOrColumns(3), "cells": 3}
    names = {f.name for f in fields(method)}
    return method(**{name: value for name, value in few.items() if name in names})


def fits(explain: Budgeted, shape: tuple[int, ...]) -> bool:
    try:
        explain.check_features(shape[1:])
    except pl.ArgumentError:  # no method is left out but for what it says itself
        return False
    return True


SAMPLED = [small(method) for method in registered().values() if issubclass(method, Budgeted)]
RUNS = [
    pytest.param(explain, shape, id=f"{explain.card.name}: {kind}")
    for explain in SAMPLED
    for kind, shape in SHAPES.items()
    if fits(explain, shape)
]
every_run = pytest.mark.parametrize(("explain", "shape"), RUNS)


def f(rows: np.ndarray) -> np.ndarray:
    """Smooth, of everything, and for every row alike to the bit in any batch."""
    flat = rows.reshape(len(rows), -1).astype(np.float64)
    return (np.sin(flat * np.arange(1, flat.shape[1] + 1)) + flat).sum(1) + np.prod(flat[:, :3], 1)


def model(**settings: object) -> pl.FunctionModel:
    return pl.FunctionModel(f, output="regression", **settings)


def test_the_sweep_is_over_every_method_with_a_budget_that_draws():
    assert {explain.card.name for explain in SAMPLED} == {
        card.name
        for card in (method().card for method in registered().values())
        if card.sampled and card.access == "black-box"
    }


@every_run
@pytest.mark.parametrize("first", [60, 121])
def test_a_longer_run_goes_on_from_the_shorter(explain, shape, first, tmp_path):
    x = uniform(*shape, seed=3)
    one, short = explain(model(), x, 0), replace(explain, budget=first)(model(), x, 0)
    stored = pl.Attribution.load(short.save(tmp_path / "a.safetensors"))
    for earlier in (short, stored):
        extended = earlier.extend(model(), x, 160 - first)
        assert torch.equal(one.scores, extended.scores)
        assert torch.equal(one.standard_error, extended.standard_error)
        assert one.recipe.to_json() == extended.recipe.to_json()


@every_run
@pytest.mark.parametrize("rows", [1, 7])
def test_maps_are_equal_to_the_bit_in_any_pieces_and_company(explain, shape, rows):
    x = uniform(*shape, seed=3)
    one, other = (explain(model(micro_batch=n), x, 0).scores for n in (rows, 64))
    alone = explain(model(), x[1:], 0).scores
    assert torch.equal(one, other)
    assert torch.equal(one[1:], alone)


@every_run
def test_another_seed_draws_others_unless_all_are_asked(explain, shape):
    x = uniform(*shape, seed=3)
    one, other = (replace(explain, seed=seed)(model(), x, 0) for seed in (0, 1))
    exact = all(why.startswith("exact") for why in one.estimate.stopped)
    assert torch.equal(one.scores, other.scores) == exact


@every_run
def test_no_more_rows_are_given_than_the_budget_and_they_are_what_is_counted(explain, shape):
    given = []

    def counted(rows: np.ndarray) -> np.ndarray:
        given.append(len(rows))
        return f(rows)

    x = uniform(*shape, seed=3)[:1]
    a = explain(pl.FunctionModel(counted, output="regression"), x, 0)
    assert sum(given) == a.cost.forward + a.diagnosis_cost.forward <= 160
    assert a.samples_used <= 160
