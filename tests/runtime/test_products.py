"""Exact sums for every pair of bit widths, from random and extreme codes."""

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.runtime import reference

WIDTHS = range(2, 9)
many = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def codes(generator: np.random.Generator, bits: int, kind: str, *shape: int) -> reference.Array:
    if kind in ("least", "most"):
        return np.full(shape, 0 if kind == "least" else 2**bits - 1, np.uint8)
    if kind == "ends":
        return (generator.integers(0, 2, shape) * (2**bits - 1)).astype(np.uint8)
    return generator.integers(0, 2**bits, shape).astype(np.uint8)


kinds = st.sampled_from(["random", "ends", "least", "most"])


@pytest.mark.parametrize("weight_bits", WIDTHS)
@pytest.mark.parametrize("activation_bits", WIDTHS)
def test_no_pair_of_widths_saturates(kernels: ModuleType, weight_bits: int, activation_bits: int) -> None:
    """K is larger than any number of steps that is added up in 16 bits, but for the smallest widths."""
    generator = np.random.default_rng(0)
    k = min(2200, 8 * max(8, kernels.pair_steps(weight_bits, activation_bits)) + 3)
    for kind_a in ("random", "most"):
        for kind_w in ("random", "least", "most"):
            a = codes(generator, activation_bits, kind_a, 7, k)
            w = codes(generator, weight_bits, kind_w, 33, k)
            packed = kernels.pack_weight(w, weight_bits, 2 ** (weight_bits - 1), activation_bits)
            expected = reference.product(a, w, 3, 2 ** (weight_bits - 1))
            np.testing.assert_array_equal(kernels.linear(a, packed, 3), expected)


@many
@given(data=st.data())
def test_linear(kernels: ModuleType, data: st.DataObject) -> None:
    m, n, k = (data.draw(st.integers(1, limit)) for limit in (40, 70, 90))
    w_bits, a_bits = data.draw(st.integers(2, 8)), data.draw(st.integers(2, 8))
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    a, w = codes(generator, a_bits, data.draw(kinds), m, k), codes(generator, w_bits, data.draw(kinds), n, k)
    za = data.draw(st.integers(-1000, 1000))
    zero: Any = generator.integers(-300, 300, n).astype(np.int32) if data.draw(st.booleans()) else 2 ** (w_bits - 1)
    scale, bias = generator.random(n).astype(np.float32), generator.standard_normal(n).astype(np.float32)
    packed = kernels.pack_weight(w, w_bits, zero, a_bits)
    sums = reference.product(a, w, za, zero)
    threads = data.draw(st.integers(1, 3))
    np.testing.assert_array_equal(kernels.linear(a, packed, za, threads=threads), sums)
    out = np.empty((m, n), np.float32)
    y = kernels.linear(a, packed, za, scale, bias, out, threads=threads)
    assert y is out
    np.testing.assert_array_equal(y, reference.rescaled(sums, scale, bias))
    np.testing.assert_array_equal(kernels.linear(a, packed, za, scale), reference.rescaled(sums, scale))


@many
@given(data=st.data())
def test_products_of_heads(kernels: ModuleType, data: st.DataObject) -> None:
    heads, m, n, k = (data.draw(st.integers(1, limit)) for limit in (3, 60, 40, 70))
    bits = data.draw(st.integers(2, 8)), data.draw(st.integers(2, 8))
    zeros = data.draw(st.integers(-300, 300)), data.draw(st.integers(-300, 300))
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    left = codes(generator, bits[0], data.draw(kinds), heads, m, k)
    right = codes(generator, bits[1], data.draw(kinds), heads, n, k)
    across = np.ascontiguousarray(right.swapaxes(1, 2))
    sums = reference.product(left, right, zeros[0], zeros[1])
    threads = data.draw(st.integers(1, 3))
    np.testing.assert_array_equal(kernels.matmul(left, right, *bits, *zeros, transposed=True, threads=threads), sums)
    scaled = kernels.matmul(left, across, *bits, *zeros, 0.37, threads=threads)
    np.testing.assert_array_equal(scaled, reference.rescaled(sums, 0.37))


@many
@given(data=st.data())
def test_levels(kernels: ModuleType, data: st.DataObject) -> None:
    heads, m, n = (data.draw(st.integers(1, limit)) for limit in (2, 60, 40))
    k = data.draw(st.sampled_from([1, 2, 33, 64, 197, 300, 577, 1100]))
    bits, right_bits = data.draw(st.integers(2, 8)), data.draw(st.integers(2, 8))
    zero = data.draw(st.integers(-300, 300))
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    # Those that fit into bytes are multiplied as bytes.
    largest = data.draw(st.sampled_from([1, 255, 256, 32767]))
    table = np.sort(generator.integers(0, largest + 1, 2**bits))[::-1].astype(np.int16)
    table[0] = largest
    left = codes(generator, bits, data.draw(st.sampled_from(["random", "least"])), heads, m, k)
    right = codes(generator, right_bits, data.draw(kinds), heads, k, n)
    sums = reference.product(table[left], right.swapaxes(1, 2), 0, zero)
    y = kernels.matmul_levels(left, table, right, right_bits, zero, 0.011, threads=data.draw(st.integers(1, 3)))
    np.testing.assert_array_equal(y, reference.rescaled(sums, 0.011))


