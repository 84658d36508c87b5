import numpy as np
import pytest
import torch
from tests.oracles import Linear, conv_net, uniform

import pellucid as pl
from pellucid.core.random import Key, normal
from pellucid.metrics.stability import noised_copies, stability

MODEL = pl.TorchModel(conv_net())
X = pl.Input(uniform(1, 3, 17, 17, seed=2), ("photo",))
GRADIENT = pl.SimpleGradient()


def needle() -> pl.FunctionModel:
    """Class 1 at X itself, class 0 everywhere else."""
    return pl.FunctionModel(
        lambda rows: torch.stack([torch.full((len(rows),), 0.5), (rows == X.tensor).flatten(1).all(1).float()], 1),
        takes="torch",
    )


# copies


def test_copies_have_noise_of_the_asked_level_of_the_inputs_own_range():
    """8192 values: the standard deviation is known to 1 / sqrt(2 * 8192) = 0.8 %, the mean to 1.1 % of it."""
    tensor = 20 * uniform(1, 2, 64, 64) - 5
    sigma = 0.05 * float(tensor.max() - tensor.min())  # about 1
    model = pl.TorchModel(Linear(torch.ones(1, 8192)))  # a single class, so that no copy is passed over
    for noise in noised_copies(model, pl.Input(tensor), level=0.05, count=3).tensor - tensor:
        assert float(noise.std()) == pytest.approx(sigma, rel=0.04)
        assert abs(float(noise.mean())) < 0.05 * sigma


def test_every_copy_keeps_the_prediction_where_half_of_all_would_not():
    """f = (0, w x) with w x just over 0: half of all copies fall below it, and are passed over."""
    x = uniform(1, 50, seed=1)
    weight = torch.randn(1, 50, generator=torch.Generator().manual_seed(0))
    weight -= (weight @ x[0] - 1e-4) * x / (x @ x[0])  # now w x = 0.0001
    model = pl.TorchModel(Linear(torch.cat([torch.zeros(1, 50), weight])))
    copies = noised_copies(model, pl.Input(x), level=0.1, count=20)
    assert int(model.predict(x).outputs.argmax()) == 1
    assert model.predict(copies).outputs.argmax(1).tolist() == [1] * 20


def test_near_a_decision_boundary_too_few_copies_are_an_error_that_says_so():
    with pytest.raises(pl.ModelError, match=r"photo: only 0 of 30 copies at noise level 0.02 .* a decision boundary"):
        noised_copies(needle(), X, level=0.02, count=3)


def test_copies_depend_on_nothing_but_input_and_seed():
    first, again, other = (noised_copies(MODEL, X, level=0.01, count=3, seed=s).tensor for s in (1, 1, 2))
    torch.manual_seed(5)
    assert torch.equal(first, again)
    assert not torch.isclose(first, other, atol=1e-4).all()
    assert len({copy.numpy().tobytes() for copy in first}) == 3


def test_more_copies_begin_with_the_same_ones():
    three, five = (noised_copies(MODEL, X, level=0.01, count=n).tensor for n in (3, 5))
    assert torch.equal(three, five[:3])


@pytest.mark.parametrize("seed", [0, 7])
def test_the_noise_of_the_copies_is_not_that_of_an_explainer_with_the_same_seed(seed):
    """A copy on the explainer's own noise would be one of its samples. 867 values: 5 standard deviations are 0.17."""
    copies = noised_copies(MODEL, X, level=0.01, count=4, seed=seed).tensor - X.tensor
    stream = Key.of(X.tensor[0]).stream(seed)
    drawn = np.stack([normal(stream, i, (3, 17, 17)) for i in range(50)])
    inner = np.stack([normal(stream.child(i).stream(seed), 0, (3, 17, 17)) for i in range(50)])
    for noise in (drawn, inner):
        alike = np.corrcoef(copies.flatten(1), noise.reshape(50, -1))[:4, 4:]
        assert np.abs(alike).max() < 0.17


def test_copies_are_named_after_their_input():
    assert noised_copies(MODEL, X, level=0.01, count=2).sources == ("photo, copy 1", "photo, copy 2")


