"""Preparation before the first tensor is combined: the inputs, the parameters, the checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from luthier.combining import guards
from luthier.combining.guards import Served
from luthier.combining.parameter_refs import ParameterRef, parameter_refs
from luthier.combining.reader import Held, Reader, reader
from luthier.combining.source import Adapter, Model, Source
from luthier.core.adapters.attach import find_state
from luthier.core.contracts.combination import Combination, Place
from luthier.core.errors import LuthierError
from luthier.core.guard import guarded
from luthier.core.mapped import evict
from luthier.core.numerics.delta import Delta
from luthier.core.paths import path_of
from luthier.core.records import recorded
from luthier.core.sites.scope import Scope
from luthier.core.sites.structure import features, is_quantised
from luthier.core.storage.fingerprint import matrices, sample_of
from luthier.core.storage.folder import adapter_at, read_adapter
from luthier.core.storage.store import refuse_foreign
from luthier.models import named, task_of_class


@dataclass(frozen=True)
class Job:
    """The inputs of a combination, and the parameters that it changes."""

    method: Combination
    sources: Sequence[Source]
    groups: Sequence[Sequence[ParameterRef]]
    """Parameters that change, each by all of its names, or by one where an input changes that one alone."""
    apart: frozenset[str]
    """Names of the latter."""
    scope: Scope
    old: Reader | None
    """The base that the inputs were fitted on, where it is another."""
    measured: Mapping[str, Any]
    """What the result's spec takes over: task and labels."""
    new: frozenset[str]
    """Names of parameters that the base lacks: 0 there, and averaged."""
    processor: Any
    """What prepares the inputs of the model, where a source has more tokens than the base."""

    def at(self, group: Sequence[ParameterRef], totals: Mapping[str, float]) -> tuple[Place, list[Delta]]:
        """Returns a place and the deltas there."""
        evict()
        return group[0].place(self.scope, dict(totals)), [
            each.delta(group) if each.touches(group) else Delta.zero(*group[0].oriented(group[0].tensor).shape)
            for each in self.sources
        ]


def prepare(
    method: Combination,
    inputs: Sequence[str | Path],
    base: nn.Module,
    old_name: str | None,
    *,
    new: Sequence[str] = (),
    merged: bool,
    force: bool,
) -> Job:
    """Returns the job of combining `inputs` onto `base`; raises `LuthierError` for whatever does not fit."""
    _check_base(base)
    specs = [_spec(each) for each in inputs]
    _check_source(method, inputs, specs, old_name)
    guards.check_tasks(
        {str(each): _served(each, spec) for each, spec in zip(inputs, specs, strict=True)}, base, new, force
    )
    blank = _blanked(base, new)
    old = None if old_name is None else reader(old_name, base)
    sources = [_read(each, spec, base, old, method, force) for each, spec in zip(inputs, specs, strict=True)]
    processor = None if old is None else _grown(base, sources, method, old, merged)
    scope, everything = Scope(base), parameter_refs(base)
    if old is not None and old_name is not None:
        guards.check_old(method, old, everything, scope)
        guards.check_tokens(old_name, str(getattr(base, "name_or_path", "")), force)
    for each in sources:
        if isinstance(each, Model):
            each.check(everything)
    groups, apart = _groups(sources, everything)
    guards.check_shapes(method, sources, groups, scope)
    first = next((spec["measured"] for spec in specs if spec is not None), {})
    kept = {key: first[key] for key in ("task", "labels") if key in first}
    return Job(method, sources, groups, apart, scope, old, kept, blank, processor)


def _check_base(base: nn.Module) -> None:
    if find_state(base) is not None:
        raise LuthierError("the base carries an adapter; detach it first, as the inputs are changes of the bare base.")
    if any(features(module) and is_quantised(module) for module in base.modules()):
        raise LuthierError("the base is quantised; load it in its original precision to combine changes of it.")


def _spec(folder: str | Path) -> dict[str, Any] | None:
    """The spec of an adapter; None for a model."""
    return read_adapter(folder)[1] if adapter_at(folder) else None


def _served(folder: str | Path, spec: dict[str, Any] | None) -> Served:
    """What an input was fitted for, as far as it says."""
    if spec is not None:
        return Served(spec["measured"].get("task"), spec["measured"].get("labels"))
    file = path_of(folder) / "config.json"
    with recorded(file) if file.is_file() else nullcontext({}) as config:
        task = task_of_class((config.get("architectures") or [""])[0])
        classes = {int(index): name for index, name in config.get("id2label", {}).items()}
    if task == "embedding" or ("classification" in task and len(classes) == 1):  # of no known class; one number
        return Served(None, None)
    told = "classification" in task and named(classes)
    return Served(task, [classes[index] for index in sorted(classes)] if told else None)


