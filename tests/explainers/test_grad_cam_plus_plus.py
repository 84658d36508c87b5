import pytest
import torch
from tests.explainers.cells import X, alike, curved, flat, taken
from torch import nn

import pellucid as pl


def by_equation_19(a: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """The weights as they stand in the paper, of derivatives of exp(S) without that factor."""
    alpha = g**2 / (2 * g**2 + g**3 * a.sum((2, 3), keepdim=True))
    weights = (alpha * torch.relu(g)).sum((2, 3), keepdim=True)
    return torch.relu((weights * a).sum(1, keepdim=True))


@pytest.mark.parametrize("net", [flat(positive=True), flat(), curved()], ids=["positive", "flat", "curved"])
def test_it_is_the_papers_formula(net):
    a, g = taken(net, "1", X, lambda out: out[:, 2])
    found = pl.GradCAMPlusPlus(layer="1")(pl.TorchModel(net), X, target=2).scores
    assert alike(found, by_equation_19(a, g))


def test_its_weights_are_made_of_the_derivatives_of_exp_of_the_score():
    """Equation 10 from the second and third derivatives by each unit, taken by autograd; exp(S) is divided out."""
    net = flat(positive=True)
    a = net[1](net[0](X[:1])).detach()
    t = torch.zeros(a.numel(), dtype=a.dtype, requires_grad=True)
    rows = (a.flatten() + torch.diag(t)).view(-1, *a.shape[1:])  # row i: what the layer gives, and t_i at unit i
    y = net[3](net[2](rows))[:, 0].exp()
    first, second, third = (part.detach() for part in derivatives(y.sum(), t, 3))
    alpha = second.view_as(a) / (2 * second.view_as(a) + a.sum((2, 3), keepdim=True) * third.view_as(a))
    weights = (alpha * torch.relu(first.view_as(a))).sum((2, 3), keepdim=True)
    expected = torch.relu((weights * a).sum(1, keepdim=True)) / y[0].detach()
    assert alike(pl.GradCAMPlusPlus()(pl.TorchModel(net), X[:1], target=0).scores, expected)


def derivatives(of: torch.Tensor, by: torch.Tensor, orders: int) -> list[torch.Tensor]:
    """Of a sum of terms that depend on one element of `by` each."""
    found = [of]
    for _ in range(orders):
        found.append(torch.autograd.grad(found[-1].sum(), by, create_graph=True)[0])
    return found[1:]


def test_units_without_a_gradient_weigh_nothing():
    net = flat(positive=True)
    with torch.no_grad():
        net[3].weight[:, 40:] = 0  # two channels of 20 cells are left
    a, g = taken(net, "1", X, lambda out: out[:, 2])
    found = pl.GradCAMPlusPlus()(pl.TorchModel(net), X, target=2).scores
    assert alike(found, by_equation_19(a[:, :2], g[:, :2]))


def test_gradients_whose_square_single_precision_has_not_count():
    """For small gradients alpha is 1/2, so that the map falls in proportion to the score."""
    net = flat(positive=True).float()
    with torch.no_grad():
        net[3].weight *= 1e-25
    x = X.float()
    a, g = taken(net, "1", x, lambda out: out[:, 2])
    assert float((g**2).max()) == 0
    expected = torch.relu(((g.clamp(min=0) / 2).sum((2, 3), keepdim=True) * a).sum(1, keepdim=True))
    assert alike(pl.GradCAMPlusPlus()(pl.TorchModel(net), x, target=2).scores, expected)


def test_a_weight_without_bound_is_left_out():
    """One channel whose units sum to -2 and have a gradient of 1: 2 g^2 + g^3 sum A is zero."""
    net = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Flatten(), nn.Linear(8, 1, bias=False)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1))
        net[2].weight.fill_(1)
    x = torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64)
    # The second channel: alpha = 1 / (2 + 2), its weight 4 / 4, its cells 0.5.
    assert torch.equal(pl.GradCAMPlusPlus(layer="0")(pl.TorchModel(net), x, target=0).scores, x)
