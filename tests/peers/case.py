"""A network and an input on which pellucid and other libraries are compared, and how each of them is asked."""

import copy
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from tests.oracles import uniform
from torch import Tensor, nn

import pellucid as pl

FLOAT32_SUM = 2e-6  # PAIR adds its 25 maps up in float32, whatever the type of its input


@dataclass(frozen=True, eq=False)
class Case:
    """A network and one input. `tolerance` is a share of the map's maximum."""

    net: nn.Module
    x: Tensor
    target: int
    tolerance: float

    @property
    def model(self) -> pl.TorchModel:
        return pl.TorchModel(self.net)

    def map(self, explain: pl.Explainer) -> Tensor:
        return explain(self.model, self.x, target=self.target).scores


def small_case() -> Case:
    """Smooth, and of unequal height and width, so that a wrong layout shows."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.Softplus(), nn.Conv2d(8, 8, 3), nn.Tanh(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4),
        )  # fmt: skip
    return Case(net.double(), 3 * uniform(1, 3, 9, 11, dtype=torch.float64) - 1, target=2, tolerance=1e-12)


def real_case(net: nn.Module, photo: np.ndarray) -> Case:
    """In float64, where no kink of the network flips because another batch size rounds differently."""
    pixels = np.asarray(Image.fromarray(photo).resize((224, 224)), dtype=np.float64)
    x = torch.from_numpy((pixels - 127) / 128).movedim(-1, 0)[None].contiguous()
    net = copy.deepcopy(net).double().eval()
    return Case(net, x, target=285, tolerance=1e-5)  # 285: Egyptian cat


def answer(case: Case, saliency_core: ModuleType) -> Any:
    """PAIR's view of a network: from a batch of NHWC arrays to their gradients in the same layout."""

    def call_model(batch, call_model_args, expected_keys):
        x = torch.from_numpy(batch).requires_grad_()
        score = case.net(x.movedim(-1, 1))[:, case.target].sum()
        return {saliency_core.INPUT_OUTPUT_GRADIENTS: torch.autograd.grad(score, x)[0].numpy()}

    return call_model


def hwc(x: Tensor) -> np.ndarray:
    return x[0].movedim(0, -1).contiguous().numpy()


def chw(mask: np.ndarray) -> Tensor:
    return torch.from_numpy(mask).movedim(-1, 0)[None]


def one_hot(case: Case) -> Any:
    """Zennit's view of a target."""
    return lambda output: nn.functional.one_hot(torch.tensor([case.target]), output.shape[1]).to(output)


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the expected map's maximum."""
    assert found.shape == expected.shape
    assert float(expected.abs().max()) > 0
    return float((found.double() - expected.double()).abs().max() / expected.abs().max())
