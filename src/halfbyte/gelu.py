"""GELU's coefficients: x * Phi(x) with Phi(x) = 1/2 + c * P(c^2) / Q(c^2), c = x clipped to +-CLIP.

Fitted here to the exact function by weighted least squares; with float32 arithmetic the largest error for any x is
1.1e-6. Every engine evaluates both polynomials by Horner's scheme, each operation rounded to float32.
"""

from __future__ import annotations

CLIP = 5.599999904632568
NUMERATOR = (
    0.39894190430641174, 0.03584729880094528, 0.004805426578968763, 0.00019015652651432902, 6.5905928749998566e-06,
    2.1710528486096337e-08,
)  # fmt: skip
DENOMINATOR = (
    1.0, 0.2565186023712158, 0.02980402484536171, 0.00200336123816669, 8.101142157102004e-05, 1.1851528824990964e-06
)  # fmt: skip
