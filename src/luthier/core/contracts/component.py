"""Components: frozen hyper-parameters found by discovery, never listed.

An axis (`forms`, `ranks`, `objectives`, …) is a folder; a component is the one class in it whose lower-cased name
is its file's (`methods/forms/wegeft.py` holds `WeGeFT`). Folders named in `LUTHIER_PATH`, and packages that declare the
entry point `luthier.methods`, add their own `<axis>/*.py` files (see `luthier.core.contracts.plugins`).
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
import pkgutil
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar, overload

from luthier.core.contracts.plugins import File, changed, files_in, installed_folders
from luthier.core.deprecation import rename_attributes
from luthier.core.errors import LuthierError, near
from luthier.core.public_names import PUBLIC

C = TypeVar("C", bound="Component")


@dataclasses.dataclass(frozen=True)
class Component:
    """The base class of every method: a frozen dataclass whose docstring opens with its equation."""

    paper: ClassVar[str] = ""
    """Authors, year and identifier of the source."""
    family: ClassVar[str] = ""
    """Of what decides which parameters are trained, its family (`core.families.FAMILIES`); of what makes rows, whose
    knowledge they hold (`core.families.DATA_FAMILIES`); else empty."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Names of the statistics that `init` (`factors` of an initialiser, `allocate` of ranks) reads."""
    depends: ClassVar[Mapping[str, tuple[str, Any]]] = {}
    """Settings that act only where another one has a value: {setting: (the other, its value)}. Elsewhere they are
    refused, unless they have their default."""
    renamed: ClassVar[Mapping[str, str]] = {}
    """Former names of class attributes and methods, `{former: present}`; a component that uses one warns."""

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        rename_attributes(cls, cls.renamed)

    def __post_init__(self) -> None:
        for key, (hint, _) in self.settings().items():
            value = getattr(self, key)
            check_type(f"{self.name()}.{key}", value, hint)
            if isinstance(value, float) and not math.isfinite(value):
                raise LuthierError(f"{self.name()}.{key} is {value}; expected a finite number.")
        self._check_effect()
        self.check()

    def _check_effect(self) -> None:
        for key, (other, needed) in self.depends.items():
            value, found = getattr(self, key), getattr(self, other)
            if found != needed and value != _default(type(self), key):
                raise LuthierError(
                    f"{self.name()}.{key} is {value!r} and would be ignored: it acts where {other} is "
                    f"{_shown(needed)}, and {other} is {_shown(found)}. Leave one of the two out."
                )

    def check(self) -> None:
        """Raises `LuthierError` for settings out of range; called when a component is created."""

    def within(self, key: str, low: float, high: float = math.inf) -> None:
        """Raises unless the setting `key` is None or lies in [low, high]."""
        value = getattr(self, key)
        if value is not None and not low <= value <= high:
            span = f"at least {low:g}" if math.isinf(high) else f"a number from {low:g} to {high:g}"
            raise LuthierError(f"{self.name()}.{key} is {value}; expected {span}.")

    def above(self, key: str, low: float, high: float = math.inf) -> None:
        """Raises unless the setting `key` is None or lies in (low, high]."""
        value = getattr(self, key)
        if value is not None and not low < value <= high:
            span = f"a number above {low:g}" + ("" if math.isinf(high) else f" and at most {high:g}")
            raise LuthierError(f"{self.name()}.{key} is {value}; expected {span}.")

    @classmethod
    def name(cls) -> str:
        """Returns the name in the registry, on the command line and in files: that of the component's file."""
        file = cls.__module__.rpartition(".")[2]
        return file if file.replace("_", "") == cls.__name__.lower() else cls.__name__.lower()

    @classmethod
    def equation(cls) -> str:
        """Returns the equation, which is the first line of the docstring."""
        return (cls.__doc__ or "").strip().split("\n", 1)[0]

    @classmethod
    def settings(cls) -> dict[str, tuple[Any, dataclasses.Field]]:
        """Returns `{name: (type, field)}` of every hyper-parameter, in order."""
        return dict(hints(cls))

    def to_dict(self) -> dict[str, Any]:
        """Returns the hyper-parameters as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls: type[C], values: dict[str, Any]) -> C:
        """Creates the component with these hyper-parameters; an unknown or ill-typed one raises `LuthierError`."""
        known = cls.settings()
        for key, value in values.items():
            if key not in known:
                hint = near(key, known)
                raise LuthierError(f"{cls.name()} has no setting {key!r}{hint} It has: {', '.join(known)}.")
            check_type(f"{cls.name()}.{key}", value, known[key][0])
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})

    @classmethod
    def restored(cls: type[C], values: dict[str, Any]) -> C:
        """Creates the component from a file of any version: settings that had no effect there are left out."""
        held = {key: _default(cls, key) for key in cls.settings()} | values
        idle = {key for key, (other, needed) in cls.depends.items() if held[other] != needed}
        return cls.from_dict({key: value for key, value in values.items() if key not in idle})


def _default(cls: type[Component], key: str) -> Any:
    return cls.settings()[key][1].default


def _shown(value: Any) -> str:
    return "not given" if value is None else str(value)


@functools.cache
def hints(cls: type) -> dict[str, tuple[Any, dataclasses.Field]]:
    """Returns `{name: (type, field)}` of a dataclass, in order.

    What its module imports for typing alone is looked up among the public names. Annotations are text until then, which
    takes half a millisecond.
    """
    found = typing.get_type_hints(cls, localns=_typed_alone(cls))
    return {f.name: (found[f.name], f) for f in dataclasses.fields(cls)}


def _typed_alone(cls: type) -> dict[str, Any]:
    modules = [vars(sys.modules[base.__module__]) for base in cls.__mro__ if dataclasses.is_dataclass(base)]
    words = {word for f in dataclasses.fields(cls) for word in re.findall(r"\b[A-Z]\w*", str(f.type))}
    lacking = [word for word in words if word in PUBLIC and not all(word in module for module in modules)]
    return {word: getattr(importlib.import_module(PUBLIC[word][0]), PUBLIC[word][1]) for word in lacking}


def check_fields(value: Any) -> None:
    """Raises unless every field of a dataclass has a value of its type."""
    for key, (hint, _) in hints(type(value)).items():
        check_type(key, getattr(value, key), hint)


def known_fields(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a copy of `values`; one that is not a field of the dataclass raises with near names."""
    names = [f.name for f in dataclasses.fields(cls)]
    for key in values:
        if key not in names:
            raise LuthierError(f"no setting {key!r}{near(key, names)} There are: {', '.join(names)}.")
    return dict(values)


