"""From a conversation to text, and to the places in it that the model is to produce.

Chat templates differ in every way they can, so nothing about one is assumed; each place is
measured on the template. An answer starts where the prompt for generation ends: the render of the
turns before it with `add_generation_prompt=True`, when that opens the full text. Otherwise it
starts where it differs from a marker rendered in its stead: what stands before and after the marker
stands before and after the answer. So an empty thought that a template puts before an answer is
learned where generation would have to produce it (Qwen3's last turn), and not where the template
takes it out (its earlier turns). An answer ends with the end-of-turn token after its content; what
a template writes behind that (a line break, phi-3's `<|endoftext|>`) is not learned. A template with
`{% generation %}` says itself what the assistant produces, and is believed, except for what the prompt
for generation holds already and what stands behind the end of the turn.

Then all that the row says is looked for in the text (`luthier.data.shown`): an answer that stands
there in another form is not learned, and a row of which a part is left out is refused.

Without a chat template the turns follow each other as plain text: a line break between prompt and
answer unless one of them has whitespace there, and the EOS token after each answer.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from luthier.core.contracts.example import Example, Message, last_answer
from luthier.data.bad import BadRow
from luthier.data.ends import closed, ends_of, eos_of, in_pieces, stop_of, with_end, written_marks
from luthier.data.messages import calls_of, split_thought, thought_of
from luthier.data.place import Span, places, shared
from luthier.data.shown import check_calls, check_given, check_marks, idle, lacks, missing, settled, squeezed
from luthier.data.template import Template, has_template

OPEN = re.compile(r"<(\w+)>(?!.*</\1>)", re.DOTALL)
"""A tag that is opened and not closed."""
HISTORY = (
    "answers are read and not learned: behind later turns the template leaves a part of them out, such as a thought "
    "(to learn one, end a row with it)"
)
UNHEARD = "thoughts of turns that are not learned are left out by the template"
ELSEWHERE = "the template's prompt for generation goes on with {!r}, and answers are learned behind {} instead"
ANOTHER = "the template renders the turns before the last answer otherwise while that is still to come"
QUOTED = 60
"""Characters of a template's own that a note quotes."""
PIECES = "the template ends a turn with {!r}, which is not a token here: what serves the model needs it as a stop text"
TWICE = "answers end with {!r} already, and the template adds another; take it out of the rows"
ENDED = "answers end with {!r}, and the template adds {!r} behind it; take it out of the rows"
AGAIN = (
    "turns hold {!r}, which the template writes too; rows that are rendered already go into a column 'text', around "
    "which no template is put"
)

WRAPPED = "turns open with {!r}, and the template puts another before them; take it out of the rows"
TAGGED = re.compile(r"<[\w|][^<>\s]*>")
"""A tag at the start of a content, as rows have it that are rendered already (`<tool_response>`)."""

SPACED = "answers are learned with other white space than the rows have: the template renders them so"


@dataclass(frozen=True)
class Rendered:
    """A row as text."""

    text: str
    spans: list[Span]
    """The answers that are learned, each with its end-of-turn token, in order."""
    told: Counter[str] = field(default_factory=Counter)
    """What the user should hear of it, each with the number of turns that it is true of."""


def rendered(example: Example, tokenizer: Any, asked: bool = False) -> Rendered:
    """Returns the whole text of an example, and the answers in it (each with its end-of-turn token).

    With `asked`, the row is a prompt: its last answer is placed whatever becomes of it. Raises `BadRow` when the
    template refuses the conversation, leaves out a part of it, or an answer cannot be placed in what it renders.
    """
    if example.messages is None:
        if example.text is None:
            raise BadRow("neither messages nor a text to learn")
        text = closed(example.text, tokenizer)
        return Rendered(text, [(0, len(text))])
    answers = _answers(example, asked)
    if not has_template(tokenizer):
        return _plain(example, example.messages, answers, tokenizer)
    template = Template.of(example, tokenizer)
    turns = settled(template, example.messages)
    text = template.render(turns)
    told = Counter(check_given(template, turns, text))
    spans = _checked(template, turns, text, places(template, turns, answers, text), told, asked)
    text, spans = _opened(template, turns, text, spans, told)
    _tell_ends(template, turns, spans, told)
    _tell_wrapped(turns, text, told)
    return Rendered(*_ended(text, list(spans.values()), tokenizer, ends_of(template)), told)


