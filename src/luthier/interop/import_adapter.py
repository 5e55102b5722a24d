"""Importing: another library's folder is converted to an adapter of Luthier."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.adapters.attach import adapter_names, detach, find_state, place, ranked
from luthier.core.adapters.start import expected_shapes
from luthier.core.adapters.tuner import AdapterComponent
from luthier.core.contracts.component import find, names
from luthier.core.contracts.format import Format, Found
from luthier.core.contracts.site import Sites
from luthier.core.errors import LuthierError
from luthier.core.files import must_be_free
from luthier.core.guard import guarded
from luthier.core.paths import path_of
from luthier.core.sites.renaming import nearest
from luthier.core.sites.select import select
from luthier.core.storage.store import SPEC, save
from luthier.interop.formats._tokenizer import keep
from luthier.models import licence_of


def import_adapter(
    folder: str | Path,
    out: str | Path,
    *,
    base: nn.Module,
    source: str | Format | None = None,
    name: str = "default",
    base_name: str | None = None,
    measured: Mapping[str, Any] | None = None,
    processor: Any = None,
) -> Path:
    """Reads the adapter that another library saved in `folder` and saves it as ours in `out`, for the model `base`.

    `source` is a name (`luthier list formats`) or a component with settings, such as `lt.formats.PyReFT(positions=
    "f7+l7")`; None tells the library by what the folder holds. `base_name` is what to load the base by, `measured`
    goes into the spec. What the folder has of a tokenizer is kept beside the adapter; a chat template or added tokens
    that are not those of `processor`, which prepares the base's inputs, are told. Raises `LuthierError` for damage, for
    another base, and for what has no equal here, with the reason; `base` is left as it was. No code of the folder is
    run.
    """
    source_folder, target = path_of(folder), must_be_free(out)
    reader = source_of(source_folder, source)
    if (state := find_state(base)) and name in adapter_names(state):
        raise LuthierError(f"an adapter named {name!r} is attached already; give the new one another name.")
    with guarded(f"{source_folder} cannot be read as {reader.name()} would"):
        found = reader.read(source_folder, base)
    if not any(each.tensors for each in found):
        raise LuthierError(f"{source_folder} holds no tensors to import.")
    components = [_part(each, base, name, source_folder) for each in found]
    tensors = dict(zip(map(id, components), found, strict=True))

    def start(module: nn.Module, site: Any, component: AdapterComponent) -> dict[str, Tensor]:
        given = tensors[id(component)].tensors[site.path]
        _check_shapes(source_folder, site.path, given, expected_shapes(module, site, component), base)
        device = next((p.device for p in module.parameters()), torch.device("cpu"))
        return {key: tensor.to(device) for key, tensor in given.items()}

    place(base, components, start)
    try:
        with guarded(f"{source_folder} cannot be read as {reader.name()} would"):
            evidence = {"imported": reader.evidence(source_folder), **(measured or {})}
        saved = save(base, target, name, base=base_name, measured=evidence, base_license=licence_of(base_name or ""))
    finally:
        detach(base, name)
    keep(source_folder, saved, processor)
    return saved


def source_of(folder: Path, source: str | Format | None) -> Format:
    """Returns the format of a folder: the one given, or the one that it fits."""
    if folder.is_file():
        raise LuthierError(f"{folder} is a file; lay it into a folder of its own, and give that.")
    if not folder.is_dir():
        raise LuthierError(f"there is no folder {folder}.")
    if (folder / SPEC).exists():
        raise LuthierError(f"{folder} is an adapter of Luthier's already; it needs no import.")
    if isinstance(source, Format):
        source.check_use(reading=True)
        return source
    known = readable() if source is None else [_readable(source)]
    fitting = [each for each in known if each.fits(folder)]
    if not fitting:
        _refuse_pieces(folder)
        libraries = ", ".join(each.name() for each in known)
        inside = [path for path in sorted(folder.iterdir()) if path.is_dir() and any(each.fits(path) for each in known)]
        near = f" {inside[0]} is one: give that folder." if inside else ""
        raise LuthierError(f"{folder} is not an adapter of {libraries}: it holds {_listing(folder)}.{near}")
    if len(fitting) > 1:
        several = " and ".join(each.name() for each in fitting)
        raise LuthierError(f"{folder} holds adapters of {several}; say which is meant (--format, in Python source=…).")
    return fitting[0]()


def readable() -> list[type[Format]]:
    """The formats that are read."""
    return [each for each in (find("formats", name, Format) for name in names("formats")) if each.reads()]


def _readable(name: str) -> type[Format]:
    found = find("formats", name, Format)
    found().check_use(reading=True)
    return found


def _refuse_pieces(folder: Path) -> None:
    """Raises for a distributed checkpoint, or a folder of such, with what makes an adapter's folder of it."""
    piece = next((found for pattern in ("*.distcp", "*/*.distcp") for found in sorted(folder.glob(pattern))), None)
    if piece is not None:
        raise LuthierError(
            f"{folder} holds pieces of a distributed checkpoint ({piece.relative_to(folder)}), which only the library "
            "that wrote them puts together. Export the adapter there as peft's folder and import that. Megatron "
            "Bridge: AutoBridge.from_hf_pretrained(BASE).export_adapter_ckpt(FOLDER, OUT); NeMo 2: "
            'llm.export_ckpt(FOLDER, target="hf-peft", output_path=OUT); ms-swift: megatron export --mcore_adapter '
            "FOLDER --to_hf true --merge_lora false."
        )


