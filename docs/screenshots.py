"""The pictures of pages in docs/images, made from runs on the embedded model.

    python -m docs.screenshots [--runs DIR] [--against torch,onnxruntime,openvino]

quantizes fashion_vit by several recipes (runs that are already in DIR are taken as they are), times the native
engine, and takes the pictures with Chromium. Run it from the root of the repository. With --against the report shows
the times of these engines too: for a machine on which nothing else runs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image
from tests.chromium import Browser

import halfbyte
from halfbyte.bench import bench
from halfbyte.report.compare import render_comparison
from halfbyte.run_files import BENCH, REPORT, keep_bench

IMAGES = Path(__file__).parent / "images"
SHOWN = "halfbyte-fast-w4a4"
RUNS = {
    SHOWN: ("halfbyte-fast", 4),
    "percentile-w4a4": ("percentile", 4),
    **{f"repq-w{bits}a{bits}": ("repq", bits) for bits in (3, 4, 6, 8)},
}


def quantized(folder: Path) -> dict[str, Path]:
    """The finished runs below `folder` by name, those that are missing made."""
    for name, (recipe, bits) in RUNS.items():
        place = folder / name
        known = place.exists()
        halfbyte.quantize(model="fashion_vit", recipe=recipe, w_bits=bits, a_bits=bits, out=place, resume=known)
    return {name: folder / name for name in RUNS}


def timed(run: Path, against: str) -> None:
    """Keep times with a run that has none."""
    if not (run / BENCH).is_file():
        keep_bench(run, bench(run, against=against, threads=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/screenshots"))
    parser.add_argument("--against", help="engines whose times the report is to show")
    options = parser.parse_args()
    runs = quantized(options.runs)
    report, comparison = runs[SHOWN] / REPORT, options.runs / "compare.html"
    IMAGES.mkdir(exist_ok=True)
    if options.against:
        timed(runs[SHOWN], options.against)
    with Browser() as browser:
        take(browser, report, "report", "accuracy-and-size", 1720)
        take(browser, report, "report-dark", "values-and-levels", 1650, dark=True)
        take(browser, report, "report-phone", "accuracy-and-size", 1500, width=390)
        for run in runs.values():
            timed(run, "torch")
        comparison.write_text(render_comparison(halfbyte.compare(list(runs.values()))), "utf-8")
        take(browser, comparison, "compare", "runs", 1800)


def take(
    browser: Browser, page: Path, name: str, section: str, height: int, *, width: int = 1100, dark: bool = False
) -> None:
    """A picture of `height` pixels of a page: from its top where `section` is its first, else from that section on."""
    opened = browser.open(page.resolve().as_uri(), width=width, dark=dark)
    first, top = opened.evaluate(
        "[document.querySelector('h2').id, "
        f"document.getElementById('{section}').getBoundingClientRect().top + scrollY - 16]"
    )
    place = IMAGES / f"{name}.png"
    opened.screenshot(place, height=height, top=0 if first == section else round(top))
    # Flat colours: a palette halves the file and cannot be told from the original.
    Image.open(place).quantize(256, dither=Image.Dither.NONE).save(place, optimize=True)
    print(f"wrote {place}, {place.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
