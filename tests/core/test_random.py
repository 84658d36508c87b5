import numpy as np
import pytest
import torch
from tests.oracles import uniform

import pellucid as pl
from pellucid.core.random import Key, normal
from pellucid.core.random import uniform as places


def test_golden_noise():
    """The same numbers on every machine, for ever: a stored recipe depends on them."""
    key = Key.of(torch.arange(6.0).reshape(2, 3))
    assert key.hex == "f68f84c583b7e1c83f10cc6e10b02fff"
    assert key.stream(0).hex == "c187f2b08a3e29fdf0ff2ca9bec03e02"
    assert key.child(0).hex == "9e5ec5ffcac41e319691d45d8e785140"
    drawn = normal(key.stream(0), 3, (4,))
    assert drawn.dtype == np.float32
    assert drawn.tobytes().hex() == "9cae50bfaa7a823f31e234bf94df2c3f"


def test_the_index_stands_in_the_highest_word_of_the_counter():
    stream = Key.named("a").stream(0)
    bits = np.random.Philox(key=np.frombuffer(stream.digest, dtype="<u8"), counter=[0, 0, 0, 5])
    expected = np.random.Generator(bits).standard_normal((8,), dtype=np.float32)
    assert (normal(stream, 5, (8,)) == expected).all()


def test_long_neighbouring_samples_share_no_number():
    stream = Key.named("a").stream(0)
    first, second = normal(stream, 0, (50_000,)), normal(stream, 1, (50_000,))
    assert len(np.intersect1d(first[:1000], second)) < 20  # float32 values collide by chance, runs do not
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(50_000)
    for shift in range(1, 9):
        assert abs(np.corrcoef(first[shift:], second[:-shift])[0, 1]) < 5 / np.sqrt(50_000)


def test_noise_is_standard_normal():
    from scipy.stats import kstest

    drawn = normal(Key.named("a").stream(1), 0, (100_000,))
    assert kstest(drawn, "norm").pvalue > 0.001


def test_golden_places():
    """As with noise: the same numbers on every machine, for ever."""
    drawn = places(Key.named("a").stream(0), 3, 4)
    bits = np.random.Philox(key=np.frombuffer(Key.named("a").stream(0).digest, dtype="<u8"), counter=[0, 0, 0, 3])
    assert drawn.dtype == np.float64
    assert (drawn == np.random.Generator(bits).random(4)).all()
    assert drawn.tobytes().hex() == "0c654b79551ee03fcbc99ab77620e43fd7e69a778fe7e43faab1d4ebdf61de3f"


def test_places_are_uniform_and_each_index_has_its_own():
    from scipy.stats import kstest

    stream = Key.named("a").stream(1)
    first, second = places(stream, 0, 100_000), places(stream, 1, 100_000)
    assert kstest(first, "uniform").pvalue > 0.001
    assert 0 <= first.min() < first.max() < 1
    assert not np.intersect1d(first, second).size
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(100_000)
    assert (places(stream, 0, 10) == first[:10]).all(), "those that are drawn do not depend on how many are"


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_key_of_an_input_does_not_depend_on_its_layout(layout):
    x = uniform(1, 3, 4, 5)
    assert Key.of(x.contiguous(memory_format=layout)[0]) == Key.of(x[0])


def test_the_key_of_an_input_does_not_depend_on_its_precision_beyond_float32():
    x = uniform(3, 4)
    assert Key.of(x.double()) == Key.of(x)


def test_the_key_of_an_input_depends_on_shape_and_content():
    x = uniform(3, 4)
    changed = x.clone()
    changed[2, 3] = torch.nextafter(changed[2, 3], torch.tensor(2.0))
    assert len({Key.of(x), Key.of(x.reshape(4, 3)), Key.of(x.reshape(12)), Key.of(changed)}) == 4


def test_seed_index_and_name_give_different_streams():
    key = Key.of(uniform(3))
    derived = {key, key.stream(0), key.stream(1), key.child(0), key.child(1), key.stream(2**64 - 1), Key.named("0")}
    assert len(derived) == 7


def test_a_key_survives_its_hexadecimal_form():
    key = Key.named("pair")
    assert Key.from_hex(key.hex) == key


def test_public_key_is_the_core_key():
    assert pl.Key is Key
