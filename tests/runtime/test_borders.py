"""Codes that are found roughly and settled where that could be wrong: values on the borders of two codes and next to
them, and all that a rough way could stumble over."""

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.runtime import reference
from tests.runtime.reference import Array

many = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
seeds = st.integers(0, 2**32)
uniform = {
    "scale": st.floats(1e-4, 50).map(np.float32).map(float),
    "zero": st.integers(-2000, 2000) | st.integers(0, 20),
    "bits": st.integers(2, 8),
    "offset": st.just(0.0) | st.floats(-3, 3).map(np.float32).map(float),
}
SPECIAL = np.array([np.inf, -np.inf, np.nan, -np.nan, 0, -0.0, 1e-45, -1e-45, 3e38, -3e38, 1e20, -1e20], np.float32)


def around(values: Array, ulps: int = 3) -> Array:
    """Each value and its neighbours among the floats of 32 bits."""
    values = np.asarray(values, np.float32)
    near = [values]
    for direction in (np.float32(np.inf), np.float32(-np.inf)):
        value = values
        for _ in range(ulps):
            value = np.nextafter(value, direction)
            near.append(value)
    return np.concatenate([part.ravel() for part in near])


def borders(scale: float, zero: int, bits: int, offset: float) -> Array:
    return (np.arange(-2, 2**bits + 2) - zero - 0.5) * float(np.float32(scale)) + float(np.float32(offset))


def where_changes(function: Callable[[Array], Array]) -> Array:
    """Where a function of floats from -12 to 12 changes: between two points of a grid, then halved; 100 at most."""
    grid = np.linspace(-12, 12, 4001).astype(np.float32)
    values = function(grid)
    low = grid[:-1][values[:-1] != values[1:]][:100]
    high = np.nextafter(low + np.float32(24 / 4000), np.float32(13))
    for _ in range(24):
        middle = (low + high) * np.float32(0.5)
        same = function(middle) == function(low)
        low, high = np.where(same, middle, low), np.where(same, high, middle)
    return np.asarray(low)


@many
@given(seed=seeds, **uniform)
def test_uniform_codes(kernels: ModuleType, seed: int, scale: float, zero: int, bits: int, offset: float) -> None:
    x = np.concatenate([around(borders(scale, zero, bits, offset)), SPECIAL])
    x = np.random.default_rng(seed).permutation(x)
    with np.errstate(all="ignore"):
        expected = reference.quantize(x, scale, zero, bits, offset)
    np.testing.assert_array_equal(kernels.quantize(x, scale, zero, bits, offset), expected)


@many
@given(seed=seeds, **uniform)
def test_codes_behind_gelu(kernels: ModuleType, seed: int, scale: float, zero: int, bits: int, offset: float) -> None:
    generator = np.random.default_rng(seed)
    crossings = where_changes(
        lambda x: np.floor((reference.gelu(x).astype(np.float64) - offset) / float(np.float32(scale)) + zero - 0.5)
    )
    x = np.concatenate(
        [around(crossings), SPECIAL, generator.uniform(-12, 12, 500).astype(np.float32), around([-10.0, 4.5, 5.6])]
    )
    with np.errstate(all="ignore"):
        expected = reference.quantize(reference.gelu(x), scale, zero, bits, offset)
    np.testing.assert_array_equal(kernels.gelu_quantize(x, scale, zero, bits, offset), expected)


def test_codes_behind_gelu_all_over(kernels: ModuleType) -> None:
    halves = np.arange(65536, dtype=np.uint32) << 16
    x = (halves + np.random.default_rng(0).integers(0, 65536, 65536).astype(np.uint32)).view(np.float32)
    with np.errstate(all="ignore"):
        values = reference.gelu(x)
        for scale, zero, bits in ((0.35, 1, 4), (0.02, 9, 8), (1e-3, 128, 8), (1.3, 0, 2)):
            expected = reference.quantize(values, scale, zero, bits)
            np.testing.assert_array_equal(kernels.gelu_quantize(x, scale, zero, bits), expected)


