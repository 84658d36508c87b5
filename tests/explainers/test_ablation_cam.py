from collections.abc import Callable

import pytest
import torch
from tests.explainers.cells import X, alike, curved, pooled, seeded
from torch import Tensor, nn

import pellucid as pl


def by_loop(net: nn.Module, layer: str, x: Tensor, target: int, maps_of: Callable[[Tensor], Tensor]) -> Tensor:
    """Equation 5, one input, one channel and one whole pass at a time. `maps_of` views channels first."""
    off: list[int] = []
    given: list[Tensor] = []

    def ablate(module: nn.Module, args: object, out: Tensor) -> Tensor:
        given.append(out.clone())
        for channel in off:
            maps_of(out)[:, channel] = 0
        return out

    handle = net.get_submodule(layer).register_forward_hook(ablate)
    maps = []
    with torch.no_grad():
        for one in x.split(1):
            off.clear()
            whole = float(net(one)[0, target])
            a = maps_of(given[-1])[0]
            total = torch.zeros_like(a[0])
            for channel in range(len(a)):
                off[:] = [channel]
                total += (whole - float(net(one)[0, target])) * a[channel]
            maps.append(torch.relu(total))
    handle.remove()
    return torch.stack(maps)[:, None]


class Residual(nn.Module):
    """What enters the layer also goes around it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layer, self.head = seeded(
            lambda: nn.ModuleList([nn.Conv2d(3, 5, 3, 2), nn.Conv2d(5, 5, 3, padding=1), nn.Linear(100, 3)])
        )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.stem(x))
        return self.head(torch.tanh(torch.tanh(self.layer(y)) * y + y).flatten(1))


class Tokens(nn.Module):
    """A small vision transformer: 3 x 4 patches of 3 x 3 pixels, a class token before them, one block."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.layer, self.head = seeded(
            lambda: nn.ModuleList(
                [nn.Conv2d(3, 8, 3, 3), nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), nn.Linear(8, 3)]
            )
        )
        self.last = seeded(lambda: nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), seed=1)
        self.token = nn.Parameter(torch.full((1, 1, 8), 0.1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch(x[:, :, :, :9]).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), patches], 1)
        return self.head(self.last(self.layer(tokens))[:, 0])


class ChannelsLast(nn.Module):
    """Cells first, channels last, as in windowed transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layer, self.head = seeded(
            lambda: nn.ModuleList([nn.Conv2d(3, 7, 3, 2), nn.Linear(7, 16), nn.Linear(16 * 20, 3)])
        )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.layer(torch.tanh(self.stem(x)).movedim(1, -1)))
        return self.head(y.flatten(1)).tanh()


def first(out: Tensor) -> Tensor:
    return out


def last(out: Tensor) -> Tensor:
    return out.movedim(-1, 1)


def after_class_token(out: Tensor) -> Tensor:
    """The cells alone: the class token has no place on the map and stays."""
    return out[:, 1:].unflatten(1, (3, 3)).movedim(-1, 1)


@pytest.mark.parametrize(
    ("net", "layer", "maps_of"),
    [
        (curved(), "1", first),
        (curved(), "0", first),
        (Residual().eval(), "layer", first),
        (Residual().eval(), "stem", first),
        (Tokens().eval(), "layer", after_class_token),
        (ChannelsLast().eval(), "layer", last),
    ],
    ids=["conv", "before its activation", "beside a shortcut", "before a shortcut", "tokens", "channels last"],
)
def test_it_is_the_loop_over_whole_passes(net, layer, maps_of):
    x = X[:, :, :, :9].contiguous() if isinstance(net, Tokens) else X
    expected = by_loop(net, layer, x, 1, maps_of)
    assert alike(pl.AblationCAM(layer=layer)(pl.TorchModel(net), x, target=1).scores, expected, 1e5)


def test_after_a_pooled_linear_head_a_channel_counts_by_its_weight_times_its_mean():
    net = pooled()
    a = net[1](net[0](X)).detach()
    weights = net[4].weight[2].detach() * a.mean((2, 3))
    expected = torch.relu(torch.einsum("bk,bkhw->bhw", weights, a))[:, None]
    assert alike(pl.AblationCAM()(pl.TorchModel(net), X, target=2).scores, expected)


def test_the_sign_of_the_score_does_not_turn_the_map_round():
    """The paper divides by S: with S below zero what speaks for the target would be cut off."""
    net = pooled()
    before = pl.AblationCAM()(pl.TorchModel(net), X, target=2).scores
    with torch.no_grad():
        net[4].bias -= 100
    assert alike(pl.AblationCAM()(pl.TorchModel(net), X, target=2).scores, before, 1e6)


def test_what_lies_before_the_layer_is_not_run_for_each_channel():
    seen: list[int] = []

    class Counted(nn.Module):
        def __init__(self, inside: nn.Module) -> None:
            super().__init__()
            self.stem = inside

        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            return self.stem(x)

    net = curved()
    net[0] = Counted(net[0])
    model = pl.TorchModel(net)
    pl.AblationCAM(layer="1")(model, X, target=1)  # the diagnosis of this shape is done
    seen.clear()
    a = pl.AblationCAM(layer="1")(model, X, target=1)
    assert a.cost.forward == 2 * (1 + 2 + 6)
    assert sum(seen) <= 2 * (1 + 2), "the prediction and what the layer gives, of each input, not of each channel"


class Two(nn.Module):
    """A picture and a vector: the vector scales what follows the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.own = curved(), seeded(lambda: nn.Linear(4, 100))

    def forward(self, picture: Tensor, vector: Tensor) -> Tensor:
        own = self.own(vector)
        return self.part[5](self.part[:5](picture) * own)


def test_of_several_inputs_each_keeps_its_own_others():
    net, vector = Two(), X[:, 0, 0, :4].contiguous()
    found = pl.AblationCAM(layer="part.1")(pl.TorchModel(net), {"picture": X, "vector": vector}, target=0).scores

    class Beside(nn.Module):
        def __init__(self, row: int) -> None:
            super().__init__()
            self.net, self.row = net, row

        def forward(self, picture: Tensor) -> Tensor:
            return self.net(picture, vector[self.row : self.row + 1])

    expected = [by_loop(Beside(row), "net.part.1", X[row : row + 1], 0, first) for row in range(2)]
    assert alike(found, torch.cat(expected))
