"""The output of a combination: an adapter on disk, or the model itself."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from luthier.combining.parameter_refs import ParameterRef, wide
from luthier.combining.tensorfile import TensorFile
from luthier.core.adapters.tuner import AdapterComponent
from luthier.core.contracts.form import Form
from luthier.core.contracts.site import Site, Sites
from luthier.core.errors import LuthierError
from luthier.core.mapped import spilled
from luthier.core.numerics.delta import Delta
from luthier.core.sites.scope import Scope
from luthier.core.sites.select import select
from luthier.core.sites.structure import features
from luthier.core.storage.store import WEIGHTS, spec_of, write_spec
from luthier.methods.forms.full import Full
from luthier.methods.forms.lora import LoRA
from luthier.methods.forms.sparse import Sparse, count
from luthier.models import licence_of
from luthier.models.seeing import save_processor

SPARSE = 0.25
"""Share of entries up to which a change is stored sparse: an entry takes twice the bytes there."""
NAME = "combined"


class Result(Protocol):
    """The base class of outputs, which take changes one tensor after the other."""

    def add(self, refs: Sequence[ParameterRef], delta: Delta, apart: bool) -> None:
        """The change of a parameter under all of its names (`apart`: under the one name given, though tied)."""
        ...

    def save(self, folder: Path, base: str, measured: Mapping[str, Any]) -> dict[str, int]:
        """Writes the folder, which exists; returns how many tensors are kept in which way."""
        ...


class Into:
    """The model itself: each tensor changes in place, so that no second copy is held."""

    def __init__(self, model: nn.Module, processor: Any = None) -> None:
        self.model, self.processor, self._changed = model, processor, 0

    def add(self, refs: Sequence[ParameterRef], delta: Delta, apart: bool) -> None:
        ref = refs[0]
        old = ref.tensor
        new = ref.oriented(delta.apply(ref.oriented(wide(old)))).to(old.dtype)
        if apart:
            ref.module._parameters[ref.key] = nn.Parameter(spilled(new.contiguous()), old.requires_grad)
            self._untie(ref.name)
        else:
            old.data = spilled(new.contiguous())
        self._changed += 1

    def _untie(self, name: str) -> None:
        config: Any = getattr(self.model, "config", None)
        if getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False
            warnings.warn(f"{name} was tied to another tensor; combined, they differ and are untied.", stacklevel=5)

    def save(self, folder: Path, base: str, measured: Mapping[str, Any]) -> dict[str, int]:
        from luthier.core.storage.one_by_one import save_model
        from luthier.models.older import for_older_readers
        from luthier.models.quiet import quiet

        with quiet():
            save_model(self.model, folder)
            if self.processor is not None:
                save_processor(self.processor, folder)
        for_older_readers(folder)
        return {"merged": self._changed}


class Adapter:
    """An adapter: changes of low rank as LoRA, sparse ones sparse, the others as whole tensors."""

    def __init__(self, model: nn.Module, scope: Scope, folder: Path, new: frozenset[str] = frozenset()) -> None:
        """`new` are parameters that the base lacks: kept whole, as a change of random numbers says nothing."""
        self.model, self.scope, self._file, self._new = model, scope, TensorFile(folder), new
        self._layers = {site.path: site for site in scope.named if site.kind in ("affine", "embedding")}
        self._low: dict[Site, Delta] = {}
        self._sparse: dict[Site, Delta] = {}
        self._full: list[Site] = []

    def add(self, refs: Sequence[ParameterRef], delta: Delta, apart: bool) -> None:
        ref = refs[0]
        if ref.name in self._new:
            self._add_whole(ref, delta)
            return
        layer = None if len(refs) > 1 else self._layer(ref)
        site = layer or self.scope.parameter(ref.name)
        if _stays_low_rank(delta):
            self._low[site] = Delta(delta.shape[::-1], delta.A.mT, delta.B.mT) if site.kind == "embedding" else delta  # type: ignore[union-attr]
            return
        sparse = _as_sparse(delta)
        place = site if site.kind == "affine" else self.scope.parameter(ref.name)
        if apart and (sparse is None or place.kind == "param"):
            raise LuthierError(
                f"{ref.name} is tied to another tensor and changes alone, by more than low rank: give a rank "
                "(--rank), or write a merged model (--merged)."
            )
        if sparse is not None:
            self._sparse[place] = sparse
        elif bool(delta.dense().any()):
            self._add_whole(ref, delta)

    def _add_whole(self, ref: ParameterRef, delta: Delta) -> None:
        self._full.append(self.scope.parameter(ref.name))
        theta = ref.oriented(ref.oriented(wide(ref.tensor)) + delta.dense())
        self._file.add(f"full.{self._full[-1].path}.theta", theta)

    def _layer(self, ref: ParameterRef) -> Site | None:
        """The site of the layer whose weight this is; a table that scales what it looks up has none."""
        plain = features(ref.module) is not None or type(ref.module) is nn.Embedding
        return self._layers.get(ref.path) if ref.key == "weight" and plain else None

    def save(self, folder: Path, base: str, measured: Mapping[str, Any]) -> dict[str, int]:
        made = {"lora": self._lora(), "sparse": self._entries(), "full": self._whole()}
        parts = {kind: part for kind, part in made.items() if part is not None}
        if not parts:
            self._file.close()
            raise LuthierError("the combination changes nothing: every delta is zero.")
        order = {kind: str(index) for index, kind in enumerate(parts)}

        def rename(name: str) -> str:
            kind, _, rest = name.partition(".")
            return f"{order[kind]}.{rest}"

        self._file.finish(folder / WEIGHTS, rename)
        write_spec(
            folder, spec_of(self.model, NAME, list(parts.values()), base, measured, base_license=licence_of(base))
        )
        return {kind: len(part.sites) for kind, part in parts.items()}

    def _lora(self) -> AdapterComponent | None:
        ranks = {site.path: int(delta.rank or 0) for site, delta in self._low.items()}
        for site, delta in self._low.items():
            assert delta.A is not None and delta.B is not None
            self._file.add(f"lora.{site.path}.A", delta.A)
            self._file.add(f"lora.{site.path}.B", delta.B)
        if not ranks:
            return None
        largest = max(ranks.values())
        part = self._part(LoRA(rank=largest, alpha=float(largest)), list(self._low))
        part.ranks = ranks if len(set(ranks.values())) > 1 else {}
        return part

    def _entries(self) -> AdapterComponent | None:
        sizes = {site: torch.Size(delta.shape).numel() for site, delta in self._sparse.items()}
        density = max((_nnz(delta) / sizes[site] for site, delta in self._sparse.items()), default=0.0)
        for site, delta in self._sparse.items():
            assert delta.index is not None and delta.values is not None
            more = count(density, sizes[site]) - _nnz(delta)  # one form, one density: others get entries of 0
            narrow = delta.index.to(torch.int32 if sizes[site] < 2**31 else torch.int64)
            self._file.add(f"sparse.{site.path}.index", _padded(narrow, more))
            self._file.add(f"sparse.{site.path}.values", _padded(delta.values, more))
        return self._part(Sparse(density=density), list(self._sparse)) if sizes else None

    def _whole(self) -> AdapterComponent | None:
        return self._part(Full(), self._full) if self._full else None

    def _part(self, form: Form, sites: list[Site]) -> AdapterComponent:
        chosen = Sites(sites)
        words = ("all-linear", ", ".join(map(str, sites)))
        where = next((text for text in words if _same(self.model, text, chosen)), None)
        if where is None:
            raise LuthierError(
                f"no selection names exactly the changed places, first {sites[0]}; write a merged model."
            )
        return AdapterComponent(NAME, form, where, chosen)


def _stays_low_rank(delta: Delta) -> bool:
    return delta.rank is not None and delta.rank * sum(delta.shape) < torch.Size(delta.shape).numel()


def _nnz(delta: Delta) -> int:
    return 0 if delta.values is None else len(delta.values)


def _as_sparse(delta: Delta) -> Delta | None:
    """The change as few entries; None where they are not few, or none."""
    size = torch.Size(delta.shape).numel()
    if len(delta.shape) > 2 or delta.is_zero:
        return None
    found = delta.united() if delta.is_sparse else None
    if found is None and int(delta.dense().count_nonzero()) <= SPARSE * size:
        found = delta.nonzero()
    return found if found is not None and 0 < _nnz(found) <= SPARSE * size else None


def _padded(tensor: Tensor, more: int) -> Tensor:
    return torch.cat([tensor, tensor.new_zeros(more)])


def _same(model: nn.Module, where: str, sites: Sites) -> bool:
    try:
        found = select(model, where)
    except LuthierError:  # a plain word for a model that has no such places
        return False
    return [site.key for site in found] == [site.key for site in sites]
