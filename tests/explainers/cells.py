"""Small networks with a layer of cells, and what a hook and autograd alone say of that layer."""

from collections.abc import Callable

import numpy as np
import torch
from tests.oracles import uniform
from torch import Tensor, nn

X = 3 * uniform(2, 3, 9, 11, dtype=torch.float64) - 1
"""Two pictures of unequal height and width, so that a wrong layout shows."""


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A network of fixed random weights, in float64."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return build().double().eval()


def pooled(*, classes: int = 3) -> nn.Module:
    """Layer "1", 4 x 5 cells of 6 channels with both signs, whose means a linear map reads."""
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 3, 2), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, classes)
        )
    )


def flat(*, classes: int = 3, positive: bool = False) -> nn.Module:
    """Layer "1", 4 x 5 cells of 6 channels, each unit with a weight of its own: the gradient varies over the cells."""
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 3, 2), nn.Softplus() if positive else nn.Tanh(), nn.Flatten(), nn.Linear(120, classes)
        )
    )


def curved(*, classes: int = 3) -> nn.Module:
    """Layer "1", 4 x 5 cells of 6 channels, of which the outputs are a smooth function that is not linear."""
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 3, 2), nn.Tanh(), nn.Conv2d(6, 5, 3, padding=1), nn.Tanh(), nn.Flatten(),
            nn.Linear(100, classes),
        )
    )  # fmt: skip


def taken(net: nn.Module, layer: str, x: Tensor, score: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """What a layer gives, and the gradient of each row's score by it."""
    kept: list[Tensor] = []
    handle = net.get_submodule(layer).register_forward_hook(lambda module, args, out: kept.append(out))
    try:
        total = score(net(x)).sum()
    finally:
        handle.remove()
    [activation] = kept
    return activation.detach(), torch.autograd.grad(total, activation)[0]


def grad_cam(a: Tensor, g: Tensor) -> Tensor:
    """Equations 1 and 2 of Grad-CAM, sum by sum."""
    b, k, h, w = a.shape
    maps = torch.zeros(b, 1, h, w, dtype=a.dtype)
    for i in range(k):
        maps[:, 0] += g[:, i].sum((1, 2)).view(b, 1, 1) / (h * w) * a[:, i]
    return torch.where(maps > 0, maps, 0.0)


def tent(pixels: int, cells: int) -> np.ndarray:
    """How much each of the cells counts at each pixel, (pixels, cells): a line from centre to centre, level outside."""
    centres = (np.arange(cells) + 0.5) * pixels / cells
    at = np.arange(pixels) + 0.5
    return np.stack([np.interp(at, centres, row) for row in np.eye(cells)], 1)


def enlarged(maps: Tensor, high: int, wide: int) -> Tensor:
    """Maps (..., h, w) at another resolution, by linear interpolation between the cells' centres."""
    down, along = (torch.from_numpy(tent(n, m)) for n, m in zip((high, wide), maps.shape[-2:], strict=True))
    return down @ maps.double() @ along.T


def alike(found: Tensor, expected: Tensor, units: float = 1e4) -> bool:
    """Whether two maps differ by no more than so many units of rounding of the largest value."""
    assert found.shape == expected.shape
    assert float(expected.abs().max()) > 0
    slack = units * torch.finfo(found.dtype).eps * float(expected.abs().max())
    return float((found - expected).abs().max()) <= slack
