"""Columns that stand around a conversation, whatever its layout: what the prompt holds beside its turns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luthier.core.contracts.example import Message
from luthier.data.bad import BadRow
from luthier.data.pictures import COLUMNS as PICTURES
from luthier.data.pictures import placed
from luthier.data.table import Row, empty, without_nulls
from luthier.data.turns import ROW_FLAGS, TOOLS, checked, decoded, flag, kind, refuse_asked, refuse_twice, turns
from luthier.data.unseen import refuse_unseen

SYSTEM = ("system", "system_prompt", "system_message")
THOUGHT = ("reasoning_content", "thinking")
AROUND = (*SYSTEM, "history", *TOOLS, "documents", "chat_template_kwargs", *THOUGHT, *PICTURES)
"""Columns that every conversation may have."""
OURS = ("conversation", "messages", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize",
        "return_tensors", "return_dict", "return_assistant_tokens_mask")  # fmt: skip
"""Arguments of `apply_chat_template` that no row may set."""


def given(row: Row, *columns: str) -> Any:
    """Returns the value of the first column that holds something; None without one. Raises if two of them differ."""
    found = {column: row[column] for column in columns if column in row and row[column] not in (None, "", [], {})}
    values = list(found.values())
    if any(value != values[0] for value in values[1:]):
        raise BadRow(f"{' and '.join(map(repr, found))} both stand here and differ")
    return values[0] if values else None


def surrounded(fields: Row, row: Row) -> Row:
    """Returns the fields of a conversation with what stands around it in the row."""
    messages, tools = _lifted(fields["messages"])
    head = messages[:1] if messages[0]["role"] in ("system", "developer") else []
    told, (earlier, before) = _system(row, head), _lifted(_history(row))
    lead, after = len(told) + len(earlier), max(0, fields["context"] - len(head))
    made = {**fields, "messages": [*told, *earlier, *messages[len(head) :]]}
    made["context"] = lead + after if earlier or fields["context"] else 0
    masked = sorted({*fields.get("masked", ()), *_flagged(row, messages)})
    made["masked"] = tuple(i + lead - len(head) for i in masked)
    own = [each for each in (_tools(row), tools, before) if each]
    if any(each != own[0] for each in own):
        raise BadRow("the tools of the column and those of a first turn differ; leave one of them out")
    made |= {"tools": own[0] if own else None, "documents": _documents(row), "template": _template(row)}
    if made["template"]:
        _move(made)
    return _thoughtful(made, row)


def pictured(fields: Row, row: Row, folder: Path | None) -> Row:
    """Returns the fields of a row with the pictures of its conversation; other rows as they are."""
    if not fields.get("messages"):
        return fields
    turns, names = placed(fields["messages"], decoded(given(row, *PICTURES)), folder)
    made = {**fields, "messages": turns, "images": names}
    if fields.get("rejected"):
        made["rejected"] = [*turns[: fields["context"]], *_unpictured(fields["rejected"][fields["context"] :])]
    rest = {name: value for name, value in row.items() if not (names and name in PICTURES)}
    refuse_unseen(rest, (m.get("content") for m in turns if m["role"] != "assistant"))
    return made


def _unpictured(answers: list[Message]) -> list[Message]:
    if any(message.get("pictures") for message in answers):
        raise BadRow("a rejected answer with a picture; only text is answered")
    return answers


def learned(fields: Row) -> list[int]:
    """Returns the indices of the turns in the loss."""
    masked = fields.get("masked", ())
    return [
        i
        for i, m in enumerate(fields["messages"])
        if m["role"] == "assistant" and i >= fields["context"] and i not in masked
    ]


def check_flags(row: Row) -> None:
    """Raises where a row says that it is not to be learned."""
    for column in ROW_FLAGS:
        if flag(row.get(column)) is False:
            raise BadRow(
                f"{column!r} is {row[column]!r} for the whole row, which keeps it out of the loss: leave the row out"
            )


def _flagged(row: Row, messages: list[Message]) -> list[int]:
    """The answers that a list of flags beside the turns, one for each, keeps out of the loss."""
    found: list[int] = []
    for column in ROW_FLAGS:
        value = decoded(row.get(column))
        if not isinstance(value, list) or not value:
            continue
        told = list(map(flag, value))
        if len(told) != len(messages):
            raise BadRow(f"{column!r} is a list of {len(told)}, expected 1 or 0 for each of the {len(messages)} turns")
        if None in told:
            wrong = value[told.index(None)]
            raise BadRow(f"{column!r} holds {wrong!r}, expected 1 or 0 for each of the {len(messages)} turns")
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if asked := [i for i, learned in enumerate(told) if learned and i not in answers]:
            role = messages[asked[0]]["role"]
            raise BadRow(f"{column!r} asks to learn message {asked[0] + 1}, a {role} turn; only answers are")
        found += [i for i in answers if not told[i]]
    return found


def _system(row: Row, head: list[Message]) -> list[Message]:
    """The system turn of the column, or the conversation's own; raises where both stand and differ."""
    text = given(row, *SYSTEM)
    if text is None:
        return head
    checked(text, "system")
    own = head[0].get("content") if head else None
    if own and own != text:
        raise BadRow("the column 'system' and the system turn differ; leave one of them out")
    return head if own else [{**(head[0] if head else {"role": "system"}), "content": text}]


