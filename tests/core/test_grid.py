"""Where an activation's channels and cells are, told by its shape and that of the inputs."""

import pytest
import torch
from tests.oracles import uniform

from pellucid.core.grid import Grid, grid_of

SQUARE, WIDE = (3, 224, 224), (3, 224, 448)


@pytest.mark.parametrize(
    ("activation", "features", "cells"),
    [
        ((2, 512, 7, 7), SQUARE, (7, 7)),
        ((2, 7, 7, 7), SQUARE, (7, 7)),
        ((2, 5, 4, 4), (3, 32, 32), (4, 4)),
        ((2, 64, 113, 113), (3, 225, 225), (113, 113)),
        ((2, 16, 7, 14), WIDE, (7, 14)),
        ((2, 7, 14, 28), WIDE, (14, 28)),
        ((2, 8, 16, 36), (3, 20, 40), (16, 36)),
        ((2, 4, 3, 3), (1, 3, 3), (3, 3)),
        ((2, 5, 12), (3, 24), (12,)),
        ((2, 5, 3, 6, 7), (1, 6, 12, 14), (3, 6, 7)),
        ((2, 5, 3, 4), (7,), (3, 4)),
    ],
    ids=["square", "as many channels as cells", "nearly as many", "odd", "wide", "half as many channels as cells",
         "edges cut off a wide picture", "as the input", "signal", "volume", "a vector drawn as a map"],
)  # fmt: skip
def test_convolutions_have_their_channels_first(activation, features, cells):
    assert grid_of(activation, features) == Grid("channels first", cells)


@pytest.mark.parametrize(
    ("activation", "features", "cells"),
    [
        ((2, 7, 7, 768), SQUARE, (7, 7)),
        ((2, 4, 4, 5), (3, 32, 32), (4, 4)),
        ((2, 8, 8, 6), (3, 31, 31), (8, 8)),
        ((2, 7, 14, 768), WIDE, (7, 14)),
        ((2, 14, 7, 96), (3, 448, 224), (14, 7)),
        ((2, 8, 12, 32), (3, 61, 91), (8, 12)),
        ((2, 10, 1024), (10, 768), (10,)),
    ],
    ids=["square", "nearly as many channels as cells", "odd", "wide", "high", "rounded up", "sequence"],
)
def test_cells_may_come_before_channels(activation, features, cells):
    assert grid_of(activation, features) == Grid("channels last", cells)


@pytest.mark.parametrize("prefix", [0, 1, 2, 5, 8])
@pytest.mark.parametrize(
    ("cells", "features"),
    [((14, 14), SQUARE), ((7, 7), SQUARE), ((4, 4), (3, 32, 32)), ((4, 8), (3, 32, 64)), ((14, 28), WIDE),
     ((16, 9), (3, 256, 144))],
)  # fmt: skip
def test_tokens_lie_after_those_of_no_place(cells, features, prefix):
    assert grid_of((2, cells[0] * cells[1] + prefix, 6), features) == Grid("tokens", cells, prefix)


def test_tokens_of_a_picture_that_its_patches_do_not_divide_are_of_nearly_its_proportions():
    """33x65 pixels in patches of 8: 4 and 8 of them."""
    assert grid_of((2, 33, 6), (3, 33, 65)) == Grid("tokens", (4, 8), 1)


@pytest.mark.parametrize(
    ("activation", "features"),
    [
        ((2, 512), SQUARE),
        ((2, 512, 1, 1), SQUARE),
        ((2, 1, 512), SQUARE),
        ((2, 9, 512), SQUARE[:1]),
        ((2, 46, 6), SQUARE),
        ((2, 5, 1), (3, 24)),
        ((2, 10, 32), (10, 768)),  # ten steps of a sequence, or ten channels of a signal
        ((2, 10, 768), (10, 768)),
        ((2, 5), (7,)),
        ((2, 0, 6), SQUARE),
        ((2, 6, 0, 0), SQUARE),
        ((2, 3, 4, 5, 6), SQUARE),
    ],
)
def test_what_is_no_grid_of_several_cells_is_none(activation, features):
    assert grid_of(activation, features) is None


GRIDS = [
    (Grid("channels first", (2, 3)), (2, 5, 2, 3)),
    (Grid("channels last", (2, 3)), (2, 2, 3, 5)),
    (Grid("tokens", (2, 3)), (2, 6, 5)),
    (Grid("tokens", (2, 3), 2), (2, 8, 5)),
    (Grid("channels last", (6,)), (2, 6, 5)),
]


@pytest.mark.parametrize(("grid", "shape"), GRIDS, ids=str)
def test_maps_are_put_back_where_they_were_found(grid, shape):
    activation, other = uniform(*shape), uniform(*shape, seed=1)
    maps = grid.maps(activation)
    assert maps.shape == (2, 5, *grid.cells)
    assert maps.data_ptr() == activation[:, grid.prefix :].data_ptr() or grid.prefix == 0
    back = grid.placed(maps, other)
    assert torch.equal(back[:, grid.prefix :] if grid.prefix else back, activation[:, grid.prefix :]
                       if grid.prefix else activation)  # fmt: skip
    assert torch.equal(back[:, : grid.prefix], other[:, : grid.prefix])


def test_the_cells_of_tokens_are_read_row_by_row():
    maps = Grid("tokens", (2, 3), 1).maps(torch.arange(14.0).reshape(1, 7, 2))
    assert maps[0, 0].tolist() == [[2.0, 4.0, 6.0], [8.0, 10.0, 12.0]]


@pytest.mark.parametrize(("grid", "shape"), GRIDS, ids=str)
def test_the_channel_axis_is_that_of_the_activation(grid, shape):
    assert shape[grid.channel_axis] == 5


def test_a_grid_says_what_it_is():
    assert str(Grid("tokens", (14, 14), 1)) == "14x14 cells, tokens after 1"
    assert str(Grid("channels first", (7,))) == "7 cells, channels first"
