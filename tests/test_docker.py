"""The Dockerfile, as far as that goes without a daemon: what it copies is there, what it runs is what we say."""

from __future__ import annotations

import re
from pathlib import Path

from luthier.core.toml import tomllib

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
LINES = [line for line in TEXT.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]


def test_what_is_copied_is_there_and_let_in():
    copied = [word for line in LINES if line.startswith("COPY ") for word in line.split()[1:-1]]
    let_in = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {"src", "pyproject.toml", "README.md", "LICENSE"} <= set(copied)
    assert all((ROOT / name).exists() and f"!{name}" in let_in for name in copied)


def test_both_targets_install_as_the_makefile_does():
    stages = dict(re.findall(r"^FROM (\S+) AS (\S+)$", TEXT, re.MULTILINE)[i][::-1] for i in range(3))
    assert set(stages) == {"base", "cpu", "cuda"} and stages["cpu"] == stages["cuda"] == "base"
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for kind in ("cpu", "cuda"):
        part = TEXT.split(f" AS {kind}\n")[1].split("\nFROM")[0]
        torch, own = re.findall(r"RUN python -m pip install (.*)", part)
        assert torch.startswith("--constraint constraints.txt ") and torch.endswith(" torch")
        assert "--constraint constraints.txt torch" in makefile
        extras = set(re.search(r"'\.\[(.*)\]'", own)[1].split(","))  # type: ignore[index]
        known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        assert "serve" in extras and extras <= set(known["optional-dependencies"])
        assert 'ENTRYPOINT ["luthier"]' in part and "luthier" in known["scripts"]
        assert "USER luthier" in part.split("pip install")[-1]  # nothing is run as root


def test_the_page_says_how_it_is_built():
    page = (ROOT / "docs" / "howto" / "container.md").read_text(encoding="utf-8")
    said = [line.lstrip("#$ ").split() for line in TEXT.splitlines() if line.startswith("#   docker build")]
    for words in said:
        assert words in [line.lstrip("$ ").split() for line in page.splitlines()]
