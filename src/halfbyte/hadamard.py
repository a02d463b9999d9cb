"""Orthogonal matrices that spread every channel over all of them: Hadamard's where the size has one."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def rotation(size: int, seed: int | None = None) -> Tensor:
    """An orthogonal matrix `[size, size]`, float64: Q Q^T = 1.

    It is H_m x H_2^k / sqrt(size), with H_m of Paley's constructions, for every size that these reach (192, 384 and
    768 are H_12 x H_2^k). For another its odd part is a cosine transform, whose entries differ in magnitude. `seed`
    draws a sign for each row (QuaRot, Ashkboos et al., 2024), without which the first output is the sum of all inputs.
    """
    if size < 1:
        raise ValueError(f"a rotation needs at least one channel, not {size}")
    odd, powers = size, 0
    while odd % 2 == 0:
        odd, powers = odd // 2, powers + 1
    core: Tensor | None = None
    # The smallest factor that has a matrix: 12 = 3 * 2^2 is one, 6 = 3 * 2 is not.
    for taken in range(powers + 1):
        core = _paley(odd << taken)
        if core is not None:
            powers -= taken
            break
    matrix = _cosine(odd) if core is None else core / math.sqrt(len(core))
    pair = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / math.sqrt(2)
    for _ in range(powers):
        matrix = torch.kron(matrix, pair)
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        matrix = matrix * (2.0 * torch.randint(2, (size, 1), generator=generator) - 1)
    return matrix


def _paley(size: int) -> Tensor | None:
    """Paley's Hadamard matrix of a size q + 1 (q = 3 mod 4) or 2 (q + 1) (q = 1 mod 4) for a prime q; of sizes 1 and 2
    the trivial ones; else None."""
    if size <= 2:
        return torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)[:size, :size]
    if size % 4 == 0 and _is_prime(size - 1):
        residues = _jacobsthal(size - 1)
        skew = torch.zeros(size, size, dtype=torch.float64)
        skew[0, 1:], skew[1:, 0], skew[1:, 1:] = 1.0, -1.0, residues
        return skew + torch.eye(size, dtype=torch.float64)
    prime = size // 2 - 1
    if size % 4 == 0 and prime % 4 == 1 and _is_prime(prime):
        symmetric = torch.ones(prime + 1, prime + 1, dtype=torch.float64)
        symmetric[0, 0], symmetric[1:, 1:] = 0.0, _jacobsthal(prime)
        ones = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
        twisted = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
        return torch.kron(symmetric, ones) + torch.kron(torch.eye(prime + 1, dtype=torch.float64), twisted)
    return None


def _jacobsthal(prime: int) -> Tensor:
    """Q[i, j] = 1 where i - j is a square modulo a prime, -1 where it is none, 0 on the diagonal."""
    values = torch.full((prime,), -1.0, dtype=torch.float64)
    values[[number * number % prime for number in range(1, prime)]] = 1.0
    values[0] = 0.0
    numbers = torch.arange(prime)
    return values[(numbers[:, None] - numbers[None]) % prime]


def _cosine(size: int) -> Tensor:
    """The orthonormal cosine transform (DCT-II)."""
    numbers = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi / size * (numbers[None] + 0.5) * numbers[:, None]) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))
