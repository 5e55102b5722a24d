"""Keys of turns beyond those that every template knows: whether a chat template reads them, measured on the rows."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from luthier.core.contracts.example import Example
from luthier.data.bad import BadRow
from luthier.data.template import Template, has_template

KEY = re.compile(r"[^\[\]]+\[\]\.([^.\[\]]+)")
"""A key of turns as `Examples.unread` names it, `messages[].name`; not one within a part or a call."""
TRIED = 8
"""Turns of a role whose key is taken away, to see what becomes of the text."""


def unheard(names: Iterable[str], rows: Iterable[Example], tokenizer: Any) -> list[str]:
    """Returns the names less the keys of turns that the chat template reads; where it reads them of some roles alone,
    the others are named with the key."""
    names = list(names)
    keys = {found[1] for name in names if (found := KEY.fullmatch(name))}
    heard = _heard(keys, rows, tokenizer) if keys and has_template(tokenizer) else {}
    told = []
    for name in names:
        found = KEY.fullmatch(name)
        roles = heard.get(found[1], {}) if found else {}
        deaf = [role for role, reads in roles.items() if not reads]
        if not any(roles.values()):
            told.append(name)
        elif deaf:
            told.append(f"{name} of {', '.join(deaf)} turns")
    return told


def _heard(keys: set[str], rows: Iterable[Example], tokenizer: Any) -> dict[str, dict[str, bool]]:
    """{key: {role: whether what is rendered goes by it}}."""
    found: dict[str, dict[str, bool]] = {key: {} for key in keys}
    left: dict[tuple[str, str], int] = {}
    for example in rows:
        for turn, message in enumerate(example.messages or []):
            for key in keys & set(message):
                role = message["role"]
                if found[key].get(role) or left.setdefault((key, role), TRIED) == 0:
                    continue
                left[key, role] -= 1
                found[key][role] = _reads(example, turn, key, tokenizer)
    return found


def _reads(example: Example, turn: int, key: str, tokenizer: Any) -> bool:
    turns = list(example.messages or [])
    less = {name: value for name, value in turns[turn].items() if name != key}
    try:
        template = Template.of(example, tokenizer)
    except BadRow:
        return False
    with_it = template.attempt(turns)
    return with_it is not None and with_it != template.attempt([*turns[:turn], less, *turns[turn + 1 :]])
