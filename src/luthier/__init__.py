"""Luthier: measure, fit, compare and ship adaptations of foundation models.

Names load on first use, so `import luthier` costs nothing.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "attach": "core.adapt",
    "detach": "core.adapt",
    "enable": "core.control",
    "disable": "core.control",
    "use": "core.control",
    "disabled": "core.control",
    "trainable": "core.control",
    "describe": "core.control",
    "rows": "core.control",
    "prompt": "core.control",
    "tasks": "core.router",
    "Form": "core.form",
    "Component": "core.component",
    "Update": "core.update",
    "optimiser": "core.optimiser",
    "Site": "core.site",
    "LuthierError": "core.errors",
    "select": "core.select",
    "merge": "core.merge",
    "unmerge": "core.merge",
    "rounding": "core.merge",
    "save": "core.store",
    "load": "core.store",
    "shard": "core.shard",
    "cpu_backend": "core.backend",
    "export": "exporting",
    "import_adapter": "importing",
    "combine": "combining",
    "examine": "examining",
    "federate": "federating",
    "decode": "decoding",
    "model": "models",
    "measure": "measuring.measure",
    "compare": "comparing",
    "train": "training",
    "evaluate": "training",
    "generate": "training",
}


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"luthier.{_PUBLIC[name]}"), name)
    if name[:1].isupper():  # a component by its class name: lt.WeGeFT
        from luthier.core.component import axes, find, names

        found = [axis for axis in axes() if name.lower() in {n.replace("_", "") for n in names(axis)}]
        if len(found) == 1:
            return find(found[0], name)
        if found:  # one paper on two axes: lt.ranks.EVA, lt.inits.EVA
            where = " or ".join(f"luthier.{axis}.{name}" for axis in found)
            raise AttributeError(f"{name} is the name of {len(found)} components: write {where}")
    if name in {module.name for module in pkgutil.iter_modules(__path__)}:  # lt.exports, an axis
        return importlib.import_module(f"luthier.{name}")
    raise AttributeError(f"module 'luthier' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
