"""Which modules a configuration of peft's adapts: it leaves out what is excluded, whatever the file holds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from luthier.core.errors import LuthierError
from luthier.core.sites.renaming import in_other_layout, substitutions
from luthier.core.sites.structure import base_modules, base_parameters, features

REPEATS = 5
"""Most repeats in an expression that is matched; more could take for ever."""


def matches(folder: Path, pattern: str, path: str) -> bool:
    """Returns `re.match`, for expressions whose time is bounded: no repeated groups, few repeats."""
    inner = pattern.removeprefix(r"(.*\.)?")
    if not bounded(inner):
        raise LuthierError(f"{folder}: the expression {inner[:60]!r} could take for ever to match; write plain names.")
    try:
        return re.match(pattern, path) is not None
    except re.error as error:
        raise LuthierError(f"{folder}: {inner[:60]!r} is not a regular expression: {error}.") from None


def bounded(pattern: str) -> bool:
    """Returns whether matching an expression takes no absurd time."""
    return (
        len(pattern) <= 20_000
        and not re.search(r"\)[*+{]", pattern)
        and len(re.findall(r"(?<!\\)[*+{]", pattern)) <= REPEATS
    )


def targeted(folder: Path, config: Mapping[str, Any], path: str) -> bool:
    """Returns whether peft puts the adapter on the module `path`, by its rules for names, expressions and layers.

    An expression of many repeats is not matched: what the file holds then counts.
    """
    if excluded(folder, config, path):
        return False
    wanted = config.get("target_modules")
    if wanted is None or wanted == "all-linear":
        return True
    if isinstance(wanted, str):
        return not bounded(wanted) or matches(folder, rf"(?:{wanted})\Z", path)
    return _named(path, wanted) and (path in wanted or _in_layers(folder, config, path))


def adapted(folder: Path, config: Mapping[str, Any], path: str, model: nn.Module) -> bool:
    """Returns `targeted`, also by what a module is tied to, where peft keeps both tied."""
    if targeted(folder, config, path) or not config.get("ensure_weight_tying"):
        return targeted(folder, config, path)
    known = dict(base_parameters(model, remove_duplicate=False))
    own = known.get(f"{path}.weight")
    counterparts = [name.removesuffix(".weight") for name, each in known.items() if own is not None and each is own]
    return any(targeted(folder, config, counterpart) for counterpart in counterparts)


TABLES = ("embed_tokens", "lm_head")
"""Names of the layers that peft keeps tied; it does not know T5's `shared` or GPT-2's `wte`."""


def keeps_tied(config: Mapping[str, Any]) -> bool:
    """Returns whether peft keeps the copies of `modules_to_save` tied as the base is: where that was asked for, of a
    layer that goes by one of `TABLES`."""
    saved = config.get("modules_to_save") or ()
    return bool(config.get("ensure_weight_tying")) and any(str(each).split(".")[-1] in TABLES for each in saved)


def excluded(folder: Path, config: Mapping[str, Any], path: str) -> bool:
    """Whether a module is left out by name, or trained whole instead."""
    out = config.get("exclude_modules") or []
    if isinstance(out, str):
        return matches(folder, rf"(?:{out})\Z", path) or saved_whole(config, path)
    return _named(path, out) or saved_whole(config, path)


def saved_whole(config: Mapping[str, Any], path: str) -> bool:
    """Returns whether a path is, or lies in, a module of `modules_to_save`."""
    return any(f".{each}." in f".{path}." for each in config.get("modules_to_save") or ())


def copied(config: Mapping[str, Any], path: str) -> bool:
    """Returns whether a parameter lies in a module that peft copies: by the end of the module's name, which need not be
    a whole part of it (`norm` is `input_layernorm` as well)."""
    parts = path.split(".")
    modules = [".".join(parts[:end]) for end in range(1, len(parts))]
    return any(module.endswith(str(each)) for module in modules for each in config.get("modules_to_save") or ())


def _named(path: str, names: Any) -> bool:
    return any(path == each or path.endswith(f".{each}") for each in names)


def _in_layers(folder: Path, config: Mapping[str, Any], path: str) -> bool:
    layers = config.get("layers_to_transform")
    if layers is None or layers == []:
        return True
    patterns = config.get("layers_pattern") or []
    patterns = [patterns] if isinstance(patterns, str) else patterns
    if any(not re.fullmatch(r"[\w.]+", each) for each in patterns):
        raise LuthierError(f"{folder}: layers_pattern is {patterns!r}; expected names of module lists.")
    wanted = [rf"(?:^|\.){re.escape(each)}\.(\d+)\." for each in patterns] or [r"\.(\d+)\."]  # the first that is met
    found = next((match for each in wanted if (match := re.search(each, path))), None)
    return found is not None and int(found[1]) in ([layers] if isinstance(layers, int) else layers)


def refuse_missing(
    folder: Path, config: Mapping[str, Any], model: nn.Module, found: Mapping[str, Any], names: Mapping[str, str]
) -> None:
    """Raises where a module that the configuration adapts has no tensors; `names` are {path in the file: the model's
    own}, for a configuration means its modules as they were called then."""
    wanted = config.get("target_modules")
    if not wanted or wanted == "all-linear" or (isinstance(wanted, str) and not bounded(wanted)):
        return
    beginnings = substitutions(names)
    for path, module in base_modules(model, remove_duplicate=False):
        takes = features(module) or isinstance(module, nn.Embedding)
        if takes and path not in found and all(targeted(folder, config, each) for each in _called(path, beginnings)):
            raise LuthierError(
                f"{folder} lacks the tensors of {path}, which its configuration names: the file is cut short, or it "
                "was fitted on a base that has no such layer."
            )
    whole = [path for path, _ in base_parameters(model, remove_duplicate=False) if saved_whole(config, path)]
    if whole and not any(saved_whole(config, path) for path in found):
        raise LuthierError(f"{folder} lacks the tensors of {whole[0]}, which modules_to_save names; it is cut short.")


def _called(path: str, beginnings: Mapping[str, str]) -> set[str]:
    """What a module may have been called in the layout of a file, of which some beginnings of names are known."""
    if all(own == other for own, other in beginnings.items()):
        return {path}
    return {path, in_other_layout(path, beginnings), path.removeprefix("model.")}
