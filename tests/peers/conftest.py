"""The libraries that pellucid is compared with. They are imported when a test asks: the default run needs none."""

from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
import torch

_schemas: list[torch.library.Library] = []  # they last no longer than this object


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
    _let_torchvision_import()
    return import_module("zennit.attribution")


def _let_torchvision_import() -> None:
    """Zennit imports torchvision, which needs the schemas of two operators even where its own library cannot load.

    The wheels of PyPI are built for CUDA: beside a torch for CPUs their library is there but does not load.
    """
    spec = find_spec("torchvision")
    if _schemas or spec is None or spec.origin is None:
        return
    try:
        torch.ops.load_library(str(Path(spec.origin).with_name("_C.so")))
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _schemas.append(library)
