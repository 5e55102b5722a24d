"""What `mkdocs build` does beyond mkdocs.yml: the pages beside docs/ join the site, and links go where they lead there.

The pages are written to be read in the repository. On the site, a link to one of them is a link to its page there, and
a link to a file that has no page (a source file, a folder) is its text.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BESIDE = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "LOG.md": "log.md",
    "bench/README.md": "bench.md",
}
"""Pages outside docs/, and what they are called on the site."""
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]\n]*)\]\((?P<target>[^)\s#]*)(?P<anchor>#[^)\s]*)?\)")
FENCED = re.compile(r"(^```.*?^```$)", re.M | re.S)


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages beside docs/."""
    from mkdocs.structure.files import File

    for source, name in BESIDE.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Rewrites the links outside of code, as seen from where the page lies in the repository."""
    at = Path(page.file.abs_src_path)

    def moved(found: re.Match[str]) -> str:
        return _moved(found, at, page.file.src_uri, files)

    parts = FENCED.split(markdown)  # every second one is a block of code
    return "".join(part if i % 2 else LINK.sub(moved, part) for i, part in enumerate(parts))


def _moved(found: re.Match[str], at: Path, page: str, files: Any) -> str:
    target, anchor = found["target"], found["anchor"] or ""
    if not target or "://" in target or target.startswith("mailto:"):
        return found[0]
    inside = os.path.relpath((at.parent / target).resolve(), ROOT)
    uri = BESIDE.get(inside) or inside.removeprefix("docs/")
    if files.get_file_from_path(uri) is None or not (inside in BESIDE or inside.startswith("docs/")):
        return found["text"]
    return f"{found['image']}[{found['text']}]({os.path.relpath(uri, os.path.dirname(page) or '.')}{anchor})"
