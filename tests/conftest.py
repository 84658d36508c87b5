"""Fixtures of the whole suite. The pictures and weights in ../shared/data are there in some checkouts only."""

from pathlib import Path

import numpy as np
import pytest
import torch

import pellucid as pl

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Random weights are the same in every run, so that a test passes, or kills its mutant, always or never."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not SHARED.is_dir():
        pytest.skip("the checkout has no ../shared/data")
    return SHARED


@pytest.fixture(scope="session")
def lite0() -> pl.TorchModel:
    return pl.load("efficientnet-lite0")


@pytest.fixture(scope="session")
def chelsea() -> np.ndarray:
    from skimage import data

    return data.chelsea()