def refuse_unsaid(example: Example, why: str) -> None:
    """Raises `BadRow` for what only a chat template can render: tools, documents, pictures, calls and thoughts."""
    turns = example.messages or []
    found = {
        "tools": example.tools,
        "documents": example.documents,
        "pictures": example.images,
        "calls of functions": any(map(calls_of, turns)),
        "thoughts beside the content (reasoning_content)": any(map(thought_of, turns)),
    }
    for what, there in found.items():
        if there:
            raise BadRow(f"the row has {what}, and {why}")


def _plain(example: Example, messages: list[Message], answers: list[int], tokenizer: Any) -> Rendered:
    refuse_unsaid(example, "the tokenizer has no chat template to render them with")
    text, spans = "", []
    for i, message in enumerate(messages):
        content = message.get("content") or ""
        glued = not text or text[-1].isspace() or content[:1].isspace() or text.endswith(eos_of(tokenizer))
        text += "" if glued else "\n"
        start = len(text)
        text += closed(content, tokenizer) if message["role"] == "assistant" else content
        if i in answers:
            spans.append((start, len(text)))
    unread = f"without a chat template, nothing reads {', '.join(map(repr, example.template))} of chat_template_kwargs"
    return Rendered(text, spans, Counter({unread: 1} if example.template else {}))


def _answers(example: Example, asked: bool) -> list[int]:
    """Indices of the assistant turns in the loss; of a prompt, the last one in any case."""
    turns = example.messages or []
    said = [i for i, m in enumerate(turns) if m["role"] == "assistant" and i >= example.context]
    found = [i for i in said if i not in example.masked]
    if asked:
        return sorted({*found, last_answer(turns)})
    if not found:
        raise BadRow("no answer is to be learned: the row keeps all of them out of the loss")
    return found


def _checked(
    template: Template, turns: list[Message], text: str, found: dict[int, Span | None], told: Counter[str], asked: bool
) -> dict[int, Span]:
    """The answers that stand in the text as the row has them. Raises `BadRow` for what the template leaves out."""
    check_calls(text, turns)
    check_marks(template, turns[:-1] if asked else turns, text)
    there, kept = squeezed(text), {}
    for turn, span in found.items():
        lost = [] if asked and turn == max(found) else _lost(template, turns, turn, text, span)
        if lost:
            _check_dropped(template, turns, turn, lost)
            told[HISTORY] += 1
        else:
            kept[turn] = span or _nowhere(turn)
            told.update({SPACED: 1} if _spaced(turns[turn], text[slice(*kept[turn])]) else {})
    for turn in set(range(len(turns))) - set(found):
        _check_read(turns, turn, missing(turns[turn], there), told)
    if not kept:
        raise BadRow("no answer would be learned as the model is to write it: the template leaves out a part of each")
    return kept


def _spaced(turn: Message, shown: str) -> bool:
    """Whether an answer is not there to the letter; around a thought in it, templates set line breaks of their own."""
    content = turn.get("content") or ""
    thought, rest = split_thought(content)
    return content not in shown and (rest.strip("\n") if thought else content) not in shown


def _nowhere(turn: int) -> Span:
    raise BadRow(
        f"the chat template renders the answer of message {turn + 1} so that it cannot be told from what stands "
        "around it; nothing of it would be learned"
    )


def _lost(template: Template, turns: list[Message], turn: int, text: str, span: Span | None) -> list[tuple[str, str]]:
    """What the template leaves out of an answer, wherever that stands."""
    lost = missing(turns[turn], squeezed(text[slice(*span)] if span else text))
    return lost or idle(template, turns, turn, text)


