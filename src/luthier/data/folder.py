"""Folders of data: files by split, `save_to_disk`'s, a clone of a hub data set, media in one folder per class.

What a clone says of itself is believed: the `configs` at the head of its README.md tell which files are which split
(`FOLDER:name` chooses one of several configurations), `dataset_info` the names of integer labels. Elsewhere a file, or
else the folder that it stands in, tells its split by a word of its name (`train-00000-of-00002.parquet`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from luthier.core import yaml_text
from luthier.core.errors import LuthierError, near
from luthier.core.guard import guarded
from luthier.core.lazy import chained, mapped
from luthier.data.files import PACKED, READERS, read_file, stem, suffix
from luthier.data.splits import listed, missing_parts, of_split, own_split, split_of
from luthier.data.table import Row, Table, numbered_after

TEXTS = (".txt", ".md")
"""Files that are data only where a folder holds no others."""
MEDIA = {
    "image": (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"),
    "audio": (".wav", ".flac", ".mp3", ".ogg", ".m4a", ".opus"),
}
ABOUT = re.compile(r"(readme|licen[cs]e|changelog|citation|notice)\b.*|(dataset_infos?|dataset_dict|state)\.json", re.I)
"""Files about the data."""


def read_folder(folder: Path, config: str, split: str) -> Table:
    """Returns the rows of one split, files one after another; raises `LuthierError` where there is none."""
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        from luthier.data.hub import read_saved

        return read_saved(folder, split)
    card = _card(folder)
    if card.get("configs"):
        return _configured(folder, card, config, split)
    if config:
        raise LuthierError(f"{folder} has no configurations, so none is {config!r} (its README.md names none).")
    files = _data_files(folder)
    if files:
        chosen, left = _of_split(folder, files, split)
        return _table(folder, chosen, (*left, *_texts(folder, files)), _class_names(card, config or "default"))
    return _classes(folder, split)


def _data_files(folder: Path) -> list[Path]:
    """Files with rows: the folder's own, else those of `data/` and of folders that bear a split's name."""
    inner = [p for p in sorted(folder.iterdir()) if p.is_dir() and (p.name == "data" or _split_folder(p.name))]
    for places in ([folder], inner):
        files = [p for place in places for p in sorted(place.rglob("*") if place != folder else place.iterdir())]
        known = [p for p in files if p.is_file() and suffix(p) in READERS and not _hidden(p, folder)]
        rows = [p for p in known if suffix(p) not in TEXTS]
        if rows or known:
            return rows or known
    return []


def _texts(folder: Path, files: Sequence[Path]) -> tuple[str, ...]:
    """Texts that are no data, for others are."""
    texts = [p for p in sorted(folder.iterdir()) if p.is_file() and suffix(p) in TEXTS and not _hidden(p, folder)]
    return tuple(p.name for p in texts if p not in files)


def _hidden(path: Path, folder: Path) -> bool:
    parts = path.relative_to(folder).parts
    return any(part.startswith(".") for part in parts) or ABOUT.fullmatch(path.name) is not None


def _of_split(folder: Path, files: list[Path], split: str) -> tuple[list[Path], tuple[str, ...]]:
    """(files of one split, files of none). Those without a split's name are training data where no file is named so."""
    found: dict[str, list[Path]] = {}
    for file in files:
        found.setdefault(_name_of_split(file.relative_to(folder)), []).append(file)
    if len(found) == 1 and not split_of(next(iter(found))):
        found = {"": files}
    nameless = found.pop("", [])
    if nameless and not any(split_of(name) == "train" for name in found):
        found["train"], nameless = nameless, []
    listing = f"Files: {listed(str(p.relative_to(folder)) for p in files)}."
    chosen = of_split(str(folder), split, found, listing)
    kind = split_of(split, whole=True)  # none where one of several is asked for by its own name
    others = [name for name in found if kind and name != chosen and split_of(name) in ("", kind)]
    left = [*nameless, *(file for name in others for file in found[name])]
    return found[chosen], tuple(str(p.relative_to(folder)) for p in left)


def _name_of_split(inside: Path) -> str:
    """The split that a file's name tells, one of its own or one of the three, or else that of a folder around it.

    What numbered files are called is their split only where nothing else tells one: `train/en-00000-of-00002.parquet`.
    """
    own, word = own_split(stem(inside)), split_of(inside.name)
    if word:
        return own or word
    return next((own_split(part) or s for part in inside.parts[:-1] if (s := _split_folder(part))), own)


def _split_folder(name: str) -> str:
    return split_of(name, whole=True) or (split_of(name) if own_split(name) else "")