def check_type(label: str, value: Any, hint: Any) -> None:
    """Raises unless the JSON `value` fits the annotation `hint` (int passes for float; tuples come as lists)."""
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    options = typing.get_args(hint) if union else (hint,)
    origins = tuple(typing.get_origin(option) or option for option in options)
    origins += (int,) if float in origins else ()
    origins += (list,) if tuple in origins else ()
    if any(origin is typing.Literal for origin in origins):
        choices = [c for o in options if typing.get_origin(o) is typing.Literal for c in typing.get_args(o)]
        if value in choices or (value is None and type(None) in origins):
            return
        raise LuthierError(f"{label} is {value!r}; expected one of {', '.join(map(repr, choices))}.")
    if (isinstance(value, bool) and bool not in origins) or not isinstance(value, origins):
        wanted = " or ".join("none" if o is type(None) else o.__name__ for o in origins)
        text = repr(value).splitlines()[0][:80]  # a model's own takes pages
        raise LuthierError(f"{label} is {text} ({type(value).__name__}); expected {wanted}.")


HOMES = ("methods", "interop")
"""Packages of `luthier` whose sub-packages may be axes."""


def package_of(axis: str) -> str:
    """Returns the full name of an axis's package, such as `luthier.methods.forms`."""
    return packages()[axis]


@functools.cache
def packages() -> dict[str, str]:
    """Returns `{sub-package: full name}` of the sub-packages of `HOMES`, without importing them."""
    homes = [importlib.import_module(f"luthier.{home}") for home in HOMES]
    found = [(home.__name__, m) for home in homes for m in pkgutil.iter_modules(home.__path__)]
    return {m.name: f"{home}.{m.name}" for home, m in found if m.ispkg}


def files(axis: str) -> dict[str, list[File]]:
    """Returns `{name: files}` of an axis, sorted; several files where two places define the same name."""
    own = package_of(axis)
    folders = [(own, folder) for folder in importlib.import_module(own).__path__]
    folders += [(package, str(folder)) for package, folder in installed_folders(axis)]
    return dict(_by_name(tuple((package, folder, changed(folder)) for package, folder in folders)))


@functools.lru_cache(maxsize=512)
def _by_name(folders: tuple[tuple[str, str, int], ...]) -> dict[str, list[File]]:
    """The files of folders, each told by its package, its path and when it changed."""
    found: dict[str, list[File]] = {}
    for file in (each for package, folder, _ in folders for each in files_in(package, folder)):
        same = found.setdefault(file.name, [])
        if file.path not in {each.path for each in same}:
            same.append(file)
    return dict(sorted(found.items()))


def names(axis: str) -> list[str]:
    """Lists the names on an axis, sorted; files that begin with `_` are private and hold no component."""
    return list(files(axis))


def file_of(axis: str, name: str) -> File:
    """Returns the file that defines `name` on an axis; raises for an unknown name, with near ones, and for one that is
    defined twice."""
    known = files(axis)
    wanted = _joined(name)
    found = [file for each, same in known.items() if _joined(each) == wanted for file in same]
    if not found:
        raise LuthierError(f"no {axis.rstrip('s')} named {name!r}{near(name, known)} There are: {', '.join(known)}.")
    if len(found) > 1:
        places = " and ".join(str(file.path) for file in found)
        raise LuthierError(f"{axis}: {name!r} is defined by {places}; remove or rename one of them.")
    return found[0]


def _joined(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


@overload
def find(axis: str, name: str) -> type[Component]: ...
@overload
def find(axis: str, name: str, kind: type[C]) -> type[C]: ...
def find(axis: str, name: str, kind: type[Component] = Component) -> type[Component]:
    """Finds the component `name` of an axis, of class `kind`; an unknown name raises with near ones."""
    file = file_of(axis, name)
    module = importlib.import_module(file.module)
    wanted = _joined(file.name)
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, kind) and value.__name__.lower() == wanted:
            return value
    raise LuthierError(f"{module.__file__} defines no {kind.__name__} class whose lower-cased name is {wanted!r}.")


def attributes(axis: str) -> Callable[[str], Any]:
    """Returns `__getattr__` of an axis's package: its components by their class names, loaded on use."""

    def component(name: str) -> Any:
        if name[:1].isupper() and name.lower() in {each.replace("_", "") for each in names(axis)}:
            return find(axis, name)
        raise AttributeError(f"module {package_of(axis)!r} has no attribute {name!r}")

    return component


def axes() -> list[str]:
    """Lists the axes: the packages below `HOMES` whose modules are components (they define `AXIS`, a question)."""
    return sorted(name for name, package in packages().items() if "AXIS" in vars(importlib.import_module(package)))