def _blanked(base: nn.Module, new: Sequence[str]) -> frozenset[str]:
    """Sets the parameters that the base lacks to 0; returns their names."""
    inside = tuple(f"{module}." for module in new)
    found = {name: p for name, p in base.named_parameters(remove_duplicate=False) if name.startswith(inside)}
    with torch.no_grad():
        for parameter in found.values():
            parameter.zero_()
    return frozenset(found)


def _check_source(
    method: Combination, inputs: Sequence[str | Path], specs: Sequence[dict[str, Any] | None], old: str | None
) -> None:
    if old is not None and not method.moves:
        raise LuthierError(f"{method.name()} combines changes of one base; a source goes with transfer and portllm.")
    models = [str(each) for each, spec in zip(inputs, specs, strict=True) if spec is None]
    if method.moves and old is None and models:
        raise LuthierError(
            f"{models[0]} is a whole model: give the source base that it was fine-tuned from (--source)."
        )


def _read(
    given: str | Path,
    spec: dict[str, Any] | None,
    base: nn.Module,
    old: Reader | None,
    method: Combination,
    force: bool,
) -> Source:
    if spec is None:
        made = Model(str(given), reader(str(given), base), Held(base) if old is None else old)
        guards.check_related(str(given), sample_of(made.sampled, matrices(base)), base, force)
        return made
    folder = adapter_at(given)
    assert folder is not None
    if method.moves:
        guards.check_moved(str(given), spec, base, old, force)
    else:
        refuse_foreign(folder, spec, base, force)
    return Adapter(base, folder, spec, old)


def _grown(base: nn.Module, sources: Sequence[Source], method: Combination, old: Reader, merged: bool) -> Any:
    """Gives the base the tokens that a source has more, as rows of zeros; returns that source's processor, if any."""
    scope = Scope(base)
    for group in parameter_refs(base):
        at = group[0].place(scope, {})
        for each in sources:
            rows = each.shape(group)[0] if at.vocabulary and isinstance(each, Model) else 0
            wider = replace(at, shape=(rows, *at.shape[1:]))
            if rows <= at.shape[0] or not method.fits(old.shapes[group[0].name], wider):
                continue
            if not merged:
                raise LuthierError(
                    f"{each.label} has {rows:,} tokens and the base {at.shape[0]:,}; no adapter adds rows: write a "
                    "merged model (merged=True, --merged)."
                )
            _resize(base, rows)
            return _processor(each.label)
    return None


def _resize(base: nn.Module, rows: int) -> None:
    before = base.get_input_embeddings().weight.shape[0]  # type: ignore[operator, union-attr]
    base.resize_token_embeddings(rows, mean_resizing=False)  # type: ignore[operator]
    for table in (base.get_input_embeddings(), base.get_output_embeddings()):  # type: ignore[operator]
        if table is not None:
            table.weight.data[before:] = 0  # type: ignore[union-attr, index]


def _processor(name: str) -> Any:
    from luthier.models import trusted
    from luthier.models.quiet import quiet

    folder = path_of(name)
    if not (folder / "tokenizer_config.json").is_file():
        return None
    from transformers import AutoTokenizer

    with quiet(), guarded(f"the tokenizer in {folder} cannot be read"):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trusted())


def _groups(
    sources: Sequence[Source], everything: Sequence[Sequence[ParameterRef]]
) -> tuple[list[Sequence[ParameterRef]], frozenset[str]]:
    """(the parameters that change, the names of those that change apart from what they are tied to)."""
    found: list[Sequence[ParameterRef]] = []
    apart: set[str] = set()
    for refs_ in everything:
        touching = [each for each in sources if each.touches(refs_)]
        alone = [each for each in touching if each.apart(refs_)]
        if alone and len(alone) < len(touching):
            other = next(each for each in touching if each not in alone)
            raise LuthierError(
                f"{alone[0].label} changes {' or '.join(ref.name for ref in refs_)} alone and {other.label} both, "
                "which are one tensor in the base."
            )
        if alone:
            names = [ref for ref in refs_ if any(each.touches([ref]) for each in alone)]
            apart.update(ref.name for ref in names)
            found += [[ref] for ref in names]
        elif touching:
            found.append(refs_)
    return found, frozenset(apart)
