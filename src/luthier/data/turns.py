"""Turns of conversations: from the forms that files have to the one that examples have.

A turn of an example is OpenAI's: `role`, `content`, and where they are given `tool_calls` (with decoded arguments),
`tool_call_id`, `name` and `reasoning_content`; further keys stay, for a template may read them. ShareGPT's `from` and
`value`, its `function_call` and `observation`, OpenAI's older `function_call`, and content in parts become that. What
keeps a turn out of the loss (`weight`, `train`, …) is taken off it.
"""

from __future__ import annotations

import ast
import re
from typing import Any

from luthier.core.contracts.example import Message
from luthier.core.json_text import Twice, loads
from luthier.data.bad import BadRow
from luthier.data.messages import THOUGHTS, opens_with_thought
from luthier.data.pictures import COLUMNS as PICTURED
from luthier.data.pictures import MARK, in_turn, is_picture
from luthier.data.table import empty, without_nulls

ROLES = ("system", "developer", "user", "assistant", "tool")
SAID = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "ipython": "tool",
    "function_call": "assistant",
    "tool_call": "assistant",
}
"""Other words for the roles."""
CALLING = ("function_call", "tool_call")
"""Roles whose content is a call, as JSON."""
FLAGS = ("weight", "train", "training", "trainable", "loss", "loss_mask", "loss_weight", "learn")
"""Keys of a turn that say whether it is learned: 1 or true, 0 or false."""
ROW_FLAGS = ("weight", "train", "loss_mask")
"""Columns that say so of a whole row, or of each of its turns."""
TOLD = {"0": False, "0.0": False, "false": False, "no": False, "1": True, "1.0": True, "true": True, "yes": True}
"""How files without booleans write them."""
TOOLS = ("tools", "functions")
"""Keys of a first turn, and columns, for what the assistant may call."""
INSTEAD = ("refusal", "audio", "text", "message")
"""Keys that may hold what a turn says where it has no content."""
SAID_IN = (None, "text", "input_text", "output_text")
"""Types of the parts of a turn that are what it says."""
THOUGHT_IN = ("thinking", "reasoning", "thought")
"""Types of the parts that are a thought, and keys that hold one or say that it is."""


