"""The inputs of a combination: adapters on disk and fine-tuned models, read one module at a time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from luthier.combining.lower import at_base, lowered
from luthier.combining.parameter_refs import ParameterRef, wide
from luthier.combining.reader import Reader
from luthier.core.adapters.lower import refuse_unmergeable
from luthier.core.adapters.start import expected_shapes
from luthier.core.adapters.tuner import AdapterComponent, TunerLayer
from luthier.core.errors import LuthierError
from luthier.core.numerics.delta import Delta
from luthier.core.storage.store import component_of
from luthier.core.storage.weights import WEIGHTS, check_shapes, group_of, header, opened


class Source(Protocol):
    """One input of a combination."""

    label: str

    def touches(self, refs: Sequence[ParameterRef]) -> bool:
        """Returns whether it changes a parameter, given by all of its names."""
        ...

    def apart(self, refs: Sequence[ParameterRef]) -> bool:
        """Returns whether it changes a tied parameter at one of its names and not at the others."""
        ...

    def shape(self, refs: Sequence[ParameterRef]) -> tuple[int, ...]:
        """Shape of its change, as the model stores it."""
        ...

    def delta(self, refs: Sequence[ParameterRef]) -> Delta:
        """Its change of the parameter, [d_out, d_in] for linear layers."""
        ...


class Adapter:
    """A saved adapter: its tensors are read when the module that they act on comes up.

    `old` gives the weights of the base that it was fitted on, where that is not `model`.
    """

    def __init__(self, model: nn.Module, folder: Path, spec: dict[str, Any], old: Reader | None) -> None:
        self.label, self.spec, self._folder, self._old = str(folder), spec, folder, old
        self.components = [component_of(model, each, spec["name"], folder) for each in spec["parts"]]
        self._file, self._device = opened(folder, spec), next(model.parameters()).device
        self._header = header(self._file)
        self._last: tuple[str, dict[str, Delta]] = ("", {})
        for component in self.components:
            for site in component.sites:
                refuse_unmergeable([TunerLayer(component, site, site, "", {})])
                self._check(model.get_submodule(site.module), component, site)

    def _check(self, module: nn.Module, component: AdapterComponent, site) -> None:
        prefix, found = self._stored(component, site)
        shapes = {name: self._header[key][1] for name, key in found.items()}
        check_shapes(self._folder, prefix, shapes, expected_shapes(module, site, component))

    def _stored(self, component: AdapterComponent, site) -> tuple[str, dict[str, str]]:
        """(prefix, {parameter: key of the file}) of a site."""
        prefix = f"{group_of(self.components.index(component), component, site)}."
        found = {key.removeprefix(prefix): key for key in self._header if key.startswith(prefix)}
        return prefix, {name: key for name, key in found.items() if "." not in name}

    @cached_property
    def _modules(self) -> dict[str, list[tuple[AdapterComponent, Any]]]:
        found: dict[str, list[tuple[AdapterComponent, Any]]] = {}
        for component in self.components:
            for site in component.sites:
                found.setdefault(site.module, []).append((component, site))
        return found

    def _acts(self, ref: ParameterRef) -> bool:
        sites = [site for _, site in self._modules.get(ref.path, [])]
        own = ("weight", "bias")
        return any(site.path == ref.name if site.kind == "param" else ref.key in own for site in sites)

    def touches(self, refs: Sequence[ParameterRef]) -> bool:
        return any(self._acts(ref) for ref in refs)

    def apart(self, refs: Sequence[ParameterRef]) -> bool:
        layers = (site for ref in refs for _, site in self._modules.get(ref.path, []))
        return len(refs) > 1 and any(site.kind != "param" for site in layers)

    def shape(self, refs: Sequence[ParameterRef]) -> tuple[int, ...]:
        return tuple(refs[0].tensor.shape)

    def delta(self, refs: Sequence[ParameterRef]) -> Delta:
        total = Delta.zero(*refs[0].oriented(refs[0].tensor).shape)
        for ref in refs:
            if (found := self._changes(ref).get(ref.key)) is not None:
                flat = ref.flipped and self._modules[ref.path][0][1].kind == "param"
                total = total + (Delta.dense_of(found.dense().mT) if flat else found)
        return total

    def _changes(self, ref: ParameterRef) -> dict[str, Delta]:
        if self._last[0] != ref.path:
            module = ref.module if self._old is None else at_base(ref.path, ref.module, self._old.get)
            tuners = [self._tuner(component, site) for component, site in self._modules.get(ref.path, [])]
            with torch.no_grad():
                self._last = ref.path, lowered(ref.path, module, tuners) if tuners else {}
        return self._last[1]

    def _tuner(self, component: AdapterComponent, site) -> TunerLayer:
        _, stored = self._stored(component, site)
        held = {name: nn.Parameter(self._finite(key).to(self._device), False) for name, key in stored.items()}
        return TunerLayer(component, site, site, "", held).eval()

    def _finite(self, key: str) -> Tensor:
        tensor = self._file.get_tensor(key)
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise LuthierError(f"{self._folder / WEIGHTS}: {key} holds NaN or infinity.")
        return tensor


class Model:
    """A fine-tuned model, against the base that it grew out of."""

    def __init__(self, label: str, new: Reader, old: Reader) -> None:
        self.label, self._new, self._old = label, new, old

    def check(self, groups: Sequence[Sequence[ParameterRef]]) -> None:
        """Raises unless it has the parameters of the base, tied where those are."""
        missing = [refs[0].name for refs in groups if refs[0].name not in self._new.shapes]
        if missing:
            raise LuthierError(f"{self.label} is not a fine-tuned copy of this base: it has no {missing[0]}.")
        for refs in groups:
            first, *others = (ref.name for ref in refs)
            if any(not torch.equal(self._new.get(first), self._new.get(name)) for name in others):
                raise LuthierError(
                    f"{self.label} keeps {first} and {others[0]} apart; in the base they are one tensor."
                )

    def sampled(self, name: str) -> Tensor | None:
        """Returns the fine-tuned tensor, or None without one."""
        return self._new.get(name) if name in self._new.shapes else None

    def touches(self, refs: Sequence[ParameterRef]) -> bool:
        return True

    def apart(self, refs: Sequence[ParameterRef]) -> bool:
        return False

    def shape(self, refs: Sequence[ParameterRef]) -> tuple[int, ...]:
        return self._new.shapes[refs[0].name]

    def delta(self, refs: Sequence[ParameterRef]) -> Delta:
        ref = refs[0]
        new, old = self._new.get(ref.name), self._old.get(ref.name)
        if new.shape == old.shape and torch.equal(new, old.to(new.dtype)):
            return Delta.zero(*ref.oriented(new).shape)
        before = Delta.dense_of(wide(old))
        before = before.padded(len(new)) if new.dim() and len(new) > len(old) else before
        return Delta.dense_of(ref.oriented((Delta.dense_of(wide(new)) - before).dense()))
