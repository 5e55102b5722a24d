"""Adapters on disk: `adapter.safetensors`, and `adapter.json` with the spec, the base and what was measured."""

from __future__ import annotations

import datetime
import math
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import MISSING, Field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

from luthier.core.adapters.attach import adapter_names, check_name, detach, find_state, place, ranked, state_of
from luthier.core.adapters.control import tensors
from luthier.core.adapters.reach import CannotRun
from luthier.core.adapters.tuner import AdapterComponent
from luthier.core.checks import shown
from luthier.core.contracts.component import find
from luthier.core.contracts.form import Form
from luthier.core.contracts.site import Site, Sites
from luthier.core.errors import LuthierError
from luthier.core.files import AS_IT_WAS, all_steady, committed, free_folder, sha256, steady
from luthier.core.guard import written
from luthier.core.paths import path_of
from luthier.core.records import write_json
from luthier.core.sites.fresh import fresh_modules
from luthier.core.sites.select import select
from luthier.core.sites.structure import adaptable, unwrapped, writes
from luthier.core.storage import weights
from luthier.core.storage.card import card_of
from luthier.core.storage.fingerprint import differences, fingerprint, unseen
from luthier.core.storage.folder import check_loaded, holds_adapter
from luthier.core.storage.format import FORMAT, SPEC, read, sealed
from luthier.core.storage.layout import with_names_of
from luthier.core.storage.licence import stated_licence
from luthier.core.storage.weights import WEIGHTS, group_of
from luthier.core.version import __version__

CARD = "README.md"
OWN = (SPEC, WEIGHTS, CARD)
"""The files of an adapter."""


def save(
    model: nn.Module,
    folder: str | Path,
    name: str | None = None,
    *,
    base: str | None = None,
    measured: Mapping[str, Any] | None = None,
    card: str | None = None,
    license: str | None = None,
    base_license: str | None = None,
) -> Path:
    """Saves one adapter as `folder`, or, when several are attached and none is named, each as `folder/<name>`.

    `base` is what to load the base model by; `measured` is kept in the spec (NaN and infinity as null); `card` becomes
    README.md (without one, it says what the spec says); `license` is the adapter's, `base_license` the base's (None:
    as its card or configuration states it). The folder is written whole or not at all, and what else lies in it stays.
    Where the base is sharded over processes (FSDP2), every process calls this and the first one writes.

    Raises `LuthierError` if the folder holds something that is not an adapter, or cannot be written.
    """
    folder, state, model = path_of(folder), state_of(model), unwrapped(model)
    names = adapter_names(state)
    if state.merged:
        raise LuthierError("adapters are merged into the weights; unmerge before saving one.")
    if name is None and len(names) > 1:
        for each in names:
            save(
                model,
                folder / each,
                each,
                base=base,
                measured=measured,
                card=card,
                license=license,
                base_license=base_license,
            )
        return folder
    name = names[0] if name is None else name
    check_name(state, name)
    with steady(folder):
        free_folder(folder, SPEC, "an adapter")
    components = [component for component in state.components if component.name == name]
    spec = spec_of(model, name, components, base, measured, license, base_license)
    if not writes(model):
        return folder
    with committed(folder) as temporary:
        with steady(folder):
            _keep(folder, temporary)
        _write_tensors({stored(key, name): t for key, t in tensors(model, name).items()}, temporary / WEIGHTS)
        write_spec(temporary, spec, card)
    return folder


def _keep(folder: Path, temporary: Path) -> None:
    """What lies beside an older adapter, and is none of its files, stays there."""
    for path in [each for each in folder.glob("*") if each.name not in OWN]:
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, temporary / path.name, symlinks=True)
        else:
            shutil.copy2(path, temporary / path.name, follow_symlinks=False)


def _write_tensors(held: Mapping[str, Tensor], path: Path) -> None:
    path.touch()
    mode = path.stat().st_mode
    with written(path.name, AS_IT_WAS):
        save_file({key: t.detach().cpu().contiguous() for key, t in held.items()}, path, metadata={"format": "pt"})
    path.chmod(mode)  # safetensors lets nobody else read it


def write_spec(folder: Path, spec: Mapping[str, Any], card: str | None = None) -> None:
    """`adapter.json` beside the tensors that it belongs to, with the checksums of both, and the card."""
    made = sealed({**spec, "sha256": sha256(folder / WEIGHTS)})
    write_json(folder / SPEC, made)
    (folder / CARD).write_text(card_of(made) if card is None else card, encoding="utf-8")


def stored(key: str, name: str) -> str:
    """Returns the name on disk: `<name>:<n>.<group>.<parameter>` of a model is `<n>.<group>.<parameter>` there."""
    part, _, rest = key.partition(".")
    return f"{part.removeprefix(name).removeprefix(':') or 0}.{rest}"


