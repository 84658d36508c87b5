import numpy as np
import pytest
import torch
from skimage.measure import label

import pellucid as pl

PREPARE = pl.ImagePreprocess(size=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def quarters(size: int = 32) -> torch.Tensor:
    """Four squares, each of one colour."""
    picture = torch.zeros(1, 3, size, size)
    half = size // 2
    picture[0, 0, :half, half:] = 1
    picture[0, 1, half:, :half] = 1
    picture[0, 2, half:, half:] = 1
    return picture


@pytest.mark.parametrize("method", ["slic", "felzenszwalb"])
def test_segments_do_not_cross_the_edges_of_colours(method):
    labels = pl.Superpixels(count=16, method=method).labels(quarters())[0]
    of_quarter = (torch.arange(32) >= 16).long()
    quarter = 2 * of_quarter[:, None] + of_quarter
    for number in labels.unique():
        assert len(quarter[labels == number].unique()) == 1


@pytest.mark.parametrize("method", ["slic", "felzenszwalb"])
def test_numbers_have_no_gaps_and_segments_are_in_one_piece(method):
    noise = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    for labels in pl.Superpixels(count=20, method=method).labels(noise).numpy():
        assert np.array_equal(np.unique(labels), np.arange(labels.max() + 1))
        assert all(label(labels == number, connectivity=1).max() == 1 for number in np.unique(labels))


@pytest.mark.parametrize("method", ["slic", "felzenszwalb"])
def test_about_as_many_as_asked_for_on_a_photo(method):
    from skimage import data

    x = pl.ImagePreprocess(size=224).read(data.chelsea())
    count = int(pl.Superpixels(count=50, method=method).labels(x.tensor).max()) + 1
    assert 25 <= count <= 100


def test_the_colours_are_those_of_the_original():
    """The normalisation of a model, with its own scale for each channel, changes nothing."""
    from skimage import data

    plain = pl.ImagePreprocess(size=64)
    rule = pl.Superpixels(count=20)
    one = rule.labels(plain.read(data.chelsea()).tensor, plain)
    normalised = pl.ImagePreprocess(size=64, mean=PREPARE.mean, std=PREPARE.std)
    other = rule.labels(normalised.read(data.chelsea()).tensor, normalised)
    # Rounding may move a pixel on an edge.
    assert float((one == other).double().mean()) > 0.95


def test_each_picture_of_a_batch_has_its_own():
    both = torch.cat([quarters(), torch.zeros(1, 3, 32, 32)])
    rule = pl.Superpixels(count=9)
    labels = rule.labels(both)
    assert torch.equal(labels[0], rule.labels(both[:1])[0])
    assert not torch.equal(labels[0], labels[1])


def test_a_batch_may_have_different_numbers_of_segments():
    both = torch.cat([quarters(), torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))])
    model = pl.FunctionModel(lambda rows: rows.mean((1, 2, 3)), output="regression")
    a = pl.Occlusion(segments=pl.Superpixels(count=9, method="felzenszwalb"), baseline=pl.Zeros())(model, both)
    assert len(a[0].by_segment) != len(a[1].by_segment)
    for one in a:
        assert float(one.by_segment.sum()) == pytest.approx(float(one.decision.score), rel=1e-4)


def test_gray_pictures_have_superpixels():
    assert pl.Superpixels(count=4).labels(quarters()[:, 1:2]).shape == (1, 32, 32)


@pytest.mark.doors
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: pl.Superpixels(count=0), "`count` is a whole number"),
        (lambda: pl.Superpixels(method="quickshift"), "`method` is one of 'slic', 'felzenszwalb'"),
        (lambda: pl.Superpixels().labels(torch.zeros(1, 2, 8, 8)), "pictures"),
        (lambda: pl.Superpixels().labels(torch.zeros(1, 8)), "pictures"),
    ],
)
def test_what_has_no_superpixels_is_refused(make, words):
    with pytest.raises(pl.ArgumentError, match=words):
        make()
