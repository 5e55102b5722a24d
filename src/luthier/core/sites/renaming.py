"""Names of a base's modules and tensors in other layouts: wrappers in between, and what libraries moved."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import nn

from luthier.core.errors import near
from luthier.core.sites.structure import base_modules, base_parameters

WRAPPERS = frozenset(
    {
        *("base_model", "model", "language_model"),  # peft's; the root of transformers' models, 4 and 5
        "vision_model",  # in transformers 4, between a model that reads pictures and the layers of CLIP
        *("_orig_mod", "module"),  # torch.compile, DistributedDataParallel
        *("_fsdp_wrapped_module", "_checkpoint_wrapped_module"),
    }
)
"""Parts of a name that say how a model is wrapped, and not where in it something is."""


def names_of(model: nn.Module) -> list[str]:
    """Returns the paths of all modules and parameters of a base."""
    modules = (path for path, _ in base_modules(model, remove_duplicate=False) if path)
    return [*modules, *(path for path, _ in base_parameters(model, remove_duplicate=False))]


def renamed(paths: Iterable[str], model: nn.Module) -> tuple[dict[str, str], list[str]]:
    """Maps paths: ({path in another layout: the model's own path}, the paths that have none).

    A path that the model has is itself; another one is the only path of the model that differs in wrappers alone. Two
    paths never become one.
    """
    known = set(names_of(model))
    more = frozenset({getattr(model, "base_model_prefix", "")})
    cores: dict[tuple[str, ...], list[str]] = {}
    for path in known:
        cores.setdefault(_core(path, more), []).append(path)
    found: dict[str, str] = {}
    lost: list[str] = []
    taken: set[str] = set()
    for path in paths:
        likely = [path] if path in known else cores.get(_core(path, more), [])
        if len(likely) == 1 and likely[0] not in taken:
            found[path] = likely[0]
            taken.add(likely[0])
        else:
            lost.append(path)
    return found, lost


def _core(path: str, more: frozenset[str]) -> tuple[str, ...]:
    return tuple(part for part in path.split(".") if part not in WRAPPERS and part not in more)


def nearest(path: str, model: nn.Module) -> str:
    """What of the model is named most like `path`, to stand behind it in an error."""
    names = names_of(model)
    numbers = re.findall(r"\d+", path)
    same = [name for name in names if re.findall(r"\d+", name) == numbers]
    return near(path, same if near(path, same) != "." else names)


def rewritten(text: str, names: Mapping[str, str]) -> str:
    """Returns a text with every whole path of `names` replaced."""
    return re.sub(r"[\w.]+", lambda match: names.get(match[0], match[0]), text)


def substitutions(names: Mapping[str, str]) -> dict[str, str]:
    """Maps the beginnings of the model's paths to those in the other layout, from `renamed`'s pairs."""
    found: dict[str, str] = {}
    for other, own in names.items():
        theirs, ours = other.split("."), own.split(".")
        while theirs and ours and theirs[-1] == ours[-1]:
            theirs.pop()
            ours.pop()
        found[".".join(ours)] = ".".join(theirs)
    return found


def in_other_layout(path: str, beginnings: Mapping[str, str]) -> str:
    """A path of the model as the other layout has it: by the longest beginning that is known."""
    parts = path.split(".")
    for end in range(len(parts), -1, -1):
        start = ".".join(parts[:end])
        if start in beginnings:
            return ".".join(filter(None, [beginnings[start], *parts[end:]]))
    return path
