"""Luthier: measure, fit, compare and ship adaptations of foundation models.

Names load on first use, so `import luthier` costs nothing. Public are the names that `luthier.core.public_names` lists,
the methods by their class names (`lt.WeGeFT`) and the axes (`lt.ranks`). `__init__.pyi` says the same to type checkers
and editors; `make docs` writes it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any

from luthier.core.public_names import FORMER, PUBLIC
from luthier.core.version import __version__ as __version__


def __getattr__(name: str) -> Any:
    if name.startswith("__"):  # asked for by the import system, inspect and the like
        raise AttributeError(f"module 'luthier' has no attribute {name!r}")
    if "transformers.modeling_utils" in sys.modules:
        return _load(name)
    from luthier.core.first_import import quiet_imports

    with quiet_imports():
        return _load(name)


def _load(name: str) -> Any:
    if name in FORMER:
        from luthier.core.deprecation import deprecated

        deprecated(f"lt.{name}", f"lt.{FORMER[name]}", until="0.3", stacklevel=4)
        name = FORMER[name]
    if name in PUBLIC:
        module, own = PUBLIC[name]
        return getattr(importlib.import_module(module), own)
    from luthier.core.contracts.component import packages

    if name[:1].isupper() and (found := _component(name)) is not None:  # lt.WeGeFT
        return found
    if name in packages():  # lt.ranks, an axis
        return importlib.import_module(packages()[name])
    if importlib.util.find_spec(f"luthier.{name}"):
        return importlib.import_module(f"luthier.{name}")
    from luthier.core.errors import near

    raise AttributeError(f"module 'luthier' has no attribute {name!r}{near(name, PUBLIC)}".rstrip(";. "))


def _component(name: str) -> Any:
    """The component whose class has this name, None if there is none; raises for one on several axes."""
    from luthier.core.contracts.component import axes, find, names

    found = [axis for axis in axes() if name.lower() in {each.replace("_", "") for each in names(axis)}]
    if len(found) > 1:  # one paper on two axes: lt.ranks.EVA, lt.inits.EVA
        where = " or ".join(f"luthier.{axis}.{name}" for axis in found)
        raise AttributeError(f"{name} is the name of {len(found)} components: write {where}")
    return find(found[0], name) if found else None


def __dir__() -> list[str]:
    from luthier.core.contracts.component import packages

    return sorted({*globals(), *PUBLIC, *packages()})
