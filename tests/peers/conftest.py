"""The libraries that pellucid is compared with. They are imported when a test asks: the default run needs none."""

from collections.abc import Iterator
from importlib import import_module
from types import ModuleType

import pytest
import torch
from benchmarks.networks import let_torchvision_import


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other on a busy machine took minutes for what one thread does in seconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def captum_attr() -> ModuleType:
    return import_module("captum.attr")


@pytest.fixture(scope="session")
def saliency_core() -> ModuleType:
    return import_module("saliency.core")


@pytest.fixture(scope="session")
def zennit_attribution() -> ModuleType:
    let_torchvision_import()
    return import_module("zennit.attribution")


@pytest.fixture(scope="session")
def pytorch_grad_cam() -> ModuleType:
    let_torchvision_import()
    return import_module("pytorch_grad_cam")