@many
@given(
    seed=seeds, bits=st.integers(2, 8), steps=st.sampled_from([0.3, 1.0, 2.0, 2.3, 6.0, 40.0]),
    scale=st.sampled_from([8.0, 2.0, 0.3, 1e-3]), shift=st.sampled_from([0.0, 0.17, 0.2785, 16.0]),
)  # fmt: skip
def test_logarithmic_codes_behind_gelu(
    kernels: ModuleType, seed: int, bits: int, steps: float, scale: float, shift: float
) -> None:
    table = reference.log_table(bits, scale, steps)
    crossings = where_changes(lambda x: reference.quantize_table(reference.gelu(x), table, shift))
    everywhere = np.random.default_rng(seed).uniform(-12, 12, 500).astype(np.float32)
    x = np.concatenate([around(crossings, 40), SPECIAL, everywhere, around([-10.0, 4.5, 5.6])])
    x = np.random.default_rng(seed).permutation(x)
    with np.errstate(all="ignore"):
        expected = reference.quantize_table(reference.gelu(x), table, shift)
    np.testing.assert_array_equal(kernels.gelu_quantize_table(x, table, shift), expected)


@many
@given(
    seed=seeds, channels=st.sampled_from([1, 7, 16, 40, 192]), mean=st.sampled_from([0.0, 3.0, 1e4, -1e6]),
    spread=st.sampled_from([1e-6, 1.0, 1e3, 0.0]), zero=st.integers(-300, 300), bits=st.integers(2, 8),
)  # fmt: skip
def test_codes_behind_a_norm(
    kernels: ModuleType, seed: int, channels: int, mean: float, spread: float, zero: int, bits: int
) -> None:
    generator = np.random.default_rng(seed)
    x = (mean + spread * generator.standard_normal((6, channels))).astype(np.float32)
    weight = (generator.standard_normal(channels) * generator.choice([1, 1, 30], channels)).astype(np.float32)
    bias = generator.standard_normal(channels).astype(np.float32)
    x[5, generator.integers(channels)] = generator.choice([np.inf, np.nan, 1e30])
    with np.errstate(all="ignore"):
        values = reference.layer_norm(x, weight, bias, 1e-6)
    scale = np.float32(generator.uniform(0.01, 0.5))
    for _ in range(4):
        # A border of two codes put where one of the values is.
        value = values[generator.integers(5), generator.integers(channels)]
        offset = float(np.float32(value - (generator.integers(2**bits) - zero + 0.5) * scale))
        with np.errstate(all="ignore"):
            expected = reference.quantize(values, scale, zero, bits, offset)
        codes = kernels.layer_norm_quantize(x, weight, bias, 1e-6, float(scale), zero, bits, offset)
        np.testing.assert_array_equal(codes, expected)


def rows(seed: int, columns: int, spread: float) -> Array:
    """Rows of logits: plain ones, of one value alone, with masks, and those that have no softmax."""
    generator = np.random.default_rng(seed)
    x = (generator.standard_normal((8, columns)) * spread).astype(np.float32)
    x[1] = x[1, 0]
    x[2, generator.random(columns) < 0.5] -= 100
    x[3, generator.random(columns) < 0.3] = -np.inf
    x[4, generator.integers(columns)] = generator.choice([np.inf, np.nan, -np.nan])
    x[5] += np.float32(1e4)
    x[6] *= np.float32(1e30)
    return x


def softmax_of(kernels: ModuleType, x: Array, factor: float) -> Array:
    with np.errstate(all="ignore"):
        return kernels.softmax(x, factor)


columns_of_rows = st.sampled_from([1, 2, 15, 16, 17, 49, 197, 577, 1024, 1025])


@many
@given(
    seed=seeds, columns=columns_of_rows, spread=st.sampled_from([0.1, 2.0, 30.0]), bits=st.integers(2, 8),
    factor=st.sampled_from([1.0, 0.125, 0.17677669, -1.0, 0.0]), zero=st.sampled_from([0, 0, 3, -40]),
)  # fmt: skip
def test_uniform_codes_of_softmax(
    kernels: ModuleType, seed: int, columns: int, spread: float, bits: int, factor: float, zero: int
) -> None:
    x = rows(seed, columns, spread)
    values = softmax_of(kernels, x, factor)
    generator = np.random.default_rng(seed)
    for _ in range(4):
        value = values[0, generator.integers(columns)]
        # A scale that puts a border where one of the values is.
        scale = float(np.float32(max(value, 1e-6) / (generator.integers(2**bits) + 0.5)))
        codes = kernels.softmax_quantize(x, scale, zero, bits, factor)
        np.testing.assert_array_equal(codes, reference.quantize(values, scale, zero, bits))


