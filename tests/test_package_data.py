"""What lies beside the code is in the wheel."""

from __future__ import annotations

import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]


def test_every_file_of_the_package_is_packed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["luthier"]
    source = ROOT / "src" / "luthier"
    packed = {file for pattern in patterns for file in source.glob(pattern)}
    held = {file for file in source.rglob("*") if file.is_file() and "__pycache__" not in file.parts}
    assert not {str(file.relative_to(source)) for file in held - packed if file.suffix != ".py"}
