import pytest
import torch
from tests.oracles import conv_net, uniform

import pellucid as pl
from pellucid.core.abstract_model import MOST_ROWS

SUM = pl.FunctionModel(lambda rows: rows.sum(1), output="regression")


def test_rows_that_cannot_be_parted_are_not():
    model = pl.TorchModel(conv_net())
    assert model.rows(torch.empty(1, 3, 224, 224), together=8) == 8
    assert model.rows(torch.empty(1, 3, 224, 224), together=3) == 6


def test_what_a_call_asked_for_is_what_the_recipe_records():
    """Else a recipe of groups of 8 would be run again with 6 rows at once, and refused."""
    with pl.TorchModel(conv_net()).undisturbed(pl.Key.named("x")) as quiet:
        x = quiet.place(uniform(1, 3, 224, 224))
        assert quiet.run(x)["micro_batch"] == 6
        quiet.rows(x, together=8)
        assert quiet.run(x)["micro_batch"] == 8
        with quiet.undisturbed(pl.Key.named("y")) as apart:
            assert apart.run(x)["micro_batch"] == 6, "each call counts its own"


def test_without_gradients_twice_as_many_rows_go_at_once_and_again_when_it_is_reproduced():
    seen: list[int] = []
    net = conv_net()
    net.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    model, x = pl.TorchModel(net), uniform(1, 3, 224, 224)
    for explain, rows in ((pl.KernelSHAP(budget=200), 12), (pl.SmoothGrad(n_samples=12), 6)):
        seen.clear()
        a = explain(model, x)
        assert max(seen) == a.recipe.run["micro_batch"] == rows
        seen.clear()
        assert torch.equal(a.reproduce(model, x).scores, a.scores)
        assert max(seen) == rows


@pytest.mark.doors
def test_a_micro_batch_below_a_group_is_refused():
    model = pl.TorchModel(conv_net(), micro_batch=4)
    with pytest.raises(pl.MemoryLimit, match="6 samples must go through Sequential together, but `micro_batch` is 4"):
        model.rows(torch.empty(1, 3, 9, 9), together=6)


def test_a_function_is_tuned_by_its_outputs():
    """A clock that shows a second for each call and a tenth for each row: the largest micro-batch is fastest."""
    now, sizes = [0.0], []

    def outputs(rows):
        sizes.append(len(rows))
        now[0] += 0.01 + 0.001 * len(rows)
        return rows.sum(1)

    model = pl.FunctionModel(outputs, output="regression")
    model.clock = lambda: now[0]
    tuning = model.tune(uniform(3, 5))
    assert model.micro_batch == tuning.micro_batch == MOST_ROWS
    assert set(sizes) == {2**k for k in range(1, 10)}


def test_other_models_have_one_precision_and_no_watch():
    with SUM.undisturbed(pl.Key.named("x")) as quiet, quiet.watched(3) as watch:
        assert watch is None
        quiet.settle_precision(uniform(1, 3), lambda: pytest.fail("there is nothing to choose"), "", spread=False)
    assert "precision" not in SUM.run(uniform(1, 3))
