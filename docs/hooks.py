"""What the pages get as they are built: the committed results as files of their own, and a line that names them.

Pages link to `../benchmarks/results/NAME.json`, which is right in the repository; in the site the file lies in
`results/`. A table whose rows stand in such files has a comment above it, `<!-- results: NAME.json ... -->`, which a
test reads; a reader of the site sees the names of the files in its place.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
LINK = re.compile(r"\]\((?:\.\./)+benchmarks/results/([\w.]+\.json)\)")
MARK = re.compile(r"<!-- results: ([\w. ]+) -->")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The committed results, beside the pages."""
    for path in sorted(RESULTS.glob("*.json")):
        files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to results lead into the site, and each marked table says where its rows stand."""
    here = posixpath.dirname(page.file.src_uri) or "."

    def place(name: str) -> str:
        return posixpath.relpath(f"results/{name}", here)

    def caption(found: re.Match[str]) -> str:
        links = ", ".join(f"[{name}]({place(name)})" for name in found[1].split())
        return f"Rows of {links}:\n{{: .results }}"

    return MARK.sub(caption, LINK.sub(lambda found: f"]({place(found[1])})", markdown))
