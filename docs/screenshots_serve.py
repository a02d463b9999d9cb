"""Pictures of the page of `halfbyte serve` for the documentation: light, dark, and as wide as a phone.

    python docs/screenshots_serve.py                 # needs Chromium, and `pip install playwright`

An embedded model answers for an embedded image, so nothing is downloaded.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

import halfbyte

OUT = Path(__file__).parent / "images"
# A name, the colour scheme, and the width and height of the window in CSS pixels.
VIEWS = (("serve", "light", 900, 560), ("serve-dark", "dark", 900, 560), ("serve-phone", "light", 390, 960))
IMAGE = 3


def picture() -> bytes:
    """An image of Fashion-MNIST as a PNG file."""
    with resources.as_file(resources.files("halfbyte") / "assets" / "fashion_test.npz") as path, np.load(path) as data:
        pixels = data["x"][IMAGE]
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def main() -> None:
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or sys.exit("there is no chromium")
    OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as browsers:
        artifact = Path(folder) / "fashion_vit"
        halfbyte.quantize(model="fashion_vit", recipe="repq", calib_images=32, limit=1, workers=0, out=artifact)
        command = [sys.executable, "-m", "halfbyte", "serve", str(artifact), "--port", "0"]
        server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            address = re.search(r"http://\S+", server.stderr.readline())[0]
            browser = browsers.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            for name, scheme, width, height in VIEWS:
                page = browser.new_page(
                    viewport={"width": width, "height": height}, color_scheme=scheme, device_scale_factor=2
                )
                page.goto(address)
                file = {"name": "sneaker.png", "mimeType": "image/png", "buffer": picture()}
                # The first answers of a process are slower than the rest.
                for _ in range(3):
                    page.set_input_files("#file", [])
                    page.set_input_files("#file", file)
                    page.wait_for_selector("#result:not([hidden])")
                page.screenshot(path=OUT / f"{name}.png", full_page=True)
                page.close()
            browser.close()
        finally:
            server.terminate()
            server.wait(30)


if __name__ == "__main__":
    main()
