"""The stubs by which type checkers and editors see `lt.*`, written from the registries: `python -m luthier.cli.stubs`.

`luthier/__init__.pyi` names everything that is public, and each axis has one with its components. A module has one
whose functions take the fields of dataclasses (`luthier.core.signature`). What plugins bring is not in them: it is
found at run time only.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from luthier.core.contracts.component import Component, axes, files, find, package_of
from luthier.core.public_names import PUBLIC

REMAKE = "python -m luthier.cli.stubs"
ROOT = Path(__file__).parents[1]
HEAD = f'''"""What type checkers know of this package. Written by `{REMAKE}`; edit the source, not this file."""

'''


def stubs() -> dict[Path, str]:
    """Returns `{file, below the package: its text}` of every stub."""
    found = {Path(*package_of(axis).split(".")[1:], "__init__.pyi"): _axis(axis) for axis in axes()}
    return {Path("__init__.pyi"): _root(), **found, **dict(map(_module, _spelled_out()))}


def shipped(axis: str) -> list[type[Component]]:
    """Returns the components of an axis that come with Luthier."""
    return [find(axis, name) for name, (file, *_) in files(axis).items() if file.path.is_relative_to(ROOT)]


def _root() -> str:
    lines = [_line(module, own, name) for name, (module, own) in PUBLIC.items()]
    lines += [_line(package, axis, axis) for axis in axes() for package in [package_of(axis).rpartition(".")[0]]]
    lines += [_line(cls.__module__, cls.__name__, cls.__name__) for cls in _unambiguous()]
    return HEAD + _line("luthier.core.version", "__version__", "__version__") + "".join(sorted(lines))


def _unambiguous() -> Iterator[type[Component]]:
    """The components that can be had as `lt.Name`: those whose name no other axis and nothing else public bears."""
    every = [cls for axis in axes() for cls in shipped(axis)]
    known = [cls.name() for cls in every]
    yield from (cls for cls in every if known.count(cls.name()) == 1 and cls.__name__ not in PUBLIC)


def _axis(axis: str) -> str:
    lines = (_line(cls.__module__, cls.__name__, cls.__name__) for cls in shipped(axis))
    return HEAD + "".join(sorted(lines)) + "\nAXIS: str\n"


def _spelled_out() -> list[str]:
    """The modules of public functions whose signature is made from the fields of dataclasses."""
    every = (getattr(importlib.import_module(module), own, None) for module, own in PUBLIC.values())
    return sorted({each.__module__ for each in every if inspect.isfunction(each) and "__signature__" in vars(each)})


def _module(name: str) -> tuple[Path, str]:
    """(file, text) of a module's stub: its public functions, and the imports that their types need."""
    module = importlib.import_module(name)
    functions = [each for key, each in vars(module).items() if inspect.isfunction(each) and key[0] != "_"]
    body = "\n".join(_function(each) for each in functions if each.__module__ == name)
    known = {word: line for each in (module, *_declaring(module)) for word, line in _imports(each).items()}
    lines = {
        known[word] for word in re.findall(r"\b[A-Z]\w*", re.sub(r'""".*?"""', "", body, flags=re.S)) if word in known
    }
    return Path(*name.split(".")[1:]).with_suffix(".pyi"), HEAD + "".join(sorted(lines)) + "\n" + body


def _declaring(module: ModuleType) -> list[ModuleType]:
    """The modules of the dataclasses in a module, and of those that they extend."""
    classes = [each for each in vars(module).values() if isinstance(each, type) and dataclasses.is_dataclass(each)]
    found = (base for each in classes for base in each.__mro__)
    return [sys.modules[base.__module__] for base in found if base is not object]


def _imports(module: ModuleType) -> dict[str, str]:
    """`{name: the line that imports it}` of a module, imports for typing alone included, and of its own classes."""
    source = ast.parse(inspect.getsource(module))
    own = {node.name: module.__name__ for node in source.body if isinstance(node, ast.ClassDef)}
    nodes = (node for node in ast.walk(source) if isinstance(node, ast.ImportFrom) and node.module != "__future__")
    found = own | {each.asname or each.name: str(node.module) for node in nodes for each in node.names}
    return {name: f"from {place} import {name}\n" for name, place in found.items()}


def _function(function: Callable[..., Any]) -> str:
    """A function with its whole signature and its docstring, an argument a line."""
    signature = inspect.signature(function)
    lines, kinds = [], [each.kind for each in signature.parameters.values()]
    for number, each in enumerate(signature.parameters.values()):
        keyword = each.kind is inspect.Parameter.KEYWORD_ONLY
        lines += ["    *,"] if keyword and inspect.Parameter.KEYWORD_ONLY not in kinds[:number] else []
        default = (
            ""
            if each.default is inspect.Parameter.empty
            else f" = {json.dumps(each.default) if isinstance(each.default, str) else each.default}"
        )
        lines += [f"    {each.name}: {each.annotation}{default},"]
    doc = f'    """{function.__doc__}"""\n' if function.__doc__ else ""
    return "\n".join([f"def {function.__name__}(", *lines, f") -> {signature.return_annotation}:\n"]) + (
        doc or "    ...\n"
    )


def _line(module: str, own: str, name: str) -> str:
    return f"from {module} import {own} as {name}\n"


def main(arguments: Sequence[str]) -> None:
    """Writes the stubs below the folder given, into the package itself by default."""
    root = Path(arguments[0]) if arguments else ROOT
    for file, text in stubs().items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
