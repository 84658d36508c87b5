import pytest
import torch

import pellucid as pl

X = torch.tensor([[[0.0, 4.0], [1.0, -4.0]], [[1.0, 1.0], [1.0, 1.0]]])


def test_the_range_is_over_all_features_of_one_input():
    assert pl.NoiseLevel(0.25).spread(X).flatten().tolist() == [2.0, 0.0]
    assert pl.NoiseLevel(0.25).spread(X).shape == (2, 1, 1)


def test_an_absolute_sigma_is_the_same_for_every_input():
    assert pl.NoiseLevel.absolute(3.0).spread(X).flatten().tolist() == [3.0, 3.0]


@pytest.mark.doors
@pytest.mark.parametrize("sigma", [-1.0, float("inf"), float("nan"), "1", True])
def test_an_absolute_sigma_is_a_finite_number(sigma):
    with pytest.raises(pl.ArgumentError, match="finite number, 0 or more"):
        pl.NoiseLevel.absolute(sigma)