def spec_of(
    model: nn.Module,
    name: str,
    components: list[AdapterComponent],
    base: str | None,
    measured: Mapping[str, Any] | None,
    license: str | None = None,
    base_license: str | None = None,
) -> dict[str, Any]:
    """Returns `adapter.json` of these components on the base `model`, without the checksums."""
    called = base or getattr(model, "name_or_path", "")
    return {
        "format": FORMAT,
        "name": name,
        "parts": [
            {
                "form": component.form.name(),
                "settings": component.form.to_dict(),
                "where": component.where,
                "sites": [[site.path, site.kind] for site in component.sites],
            }
            | ({"ranks": dict(component.ranks)} if component.ranks else {})
            | ({"relative": True} if component.subtract_start else {})
            for component in components
        ],
        "base": {"name": called}
        | fingerprint(model, leave=fresh_modules(model))
        | {"license": base_license or stated_licence(called)},
        "license": license,
        "measured": finite(dict(measured or {})),
        "versions": {
            "luthier": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def finite(value: Any) -> Any:
    """Returns the value with null for NaN and infinity, which JSON does not know."""
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def load(
    model: nn.Module,
    folder: str | Path,
    name: str | None = None,
    *,
    force: bool = False,
    check: bool = True,
) -> nn.Module:
    """Attaches a saved adapter (or every one in subfolders) and fills it; returns the model.

    `name` renames a single one. Raises `LuthierError` for damage of any kind (checksums, missing, extra or
    misshaped tensors, NaN) and for another base than the adapter was fitted on; `force` loads onto it and warns.
    The model is then as it was. Memory and time are bounded by the sizes of the files and of the base.
    """
    folder = path_of(folder)
    if holds_adapter(folder):
        _load_one(adaptable(model), folder, name, force, check)
        return model
    with all_steady(folder):
        inner = sorted(path.parent for path in folder.glob(f"*/{SPEC}") if not path.parent.name.startswith("."))
    if not inner or name is not None:
        raise LuthierError(f"{folder} holds no adapter ({SPEC} is not there).")
    loaded: list[str] = []
    try:
        for each in inner:
            loaded.append(_load_one(adaptable(model), each, None, force, check))
    except BaseException:
        for done in loaded:
            detach(model, done)
        raise
    return model


def _load_one(model: nn.Module, folder: Path, name: str | None, force: bool, check: bool) -> str:
    """Attaches the adapter of one folder; returns its name."""
    state = find_state(model)
    if state is not None and state.merged:
        raise LuthierError("adapters are merged into the weights; unmerge before loading another.")
    with steady(folder):
        check_loaded(folder)
        spec = read(folder)
        name = name or str(spec["name"])
        spec, stored = with_names_of(spec, model)
        refuse_foreign(folder, spec, model, force)
        components = [component_of(model, each, name, folder) for each in spec["parts"]]
        held = weights.read(folder, spec, model, components, stored)

    def start(module: nn.Module, site: Site, component: AdapterComponent) -> dict[str, Tensor]:
        device = next((p.device for p in module.parameters()), torch.device("cpu"))
        return {key: t.to(device) for key, t in held[group_of(components.index(component), component, site)].items()}

    try:
        place(model, components, start, check=check)
    except CannotRun as error:  # of the pass that looks whether the adapter is met
        raise LuthierError(
            f"{folder / WEIGHTS} holds values that this base cannot run with ({error.reason})."
        ) from error
    return name


def refuse_foreign(folder: Path, spec: Mapping[str, Any], model: nn.Module, force: bool) -> None:
    """Raises for another base than the spec's; with `force` it warns."""
    why = differences(spec["base"], model)
    if why is None:
        return _tell_unseen(folder, spec, model)
    text = (
        f"{folder} was fitted on {spec['base']['name'] or spec['base']['model']!r}, and this base "
        f"({getattr(model, 'name_or_path', '') or type(model).__name__!r}) is another: {why}."
    )
    if not force:
        raise LuthierError(f"{text} Load the base it was fitted on, or force=True (--force) to try anyway.")
    warnings.warn(text, stacklevel=3)


def _tell_unseen(folder: Path, spec: Mapping[str, Any], model: nn.Module) -> None:
    """Warns of what an adapter of an older format cannot vouch for."""
    if missed := unseen(spec["base"], model):
        warnings.warn(
            f"{folder} was saved by an older Luthier, which looked at {len(spec['base']['sample'])} tensors of its "
            f"base. They agree with this one; whether the other {len(missed)} do ({missed[0]} first) is not known. "
            "Saved again on the base that it was fitted on, it will say.",
            stacklevel=4,
        )


def component_of(model: nn.Module, stored: Mapping[str, Any], name: str, folder: Path) -> AdapterComponent:
    """Returns a stored part at the sites of `model`; raises where those are not the ones that it was fitted on."""
    form = _form_of(stored["form"], stored["settings"], folder)
    try:
        sites, ranks = _selected(model, stored), stored.get("ranks", {})
    except RecursionError:
        raise LuthierError(f"{folder / SPEC}: where={shown(stored['where'])} is nested too deep.") from None
    sites = ranked(form, sites, ranks) if ranks else sites
    if [[s.path, s.kind] for s in sites] != stored["sites"]:
        raise LuthierError(
            f"{folder}: where={shown(stored['where'])} selects {len(sites)} sites of this base, not the "
            f"{len(stored['sites'])} that the adapter was fitted on."
        )
    if wrong := [site for site in sites if site.kind not in form.kinds]:
        raise LuthierError(
            f"{folder / SPEC}: {form.name()} does not act on {wrong[0]}, which is of kind {wrong[0].kind}."
        )
    return AdapterComponent(name, form, stored["where"], sites, ranks, stored.get("relative", False))


def _selected(model: nn.Module, stored: Mapping[str, Any]) -> Sites:
    """What its `where` selects; adapters from before places were left out that no pass calls hold those as well."""
    sites = select(model, stored["where"])
    missing = {path for path, _ in stored["sites"]} - {site.path for site in sites}
    return select(model, stored["where"], uncalled=True) if missing else sites


def _form_of(name: str, settings: dict[str, Any], folder: Path) -> Form:
    cls = find("forms", name)
    lacking = [key for key, (_, each) in cls.settings().items() if key not in settings and _needed(each)]
    if lacking or not issubclass(cls, Form):
        raise LuthierError(f"{folder / SPEC}: the settings of {name} lack {', '.join(lacking)}.")
    return cls.restored(settings)


def _needed(each: Field) -> bool:
    return each.default is MISSING and each.default_factory is MISSING