def kind(value: Any) -> str:
    """`a list`, `an int`, `null`."""
    name = type(value).__name__
    return "null" if value is None else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def checked(value: Any, what: str, empty: bool = False) -> str:
    """A string that is valid Unicode, and not empty unless it may be."""
    if not isinstance(value, str):
        raise BadRow(f"{what!r} is {kind(value)}, expected a string")
    if not value.strip() and not empty:
        raise BadRow(f"empty {what!r}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise BadRow(f"{what!r} is not valid UTF-8") from None
    return value


def decoded(value: Any) -> Any:
    """A list or an object written as text, as CSV files and many hub sets hold it: JSON, or Python's own writing of it
    (pandas writes lists so); else the value itself."""
    if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
        try:
            return loads(value)
        except Twice:
            return value
        except (ValueError, RecursionError):
            return _literal(value)
    return value


def _why_text(value: Any) -> str:
    """Why a text that opens as JSON does is none to read, where a key stands twice."""
    try:
        loads(value)
    except Twice as twice:
        return f" ({twice})"
    except (TypeError, ValueError, RecursionError):
        pass
    return ""


def _literal(text: str) -> Any:
    try:
        found = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return found if isinstance(found, list | dict) else text


def flag(value: Any) -> bool | None:
    """Whether a value says that something is learned; None where it says neither."""
    said = TOLD.get(value.strip().lower(), value) if isinstance(value, str) else value
    return bool(said) if isinstance(said, bool | int | float) and said in (0, 1) else None


def unpacked(value: Any) -> Any:
    """The turns that a text holds as JSON, or a single one; other JSON is a text like any. Raises `BadRow` for a text
    that opens as turns do and holds none."""
    found = held(value)
    if isinstance(found, str) and OPENS.match(found):
        raise BadRow(
            f"turns written as text that is neither JSON nor a list of Python's ({found.strip()[:40]!r}…); pandas "
            "writes arrays of NumPy so: write the rows as JSONL or Parquet"
        )
    return [found] if isinstance(found, dict) and is_turn(found) else found


def held(value: Any) -> Any:
    """The turns that a value is or holds as text; else the value itself."""
    if not isinstance(value, str):
        return value
    found = decoded(value)
    turns = found if isinstance(found, list) else [found]
    return found if turns and all(map(is_turn, turns)) else value


def is_turn(value: Any) -> bool:
    """Whether a value is a turn: an object with a role and something said."""
    said = value.get("role", value.get("from")) if isinstance(value, dict) else None
    return isinstance(said, str) and (said.lower() in ROLES or said.lower() in SAID) and bool(SAYING & set(value))


SAYING = {"content", "value", "parts", "tool_calls", "function_call"}
OPENS = re.compile(r"""\s*\[\s*\{\s*["'](role|from)["']\s*:\s*["'](system|developer|user|assistant|human|gpt)["']""")
"""How a list of turns opens, as text."""


def turns(value: Any, column: str) -> tuple[list[Message], set[int]]:
    """Reads (the turns in a column, the indices of those that are kept out of the loss)."""
    value = decoded(value)
    if not isinstance(value, list):
        raise BadRow(f"{column!r} is {kind(value)}, expected a list of {{'role', 'content'}}{_why_text(value)}")
    if not value:
        raise BadRow(f"empty {column!r}")
    found = [_turn(message, f"{column}[{i}]") for i, message in enumerate(value)]
    masked = {i for i, message in enumerate(found) if not _learned(message, f"{column}[{i}]")}
    plain = [{key: each for key, each in message.items() if key not in FLAGS} for message in found]
    return plain, {i for i in masked if plain[i]["role"] == "assistant"}


def _turn(message: Any, what: str) -> Message:
    if not isinstance(message, dict):
        raise BadRow(f"{what!r} is {kind(message)}, expected {{'role', 'content'}}")
    if len(message) == 2 and message.get("role") in ROLES and isinstance(message.get("content"), str):
        return {"role": message["role"], "content": _content(message, what)}  # most turns: nothing more is in them
    message = {key: value for key, value in message.items() if value is not None}
    said, content = _one(message, what, "role", "from"), _one(message, what, "content", "value", "parts")
    role = _role(said, what)
    made: Message = {"role": role, "content": content, **message}
    if isinstance(said, str) and said.lower() in CALLING:
        made |= {"content": None, "tool_calls": decoded(content)}
    made |= _thought(made, what)
    calls = _calls(made, what)
    for key in ("tool_calls", "function_call", *THOUGHTS[1:]):
        made.pop(key, None)
    made |= {"tool_calls": calls} if calls else {}
    beside = [made.pop(key, None) for key in PICTURED]
    made["content"], pictures = in_turn(made["content"], next((each for each in beside if each), None), what)
    made |= ({"pictures": pictures} if pictures else {}) | {"content": _content(made, what)}
    if made.get("reasoning_content"):
        refuse_twice(made, what, "reasoning_content")
    return made


def _one(message: Message, what: str, *names: str) -> Any:
    """What stands under one of these keys, which are taken off; raises where two of them say something else."""
    found = {name: message.pop(name) for name in names if name in message}
    full = {name: each for name, each in found.items() if not empty(_joined(each))}
    values = [SAID.get(str(each).lower(), each) if names[0] == "role" else _joined(each) for each in full.values()]
    if any(value != values[0] for value in values[1:]):
        raise BadRow(f"{what} has {' and '.join(map(repr, full))}, and they differ; leave one of them out")
    return next(iter((full or found).values()), None)


def _joined(value: Any) -> Any:
    """The text that parts are which hold nothing else; else the value itself."""
    plain = isinstance(value, list) and all(_is_text(part) for part in value)
    return "".join(part if isinstance(part, str) else part["text"] for part in value) if plain else value


def _is_text(part: Any) -> bool:
    """Whether a part is a text without any more keys, which might say something of it."""
    if not isinstance(part, dict):
        return isinstance(part, str)
    return set(part) <= {"type", "text"} and part.get("type") in SAID_IN and isinstance(part.get("text"), str)


def _role(said: Any, what: str) -> str:
    role = SAID.get(said.lower(), said.lower()) if isinstance(said, str) else said
    if role not in ROLES:
        raise BadRow(f"{what} has the unknown role {said!r}; expected one of {', '.join(ROLES)}")
    return role


def is_assistant(message: Message) -> bool:
    """Whether a turn, as a file has it, is an assistant's."""
    said = str(message.get("role") or message.get("from") or "").lower()
    return SAID.get(said, said) == "assistant"


def _content(message: Message, what: str) -> str | None:
    role, content = message["role"], message["content"]
    if isinstance(content, list):
        content = "".join(_part(part, what) for part in content)
    calls = bool(message.get("tool_calls"))
    if content is None and calls:
        return None
    if content is None:
        other = next((key for key in INSTEAD if message.get(key)), None)
        beside = f", and its {other!r} is not read; write what is to be learned as its content" if other else ""
        raise BadRow(f"{what} has no 'content'{beside}")
    may_be_empty = calls or role in ("system", "developer", "tool")
    name = "answer" if role == "assistant" else f"{what}.content"
    return checked(content, name, empty=may_be_empty)


def _part(part: Any, what: str) -> str:
    if isinstance(part, str):
        return part
    if is_picture(part):
        return MARK
    said = isinstance(part, dict) and part.get("type") in SAID_IN and isinstance(part.get("text"), str)
    if not said:
        shown = f" ({part.get('type')})" if isinstance(part, dict) and part.get("type") else ""
        raise BadRow(f"{what} holds a part that is not text{shown}")
    if kept := [key for key in FLAGS if part.get(key) is not None and flag(part[key]) is not True]:
        raise BadRow(f"{what} keeps a part of itself out of the loss ({kept[0]}); a turn is learned whole or not")
    return part["text"]


def _thought(message: Message, what: str) -> dict[str, str]:
    """The thought before an answer, under the one key; a part of the content may hold it."""
    found = [message[key] for key in THOUGHTS if message.get(key)]
    content = message["content"]
    if isinstance(content, list):
        thoughts = [_thought_in(part) for part in content]
        found += [thought for thought in thoughts if thought]
        message["content"] = [part for part, each in zip(content, thoughts, strict=True) if each is None]
    if len({str(each) for each in found}) > 1:
        raise BadRow(f"{what} holds two thoughts that differ ({', '.join(k for k in THOUGHTS if message.get(k))})")
    return {"reasoning_content": checked(found[0], f"{what}.reasoning_content")} if found else {}


def refuse_twice(message: Message, what: str, beside: str) -> None:
    """Raises for a thought in the content of a turn that has one beside it, for both would be rendered."""
    if opens_with_thought(message["content"] or ""):
        raise BadRow(f"{what} has a thought in its content and one in {beside!r}; leave one of them out")


def _thought_in(part: Any) -> str | None:
    """The thought that a part of a turn is; None of any other part."""
    if not isinstance(part, dict):
        return None
    keyed = next((part[key] for key in THOUGHT_IN if isinstance(part.get(key), str)), None)
    named = part.get("type") in THOUGHT_IN or part.get("thought") is True
    return part["text"] if keyed is None and named and isinstance(part.get("text"), str) else keyed


def _calls(message: Message, what: str) -> list[dict[str, Any]]:
    """Calls as `{"type": "function", "function": {"name", "arguments": object}}`, in whatever form they are given."""
    given = decoded(message.get("tool_calls")) or (
        [decoded(message["function_call"])] if message.get("function_call") else []
    )
    given = [given] if isinstance(given, dict) else given
    if not isinstance(given, list):
        raise BadRow(f"{what}: a call is {kind(given)}, expected {{'name', 'arguments'}}")
    if given and message["role"] != "assistant":
        raise BadRow(f"{what} is a {message['role']} turn with calls; only an assistant calls")
    return [_call(decoded(each), what) for each in given]


def _call(call: Any, what: str) -> dict[str, Any]:
    inner = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        raise BadRow(
            f"{what}: a call is {kind(call) if inner is None else 'without a name'}, expected {{'name', 'arguments'}}"
        )
    arguments = inner.get("arguments", inner.get("parameters"))
    arguments = {} if arguments in (None, "") else _arguments(without_nulls(arguments), what)
    function = {"name": inner["name"], "arguments": arguments}
    taken = ("function",) if inner is not call else ("type", "name", "arguments", "parameters")
    around = {key: each for key, each in call.items() if key not in taken and each is not None}
    return {"type": "function", **around, "function": function}


def _arguments(value: Any, what: str) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = loads(value)
        except Twice as twice:
            raise BadRow(f"{what}: in the arguments of a call, {twice}") from None
        except (ValueError, RecursionError):
            raise BadRow(f"{what}: the arguments of a call are not valid JSON: {value[:60]!r}") from None
    if not isinstance(value, dict):
        raise BadRow(f"{what}: the arguments of a call are {kind(value)}, expected an object")
    return value


def _learned(message: Message, what: str) -> bool:
    """Whether a turn may be in the loss, by its flags; raises where they ask for what cannot be."""
    told = {key: message[key] for key in FLAGS if key in message}
    for key, value in told.items():
        if flag(value) is None:
            raise BadRow(f"{what}.{key} is {value!r}; a turn is learned or not: 1 or 0, true or false")
    if len(set(map(flag, told.values()))) > 1:
        raise BadRow(f"{what} says both that it is learned and that it is not ({', '.join(told)})")
    asked = any(map(flag, told.values()))
    if asked and message["role"] != "assistant":
        raise BadRow(f"{what} asks to be learned ({', '.join(told)}) and is a {message['role']} turn; only answers are")
    return asked or not told


def refuse_asked(value: Any, column: str) -> None:
    """Raises where a turn asks to be learned that stands before the answers, which alone are."""
    for i, message in enumerate(value if isinstance(value, list) else []):
        asked = [key for key in FLAGS if isinstance(message, dict) and flag(message.get(key))]
        if asked:
            raise BadRow(
                f"{column}[{i}] asks to be learned ({', '.join(asked)}), and nothing of {column!r} is, which stands "
                "before the answer; give the whole conversation as 'messages', or take the flag out"
            )