@many
@given(
    seed=seeds, columns=columns_of_rows, spread=st.sampled_from([0.1, 2.0, 30.0]), bits=st.integers(2, 8),
    factor=st.sampled_from([1.0, 0.125, 0.17677669, -1.0]), steps=st.sampled_from([0.3, 1.0, 2.0, 1.85, 6.0, 12.0]),
    scale=st.sampled_from([1.0, 0.4, 1e-3]),
)  # fmt: skip
def test_logarithmic_codes_of_softmax(
    kernels: ModuleType, seed: int, columns: int, spread: float, bits: int, factor: float, steps: float, scale: float
) -> None:
    x, table = rows(seed, columns, spread), reference.log_table(bits, scale, steps)
    if columns > 1 and factor > 0:
        # One logit of each of the first three rows made such that its quotient is at a limit of two codes.
        generator = np.random.default_rng(seed)
        limits = (np.flatnonzero(np.diff(table[:0x7F80].astype(int))) + 1).astype(np.uint32) << 16
        for row in range(3):
            at = generator.integers(columns)
            others = np.exp(np.delete(x[row], at).astype(np.float64) * factor)
            limit = float(generator.choice(limits).view(np.float32))
            if 0 < limit < 1:
                x[row, at] = np.log(limit / (1 - limit) * others.sum()) / factor
    values = softmax_of(kernels, x, factor)
    codes = kernels.softmax_quantize_table(x, table, factor)
    np.testing.assert_array_equal(codes, reference.quantize_table(values, table))


@many
@given(
    seed=seeds, bits=st.integers(2, 8), steps=st.sampled_from([0.3, 1.0, 2.0, 1.85, 6.0, 11.0, 40.0]),
    scale=st.sampled_from([1.0, 7.0, 1e-3, 1e-36]), shift=st.sampled_from([0.0, 0.17]),
)  # fmt: skip
def test_logarithmic_codes(kernels: ModuleType, seed: int, bits: int, steps: float, scale: float, shift: float) -> None:
    table = reference.log_table(bits, scale, steps)
    limits = ((np.flatnonzero(np.diff(table[:0x7F80].astype(int))) + 1).astype(np.uint32) << 16).view(np.float32)
    generator = np.random.default_rng(seed)
    everywhere = (generator.integers(0, 2**32, 500, dtype=np.uint64)).astype(np.uint32).view(np.float32)
    x = generator.permutation(np.concatenate([around(limits - np.float32(shift)), SPECIAL, everywhere]))
    with np.errstate(all="ignore"):
        expected = reference.quantize_table(x, table, shift)
        np.testing.assert_array_equal(kernels.quantize_table(x, table, shift), expected)


def strange_tables() -> dict[str, Array]:
    """Tables of codes that are not, or not quite, those of a logarithmic quantizer."""
    generator = np.random.default_rng(0)
    plain = reference.log_table(4, 1.0, 2.0)
    halves = np.arange(65536)
    positive = np.where(halves < 32768, halves, 0).astype(np.uint32) << 16
    with np.errstate(invalid="ignore"):
        uneven = np.searchsorted(np.sort(generator.uniform(0, 1, 15)), positive.view(np.float32)).astype(np.uint8)
    bumpy = plain.copy()
    bumpy[0x3F00:0x3F05] = 9
    signed = plain.copy()
    signed[0xBF00] = 3
    infinite = plain.copy()
    infinite[0x7F80:0x8000] = 15
    return {
        "uneven": 15 - np.minimum(uneven, 15),
        "rising": 15 - plain,
        "bumpy": bumpy,
        "signed": signed,
        "infinite": infinite,
        "one": np.zeros(65536, np.uint8),
        "never zero": np.maximum(plain, 1),
        "random": generator.integers(0, 16, 65536).astype(np.uint8),
        "gaps": np.where(plain == 7, 8, plain).astype(np.uint8),
    }


@pytest.mark.parametrize("name", list(strange_tables()))
def test_tables_of_other_forms(kernels: ModuleType, name: str) -> None:
    table = strange_tables()[name]
    x = rows(5, 197, 2.0)
    values = softmax_of(kernels, x, 1.0)
    np.testing.assert_array_equal(kernels.softmax_quantize_table(x, table), reference.quantize_table(values, table))
    np.testing.assert_array_equal(kernels.quantize_table(x, table), reference.quantize_table(x, table))
