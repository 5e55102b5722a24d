"""Loading an adapter whose base has other names now: wrapped, or of another version of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from luthier.core.contracts.site import Site
from luthier.core.errors import LuthierError
from luthier.core.sites.renaming import in_other_layout, renamed, rewritten, substitutions
from luthier.core.sites.samples import architecture
from luthier.core.sites.select import select

Spec = dict[str, Any]


def with_names_of(spec: Spec, model: nn.Module) -> tuple[Spec, dict[str, str]]:
    """Returns (the spec under the model's own names, {own path, or type of path: the stored one}).

    The spec itself, and nothing, where the names are the same, or where no known layout makes its layers those of the
    model: it is then told as another base.
    """
    base = spec["base"]
    if base["architecture"] == architecture(model):
        return spec, {}
    sites = [path for part in spec["parts"] for path, _ in part["sites"]]
    names, lost = renamed(dict.fromkeys([*base["sample"], *base["digests"], *sites]), model)
    starts = substitutions({other: own for other, own in names.items() if other != own})
    if not starts or architecture(model, lambda path: in_other_layout(path, starts)) != base["architecture"]:
        return spec, {}
    names |= {path: path for path in lost}
    back_starts = {other: own for own, other in starts.items()}
    for part in spec["parts"]:  # a rank of 0 has a path that is not a site
        names |= {path: in_other_layout(path, back_starts) for path in part.get("ranks", {}) if path not in names}
    moved = {
        **base,
        "architecture": architecture(model),
        "sample": {names[path]: each for path, each in base["sample"].items()},
        "digests": {names[path]: each for path, each in base["digests"].items()},
    }
    parts = [_part(part, names, model) for part in spec["parts"]]
    back = {own: other for other, own in names.items()}
    return {**spec, "base": moved, "parts": parts}, back | {_type(own): _type(other) for own, other in back.items()}


def _part(part: Mapping[str, Any], names: Mapping[str, str], model: nn.Module) -> dict[str, Any]:
    sites = [[names[path], kind] for path, kind in part["sites"]]
    made = {**part, "sites": sites, "where": rewritten(part["where"], names)}
    if "ranks" in part:
        made["ranks"] = {names.get(path, path): rank for path, rank in part["ranks"].items()}
    try:
        selected = [site.path for site in select(model, made["where"])]
    except LuthierError:
        selected = []
    if "ranks" not in part and selected != [path for path, _ in sites]:
        made["where"] = ", ".join(str(Site(path, kind, 0, 0)) for path, kind in sites)
    return made


def _type(path: str) -> str:
    return ".".join(part for part in path.split(".") if not part.isdigit())
