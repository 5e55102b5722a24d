"""Checks before combining: inputs of other bases, unrelated bases, shapes and vocabularies that do not fit."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from luthier.combining.parameter_refs import ParameterRef
from luthier.combining.reader import Reader
from luthier.combining.source import Source
from luthier.core.contracts.combination import Combination
from luthier.core.errors import LuthierError
from luthier.core.guard import guarded
from luthier.core.paths import path_of
from luthier.core.sites.samples import architecture
from luthier.core.sites.scope import Scope
from luthier.core.storage.fingerprint import base_similarity, sample_of

RELATED = 0.5
"""The least cosine of sampled weights at which one base counts as derived from the other."""
FILE = "tokenizer.json"


@dataclass(frozen=True)
class Served:
    """What an input was fitted for; None where it does not say."""

    task: str | None
    labels: list[str] | None
    """The classes in order."""

    def __str__(self) -> str:
        return str(self.task) if self.labels is None else f"{self.task} of {', '.join(self.labels)}"


def check_tasks(inputs: Mapping[str, Served], base: nn.Module, new: Sequence[str], force: bool) -> None:
    """Raises where two inputs were fitted for different tasks or classes, unless `force`."""
    config: Any = getattr(base, "config", None)
    known = [] if new or config is None else list(config.id2label.values())  # a head that is new has no order yet
    (first, one), *others = inputs.items()
    for name, other in others:
        tasks = None not in (one.task, other.task) and one.task != other.task
        if tasks or _differ(one.labels, other.labels, known):
            _refuse(
                f"{first} was fitted for {one} and {name} for {other}; what a head says has no common meaning.", force
            )


def _differ(one: list[str] | None, other: list[str] | None, known: list[str]) -> bool:
    """Whether classes differ, or their order where it is not the checkpoint's."""
    if one is None or other is None or one == other:
        return False
    return not set(one) == set(other) == set(known)


def check_mean(weights: Sequence[float]) -> float:
    """Returns the sum of weights that average, which must be above 0."""
    total = sum(weights)
    if not total > 0:
        raise LuthierError(
            f"the weights of the inputs sum to {total:g}, and what the base lacks (a new head) is averaged by them; "
            "give weights of a positive sum."
        )
    return total


def check_weights(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    """One finite weight for each input; 1 each where none is given."""
    found = (1.0,) * count if weights is None else tuple(float(w) for w in weights)
    if len(found) != count:
        raise LuthierError(f"{len(found)} weights for {count} inputs; give one for each, as 0.5,0.5.")
    if not all(map(math.isfinite, found)):
        raise LuthierError(f"weights are {found}; expected finite numbers.")
    return found


def check_shapes(
    method: Combination, sources: Sequence[Source], groups: Sequence[Sequence[ParameterRef]], scope: Scope
) -> None:
    """Raises unless every delta may go where it would."""
    for refs in groups:
        for source in sources:
            if not source.touches(refs):
                continue
            shape, at = source.shape(refs), refs[0].place(scope, {})
            there = tuple(reversed(shape)) if refs[0].flipped else shape
            if not method.fits(there, at):
                raise LuthierError(
                    f"{source.label}: {refs[0].name} is {shape}; in the base it is {tuple(refs[0].tensor.shape)}. "
                    f"{method.name()} needs the same shapes" + (", except for rows of tokens." if method.moves else ".")
                )


def check_old(method: Combination, old: Reader, groups: Sequence[Sequence[ParameterRef]], scope: Scope) -> None:
    """Raises unless the old base has the parameters of the new one, of shapes that may move."""
    for refs in groups:
        name, at = refs[0].name, refs[0].place(scope, {})
        if name not in old.shapes:
            raise LuthierError(f"the source base has no {name}; it is of another architecture than the base.")
        shape = tuple(reversed(old.shapes[name])) if refs[0].flipped else old.shapes[name]
        if not method.fits(shape, at):
            raise LuthierError(
                f"{name} is {shape} in the source base and {at.shape} in the base; {method.name()} refuses."
            )


def check_related(label: str, sample: dict[str, list[float]], model: nn.Module, force: bool) -> float | None:
    """Returns the similarity of a sample of weights to the base; refuses an unrelated base unless `force`."""
    found = base_similarity(sample, model)
    if found is not None and found < RELATED:
        _refuse(
            f"{label} and the base were trained apart: the cosine of sampled weights is {found:.2f}, and a change "
            "fitted on one means nothing to the other.",
            force,
        )
    return found


def check_moved(label: str, spec: Mapping[str, Any], model: nn.Module, old: Reader | None, force: bool) -> None:
    """Guards of an adapter that goes to another base: the same layers, kin, and fitted on the source that is given."""
    if spec["base"]["architecture"] != architecture(model):
        raise LuthierError(
            f"{label} was fitted on a {spec['base']['model']} with other layers or sizes than this base."
        )
    check_related(label, spec["base"]["sample"], model, force)
    if old is None:
        return
    held = sample_of(lambda name: old.get(name) if name in old.shapes else None, spec["base"]["sample"])
    for name, values in spec["base"]["sample"].items():
        theirs, ours = torch.tensor(values), torch.tensor(held.get(name, []))
        if len(ours) and (theirs.shape != ours.shape or not torch.allclose(theirs, ours, 1e-2, 1e-5)):
            _refuse(f"{label} was not fitted on the source base: weights differ, first in {name}.", force)
            return


def check_tokens(first: str, second: str, force: bool) -> None:
    """Raises where two model folders give a token different ids; folders without a tokenizer.json are not judged."""
    one, two = _tokens(first), _tokens(second)
    strange = [token for token in one if token in two and one[token] != two[token]]
    if strange:
        _refuse(
            f"{first} and {second} number their tokens differently ({len(strange):,} of them, such as {strange[0]!r}).",
            force,
        )


def _tokens(folder: str) -> dict[str, int]:
    file = path_of(folder) / FILE
    if not file.is_file():
        return {}
    with guarded(f"{file} is not a tokenizer's"):
        found = json.loads(file.read_text(encoding="utf-8"))
        vocabulary = found["model"].get("vocab", {})
        known = vocabulary if isinstance(vocabulary, dict) else {token: i for i, (token, *_) in enumerate(vocabulary)}
        return {**known, **{each["content"]: each["id"] for each in found.get("added_tokens", [])}}


def _refuse(text: str, force: bool) -> None:
    if not force:
        raise LuthierError(f"{text} force=True (--force) combines them anyway.")
    warnings.warn(text, stacklevel=3)
