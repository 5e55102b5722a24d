"""An adapter on disk: `adapter.safetensors`, and `adapter.json` with its spec, its base and what was measured."""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

import luthier
from luthier.core.adapt import (
    NAME,
    adapter_names,
    check_name,
    detach,
    place,
    ranked,
    state_of,
)
from luthier.core.component import find
from luthier.core.control import tensors
from luthier.core.errors import LuthierError
from luthier.core.files import committed, read_json, recover, sha256, write_json
from luthier.core.fingerprint import differences, fingerprint
from luthier.core.form import Form
from luthier.core.layer import writes
from luthier.core.select import select
from luthier.core.slot import Part
from luthier.core.start import expected_shapes

FORMAT = 1
SPEC, WEIGHTS = "adapter.json", "adapter.safetensors"


def save(
    model: nn.Module,
    folder: str | Path,
    name: str | None = None,
    *,
    base: str | None = None,
    measured: Mapping[str, Any] | None = None,
    card: str | None = None,
) -> Path:
    """Saves one adapter as `folder`, or, when several are attached and none is named, each as `folder/<name>`.

    `base` is what to load the base model by; `measured` is kept in the spec; `card` becomes README.md. The folder
    is written whole or not at all. Where the base is sharded over processes (FSDP2), every process calls this and the
    first one writes. Raises `LuthierError` if the folder holds something that is no adapter.
    """
    folder, state = Path(folder), state_of(model)
    names = adapter_names(state)
    if state.merged:
        raise LuthierError("adapters are merged into the weights; unmerge before saving one.")
    if name is None and len(names) > 1:
        for each in names:
            save(model, folder / each, each, base=base, measured=measured, card=card)
        return folder
    name = names[0] if name is None else name
    check_name(state, name)
    if folder.exists() and any(folder.iterdir()) and not (folder / SPEC).exists():
        raise LuthierError(f"{folder} holds files and no adapter; choose another folder.")
    parts = [part for part in state.parts if part.name == name]
    spec = spec_of(model, name, parts, base, measured)
    if not writes(model):
        return folder
    with committed(folder) as temporary:
        held = {_stored(key, name): t.detach().cpu().contiguous() for key, t in tensors(model, name).items()}
        save_file(held, temporary / WEIGHTS, metadata={"format": "pt"})
        write_json(temporary / SPEC, spec | {"sha256": sha256(temporary / WEIGHTS)})
        if card is not None:
            (temporary / "README.md").write_text(card, encoding="utf-8")
    return folder


def _stored(key: str, name: str) -> str:
    """`<name>:<n>.<group>.<parameter>` in a model is `<n>.<group>.<parameter>` on disk: a file has no name."""
    part, _, rest = key.partition(".")
    return f"{part.removeprefix(name).removeprefix(':') or 0}.{rest}"


