"""The TOML reader of the standard library, which Python 3.10 has under another name."""

from __future__ import annotations

import importlib
import sys

tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
