"""Luthier: measure, fit, compare and ship adaptations of foundation models.

Names load on first use, so `import luthier` costs nothing.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from luthier.core.version import __version__ as __version__

_PUBLIC = {
    "attach": "core.adapters.attach",
    "detach": "core.adapters.attach",
    "enable": "core.adapters.control",
    "disable": "core.adapters.control",
    "use": "core.adapters.control",
    "disabled": "core.adapters.control",
    "trainable": "core.adapters.control",
    "describe": "core.adapters.control",
    "rows": "core.adapters.control",
    "prompt": "core.adapters.control",
    "tasks": "core.contracts.router",
    "Form": "core.contracts.form",
    "Component": "core.contracts.component",
    "Update": "core.contracts.update",
    "optimiser": "core.adapters.optimiser",
    "Site": "core.contracts.site",
    "LuthierError": "core.errors",
    "select": "core.sites.select",
    "merge": "core.adapters.merge",
    "unmerge": "core.adapters.merge",
    "rounding": "core.adapters.merge",
    "save": "core.storage.store",
    "load": "core.storage.store",
    "shard": "core.adapters.shard",
    "cpu_backend": "kernels.backend",
    "export": "interop.export",
    "import_adapter": "interop.import_adapter",
    "combine": "combining",
    "examine": "examining",
    "federate": "federating",
    "decode": "decoding",
    "model": "models",
    "measure": "measuring.measure",
    "compare": "comparing",
    "train": "training",
    "evaluate": "evaluating",
    "generate": "evaluating",
}


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"luthier.{_PUBLIC[name]}"), name)
    if name[:1].isupper():  # a component by its class name: lt.WeGeFT
        from luthier.core.contracts.component import axes, find, names

        found = [axis for axis in axes() if name.lower() in {n.replace("_", "") for n in names(axis)}]
        if len(found) == 1:
            return find(found[0], name)
        if found:  # one paper on two axes: lt.ranks.EVA, lt.inits.EVA
            where = " or ".join(f"luthier.{axis}.{name}" for axis in found)
            raise AttributeError(f"{name} is the name of {len(found)} components: write {where}")
    if name in {module.name for module in pkgutil.iter_modules(__path__)}:
        return importlib.import_module(f"luthier.{name}")
    from luthier.core.contracts.component import packages

    if name in packages():  # lt.ranks, an axis
        return importlib.import_module(packages()[name])
    raise AttributeError(f"module 'luthier' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