def spec_of(model, name: str, parts: list[Part], base: str | None, measured) -> dict[str, Any]:
    """`adapter.json` of these parts on the base `model`, but for the checksum of the tensors."""
    return {
        "format": FORMAT,
        "name": name,
        "parts": [
            {
                "form": part.form.name(),
                "settings": part.form.to_dict(),
                "where": part.where,
                "sites": [[site.path, site.kind] for site in part.sites],
            }
            | ({"ranks": dict(part.ranks)} if part.ranks else {})
            | ({"relative": True} if part.relative else {})
            for part in parts
        ],
        "base": {"name": base or getattr(model, "name_or_path", "")} | fingerprint(model),
        "measured": dict(measured or {}),
        "versions": {
            "luthier": luthier.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def load(
    model: nn.Module,
    folder: str | Path,
    name: str | None = None,
    *,
    force: bool = False,
    check: bool = True,
) -> nn.Module:
    """Attaches a saved adapter (or every one in subfolders) and fills it; returns the model.

    `name` renames a single one. Raises `LuthierError` for damage of any kind (checksum, missing, extra or
    misshaped tensors, NaN) and for another base than the adapter was fitted on; `force` loads onto it and warns.
    The model is then as it was.
    """
    folder = Path(folder)
    recover(folder)
    if not (folder / SPEC).exists():
        inner = sorted(path.parent for path in folder.glob(f"*/{SPEC}"))
        if not inner or name is not None:
            raise LuthierError(f"{folder} holds no adapter ({SPEC} is not there).")
        for each in inner:
            load(model, each, force=force, check=check)
        return model
    spec = read_spec(folder)
    refuse_foreign(folder, spec, model, force)
    held = read_tensors(folder, spec)
    parts = [part_of(model, each, name or spec["name"], folder) for each in spec["parts"]]
    grouped: dict[str, dict[str, Tensor]] = {}
    for key, tensor in held.items():
        group, dot, last = key.rpartition(".")
        grouped.setdefault(group + dot, {})[last] = tensor
    used: set[str] = set()

    def start(module: nn.Module, site, part: Part) -> dict[str, Tensor]:
        prefix = f"{parts.index(part)}.{part.form.group(site)}."
        found = grouped.get(prefix, {})
        check_shapes(folder, prefix, found, expected_shapes(module, site, part))
        used.update(prefix + k for k in found)
        device = next((p.device for p in module.parameters()), torch.device("cpu"))
        return {k: t.to(device) for k, t in found.items()}

    place(model, parts, start, check=check)
    if extra := sorted(set(held) - used):
        detach(model, parts[0].name)
        raise LuthierError(f"{folder / WEIGHTS} holds tensors that the spec does not know: {', '.join(extra[:3])}.")
    return model


def read_spec(folder: Path) -> dict[str, Any]:
    """`adapter.json`, checked: format, name, parts."""
    spec = read_json(folder / SPEC)
    try:
        version, parts, base = spec["format"], spec["parts"], spec["base"]
        ok = isinstance(spec["sha256"], str) and isinstance(base["sample"], dict) and parts
        ok = ok and all(isinstance(base[k], str) for k in ("name", "model", "architecture"))
        ok = ok and all({"form", "settings", "where", "sites"} <= set(part) for part in parts)
        ok = ok and NAME.fullmatch(spec["name"])
    except (KeyError, TypeError):
        raise LuthierError(f"{folder / SPEC} is no adapter's spec, or a damaged one.") from None
    if version != FORMAT:
        raise LuthierError(
            f"{folder / SPEC} has format {version!r}; this Luthier ({luthier.__version__}) reads format {FORMAT}."
        )
    if not ok:
        raise LuthierError(f"{folder / SPEC} is no adapter's spec, or a damaged one.")
    return spec


def read_tensors(folder: Path, spec: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors, after the file's checksum, each finite."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise LuthierError(f"{path} is missing; the adapter is incomplete.")
    if sha256(path) != spec["sha256"]:
        raise LuthierError(f"{path} is damaged: its SHA-256 is not the one in {SPEC}. Fetch or save it again.")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            held = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise LuthierError(f"{path} cannot be read: {error}.") from None
    for key, tensor in held.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise LuthierError(f"{path}: {key} holds NaN or infinity; this adapter was saved from a failed run.")
    return held


def refuse_foreign(folder: Path, spec: Mapping[str, Any], model: nn.Module, force: bool) -> None:
    """Raises for another base than the spec's; with `force` it warns."""
    why = differences(spec["base"], model)
    if why is None:
        return
    text = (
        f"{folder} was fitted on {spec['base']['name'] or spec['base']['model']!r}, and this base "
        f"({getattr(model, 'name_or_path', '') or type(model).__name__!r}) is another: {why}."
    )
    if not force:
        raise LuthierError(f"{text} Load the base it was fitted on, or force=True (--force) to try anyway.")
    warnings.warn(text, stacklevel=3)


def part_of(model: nn.Module, stored: Mapping[str, Any], name: str, folder: Path) -> Part:
    """A stored part at the sites of `model`; raises where those are not the ones that it was fitted on."""
    if not isinstance(stored["form"], str) or not isinstance(stored["where"], str):
        raise LuthierError(f"{folder / SPEC} is no adapter's spec, or a damaged one.")
    form = find("forms", stored["form"]).from_dict(stored["settings"])
    assert isinstance(form, Form)
    sites, ranks = select(model, stored["where"]), stored.get("ranks", {})
    sites = ranked(form, sites, ranks) if ranks else sites
    if [[s.path, s.kind] for s in sites] != stored["sites"]:
        raise LuthierError(
            f"{folder}: where={stored['where']!r} selects {len(sites)} sites of this base, not the "
            f"{len(stored['sites'])} that the adapter was fitted on."
        )
    return Part(name, form, stored["where"], sites, ranks, bool(stored.get("relative", False)))


def check_shapes(folder: Path, prefix: str, found: Mapping[str, Tensor], expected) -> None:
    """Raises unless the tensors found at a site are there and have the expected shapes."""
    if not found:
        raise LuthierError(f"{folder / WEIGHTS} lacks the tensors of {prefix.rstrip('.')}.")
    if expected is None:
        return
    shapes = {k: t.shape for k, t in found.items()}
    for key in sorted({*expected, *shapes}):
        if shapes.get(key) != expected.get(key):
            have = tuple(shapes[key]) if key in shapes else "missing"
            want = tuple(expected[key]) if key in expected else "no such tensor"
            raise LuthierError(f"{folder / WEIGHTS}: {prefix}{key} is {have}; expected {want}.")
