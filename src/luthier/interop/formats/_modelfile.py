"""A Modelfile of Ollama: the chat template, measured and written as one of Go's, and the texts that end an answer."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any

from luthier.core.contracts.example import Example, Message
from luthier.core.errors import LuthierError
from luthier.data.bad import BadRow
from luthier.data.template import Template, has_template

ROLES = ("system", "user", "assistant")
PAIRS = [(a, b) for a, b in itertools.product((None, *ROLES), ROLES) if a != b]
"""Roles that may follow each other; None stands for the beginning. Ollama joins turns of one role."""
TRIED = ("user assistant user assistant user", "system user assistant user assistant user")
"""Conversations by which what was measured is checked."""

Between = dict[tuple[str | None, str], str]
"""What stands between the contents of two turns, by their roles."""


def modelfile(processor: Any, generation: Any, adds_bos: bool) -> str:
    """Returns the Modelfile of `model.gguf` beside it.

    `generation` is the model's generation config (or None), and `adds_bos` whether the file says that prompts begin
    with BOS, which the template must not write once more then. Raises `LuthierError` where the chat template is more
    than fixed texts around the turns, or where it thinks otherwise about a turn later on than when it was asked for.
    """
    lines = ["FROM ./model.gguf"]
    if has_template(processor):
        between, asked = measured(processor)
        text = in_go(between, asked, processor.bos_token or "" if adds_bos else "")
        if left := [f"{role} {f'after {before}' if before else 'at the start'}" for before, role in PAIRS
                    if (before, role) not in between]:  # fmt: skip
            lines.append(f"# Turns that the chat template refuses are left out: {', '.join(left)}.")
        lines.append(f'TEMPLATE """{text}"""')
        ends = stops(processor, generation, between)
        lines += [f"PARAMETER stop {json.dumps(each, ensure_ascii=False)}" for each in ends]
    return "\n".join(lines) + "\n"


def measured(processor: Any) -> tuple[Between, str]:
    """Returns what stands between turns, and what stands behind the last one where an answer is asked for."""
    template = Template.of(Example(row=1), processor)
    try:
        if "strftime_now" in template.source:
            raise BadRow("it writes the date of the day")
        found = {pair: text for pair in PAIRS if (text := _between(template, *pair)) is not None}
        asked = template.render(_turns("user"), prompt=True).split(_content(0, "user"))[1]
        for roles in TRIED:
            _check(template, roles.split(), found, asked)
    except (BadRow, IndexError) as error:
        raise LuthierError(f"the chat template cannot be written for Ollama: {error or 'it drops a turn'}.") from None
    return found, asked


def _between(template: Template, before: str | None, role: str) -> str | None:
    """The text between the contents of two turns; None where the template takes no such turns."""
    lead = {None: "", "system": "system", "user": "user", "assistant": "user assistant"}[before]
    turns = _turns(f"{lead} {role}{' user' if role == 'system' else ''}")
    text, place = template.attempt(turns), len(lead.split())
    if text is None or turns[place]["content"] not in text:
        return None
    begin = text.split(turns[place]["content"])[0]
    return begin.split(turns[place - 1]["content"])[-1] if place else begin


def _check(template: Template, roles: Sequence[str], between: Between, asked: str) -> None:
    """Raises where the measured texts do not make the conversation that the template makes."""
    turns = _turns(" ".join(roles))
    text = template.attempt(turns, prompt=True)
    if text is None and "system" in roles:
        return  # it takes none
    parts = [between.get(pair, "") for pair in zip([None, *roles[:-1]], roles, strict=True)]
    made = "".join(part + turn["content"] for part, turn in zip(parts, turns, strict=True)) + asked
    if text != made:
        raise BadRow("it is more than fixed texts around the turns of a conversation")


def _turns(roles: str) -> list[Message]:
    return [{"role": role, "content": _content(place, role)} for place, role in enumerate(roles.split())]


def _content(place: int, role: str) -> str:
    return f"{role}q{place}q"


def in_go(between: Between, asked: str, bos: str) -> str:
    """Returns the template in the language of Go's text/template, over Ollama's `.Messages`.

    A turn that the chat template takes nowhere, or not behind the last one, is left out.
    """
    known = [role for role in ROLES if role in {after for _, after in between}]
    cases = "".join(_turn(between, role, bos, "else if" if place else "if") for place, role in enumerate(known))
    turns = f"{{{{ range .Messages }}}}{cases}{{{{ end }}}}{{{{ end }}}}"
    return f'{{{{ $last := "" }}}}{turns}{{{{ if ne $last "assistant" }}}}{_quoted(asked)}{{{{ end }}}}'


def _turn(between: Between, role: str, bos: str, when: str) -> str:
    """A turn of a role, with what stands before it, by whose the last one was."""
    texts = {before: text for (before, after), text in between.items() if after == role}
    opened = "".join(
        f'{{{{ {"else if" if number else "if"} eq $last "{before or ""}" }}}}'
        f"{_quoted(text if before else text.removeprefix(bos))}{{{{ .Content }}}}{{{{ $last = .Role }}}}"
        for number, (before, text) in enumerate(texts.items())
    )
    return f'{{{{ {when} eq .Role "{role}" }}}}{opened}{{{{ end }}}}'


def _quoted(text: str) -> str:
    """Text as Go prints it, through a string where it holds what Go or a Modelfile would read."""
    plain = not ("{{" in text or '"""' in text or text.endswith("{") or text.strip() != text)
    return text if plain else f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}"


def stops(processor: Any, generation: Any, between: Between) -> Iterator[str]:
    """Yields the texts of tokens that end an answer, and of the one that the template ends a turn with."""
    known = getattr(generation, "eos_token_id", None)
    ends = [processor.eos_token_id, *(known if isinstance(known, list) else [known])]
    closing = processor(between.get(("assistant", "user"), ""), add_special_tokens=False)["input_ids"][:1]
    ends += [each for each in closing if each in processor.all_special_ids]
    yield from dict.fromkeys(processor.convert_ids_to_tokens(each) for each in ends if each is not None)
