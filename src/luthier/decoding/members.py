"""The models of a decoding: one for every role, whose weights are loaded once where roles share them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.core.contracts.decoding import Decoding
from luthier.core.errors import LuthierError, near
from luthier.core.sites.caches import cache_name


@dataclass(frozen=True, eq=False)
class Member:
    """A model in a role, with one of its adapters or bare."""

    model: Any
    """A transformers decoder."""
    tokenizer: Any
    adapter: str | None = None
    """Name of the adapter that acts, alone; None: the base as it was, whatever is attached."""
    template: Mapping[str, Any] = field(default_factory=dict)
    """Variables of the chat template that its adapter was trained with."""


Spoken = str | Member
"""A member, or `MODEL` or `MODEL@ADAPTER` to be loaded."""
Members = Mapping[str, Sequence[Member]]


def members_of(
    by: Decoding, roles: Mapping[str, Spoken | Sequence[Spoken]], *, dtype: str = "float32", apart: str | None = None
) -> dict[str, list[Member]]:
    """Returns the members of every role of `by`, loaded where only named.

    Two roles that name one model share its weights; so `MODEL@ADAPTER` beside `MODEL` costs an adapter. The role
    `apart` gets weights of its own. Raises `LuthierError` for roles missing or unknown, an adapter that is not there,
    vocabularies that differ (all found before weights are read), and a model that no cache can be kept for.
    """
    spoken = _by_role(by, roles)
    by.check_models({role: len(given) for role, given in spoken.items()})
    loaded = _Shelf(dtype)
    for text in (each for given in spoken.values() for each in given if isinstance(each, str)):
        loaded.announce(text)
    loaded.check(spoken)
    shelves = {role: _Shelf(dtype) if role == apart else loaded for role in spoken}
    members = {
        role: [
            shelves[role].member(each, f"{role}{n}") if isinstance(each, str) else each for n, each in enumerate(given)
        ]
        for role, given in spoken.items()
    }
    check_members(members)
    return members


def _by_role(by: Decoding, roles: Mapping[str, Spoken | Sequence[Spoken]]) -> dict[str, list[Spoken]]:
    """What plays each role, in the decoding's order; raises for roles that do not fit."""
    for role in roles:
        if role not in by.roles:
            raise LuthierError(f"{by.name()} has no role {role!r}{near(role, by.roles)} It has: {', '.join(by.roles)}.")
    found = {}
    for role, told in by.roles.items():
        given = roles.get(role, ())
        found[role] = [given] if isinstance(given, str | Member) else list(given)
        if not found[role]:
            raise LuthierError(f"{by.name()} needs a model as {role}: {told}.")
        if len(found[role]) > 1 and role not in by.several:
            raise LuthierError(f"{by.name()} takes one model as {role}, not {len(found[role])}.")
    return found


def check_members(members: Members) -> None:
    """Raises for a model that cannot take part, adapters that are merged, and vocabularies that differ."""
    from luthier.core.adapters.attach import check_name, find_state
    from luthier.decoding.vocabulary import check_tokenizers

    for role, member in ((role, each) for role, given in members.items() for each in given):
        kind, state = type(member.model).__name__, find_state(member.model)
        if member.model.config.is_encoder_decoder or not member.model.can_generate():
            raise LuthierError(f"{kind} as {role} is not a decoder; models that decode together must be causal-lm.")
        if cache_name(member.model) is None:
            raise LuthierError(f"{kind} as {role} keeps no cache of keys and values, and cannot take part.")
        if state is not None and state.merged:
            raise LuthierError(f"adapters are merged into the model of {role}; unmerge it, so that roles can differ.")
        if member.adapter is not None and state is None:
            raise LuthierError(f"the model of {role} has no adapter {member.adapter!r}: none is attached.")
        if member.adapter is not None and state is not None:
            check_name(state, member.adapter)
    check_tokenizers(labelled(members, lambda member: member.tokenizer))


def labelled(members: Mapping[str, Sequence[Any]], value: Any) -> dict[str, Any]:
    """Returns `{"expert": value(member)}`, numbered where a role has several."""
    return {
        role if len(given) == 1 else f"{role} {number}": value(each)
        for role, given in members.items()
        for number, each in enumerate(given, 1)
    }


def split(text: str) -> tuple[str, str | None]:
    """Splits `MODEL@ADAPTER` into (model, adapter); a folder's name may hold an @ itself."""
    from luthier.core.storage.folder import adapter_at

    cuts = [place for place, letter in enumerate(text) if letter == "@"]
    if not cuts or os.path.exists(os.path.expanduser(text)):
        return text, None
    place = next((cut for cut in cuts if adapter_at(text[cut + 1 :])), cuts[0])
    if not text[:place]:
        raise LuthierError(f"{text!r} names no model before the @; write MODEL@ADAPTER.")
    return text[:place], text[place + 1 :]


class _Shelf:
    """Models by name, each loaded once."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self._tokenizers: dict[str, Any] = {}
        self._models: dict[str, Any] = {}

    def announce(self, text: str) -> None:
        """Reads what tells early that something is amiss: the adapter's spec and the tokenizer."""
        from luthier.models import processor_of, refuse_unwritten, task_of

        name, adapter = split(text)
        refuse_unwritten(name, adapter, task_of(name, adapter), tasks=("causal-lm",))
        if _place(name) not in self._tokenizers:
            self._tokenizers[_place(name)] = processor_of(name, "causal-lm")

    def check(self, spoken: Mapping[str, Sequence[Spoken]]) -> None:
        """Raises where tokenizers differ."""
        from luthier.decoding.vocabulary import check_tokenizers

        read = lambda each: each.tokenizer if isinstance(each, Member) else self._tokenizers[_place(split(each)[0])]  # noqa: E731
        check_tokenizers(labelled(spoken, read))

    def member(self, text: str, role: str) -> Member:
        """Returns the member that `text` names, its adapter attached under the name of its role."""
        from luthier.core.storage.folder import adapter_folder, read_adapter
        from luthier.core.storage.store import load
        from luthier.evaluating.untrained import refuse_untrained
        from luthier.models import Chat, with_chat
        from luthier.models import load as load_model

        name, adapter = split(text)
        if _place(name) not in self._models:
            self._models[_place(name)] = load_model(name, dtype=self.dtype)
        loaded = self._models[_place(name)]
        if adapter is not None:
            load(loaded.model, adapter_folder(adapter), role)
        refuse_untrained(loaded)
        if adapter is None:
            return Member(loaded.model, loaded.processor)
        folder, spec = read_adapter(adapter)
        chat = Chat.of(spec)
        own = with_chat(loaded, spec, folder).processor
        return Member(loaded.model, own, role, chat.variables if chat else {})


def _place(name: str) -> str:
    """One text for one model, however it is named."""
    from luthier.models import resolve

    found = resolve(name)
    return str(found.resolve()) if isinstance(found, Path) else found
