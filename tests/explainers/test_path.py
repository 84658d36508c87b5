import pytest
import torch
from tests.explainers.paths import Several, seeded, several
from tests.oracles import Linear, uniform

import pellucid as pl
from pellucid.core.explainer import Call
from pellucid.core.prediction import OutputKind
from pellucid.core.target import Targets
from pellucid.explainers._path import Path, change, of_rows, path, telling

X = uniform(3, 2, 4, dtype=torch.float64)
START = uniform(3, 2, 4, seed=1, dtype=torch.float64)
ALPHAS = torch.tensor([0.0, 0.25, 1.0, 0.5], dtype=torch.float64)


@pytest.mark.parametrize("rows", [1, 2, 5, 12, 100])
def test_all_points_of_each_input_come_once_in_their_order_however_many_at_once(rows):
    parts = list(Path(X, START).points(ALPHAS, rows))
    assert all(len(which) == len(step) == len(points) <= rows for which, step, points in parts)
    assert len(parts) == -(-12 // rows)
    which, step, points = (torch.cat(each) for each in zip(*parts, strict=True))
    assert which.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert step.tolist() == [0, 1, 2, 3] * 3
    for i, k, point in zip(which, step, points, strict=True):
        torch.testing.assert_close(point, (1 - ALPHAS[k]) * START[i] + ALPHAS[k] * X[i], rtol=1e-14, atol=0)


def test_a_path_begins_at_the_baseline():
    [(_, _, points)] = Path(X, START).points(torch.zeros(1), 9)
    assert torch.equal(points, START)


def test_points_have_the_type_of_the_inputs():
    for _, _, points in Path(X.half(), START.half()).points(ALPHAS, 5):
        assert points.dtype == torch.float16


def test_what_is_held_does_not_move():
    """Whole numbers stay exact at every point, as an embedding needs them."""
    x = pl.Input.of(several())
    model = pl.TorchModel(seeded(Several))
    with model.undisturbed(pl.Key.named("x"), x.packing) as quiet:
        along = path(pl.Constant(0.7), quiet, x.tensor)
        for which, _, points in along.points(torch.rand(7, generator=torch.Generator().manual_seed(0)), 4):
            parts = x.packing.parts(points)
            assert torch.equal(parts["group"], several()["group"][which].double())
            assert not torch.equal(parts["vector"], several()["vector"][which])
    start = x.packing.parts(along.start)
    assert (start["vector"] == 0.7).all()
    assert (start["picture"] == 0.7).all()


def test_the_change_is_that_of_each_inputs_target_in_double_precision():
    weight = uniform(2, 8)
    model, x, start = pl.TorchModel(Linear(weight)), X.float(), START.float()
    targets = Targets((pl.ClassScore(1), pl.Margin(0, 1), pl.ClassScore(0)), OutputKind.LOGITS)
    with model.undisturbed(pl.Key.named("x")) as quiet:
        found = change(quiet, Path(x, start), targets)
    assert found.dtype == torch.float64
    rows = torch.stack([weight[1], weight[0] - weight[1], weight[0]])
    torch.testing.assert_close(found.float(), ((x - start).flatten(1) * rows).sum(1), rtol=1e-5, atol=1e-6)


def test_each_row_gets_the_target_of_its_input():
    targets = Targets((pl.ClassScore(4), pl.ClassScore(7)), OutputKind.LOGITS)
    expected = [pl.ClassScore(7), pl.ClassScore(4), pl.ClassScore(7)]
    assert list(of_rows(targets, torch.tensor([1, 0, 1]))) == list(of_rows(targets, [1, 0, 1])) == expected


def test_what_is_done_adds_up():
    told = []
    tell = telling(Call((), lambda *what: told.append(what)), 10)
    for points in (3, 0, 7):
        tell(points)
    assert told == [(3, 10, None), (3, 10, None), (10, 10, None)]