def _check_read(turns: list[Message], turn: int, lost: list[tuple[str, str]], told: Counter[str]) -> None:
    """Raises where a turn that is only read lacks more than its thought."""
    said = [each for each in lost if each[0] != "thought"]
    if said:
        raise lacks(turns[turn], turn, said)
    told.update({UNHEARD: 1} if lost else {})


def _check_dropped(template: Template, turns: list[Message], turn: int, lost: list[tuple[str, str]]) -> None:
    """Raises where the template leaves out a part of an answer even while it is the last."""
    upto = turns[: turn + 1]
    alone = template.attempt(upto) or ""
    prompt = (template.attempt(turns[:turn], prompt=True) or "") if turn else ""
    shown = squeezed(alone[shared(prompt, alone) :])
    if upto == turns or missing(turns[turn], shown) or idle(template, upto, turn, alone):
        raise lacks(turns[turn], turn, lost)


def _opened(
    template: Template, turns: list[Message], text: str, found: dict[int, Span], told: Counter[str]
) -> tuple[str, dict[int, Span]]:
    """The text with its last answer behind the prompt for generation, where the row's variables make that another
    one than the template renders before answers (an empty thought that only a prompt opens with)."""
    turn = len(turns) - 1
    if turn not in found or not turn:
        return text, found
    start, end = found[turn]
    prompt = template.attempt(turns[:turn], prompt=True) or ""
    begun = shared(prompt, text)
    more = prompt[begun:]
    if not more.strip():
        return text, found
    if begun < start or not template.variables or prompt == _usual(template, turns[:turn]):
        own = text[begun:start].strip()
        short = max(len(own), len(more)) <= QUOTED
        told[ELSEWHERE.format(more.strip(), repr(own) if own else "nothing") if short else ANOTHER] += 1
        return text, found
    if OPEN.search(prompt[start:]):
        raise BadRow(
            f"chat_template_kwargs make the prompt end with {more.strip()!r}, and message {turn + 1} has nothing to "
            "close it with; take the variable out, or give the thought"
        )
    return prompt + text[start:], found | {turn: (len(prompt), end + len(prompt) - start)}


def _usual(template: Template, turns: list[Message]) -> str | None:
    """The prompt for generation without the row's variables."""
    return template.less(variables={}).attempt(turns, prompt=True)


def _tell_ends(template: Template, turns: list[Message], found: dict[int, Span], told: Counter[str]) -> None:
    stop, eos = stop_of(template), template.tokenizer.eos_token
    if stop and in_pieces(stop, template.tokenizer):
        told[PIECES.format(stop)] += 1
    notes = {eos: ENDED.format(eos, stop), stop: TWICE.format(stop)} if stop else {}
    for number, turn in enumerate(turns):
        said = (turn.get("content") or "").rstrip()
        end = next((mark for mark in notes if number in found and mark and said.endswith(mark)), "")
        told.update({notes[end]: 1} if end else {})
        inner = written_marks(template).search(said.removesuffix(end))
        told.update({AGAIN.format(inner[0]): 1} if inner else {})


def _tell_wrapped(turns: list[Message], text: str, told: Counter[str]) -> None:
    """Notes the tags that open a turn and that the template has put before it as well."""
    there = ""
    for turn in turns:
        content = (turn.get("content") or "").strip()
        if opening := TAGGED.match(content):
            there = there or squeezed(text)
            twice = opening[0] + squeezed(content) in there
            told.update({WRAPPED.format(opening[0]): 1} if twice else {})


def _ended(text: str, spans: list[Span], tokenizer: Any, ends: tuple[str, ...]) -> tuple[str, list[Span]]:
    """The spans with the end-of-turn token that follows each; a last answer without one gets the
    EOS token."""
    spans = [(start, with_end(text, end, ends)) for start, end in spans]
    start, end = spans[-1]
    if not text[start:end].endswith(ends):
        text = text[:end] + eos_of(tokenizer)
        spans[-1] = (start, len(text))
    return text, spans
