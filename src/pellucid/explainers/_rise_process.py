"""Debiased RISE as a linear functional of a Gaussian process over masks.

    h(m) = <theta, x> + noise,   x = P (2 m - 1),   theta ~ N(0, sum_k w_k S_k' S_k)
    M = E[h(m) (2 m - 1)] = C theta,   C = Cov(2 m - 1, x) = mean over shifts of A (P A)'

P takes means over nodes of half a cell, so that the process sees where a mask was shifted to; S_k smooths over so many
nodes. All of this is a product over axes. h is half the difference of a mask's score and its complement's, for which x
has the other sign: the process is odd, as the map is. Given the weights w, the posterior of M is known exactly.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from pellucid.core.queries import Fit
from pellucid.explainers._odd_process import fit_weights, predicted, told
from pellucid.explainers._rise import Grid, Masks, along_first

__all__ = ["rise_fit"]

_LENGTHS = (0.7, 1.2, 2.0, 3.2)
"""Widths of the smoothing kernels, in nodes."""


def rise_fit(halves: Float[np.ndarray, " n"], masks: Masks) -> Fit:
    """The map from half-differences of n pairs, of which these are the first masks; with its posterior variance."""
    pools = [_pool(side, cells) for side, cells in zip(masks.grid.sides, masks.grid.cells, strict=True)]
    seen, turned, basis = _turned(pooled(masks, pools), halves)
    count = len(turned)
    rest = max(float((halves**2).sum() - (turned**2).sum()), 0.0), len(halves) - count
    sides = [[_smoother(len(pool), length) for pool in pools] for length in _LENGTHS]
    features = [along_axes(seen, each).reshape(count, -1) for each in sides]
    process = fit_weights([x @ x.T for x in features], turned, rest)
    # The prior of theta; then what the scores leave of it.
    prior = np.zeros((seen[0].size, seen[0].size))
    for weight, each in zip(process.weights, sides, strict=True):
        prior += weight * _kronecker([smoother.T @ smoother for smoother in each])
    explained = seen.reshape(count, -1) @ prior
    theta = process.alpha @ explained
    left = prior - explained.T @ process.inverse @ explained
    links = [_link(masks.grid, axis, pool) for axis, pool in enumerate(pools)]
    values = along_axes(theta.reshape(1, *seen.shape[1:]), links)[0]
    variance = np.clip(_spread(left, links), 0, None)
    independent = int(np.prod(masks.grid.cells))
    # K^-1 h and the diagonal of K^-1 of the half-differences themselves.
    alpha = basis @ process.alpha + (halves - basis @ turned) / process.noise
    diagonal = ((basis @ process.inverse) * basis).sum(1) + (1 - (basis**2).sum(1)) / process.noise
    return told(Fit(values, variance, independent), predicted(alpha, diagonal, halves), "Centred()")


def _turned(
    seen: Float[np.ndarray, "n *nodes"], halves: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, "m *nodes"], Float[np.ndarray, " m"], Float[np.ndarray, "n m"]]:
    """Of more pairs than nodes, the scores turned into as many numbers as there are nodes and others that the masks say
    nothing of, so that the fit does not cost more for more pairs; what turns them back.
    """
    flat = seen.reshape(len(halves), -1)
    if len(halves) <= flat.shape[1]:
        return seen, halves, np.eye(len(halves))
    basis, reduced = np.linalg.qr(flat)
    return reduced.reshape(-1, *seen.shape[1:]), basis.T @ halves, basis


def pooled(masks: Masks, pools: Sequence[Float[np.ndarray, "_ _"]]) -> Float[np.ndarray, "n *nodes"]:
    """2 m - 1 of each mask, as means over nodes; the masks themselves are not made."""
    found = np.where(masks.bits, 1.0, -1.0)
    for axis, (pool, matrices) in enumerate(zip(pools, masks.grid.enlarged, strict=True)):
        found = along_first(found, (pool @ matrices)[masks.shifts[:, axis]])
    return found


def along_axes(
    values: Float[np.ndarray, "n *c"], matrices: Sequence[Float[np.ndarray, "_ _"]]
) -> Float[np.ndarray, "n *s"]:
    """Each axis multiplied with its matrix: the first is taken and put last, until all are in order again."""
    for matrix in matrices:
        values = np.asarray(np.tensordot(values, matrix, axes=(1, 1)))
    return values


def _pool(side: int, cells: int) -> Float[np.ndarray, "nodes side"]:
    """Means over nodes of half a cell, or of a place where a cell has fewer than two."""
    edges = np.linspace(0, side, min(2 * cells, side) + 1)[:, None]
    place = np.arange(side)
    share = np.clip(np.minimum(place + 1, edges[1:]) - np.maximum(place, edges[:-1]), 0, 1)
    return np.asarray(share / share.sum(1, keepdims=True))


def _smoother(nodes: int, length: float) -> Float[np.ndarray, "nodes nodes"]:
    at = np.arange(nodes)
    weights = np.exp(-((at[:, None] - at) ** 2) / (2 * length**2))
    return np.asarray(weights / weights.sum(1, keepdims=True))


def _link(grid: Grid, axis: int, pool: Float[np.ndarray, "nodes side"]) -> Float[np.ndarray, "side nodes"]:
    """C of one axis: how far a node tells of a place, over all shifts."""
    matrices = grid.enlarged[axis]
    return np.asarray(np.einsum("auc,arc->ur", matrices, pool @ matrices) / len(matrices))


def _kronecker(matrices: Sequence[Float[np.ndarray, "_ _"]]) -> Float[np.ndarray, "nodes nodes"]:
    found = np.ones((1, 1))
    for matrix in matrices:
        found = np.kron(found, matrix)
    return found


def _spread(
    covariance: Float[np.ndarray, "nodes nodes"], links: Sequence[Float[np.ndarray, "_ _"]]
) -> Float[np.ndarray, "*sides"]:
    """The variance of each place of C theta: c_u' V c_u, a product over axes of pairs of nodes."""
    axes = len(links)
    nodes = [link.shape[1] for link in links]
    # Both nodes of an axis side by side, as one axis of pairs.
    order = [axis + half * axes for axis in range(axes) for half in (0, 1)]
    pairs = covariance.reshape(*nodes, *nodes).transpose(order).reshape(1, *(count**2 for count in nodes))
    squares = [(link[:, :, None] * link[:, None]).reshape(len(link), -1) for link in links]
    return np.asarray(along_axes(pairs, squares)[0])