def _history(row: Row) -> list[Message]:
    """Earlier turns, never in the loss: pairs of question and answer, or turns."""
    value = decoded(given(row, "history"))
    if not value:
        return []
    if not isinstance(value, list):
        raise BadRow(f"'history' is {kind(value)}, expected a list of [question, answer] or of turns")
    if all(isinstance(each, dict) for each in value):
        refuse_asked(value, "history")
        return turns(value, "history")[0]
    found: list[Message] = []
    for i, pair in enumerate(value):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise BadRow(f"history[{i}] is {kind(pair)}, expected [question, answer]")
        found += [
            {"role": role, "content": checked(text, f"history[{i}]")}
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
    return found


def _lifted(messages: list[Message]) -> tuple[list[Message], list[dict[str, Any]] | None]:
    """(turns, the tools that the first of them bore)."""
    if not messages:
        return [], None
    found = _tools(messages[0])
    plain = {key: value for key, value in messages[0].items() if key not in TOOLS}
    return [plain, *messages[1:]], found


def _tools(row: Row) -> list[dict[str, Any]] | None:
    """Schemas as `{"type": "function", "function": {…}}`; JSON text is decoded, OpenAI's older `functions` wrapped."""
    found = {name: _listed_tools(name, decoded(without_nulls(row.get(name)))) for name in TOOLS}
    return given(found, *TOOLS)


def _listed_tools(name: str, value: Any) -> list[dict[str, Any]]:
    if empty(value):
        return []
    value = [value] if isinstance(value, dict) else value
    if not isinstance(value, list):
        raise BadRow(f"{name!r} is {kind(value)}, expected a list of functions (or it as JSON)")
    return [_tool(decoded(each), i) for i, each in enumerate(value)]


def _tool(tool: Any, place: int) -> dict[str, Any]:
    inner = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        raise BadRow(f"tools[{place}] is {kind(tool) if inner is None else 'no function with a name'}")
    inner = {**inner, "parameters": decoded(inner["parameters"])} if "parameters" in inner else inner
    return {**tool, "function": inner} if "function" in tool else {"type": "function", "function": inner}


def _documents(row: Row) -> list[dict[str, Any]] | None:
    value = without_nulls(decoded(given(row, "documents")))  # cells of CSV files are JSON text
    if value is None:
        return None
    value = value if isinstance(value, list) else [value]
    found = [{"text": each} if isinstance(each, str) else each for each in value]
    wrong = next((each for each in found if not isinstance(each, dict)), None)
    if wrong is not None:
        raise BadRow(f"'documents' holds {kind(wrong)}, expected texts or objects")
    return found


def _template(row: Row) -> dict[str, Any]:
    value = decoded(given(row, "chat_template_kwargs"))
    if value is not None and not isinstance(value, dict):
        raise BadRow(f"'chat_template_kwargs' is {kind(value)}, expected an object")
    wrong = [name for name in value or () if name in OURS]
    if wrong:
        raise BadRow(f"'chat_template_kwargs' sets {', '.join(wrong)}, which training sets itself")
    return without_nulls(value or {})


def _move(made: Row) -> None:
    """Tools and documents among the variables of the template go where those of columns stand."""
    variables = made["template"]
    for name, read in (("tools", _tools), ("documents", _documents)):
        value = read({name: variables.pop(name, None)})
        if value and made[name] and value != made[name]:
            raise BadRow(f"{name!r} stands in a column and in 'chat_template_kwargs', and they differ")
        made[name] = made[name] or value


def _thoughtful(made: Row, row: Row) -> Row:
    """With the thought of a column before the one answer."""
    thought = given(row, *THOUGHT)
    if thought is None:
        return made
    places = learned(made)
    if len(places) != 1:
        raise BadRow(
            f"the column of a thought does not say to which of {len(places)} answers it belongs; put it on its turn"
        )
    column = next(name for name in THOUGHT if not empty(row.get(name)))
    messages = list(made["messages"])
    own = messages[places[0]].get("reasoning_content", thought)
    if own != thought:
        raise BadRow("the thought of the column and that of the answer differ; leave one of them out")
    refuse_twice(messages[places[0]], f"message {places[0] + 1}", column)
    messages[places[0]] = {**messages[places[0]], "reasoning_content": checked(thought, column)}
    return {**made, "messages": messages}
