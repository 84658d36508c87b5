import pytest
import torch
from tests.oracles import Linear, conv_net, uniform

import pellucid as pl


def test_an_input_keeps_its_sources_and_views():
    x = pl.Input(uniform(1, 4), ("a.csv",), (pl.View("table", {"columns": 4}, torch.zeros(1)),))
    a = pl.SimpleGradient()(pl.TorchModel(Linear(uniform(2, 4))), x)
    assert a.decision.source == "a.csv"
    assert a.views == x.views


def test_progress_is_told_as_samples_are_done():
    seen = []
    pl.SmoothGrad(n_samples=30)(pl.TorchModel(conv_net(), micro_batch=10), uniform(2, 3, 9, 9), progress=seen.append)
    assert (seen[-1].done, seen[-1].total) == (60, 60)
    assert len(seen) > 2


def test_progress_tells_the_error_once_it_was_looked_at():
    """After 16 and 24 of 30 samples, and at the end."""
    seen = []
    a = pl.SmoothGrad(n_samples=30)(pl.TorchModel(conv_net(), micro_batch=2), uniform(1, 3, 9, 9), progress=seen.append)
    errors = {p.done: p.error for p in seen}
    assert errors[14] is None
    assert errors[16] is not None
    assert errors[22] == errors[16] != errors[24] == errors[28]
    assert errors[30] == float(a.estimated_error) != errors[24]


def test_an_error_in_the_progress_callback_is_the_callers_own():
    def stop(progress):
        raise KeyboardInterrupt

    net = conv_net()
    with pytest.raises(KeyboardInterrupt):
        pl.SmoothGrad(n_samples=4)(pl.TorchModel(net), uniform(1, 3, 9, 9), progress=stop)
    assert net.training
    assert next(net.parameters()).requires_grad


def test_the_recipe_names_everything():
    model = pl.TorchModel(conv_net(), name="toy", preprocess=pl.ImagePreprocess(size=9))
    recipe = pl.SmoothGrad(n_samples=4)(model, uniform(1, 3, 9, 9)).recipe
    assert recipe.model == "toy"
    assert recipe.weights == model.fingerprint()
    assert recipe.preprocess["type"] == "ImagePreprocess"
    assert recipe.run["noise"] == "philox-normal-float32"
    assert recipe.run["threads"] == torch.get_num_threads()
    assert {"pellucid", "torch", "numpy", "python"} <= set(recipe.versions)
    assert recipe.inputs == recipe.keys == [pl.Key.of(uniform(1, 3, 9, 9)[0]).hex]


def test_a_key_may_be_a_word_or_a_key():
    model, x = pl.TorchModel(conv_net()), uniform(1, 3, 9, 9)
    explain = pl.SmoothGrad(n_samples=4)
    word, key = (explain(model, x, key=k).scores for k in ("pair", pl.Key.named("pair")))
    assert torch.equal(word, key)


@pytest.mark.doors
def test_other_keys_and_models_are_refused_in_words():
    with pytest.raises(pl.ArgumentError, match=r"`key` is a pl.Key or a word"):
        pl.SimpleGradient()(pl.TorchModel(conv_net()), uniform(1, 3, 9, 9), key=3)
    with pytest.raises(pl.ArgumentError, match=r"Wrap a network as pl.TorchModel\(net\)"):
        pl.SimpleGradient()(conv_net(), uniform(1, 3, 9, 9))
