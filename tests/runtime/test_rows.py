"""What is done element by element and row by row gives the bits of its definition."""

from types import ModuleType

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.runtime import reference

many = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
EXTREMES = np.array(
    [
        0,
        -0.0,
        1,
        -1,
        0.5,
        1.5,
        2.5,
        -0.5,
        5.6,
        -5.6,
        1e-45,
        1e-38,
        3e38,
        -3e38,
        np.inf,
        -np.inf,
        np.nan,
        8388607.5,
        2e7,
    ],
    np.float32,
)


def floats(seed: int, spread: float, *shape: int) -> reference.Array:
    return (np.random.default_rng(seed).standard_normal(shape) * spread).astype(np.float32)


seeds, spreads = st.integers(0, 2**32), st.sampled_from([1e-3, 1.0, 30.0])


@many
@given(
    seed=seeds, spread=spreads, count=st.integers(0, 300), scale=st.floats(1e-3, 10), zero=st.integers(-300, 300),
    bits=st.integers(2, 8), offset=st.floats(-1, 1), threads=st.integers(1, 3),
)  # fmt: skip
def test_quantize(
    kernels: ModuleType, seed: int, spread: float, count: int, scale: float, zero: int, bits: int, offset: float,
    threads: int,
) -> None:  # fmt: skip
    x = np.concatenate([floats(seed, spread, count), EXTREMES])
    # Where a quotient lies between two codes the rounding must be half to even.
    x = np.concatenate([x, (np.arange(-20, 20, dtype=np.float32) + np.float32(0.5)) * np.float32(scale)])
    with np.errstate(all="ignore"):
        expected = reference.quantize(x, scale, zero, bits, offset)
    np.testing.assert_array_equal(kernels.quantize(x, scale, zero, bits, offset, threads=threads), expected)


@many
@given(seed=seeds, spread=spreads, count=st.integers(0, 300), shift=st.sampled_from([0.0, 0.17]))
def test_quantize_table(kernels: ModuleType, seed: int, spread: float, count: int, shift: float) -> None:
    x = np.concatenate([floats(seed, spread, count), EXTREMES])
    table = np.random.default_rng(seed).integers(0, 256, 65536).astype(np.uint8)
    np.testing.assert_array_equal(kernels.quantize_table(x, table, shift), reference.quantize_table(x, table, shift))


@many
@given(seed=seeds, spread=spreads, shape=st.tuples(st.integers(0, 5), st.integers(1, 80)), threads=st.integers(1, 3))
def test_gelu(kernels: ModuleType, seed: int, spread: float, shape: tuple[int, int], threads: int) -> None:
    x = floats(seed, spread, *shape)
    expected = reference.gelu(x)
    np.testing.assert_array_equal(kernels.gelu(x, threads=threads), expected)
    table = reference.log_table(4, 3.0, 2.0)
    codes = kernels.gelu_quantize(x, 0.21, 2, 4, threads=threads)
    np.testing.assert_array_equal(codes, reference.quantize(expected, 0.21, 2, 4))
    codes = kernels.gelu_quantize_table(x, table, 0.17, threads=threads)
    np.testing.assert_array_equal(codes, reference.quantize_table(expected, table, 0.17))


def test_gelu_is_that_of_the_layers(kernels: ModuleType) -> None:
    torch = pytest.importorskip("torch")
    from halfbyte.layers.activation import exact_gelu

    x = np.concatenate([np.linspace(-7, 7, 20001).astype(np.float32), floats(3, 2.0, 5000)])
    np.testing.assert_array_equal(kernels.gelu(x), exact_gelu(torch.from_numpy(x)).numpy())


