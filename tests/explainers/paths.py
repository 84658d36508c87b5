"""Small smooth networks, and the integral of a gradient along a straight path, taken point by point."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from tests.oracles import uniform
from torch import Tensor, nn

Score = Callable[[Tensor], Tensor]

SIDES = (9, 11)
X = 3 * uniform(3, 3, *SIDES, seed=5, dtype=torch.float64) - 1
"""Three pictures of unequal height and width, so that a wrong layout shows."""


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A network of fixed random weights in float64, whose digits float32 does not have."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        net = build().double().eval()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(1 + 1e-9 * torch.randn(parameter.shape, dtype=torch.float64))
    return net


def tanh_net(features: int = 4, classes: int = 2) -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Linear(features, 6), nn.Tanh(), nn.Linear(6, classes)))


def picture_net(classes: int = 3) -> nn.Module:
    """Takes X. Layer "1" separates the inputs from the outputs."""
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, 2), nn.Softplus(), nn.Conv2d(4, 4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(48, classes)
        )
    )


class Segmenter(nn.Sequential):
    """Scores of three classes at each place of X."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 3, padding=1))


class Detector(nn.Module):
    """Three boxes that move with the input, with two class scores each; they always overlap the box (0, 0, 4, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.boxes, self.classes = nn.Linear(4, 12), nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        corners = torch.tensor([0.5, 0.5, 4.5, 5.0]).to(x)
        boxes = corners + 0.2 * torch.tanh(self.boxes(x)).unflatten(1, (3, 4))
        return torch.cat([boxes, torch.sigmoid(self.classes(x)).unflatten(1, (3, 2))], 2)


class Several(nn.Module):
    """A vector, a picture, and numbers of groups that no gradient reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.group, self.seen, self.known = nn.Embedding(4, 5), nn.Conv2d(1, 5, 3), nn.Linear(3, 5)
        self.head = nn.Linear(5, 2)

    def forward(self, vector: Tensor, picture: Tensor, group: Tensor) -> Tensor:
        inner = self.known(vector) * self.seen(picture).mean((2, 3)) + self.group(group).sum(1)
        return self.head(torch.tanh(inner))


def several() -> dict[str, Tensor]:
    """Two inputs for `Several`."""
    return {
        "vector": uniform(2, 3, seed=1, dtype=torch.float64) + 0.5,
        "picture": uniform(2, 1, 4, 5, seed=2, dtype=torch.float64) - 0.3,
        "group": torch.tensor([[1, 3], [2, 0]]),
    }


def gradient(score: Score, x: Tensor) -> Tensor:
    """The gradient of each row's score."""
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(score(leaf).sum(), leaf)[0]


def integrated(score: Score, x: Tensor, start: Tensor, at: Sequence[float], weights: Sequence[float]) -> Tensor:
    """(x - x') times the weighted sum of the gradients at these places of the way."""
    total = torch.zeros_like(x)
    for alpha, weight in zip(at, weights, strict=True):
        total = total + weight * gradient(score, start + alpha * (x - start))
    return (x - start) * total


def exactly(score: Score, x: Tensor, start: Tensor) -> Tensor:
    """The integral of a smooth score's gradient, by midpoints whose error is taken out twice (Romberg)."""
    halves = [np.linspace(0, 1, 50 * 2**k, endpoint=False) + 0.5 / (50 * 2**k) for k in range(3)]
    one, two, four = (integrated(score, x, start, at, np.full(len(at), 1 / len(at))) for at in halves)
    first, second = (4 * two - one) / 3, (4 * four - two) / 3
    return (16 * second - first) / 15


def near(found: Tensor, expected: Tensor, share: float = 1e-11) -> bool:
    """Whether two maps differ by no more than this share of the largest value."""
    assert found.shape == expected.shape
    assert float(expected.abs().max()) > 0
    return float((found - expected).abs().max()) <= share * float(expected.abs().max())
