"""The page on which an image is dropped: one file, whose style and script are the only ones a browser may run."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from typing import Any

from halfbyte.report.markup import escape
from halfbyte.report.style import BASE
from halfbyte.report.wording import bit_widths
from halfbyte.serve.picture import FORMATS


def _part(name: str) -> str:
    return (resources.files("halfbyte.serve") / name).read_text("utf-8")


def _allowed(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


_STYLE, _SCRIPT = BASE + _part("page.css"), _part("page.js")
POLICY = (
    f"default-src 'none'; style-src {_allowed(_STYLE)}; script-src {_allowed(_SCRIPT)}; img-src blob: data:; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)


def page(facts: dict[str, Any]) -> str:
    """The page for what `Classifier.facts` says; the same for the same facts."""
    _, height, width = facts["preprocessing"]["input_size"]
    limit = facts["limits"]["upload_bytes"]
    shown = {
        "model": facts["model"],
        "bits": bit_widths(facts["bits"]["weight"], facts["bits"]["activation"]),
        "engine": facts["engine"] + (f", {facts['instructions']}" if facts["instructions"] else ""),
        "input": f"{width} × {height}, {'grey' if len(facts['preprocessing']['mean']) == 1 else 'colour'}",
        "classes": f"{facts['classes']:,}",
        "types": ",".join(FORMATS.values()),
        "formats": ", ".join(FORMATS),
        "limit": str(limit),
        "most": f"{limit / 1e6:g} MB",
    }
    # First what is ours: names come from users' files, and may look like places to be filled.
    text = _part("page.html").replace("/*style*/", _STYLE).replace("/*script*/", _SCRIPT)
    for name, value in shown.items():
        text = text.replace(f"{{{{{name}}}}}", escape(value))
    return text