@many
@given(seed=seeds, spread=spreads, shape=st.tuples(st.integers(1, 5), st.integers(1, 200)), threads=st.integers(1, 3))
def test_layer_norm(kernels: ModuleType, seed: int, spread: float, shape: tuple[int, int], threads: int) -> None:
    x = floats(seed, spread, *shape) + np.float32(0.3)
    weight, bias = floats(seed + 1, 1.0, shape[1]), floats(seed + 2, 1.0, shape[1])
    expected = reference.layer_norm(x, weight, bias, 1e-6)
    np.testing.assert_array_equal(kernels.layer_norm(x, weight, bias, 1e-6, threads=threads), expected)
    codes = kernels.layer_norm_quantize(x, weight, bias, 1e-6, 0.13, 7, 4, threads=threads)
    np.testing.assert_array_equal(codes, reference.quantize(expected, 0.13, 7, 4))


@many
@given(
    seed=seeds, spread=st.sampled_from([1e-3, 1.0, 8.0, 200.0]), threads=st.integers(1, 3),
    shape=st.tuples(st.integers(1, 5), st.sampled_from([1, 7, 8, 64, 197, 600])), factor=st.sampled_from([1.0, 0.125]),
)  # fmt: skip
def test_softmax(
    kernels: ModuleType, seed: int, spread: float, threads: int, shape: tuple[int, int], factor: float
) -> None:
    x = floats(seed, spread, *shape)
    expected = reference.softmax(x, factor)
    y = kernels.softmax(x, factor, threads=threads)
    # Two float64 exponentials that differ in their last bits are rounded to different float32 once in 10^8 times.
    assert np.all(np.abs(y.view(np.int32) - expected.view(np.int32)) <= 1)
    np.testing.assert_array_equal(
        kernels.softmax_quantize(x, 1 / 15, 0, 4, factor, threads=threads), reference.quantize(y, 1 / 15, 0, 4)
    )
    for table in (reference.log_table(4), reference.log_table(3, 0.5, 37 / 20), reference.log_table(8, 1.0, 4.0)):
        codes = kernels.softmax_quantize_table(x, table, factor, threads=threads)
        np.testing.assert_array_equal(codes, reference.quantize_table(y, table))


def test_softmax_is_close_to_the_truth(kernels: ModuleType) -> None:
    x = floats(0, 5.0, 200, 197)
    assert np.mean(kernels.softmax(x) != reference.softmax(x)) < 1e-4


def test_softmax_has_the_same_bits_everywhere(kernels: ModuleType) -> None:
    x = floats(1, 5.0, 50, 197)
    mine, codes = kernels.softmax(x), kernels.softmax_quantize_table(x, reference.log_table(4))
    kernels.choose_isa("portable")
    np.testing.assert_array_equal(mine, kernels.softmax(x))
    np.testing.assert_array_equal(codes, kernels.softmax_quantize_table(x, reference.log_table(4)))


def test_add(kernels: ModuleType) -> None:
    x, y = floats(0, 1.0, 33, 7), floats(1, 1.0, 33, 7)
    np.testing.assert_array_equal(kernels.add(x, y, threads=2), x + y)


def test_wrong_arguments_are_refused(kernels: ModuleType) -> None:
    x = floats(0, 1.0, 4, 6)
    weight = np.ones(6, np.float32)
    for call in (
        lambda: kernels.quantize(x.astype(np.float64), 1.0, 0, 4),
        lambda: kernels.quantize(x[:, ::2], 1.0, 0, 4),
        lambda: kernels.quantize(x, 0.0, 0, 4),
        lambda: kernels.quantize(x, float("nan"), 0, 4),
        lambda: kernels.quantize(x, 1.0, 0, 9),
        lambda: kernels.quantize_table(x, np.zeros(65535, np.uint8)),
        lambda: kernels.layer_norm(x, weight[:5], weight, 1e-6),
        lambda: kernels.layer_norm(x, weight, None, 1e-6),
        lambda: kernels.softmax(np.zeros((3, 0), np.float32)),
        lambda: kernels.add(x, x[:3]),
        lambda: kernels.gelu(x, out=np.zeros((4, 5), np.float32)),
        lambda: kernels.gelu(x, threads=1000),
    ):
        with pytest.raises(ValueError):
            call()