def _table(
    folder: Path, files: Sequence[Path], left: tuple[str, ...] = (), classes: dict[str, list[str]] | None = None
) -> Table:
    _refuse_twice(folder, files)
    _refuse_parts(folder, files)
    good: list[Sequence[tuple[int, Row]]] = []
    bad: list[tuple[int, str]] = []
    starts: list[tuple[int, str]] = []
    names: dict[str, list[str]] = {}
    beside: dict[str, None] = {}
    before = 0
    for file in files:
        starts.append((before, str(file.relative_to(folder))))
        found = read_file(file, "train")
        good.append(mapped(found.rows, partial(numbered_after, before)))
        bad += [(before + number, reason) for number, reason in found.bad]
        names |= found.classes
        beside |= dict.fromkeys(found.beside)
        before = max([before, *(number for number, _ in (*good[-1][-1:], *bad[-1:]))])
    places = starts if len(files) > 1 else []
    return Table(chained(good), bad, _beside(folder, files), names | (classes or {}), places, left, tuple(beside))


def _beside(folder: Path, files: Sequence[Path]) -> Path:
    """What paths in rows start from: where a `metadata` file describes the pictures or sounds beside it, its folder."""
    described = {file.parent for file in files if file.stem == "metadata"}
    return described.pop() if len(described) == 1 and len(files) == 1 else folder


def _refuse_twice(folder: Path, files: Sequence[Path]) -> None:
    """Raises where a file lies there in two formats, whose rows would count twice."""
    found: dict[str, Path] = {}
    for file in files:
        name = file.relative_to(folder)
        bare = name.with_suffix("") if name.suffix.lower() in PACKED else name
        other = found.setdefault(str(bare.with_suffix("")), file)  # other points are of the name: train-v1.0.csv
        if suffix(other) != suffix(file):
            raise LuthierError(
                f"{folder} holds {other.name} and {file.name}, which seem to be the same rows in two formats; give one "
                f"of them: {other}."
            )


def _refuse_parts(folder: Path, files: Sequence[Path]) -> None:
    """Raises where files say by their names that there are more of them, as where a download was not finished."""
    if lost := missing_parts(str(file.relative_to(folder)) for file in files):
        raise LuthierError(
            f"{folder} holds only {listed(lost)}, by the names of the files that are there; fetch the rest, or give "
            "one file by itself, or files under other names."
        )


MOST = 10_000_000
"""Values in the head of a card: names of classes, and configurations, of which there may be many."""

# --- a clone of a hub data set ---------------------------------------------------------------------


def _card(folder: Path) -> dict[str, Any]:
    """What stands in YAML at the head of README.md; empty without it."""
    path = folder / "README.md"
    text = path.read_text(encoding="utf-8-sig", errors="replace") if path.is_file() else ""
    head = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    if head is None:
        return {}
    with guarded(f"{path}: what stands between its --- lines cannot be read"):
        found = yaml_text.loads(head[1], MOST)
    return found if isinstance(found, dict) else {}


def _configured(folder: Path, card: dict[str, Any], config: str, split: str) -> Table:
    configs = {str(each.get("config_name", "default")): each for each in card["configs"] if isinstance(each, dict)}
    name = config or _usual(folder, configs)
    if name not in configs:
        raise LuthierError(f"{folder} has no configuration {name!r}{near(name, configs)} It has: {listed(configs)}.")
    _refuse_options(folder, name, configs[name])
    patterns = _patterns(configs[name])
    if not patterns:
        place = _inside(folder, str(configs[name].get("data_dir") or "."))
        return _table(folder, *_of_split(folder, _data_files(place), split), _class_names(card, name))
    chosen = patterns[of_split(f"{folder} ({name})", split, patterns, source=f"{folder}:{name}:")]
    files = [path for each in chosen for path in sorted(folder.glob(_relative(folder, each))) if path.is_file()]
    if not files:
        raise LuthierError(f"{folder / 'README.md'} names {', '.join(chosen)} as {split}, and no such file is here.")
    return _table(folder, list(dict.fromkeys(files)), (), _class_names(card, name))


KNOWN = ("config_name", "data_files", "data_dir", "default", "description", "version", "features")
"""What a configuration may say; anything else tells the library of data sets how to read its files."""


def _refuse_options(folder: Path, name: str, config: dict[str, Any]) -> None:
    more = [f"{key}: {value!r}" for key, value in config.items() if key not in KNOWN and value is not None]
    if more:
        raise LuthierError(
            f"{folder / 'README.md'} says how the files of {name} are to be read ({', '.join(more)}), which is not "
            "followed here; load it with datasets and save it by save_to_disk, or give one of its files."
        )


def _usual(folder: Path, configs: dict[str, Any]) -> str:
    marked = [name for name, each in configs.items() if each.get("default") or name == "default"]
    if len(configs) > 1 and not marked:
        raise LuthierError(f"{folder} has the configurations {listed(configs)}; choose one: {folder}:{min(configs)}.")
    return (marked or list(configs))[0]


