"""Formats of other software as commands need them: which one, with which of the settings that were typed."""

from __future__ import annotations

from pathlib import Path

from luthier.cli.parse import Flags, Given
from luthier.core.contracts.component import find
from luthier.core.contracts.format import Format
from luthier.core.errors import LuthierError


def reading_flags() -> list[Flags]:
    """The settings with which folders are read, of every format that has some."""
    from luthier.interop.import_adapter import readable

    return [
        Flags(each, f"Settings to read {each.name()} with", _others(each)) for each in readable() if each.for_reading
    ]


def writing_flags(name: str) -> Flags:
    """Returns the settings with which the format `name` is written."""
    found = find("formats", name, Format)
    return Flags(found, f"Settings of {found.name()}", found.for_reading)


def _others(form: type[Format]) -> tuple[str, ...]:
    return tuple(key for key in form.settings() if key not in form.for_reading)


def reader(folder: Path, name: str | None, given: Given) -> Format:
    """The format that a folder is read by; raises for a setting to read another one with."""
    from luthier.interop.import_adapter import source_of

    cls = type(source_of(folder, name))
    refuse_others(folder, cls.name(), {form: settings for form, settings in given.items() if form is not cls})
    return cls.from_dict({key: value for key, value in given.get(cls, {}).items() if key in cls.for_reading})


def refuse_others(folder: Path, library: str, given: Given) -> None:
    """Raises for a setting to read a format with that the folder is not of."""
    for form, settings in given.items():
        strange = [key for key in settings if issubclass(form, Format) and key in form.for_reading]
        if strange:
            raise LuthierError(f"{folder} is an adapter of {library}, which takes no {strange[0]}.")


def writer(name: str, given: Given) -> Format:
    """The format that an adapter is written in; raises for one that can only be read."""
    cls = find("formats", name, Format)
    made = cls.from_dict({key: value for key, value in given.get(cls, {}).items() if key not in cls.for_reading})
    made.check_use(reading=False)
    return made
