"""Who may import whom: the layers of the library, read off its imports, lazy and typing ones included."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import luthier

ROOT = Path(luthier.__file__).parent
LAYERS = [
    {"core.numerics"},
    {"core.contracts"},
    {"core.sites"},
    {"core.adapters"},
    {"core.storage"},
    {"models"},
    {"data", "kernels"},
    {"methods"},
    {"interop"},
    {"measuring", "engine"},
    {"training"},
    {"evaluating"},
    {"combining", "decoding", "serving"},
    {"examining", "federating"},
    {"comparing"},
    {"cli"},
]
"""From below: a package imports those of lower layers and its own, and what stands directly in `core`."""
RANK = {package: rank for rank, layer in enumerate(LAYERS) for package in layer}


def modules() -> dict[str, Path]:
    """{dotted name below luthier: file}"""
    found = {}
    for file in ROOT.rglob("*.py"):
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix("__init__").rstrip(".")] = file
    return found


MODULES = modules()


def imports(file: Path) -> Iterator[str]:
    """The modules of luthier that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found = {name for name in whole if name.removeprefix("luthier.") in MODULES}
            names = [*found, *([node.module] if found != whole else [])]
        else:
            continue
        yield from (name.removeprefix("luthier").lstrip(".") for name in names if name.split(".")[0] == "luthier")


@functools.cache
def graph() -> dict[str, set[str]]:
    """The modules that each one imports: every file is read, so not before a test asks."""
    return {name: {other for other in imports(file) if other != name} for name, file in MODULES.items()}


def package(name: str) -> str:
    """The package of a module that has a layer; of a file directly in core, `core`."""
    parts = name.split(".")
    inside = parts[0] == "core" and len(parts) > 1 and f"core.{parts[1]}" in RANK
    return f"core.{parts[1]}" if inside else parts[0]


def rank(name: str) -> float:
    """Files directly in core stand below all, the package itself and its entry above all."""
    return -1 if package(name) == "core" else RANK.get(package(name), len(LAYERS))


def test_every_package_has_a_layer():
    found = {package(name) for name in MODULES if "." in name} - {"core"}
    assert found == set(RANK)


def test_nothing_imports_upwards():
    up = [f"{a} imports {b}" for a, found in graph().items() for b in found if rank(b) > rank(a)]
    assert not up, "\n".join(up)


def test_packages_of_one_layer_stay_apart():
    beside = [
        f"{a} imports {b}"
        for a, found in graph().items()
        for b in found
        if rank(a) == rank(b) and package(a) != package(b) and {package(a), package(b)} <= set(RANK)
    ]
    assert not beside, "\n".join(beside)


def test_no_circles():
    """Every module can be reached from itself in no way."""
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join([*above[above.index(name) :], name])
        if name not in done:
            for other in sorted(graph().get(name, ())):
                visit(other, (*above, name))
            done.add(name)

    for name in graph():
        visit(name, ())


def test_the_top_is_small():
    folders = [path for path in ROOT.iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert len(folders) <= 17