def _listing(folder: Path) -> str:
    held = sorted(path.name for path in folder.iterdir())
    return ", ".join(held[:5]) + (", …" if len(held) > 5 else "") or "nothing"


def _part(found: Found, model: nn.Module, name: str, folder: Path) -> AdapterComponent:
    where = spelled(model, found.kind, list(found.tensors), folder)
    sites = select(model, where)
    wrong = [site for site in sites if site.kind not in found.form.kinds]
    if wrong:
        raise LuthierError(f"{folder} adapts {wrong[0]}, where {found.form.name()} has no equal here.")
    return AdapterComponent(
        name, found.form, where, ranked(found.form, sites, found.ranks) if found.ranks else sites, found.ranks
    )


def spelled(model: nn.Module, kind: str, paths: list[str], folder: Path) -> str:
    """Returns the shortest selector of ours that means exactly these paths."""
    for where in _spellings(kind, paths):
        try:
            chosen = select(model, where)
        except LuthierError:
            continue
        if _same(chosen, paths):
            return where
    known = {p for p, _ in model.named_modules()} | {p for p, _ in model.named_parameters()}
    strange = next((path for path in paths if path not in known), None)
    strange = strange or next((path for path in paths if not _alone(model, kind, path)), paths[0])
    if strange not in known:
        raise LuthierError(
            f"{folder} adapts {strange}, which this {type(model).__name__} lacks{nearest(strange, model)} It was "
            "fitted on another base, or its names are of a layout that is not known here."
        )
    raise LuthierError(f"{folder} adapts {strange}, which is not a site of kind {kind} of this {type(model).__name__}.")


def _alone(model: nn.Module, kind: str, path: str) -> bool:
    try:
        return path in {site.path for site in select(model, list(_spellings(kind, [path]))[-1])}
    except LuthierError:
        return False


def _same(chosen: Sites, paths: list[str]) -> bool:
    return sorted(site.path for site in chosen) == sorted(paths)


def _spellings(kind: str, paths: list[str]) -> Iterator[str]:
    function = {"input": "input", "stream": "output", "param": "params", "cache": "attention", "conv": "conv"}.get(kind)
    if whole := {"affine": "all-linear", "stream": "stream", "cache": "attention", "conv": "conv"}.get(kind):
        yield whole
    if kind == "conv":  # selected by their modules, and known by their weights
        paths = [path.removesuffix(".weight") for path in paths]
    for parts in (1, 2):
        ends = dict.fromkeys(".".join(path.split(".")[-parts:]) for path in paths)
        yield f"{function}({', '.join(ends)})" if function else ", ".join(ends)
    yield f"{function}({', '.join(paths)})" if function else ", ".join(paths)


def _check_shapes(folder: Path, path: str, given: Mapping[str, Tensor], expected: Any, base: nn.Module) -> None:
    shapes = {key: tensor.shape for key, tensor in given.items()}
    for key in sorted({*shapes, *(expected or shapes)}):
        have, want = shapes.get(key), (expected or shapes).get(key)
        if have != want:
            told = [tuple(each) if each is not None else "missing" for each in (have, want)]
            advice = _advice(tuple(have), tuple(want), base) if have and want else ""
            raise LuthierError(f"{folder}: {key} of {path} is {told[0]}; this base expects {told[1]}.{advice}")


def _advice(have: tuple[int, ...], want: tuple[int, ...], base: Any) -> str:
    """What to do where one dimension differs, which counts the base's classes or its tokens."""
    apart = [pair for pair in zip(have, want, strict=False) if pair[0] != pair[1]]
    if len(have) != len(want) or len(apart) != 1:
        return ""
    count, known = apart[0]
    if have[0] == count and known == getattr(getattr(base, "config", None), "num_labels", None):
        return f" If it is a head, load the base with the names of its {count} classes (--labels)."
    table = base.get_input_embeddings() if callable(getattr(base, "get_input_embeddings", None)) else None
    if table is None or len(table.weight) != known:
        return ""
    return (
        f" It was fitted on a base of {count} tokens: resize this one (`model.resize_token_embeddings({count})` of "
        "transformers), save it with the tokenizer beside the adapter, and name that folder as the base."
    )