@pytest.mark.doors
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"level": 0}, "`level` is a fraction of the input's range, over 0 up to 1. Got 0"),
        ({"level": 1.5}, "Got 1.5"),
        ({"level": float("nan")}, "Got nan"),
        ({"count": 0}, "`count` is a whole number, 1 or more. Got 0"),
        ({"seed": -1}, "`seed` is a whole number from 0"),
    ],
)
def test_wrong_settings_say_what_was_expected_and_what_came(wrong, words):
    with pytest.raises(pl.ArgumentError, match=words):
        noised_copies(MODEL, X, **{"level": 0.02, "count": 2, **wrong})


@pytest.mark.doors
def test_copies_are_made_of_one_input():
    with pytest.raises(pl.ArgumentError, match=r"Copies are made of one input\. Got 2"):
        noised_copies(MODEL, pl.Input(uniform(2, 3, 17, 17)), level=0.02, count=2)


# stability


def test_the_map_of_a_linear_network_is_perfectly_stable():
    model = pl.TorchModel(Linear(uniform(2, 867)))
    (result,) = stability(model, X, [GRADIENT], copies=3)
    assert result.rank_correlations == pytest.approx((1, 1, 1))
    assert result.mean == pytest.approx(1)


def test_each_correlation_is_that_of_the_raw_signed_maps_and_the_mean_is_their_mean():
    (result,) = stability(MODEL, X, [GRADIENT], level=0.05, copies=3)
    near = noised_copies(MODEL, X, level=0.05, count=3)
    maps = GRADIENT(MODEL, near, result.original.target).scores
    expected = [pl.rank_correlation(GRADIENT(MODEL, X).scores[0], one) for one in maps]
    assert result.rank_correlations == pytest.approx(expected)
    assert len(set(expected)) == 3
    assert result.mean == pytest.approx(sum(expected) / 3)


def test_copies_are_explained_towards_the_inputs_target():
    outputs = MODEL.predict(X).outputs[0]
    likely, unlikely = int(outputs.argmax()), int(outputs.argmin())
    for asked, explained in ((unlikely, unlikely), (None, likely)):
        results = stability(MODEL, X, [GRADIENT, pl.SmoothGrad(n_samples=2)], target=asked, copies=2)
        assert {a.target for r in results for a in (r.original, *r.copies)} == {pl.ClassScore(explained)}


def test_every_method_sees_the_same_copies_in_the_order_given():
    first, second = stability(MODEL, X, [GRADIENT, pl.SmoothGrad(n_samples=2)], copies=2)
    assert [a.recipe.inputs for a in first.copies] == [a.recipe.inputs for a in second.copies]
    assert (first.explainer, second.explainer) == (GRADIENT, pl.SmoothGrad(n_samples=2))


def test_the_seed_is_that_of_the_copies():
    (result,) = stability(MODEL, X, [GRADIENT], copies=2, level=0.01, seed=3)
    copies = noised_copies(MODEL, X, level=0.01, count=2, seed=3).tensor
    assert [a.recipe.inputs for a in result.copies] == [[Key.of(copy).hex] for copy in copies]


def test_shared_noise_leaves_only_the_effect_of_the_change():
    """A kinked network and few samples: most of the difference is sampling error, which shared noise takes away."""
    explain = [pl.SmoothGrad(n_samples=4)]
    (own,) = stability(MODEL, X, explain, level=0.005, copies=5)
    (shared,) = stability(MODEL, X, explain, level=0.005, copies=5, shared_noise=True)
    assert shared.mean > own.mean + 0.05
    assert {key for a in (shared.original, *shared.copies) for key in a.recipe.keys} == set(own.original.recipe.keys)
    assert len({key for a in (own.original, *own.copies) for key in a.recipe.keys}) == 6


def test_many_samples_are_more_stable_than_few_and_than_the_plain_gradient():
    """At noise level 0.15 the kinks are averaged over; 200 samples leave 1 / 7 of the sampling error of 4."""
    many, few, none = (
        stability(MODEL, X, [explain], level=0.02, copies=4)[0].mean
        for explain in (pl.SmoothGrad(n_samples=200), pl.SmoothGrad(n_samples=4), GRADIENT)
    )
    assert many > few + 0.05
    assert many > none


def test_progress_counts_the_methods():
    told = []
    stability(MODEL, X, [GRADIENT, GRADIENT], copies=1, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 2), (2, 2)]


def test_an_input_at_a_boundary_is_told_before_any_map_is_made():
    with pytest.raises(pl.ModelError, match="near a decision boundary"):
        stability(needle(), X, [GRADIENT])
