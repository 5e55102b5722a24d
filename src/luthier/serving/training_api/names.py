"""The names of the protocol: of a base with its form, and of checkpoints."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from torch import nn

from luthier.core.adapters.attach import NAME
from luthier.core.contracts.component import find
from luthier.core.contracts.form import Form
from luthier.core.errors import LuthierError
from luthier.core.sites.select import select

ALPHA = 32.0
"""The scale of LoRA that the protocol assumes, whatever the rank: its clients send none."""
HIGHEST_RANK = 1024
SCHEME = "tinker://"
KINDS = {"weights": "training", "sampler_weights": "sampler"}
"""The middle part of a checkpoint's path, and what the protocol calls its type."""
CHECKPOINT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


# --- a model to be trained ---


@dataclass(frozen=True)
class Wanted:
    """What `create_model` asks for, as it is kept."""

    base: str
    """As the client spelled it, with its form."""
    form: str
    settings: Mapping[str, Any]
    where: str
    seed: int
    rank: int | None
    """None for a form that has none."""
    train_attn: bool = True
    train_mlp: bool = True
    train_unembed: bool = True

    def made(self) -> Form:
        """Returns the form itself."""
        return find("forms", self.form, Form).from_dict(dict(self.settings))


def plain_base(name: str, known: Collection[str]) -> str:
    """Returns a base's name without its form; raises `LuthierError` for another base than the server's."""
    base = name.partition("?")[0]
    if base not in known:
        raise LuthierError(f"base_model is {base!r}; this server trains {', '.join(sorted(known))}.")
    return base


def wanted(model: nn.Module, name: str, known: Collection[str], lora: Mapping[str, Any], seed: int) -> Wanted:
    """Returns the adapter that a base's name and a `lora_config` ask for.

    `base?form=loreft&positions=f7+l7&where=stream`: a form of Luthier with its settings, its rank being that of the
    `lora_config`; without a form, LoRA. Raises `LuthierError` for what is unknown or does not fit.
    """
    plain_base(name, known)
    given = _query(name)
    form, where = given.pop("form", "lora"), given.pop("where", None)
    if "rank" in given:
        raise LuthierError("base_model: the rank is that of lora_config; leave it out of the name.")
    kind = find("forms", form, Form)
    settings = {key: _typed(kind, key, text) for key, text in given.items()}
    ranked = "rank" in kind.settings()
    rank = lora["rank"]
    if not 1 <= rank <= HIGHEST_RANK:
        raise LuthierError(f"lora_config: rank is {rank}; expected 1 to {HIGHEST_RANK}.")
    if ranked:
        settings["rank"] = rank
    if form == "lora":
        settings.setdefault("alpha", ALPHA)
    made = kind.from_dict(settings)
    flags = {key: lora[key] for key in ("train_attn", "train_mlp", "train_unembed")}
    place = _place(model, made, form, where, flags)
    return Wanted(name, form, settings, place, seed, rank if ranked else None, **flags)


def _query(name: str) -> dict[str, str]:
    """The settings behind the `?` of a name; `+` is itself, as in f7+l7."""
    found: dict[str, str] = {}
    for part in name.partition("?")[2].split("&") if "?" in name else []:
        key, equals, value = part.partition("=")
        if not (key and equals) or key in found:
            raise LuthierError(
                f"base_model: {part!r} is not a setting; expected base?form=NAME&setting=value, once each."
            )
        found[key] = unquote(value)
    return found


def _typed(kind: type[Form], key: str, text: str) -> Any:
    """The value that a text means to a form's setting: JSON where that fits, else the text itself."""
    try:
        value = json.loads(text)
        kind.from_dict({key: value})
        return value
    except (ValueError, RecursionError, LuthierError):
        return text


def _place(model: nn.Module, form: Form, name: str, where: str | None, flags: Mapping[str, bool]) -> str:
    """Where the form acts: as the name says, or of its own layers those that the flags leave on."""
    off = [key for key, on in flags.items() if not on]
    if where is not None or (name != "lora" and form.where != "all-linear"):
        if off:
            raise LuthierError(
                f"lora_config: {off[0]} is off, and {where or form.where!r} says where {name} acts; leave it on."
            )
        return form.where if where is None else where
    if len(off) == 3:
        raise LuthierError("lora_config: train_attn, train_mlp and train_unembed are all off; nothing is trained.")
    layers = select(model, "all-linear")
    attention, others = [], []
    for site in layers:
        (attention if "attn" in site.path or "attention" in site.path else others).append(site.path)
    parts = []
    if flags["train_attn"] and flags["train_mlp"]:
        parts = ["all-linear"]
    elif flags["train_attn"] or flags["train_mlp"]:
        parts = [_globs(attention if flags["train_attn"] else others)]
    if flags["train_unembed"]:
        parts.append("head")
    return " | ".join(parts)


def _globs(paths: list[str]) -> str:
    """Patterns of what holds layers, as `*.self_attn.*`."""
    holders = sorted({path.split(".")[-2] for path in paths})
    if not holders:
        raise LuthierError("lora_config: this model's attention and MLP layers cannot be told apart by name.")
    return f"all-linear & ({' | '.join(f'*.{holder}.*' for holder in holders)})"


# --- checkpoints ---


def checkpoint_name(given: str | None, number: int, what: str) -> str:
    """Returns the name of a checkpoint: the one given, or one of the request's number."""
    name = f"{what}-{number}" if given is None else given
    if not CHECKPOINT.fullmatch(name):
        raise LuthierError(
            f"path: {name!r:.90} cannot name a checkpoint; use letters, digits, '.', '_' and '-' (at most 80)."
        )
    return name


def checkpoint_path(run: str, folder: str, name: str) -> str:
    """Returns a path as the client reads it: `tinker://run/weights/name`."""
    return f"{SCHEME}{run}/{folder}/{name}"


def adapter_name(run: str, name: str) -> str:
    """Returns the name that a sampler has among the served models: of its run and checkpoint."""
    spelled = f"{run.replace(':train:', '-')}-{name}"
    if NAME.fullmatch(spelled):
        return spelled
    mark = hashlib.sha256(spelled.encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9_-]', '_', spelled)[:55]}-{mark}"
