"""The stubs by which type checkers and editors see `lt.*`, written from the registries: `python -m luthier.cli.stubs`.

`luthier/__init__.pyi` names everything that is public, and each axis has one with its components. What plugins bring
is not in them: it is found at run time only.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from luthier.core.contracts.component import Component, axes, files, find, package_of
from luthier.core.public import PUBLIC

REMAKE = "python -m luthier.cli.stubs"
ROOT = Path(__file__).parents[1]
HEAD = f'''"""What type checkers know of this package. Written by `{REMAKE}`; edit the source, not this file."""

'''


def stubs() -> dict[Path, str]:
    """`{file, below the package: its text}` of every stub."""
    found = {Path(*package_of(axis).split(".")[1:], "__init__.pyi"): _axis(axis) for axis in axes()}
    return {Path("__init__.pyi"): _root(), **found}


def shipped(axis: str) -> list[type[Component]]:
    """The components of an axis that come with Luthier."""
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
