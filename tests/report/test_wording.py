"""Numbers as text: rounding, units, and the missing ones."""

from __future__ import annotations

import math

import pytest

from halfbyte.report import wording


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (wording.percent(72.214), "72.21 %"),
        (wording.percent(None), "not measured"),
        (wording.points(72.206, 70.154), "−2.06 points"),
        (wording.points(70.0, 70.5), "+0.50 points"),
        (wording.points(70.0, 69.999), "0.00 points"),
        (wording.points(None, 70.0), "–"),
        (wording.share(0.0), "0 %"),
        (wording.share(0.004), "< 0.01 %"),
        (wording.share(0.136), "0.14 %"),
        (wording.share(58.63), "58.6 %"),
        (wording.share(99.99), "99.9 %"),
        (wording.share(100.0), "100 %"),
        (wording.share(None), "not measured"),
        (wording.figures(-0.081234), "−0.0812"),
        (wording.figures(999.7), "1,000"),
        (wording.figures(-1176.8), "−1,180"),
        (wording.figures(196.9), "197"),
        (wording.figures(3.21e9), "3.21e+09"),
        (wording.signed(-0.04, 1), "0.0"),
        (wording.signed(1.26, 1), "+1.3"),
        (wording.milliseconds(0.7312), "0.73 ms"),
        (wording.milliseconds(1234.56), "1,234.6 ms"),
        (wording.times(2.843, "faster"), "2.84× faster"),
        (wording.decibels(-3.04), "−3.0"),
        (wording.decibels(math.inf), "exact"),
        (wording.divergence(0.72618), "0.7262"),
        (wording.size(23_643_200), "23.64 MB"),
        (wording.size(410_000), "0.41 MB"),
        (wording.size(2_310_115_328), "2.31 GB"),
        (wording.size(812), "812 bytes"),
        (wording.shrinkage(23e6, 3.5e6), "6.6× smaller"),
        (wording.shrinkage(1e6, 2e6), "2.0× larger"),
        (wording.shrinkage(0, 1), "–"),
        (wording.duration(0.034), "0.03 s"),
        (wording.duration(42.31), "42.3 s"),
        (wording.duration(3599.6), "1 h 00 min"),
        (wording.duration(412), "6 min 52 s"),
        (wording.count(50000), "50,000"),
        (wording.magnitude(1.258e9), "1.26 G"),
        (wording.magnitude(312), "312"),
        (wording.magnitude(1e300), "1e+288 T"),
        (wording.bit_widths(4, 4), "W4A4"),
        (wording.bit_widths(4, 4, "3.5bits"), "mixed precision, 3.5bits"),
        (wording.bit_widths(3.5, None), "W3.5, float activations"),
        (wording.bit_widths(None, 8), "float weights, A8"),
        (wording.bit_widths(None, None), "bits not recorded"),
        (wording.anything(True), "yes"),
        (wording.anything(["a.jpg", "b.jpg"]), "a.jpg, b.jpg"),
        (wording.anything(["é", 1]), '["é", 1]'),
    ],
)
def test_wording(written: str, expected: str) -> None:
    assert written.replace("\u00a0", " ") == expected