@pytest.mark.parametrize("k", [1, 15, 16, 17, 512, 513, 1087, 1089, 2200])
@pytest.mark.parametrize("activation_bits", [2, 3, 4, 5])
def test_two_bit_weights(kernels: ModuleType, activation_bits: int, k: int) -> None:
    """Around what adds up in 8 and in 16 bits where sums are looked up, for every number of rows of a tile."""
    generator = np.random.default_rng(k)
    zero = generator.integers(-5, 9, 19).astype(np.int32)
    for m in range(1, 10):
        for kind_a, kind_w in (("random", "random"), ("most", "least"), ("most", "most"), ("ends", "ends")):
            a, w = codes(generator, activation_bits, kind_a, m, k), codes(generator, 2, kind_w, 19, k)
            expected = reference.product(a, w, 3, zero)
            np.testing.assert_array_equal(
                kernels.linear(a, kernels.pack_weight(w, 2, zero, activation_bits), 3), expected
            )
    right = codes(generator, 2, "random", 19, k)
    for matrix, transposed in ((right, True), (right.T.copy(), False)):
        sums = kernels.matmul(a[None], matrix[None], activation_bits, 2, 3, 1, transposed=transposed)
        np.testing.assert_array_equal(sums[0], reference.product(a, right, 3, 1))


def test_sums_of_levels_beyond_32_bits(kernels: ModuleType) -> None:
    left, right = np.zeros((1, 5, 1000), np.uint8), np.full((1, 1000, 9), 255, np.uint8)
    table = np.full(16, 32767, np.int16)
    y = kernels.matmul_levels(left, table, right, 8, 0, 1.0)
    np.testing.assert_array_equal(y, np.float32(1000 * 32767 * 255))
    with pytest.raises(ValueError, match="2\\^31"):
        kernels.matmul_levels(left, table, right, 8, 0)


def test_the_number_of_pairs_in_16_bits(kernels: ModuleType) -> None:
    for weight_bits in WIDTHS:
        for activation_bits in WIDTHS:
            steps = kernels.pair_steps(weight_bits, activation_bits)
            worst = 2 * (2**activation_bits - 1) * 2 ** (weight_bits - 1)
            assert steps * worst <= 2**15 < (steps + 1) * worst


def test_real_shapes(kernels: ModuleType) -> None:
    generator = np.random.default_rng(1)
    for n, k in ((576, 192), (192, 768), (1000, 192)):
        a, w = codes(generator, 4, "random", 197, k), codes(generator, 4, "random", n, k)
        expected = reference.product(a, w, 7, 8)
        packed = kernels.pack_weight(w, 4, 8, 4)
        for threads in (1, 2):
            np.testing.assert_array_equal(kernels.linear(a, packed, 7, threads=threads), expected)
            np.testing.assert_array_equal(kernels.linear(a[:1], packed, 7, threads=threads), expected[:1])


def test_wrong_arguments_are_refused(kernels: ModuleType) -> None:
    a, w = np.zeros((3, 8), np.uint8), np.zeros((5, 8), np.uint8)
    packed, scale = kernels.pack_weight(w, 4, 8, 4), np.ones(5, np.float32)
    refused: list[tuple[str, Any]] = [
        ("codes must have the shape", lambda: kernels.linear(a[:, :4].copy(), packed, 0)),
        ("codes must be contiguous", lambda: kernels.linear(np.zeros((8, 3), np.uint8).T, packed, 0)),
        ("codes must hold uint8", lambda: kernels.linear(a.astype(np.int32), packed, 0)),
        ("codes must hold codes of 4 bits", lambda: kernels.linear(a + np.uint8(16), packed, 0)),
        ("scale must have the shape", lambda: kernels.linear(a, packed, 0, scale[:4])),
        ("bias needs a scale", lambda: kernels.linear(a, packed, 0, None, scale)),
        ("out must have the shape", lambda: kernels.linear(a, packed, 0, scale, out=np.ones((3, 4), np.float32))),
        ("threads must be from 1", lambda: kernels.linear(a, packed, 0, threads=0)),
        ("may pass 2", lambda: kernels.linear(a, packed, 2**31 - 1)),
        ("bits must be from 2 to 8", lambda: kernels.pack_weight(w, 9, 8)),
        ("codes must hold codes of 2 bits", lambda: kernels.pack_weight(w + np.uint8(4), 2, 2)),
        ("zero must have the shape", lambda: kernels.pack_weight(w, 4, np.zeros(4, np.int32))),
        ("number of rows", lambda: kernels.pack_weight(w[:0], 4, 8)),
        ("right must have the shape", lambda: kernels.matmul(a[None], w[None], 4, 4, 0, 0)),
        ("table must hold", lambda: kernels.matmul_levels(a[None], np.zeros(5, np.int16), w.T[None].copy(), 4, 0)),
        ("a level", lambda: kernels.matmul_levels(a[None], np.full(4, -1, np.int16), w.T[None].copy(), 4, 0)),
    ]
    for message, call in refused:
        with pytest.raises(ValueError, match=message):
            call()