def _patterns(config: dict[str, Any]) -> dict[str, list[str]]:
    """{split: patterns} of a configuration's `data_files`, in all forms that the hub takes."""
    given = config.get("data_files")
    if isinstance(given, str) or (isinstance(given, list) and all(isinstance(each, str) for each in given)):
        given = {"train": given} if given else {}
    elif isinstance(given, list):
        given = {str(each.get("split", "train")): each.get("path") for each in given if isinstance(each, dict)}
    found = given if isinstance(given, dict) else {}
    splits = {
        str(split): [paths] if isinstance(paths, str) else list(map(str, paths or ())) for split, paths in found.items()
    }
    return {split_of(split, whole=True) or split: paths for split, paths in splits.items()}


def _relative(folder: Path, pattern: str) -> str:
    if "://" in pattern or pattern.startswith("/") or ".." in Path(pattern).parts:
        raise LuthierError(f"{folder / 'README.md'} names {pattern}, which is outside its folder; fetch it yourself.")
    return pattern


def _inside(folder: Path, place: str) -> Path:
    found = folder / _relative(folder, place)
    if not found.is_dir():
        raise LuthierError(f"{folder / 'README.md'} names the folder {place}, and it is not here.")
    return found


def _class_names(card: dict[str, Any], config: str) -> dict[str, list[str]]:
    """Names of the integer labels by column, where `dataset_info` declares them."""
    infos = card.get("dataset_info")
    infos = infos if isinstance(infos, list) else [infos]
    info = next((i for i in infos if isinstance(i, dict) and i.get("config_name", config) == config), {})
    found: dict[str, list[str]] = {}
    for feature in (each for each in info.get("features") or () if isinstance(each, dict)):
        kind = next((feature[key] for key in ("dtype", "sequence", "list") if key in feature), None)
        names = _listed(kind.get("class_label", {}).get("names")) if isinstance(kind, dict) else []
        if names:
            found[str(feature["name"])] = names
    return found


def _listed(names: Any) -> list[str]:
    """Names in the order of their indices, of a list or of an object by index."""
    if isinstance(names, dict):
        return [str(names[key]) for key in sorted(names, key=int)]
    return list(map(str, names or ()))


# --- one folder per class ------------------------------------------------------------------------------


def _classes(folder: Path, split: str) -> Table:
    """Rows of the pictures or sounds in a folder's folders, each of which is a class."""
    inner = _folders(folder)
    splits = {name: place for place in inner if (name := split_of(place.name, whole=True))}
    divided = bool(splits) and len(splits) == len(inner)
    place = splits[of_split(str(folder), split, splits)] if divided else folder
    found = {each.name: sorted(p for p in each.rglob("*") if p.is_file()) for each in _folders(place)}
    kinds = {
        kind: sum(p.suffix.lower() in known for files in found.values() for p in files) for kind, known in MEDIA.items()
    }
    kind = max(kinds, key=lambda name: kinds[name])
    if len(found) < 2 or not kinds[kind]:
        known = ", ".join(READERS)
        deeper = next((p for p in sorted(folder.rglob("*")) if suffix(p) in READERS and not _hidden(p, folder)), None)
        hint = f" Deeper in it is {deeper.relative_to(folder)}: give the folder or the file." if deeper else ""
        raise LuthierError(
            f"{folder} itself holds no data file ({known}), nor do its folders data, train and the like, and it has no "
            f"pictures or sounds in a folder for each class.{hint}"
        )
    if place == folder:
        of_split(str(folder), split, ("train",))
    taken = [(p, name) for name, files in found.items() for p in files if p.suffix.lower() in MEDIA[kind]]
    left = [p for files in found.values() for p in files if p.suffix.lower() not in MEDIA[kind] and p.name[0] != "."]
    left += [p for p in sorted(place.iterdir()) if p.is_file() and not _hidden(p, folder)]
    rows = [(i, {kind: str(p.relative_to(folder)), "label": name}) for i, (p, name) in enumerate(taken, 1)]
    return Table(rows, [], folder, left=tuple(str(p.relative_to(folder)) for p in left))


def undivided(source: str) -> bool:
    """Whether a source is a folder whose files, or pictures or sounds of each class, are of no split by their names."""
    folder = Path(os.path.expanduser(source))  # a source that is not a path (`gym:…`) may be too long for one
    if not os.path.isdir(folder) or any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return False
    if _card(folder).get("configs"):
        return False
    if files := _data_files(folder):
        return not any(_name_of_split(file.relative_to(folder)) for file in files)
    names = [split_of(place.name, whole=True) for place in _folders(folder)]
    return bool(names) and not all(names)


def _folders(place: Path) -> list[Path]:
    return sorted(p for p in place.iterdir() if p.is_dir() and not p.name.startswith("."))
