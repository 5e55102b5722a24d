"""Calls of tools: how a template writes them, read back from answers, and models held to them."""

from __future__ import annotations

import dataclasses
import json
import time

import pytest
from pydantic_core import PydanticCustomError

from luthier.core.errors import LuthierError
from luthier.engine.engine import Engine
from luthier.engine.grammar import Grammar
from luthier.engine.request import Request
from luthier.serving.http.callreader import CallReader, Nesting
from luthier.serving.http.calls import call_format
from luthier.serving.http.schema import ChatBody
from luthier.serving.http.tagged import value_of
from luthier.serving.http.wants import grammar_of
from serving.test_engine import served
from serving.test_http import HELLO, chat, error, events
from support.architectures import ARCHITECTURES
from support.call_templates import SAYS, calling

A, B = ("f", '{"a": 1}'), ("g", '{"b": ["}", "\\""]}')
WHOLE = {"hermes": ("One.", [A, B]), "llama": ("", [A]), "mistral": ("", [A, B]), "deepseek": ("", [A, B]),
         "coder": ("One.", [A, B]), "glm": ("One.", [A, B]), "glm4": ("", [A, B])}  # fmt: skip
PARAMETERS = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}


TOOLS: dict = {"f": {}, "g": {}}


def tool(name: str, **more) -> dict:
    return {"type": "function", "function": {"name": name, "parameters": PARAMETERS, **more}}


def read(template: str, text: str, size: int, tools: dict | None = None, **more) -> tuple[str, list[tuple[str, str]]]:
    """What is text and what is called in an answer that comes in pieces of a size."""
    written = call_format(calling(template))
    assert written is not None
    reader = CallReader(written, TOOLS | (tools or {}), **more)
    pieces = [piece for i in range(0, len(text), size) for piece in reader.add(text[i : i + size])] + reader.rest()
    streamed: dict[int, list[str]] = {}
    for piece in pieces:
        if piece.call is not None:
            streamed.setdefault(piece.call, []).append(piece.name or piece.arguments)
    assert [(name, "".join(rest)) for name, *rest in streamed.values()] == [(c.name, c.arguments) for c in reader.calls]
    assert len({call.id for call in reader.calls}) == len(reader.calls)
    return "".join(piece.text for piece in pieces), [(call.name, call.arguments) for call in reader.calls]


# --- reading ---


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
@pytest.mark.parametrize("template", list(SAYS))
def test_calls_are_read_as_the_template_writes_them(template, size):
    assert read(template, SAYS[template], size) == WHOLE[template]


@pytest.mark.parametrize("size", [1, 5, 1000])
@pytest.mark.parametrize(
    ("template", "text", "said", "calls"),
    [
        ("hermes", "a < b", "a < b", []),
        ("hermes", "see <tool", "see <tool", []),
        ("hermes", "Write \n<tool_call> to call", None, []),
        ("hermes", 'Write <tool_call>{"name": "h", "arguments": {}}</tool_call>', None, []),
        ("hermes", '<tool_call>\n{"name": "h", "arguments": {}}\n</tool_call>', None, []),
        ("hermes", '<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call> so', " so", [A]),
        ("hermes", '<tool_call>\n{"name": "f", "arguments": "{\\"a\\": 1}"}\n</tool_call>', "", [A]),
        ("hermes", '<tool_call>\n{"name": "f", "arguments": {"a": 1', "", [("f", '{"a": 1')]),
        ("hermes", "<tool_call>\nnothing", "<tool_call>\nnothing", []),
        ("hermes", '<tool_call>{"arguments": {"a"]}, x', '<tool_call>{"arguments": {"a"]}, x', []),
        ("hermes", '<tool_call>{"name": "f", "arguments": "{\\n \\q}"}</tool_call>.', ".", [("f", "{\\n \\q}")]),
        ("llama", '{"x": 1}', '{"x": 1}', []),
        ("llama", 'I say {"name": "f", "parameters": {}}', 'I say {"name": "f", "parameters": {}}', []),
        ("llama", '\n{"name": "g", "parameters": {}}', "", [("g", "{}")]),
        ("llama", '{"name": "f", "parameters": {"a": 1}} so "a": 1', ' so "a": 1', [A]),
        ("mistral", "Hello [there]", "Hello [there]", []),
        ("glm4", "f is a letter.\nIndeed", None, []),
        ("glm4", "f\nis a letter", None, []),
        ("glm4", 'h\n{"a": 1}', None, []),
        ("glm4", '\n f \n {"a": 1}', "", [A]),
        ("glm4", "f", None, []),
    ],
)
def test_what_is_no_whole_call(template, text, said, calls, size):
    assert read(template, text, size) == (text if said is None else said, calls)


TYPED = {"type": "object", "properties": {
    "s": {"type": "string"}, "n": {"type": "integer"}, "b": {"type": "boolean"}, "o": {"type": "object"},
    "u": {"type": ["string", "number"]}}}  # fmt: skip
VALUES = {"s": "12\n <b>x</b>", "n": 3, "b": True, "o": {"k": [None]}, "u": 2.5}


@pytest.mark.parametrize("size", [1, 5, 1000])
@pytest.mark.parametrize("template", ["coder", "glm"])
def test_arguments_between_tags_have_the_types_of_their_schema(template, size):
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": VALUES}}
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    text = calling(template).apply_chat_template(turns, tokenize=False).split("assistant")[1]
    text = text[text.index("<tool_call>") :].removesuffix("<|im_end|>\n").removesuffix("</s>")
    _, [(name, arguments)] = read(template, text, size, {"f": TYPED})
    assert name == "f" and json.loads(arguments) == VALUES
    spoiled = text.replace("true", "True").replace("3", " 3 ", 1)
    assert json.loads(read(template, spoiled, size, {"f": TYPED})[1][0][1]) == VALUES
    none = text[: text.index("<parameter" if template == "coder" else "\n<arg_key")] + (
        "</function>\n</tool_call>" if template == "coder" else "\n</tool_call>")  # fmt: skip
    assert read(template, none, size) == ("", [("f", "{}")])
    said, [(name, arguments)] = read(template, text[:-20], size, {"f": TYPED})  # cut off: what has come of it
    assert said == "" and name == "f" and json.dumps(VALUES).startswith(arguments) and len(arguments) > 60
    strange = text.replace("f", "zz", 1) if template == "glm" else text.replace("=f>", "=zz>")
    assert read(template, strange, size, {"f": TYPED}) == (strange, [])


@pytest.mark.parametrize("template", ["coder", "glm"])
def test_arguments_between_tags_come_while_they_are_written(template):
    """A long text is told piece by piece, up to what may yet be its end; calls that break off say what has come."""
    written = call_format(calling(template))
    assert written is not None
    reader = CallReader(written, {"f": TYPED})
    begin = (
        SAYS[template]
        .split("1", 1)[0]
        .replace("a>" if template == "coder" else ">a<", "s>" if template == "coder" else ">s<")
    )
    pieces = reader.add(begin)
    assert [piece.name for piece in pieces if piece.name] == ["f"]
    for part in ("one ", 'two "', "</para", "\n"):
        assert any(piece.arguments for piece in reader.add(part + "and so on, for a while "))
    told = reader.calls[0].arguments
    assert told.startswith('{"s": "one and so on') and '\\"and' in told and "</para" in told
    reader.rest()
    assert json.loads(reader.calls[0].arguments + '"}')["s"].endswith("\nand so on, for a while ")


@pytest.mark.parametrize(("text", "said", "calls"), [
    ("<tool_call>\n<function=f>\nno tag", "<tool_call>\n<function=f>\nno tag", []),
    ("<tool_call>\n<function=f>\n<parameter=s>\n1\n</parameter>\nwhat", ">\nwhat", [("f", '{"s": "1"}')]),
    ("<tool_call>\n<function=f>\n<param=s>1", None, []),
    ("<tool_call>\n<function=f>\n</function>\n</tool_call> x", " x", [("f", "{}")]),
    ("<tool_call>\nno\n<tool_call>\n<function=f>\n</function>\n</tool_call>", "<tool_call>\nno", [("f", "{}")]),
    ("<tool_call>\n<function=f>\n<parameter=s>\n</parameter>\n</function>\n</tool_call>", "", [("f", '{"s": ""}')]),
])  # fmt: skip
@pytest.mark.parametrize("size", [1, 4, 1000])
def test_what_is_no_whole_call_between_tags(text, said, calls, size):
    assert read("coder", text, size, {"f": TYPED}) == (text if said is None else said, calls)


STRING, NULL, NUMBER = {"type": "string"}, {"type": "null"}, {"type": "number"}


@pytest.mark.parametrize(("schema", "text", "value"), [
    ({"type": ["string", "null"]}, "12345", "12345"), ({"type": ["string", "null"]}, "null", None),
    ({"anyOf": [STRING, NULL]}, "12345", "12345"), ({"anyOf": [STRING, NULL]}, "true", "true"),
    ({"anyOf": [STRING, NULL]}, "null", None), ({"anyOf": [STRING, NULL]}, '"a"', '"a"'),
    ({"oneOf": [NUMBER, STRING]}, "2.5", 2.5), ({"oneOf": [NUMBER, STRING]}, "3", 3),
    ({"oneOf": [NUMBER, STRING]}, "true", "true"), ({"anyOf": [STRING, {"$ref": "#/$defs/A"}]}, '{"a": 1}', {"a": 1}),
    ({"anyOf": [{"type": "integer"}, STRING]}, "2.5", "2.5"), ({"anyOf": [{"type": "integer"}, NULL]}, "2", 2),
    ({"anyOf": [{"enum": ["a", "b"]}, NULL]}, "1", "1"), ({"type": "boolean"}, "True", True),
    (NUMBER, "NaN", "NaN"), (NUMBER, "-Infinity", "-Infinity"), (NUMBER, "1e999", "1e999"), (NUMBER, "1e3", 1000.0),
    ({"enum": ["1", 2]}, "1", "1"), ({"enum": ["1", 2]}, "2", 2), ({}, "[1]", [1]), (None, "x", "x"),
])  # fmt: skip
def test_a_value_between_tags_is_what_its_schema_admits(schema, text, value):
    found = value_of(text, schema)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("filler", ["word <b> x=1 > y\n", "\n", "</tool_call >", "<parameter=a>"])
@pytest.mark.parametrize("template", ["coder", "glm"])
def test_the_time_to_read_a_long_call_grows_as_its_length(template, filler):
    """In pieces of a token, as they come; read whole at each piece, this would take minutes."""
    begin, end = SAYS[template].split("1", 1)[0], "1" + SAYS[template].split("1", 1)[1].split("</tool_call>")[0]
    text = begin + filler * (120_000 // len(filler)) + end + "</tool_call>"
    started = time.process_time()
    typed = {"type": "object", "properties": {"a": STRING}}
    _, [(name, arguments)] = read(template, text, 8, {"f": typed})
    assert name == "f" and len(json.loads(arguments)["a"]) >= 119_000
    assert time.process_time() - started < 5
    head = SAYS[template].split("a>" if template == "glm" else "=a", 1)[0]
    started = time.process_time()
    read(template, head + filler * (60_000 // len(filler)), 8)
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    "call", ['{"arguments": {"a": "%s"}, "name": "f"}', '{"name": "f", "arguments": "{\\"a\\": \\"%s\\"}"}']
)
def test_a_letter_of_a_long_call_is_looked_at_once(call, monkeypatch):
    """In pieces of a token: of objects whose keys stand in another order, and of arguments in a string."""
    looked, parsed = [], []
    see, loads = Nesting.see, json.loads
    monkeypatch.setattr(Nesting, "see", lambda self, letter: (looked.append(letter), see(self, letter))[1])
    monkeypatch.setattr(json, "loads", lambda text, **more: (parsed.append(text), loads(text, **more))[1])
    text = "<tool_call>" + call % ("x" * 2_000) + "</tool_call>"
    _, [(name, arguments)] = read("hermes", text, 4)
    assert name == "f" and len(loads(arguments)["a"]) == 2_000
    assert len(looked) < 2.1 * len(text) and len(parsed) == 1


def test_what_cannot_be_held_between_tags():
    tokenizer = calling("coder")
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "x+"}}}
    body = ChatBody(model="m", messages=HELLO, tools=[tool("f", parameters=schema)], tool_choice="required")
    with pytest.raises(PydanticCustomError, match="'pattern' of their schema cannot be held to"):
        grammar_of(body, call_format(tokenizer), tokenizer)


def test_one_call_where_one_is_wanted():
    assert read("hermes", SAYS["hermes"], 3, one=True) == ("One.", [A])


def test_forms_that_are_not_known():
    assert call_format(calling("odd")) is None


# --- over HTTP ---


def test_a_chat_that_calls(client, engine):
    engine.tokenizer, engine.max_length = calling("hermes"), 2000
    engine.say = lambda request: SAYS["hermes"]
    told = chat(client(), tools=[tool("f"), tool("g")], max_tokens=None).json()["choices"][0]
    assert told["finish_reason"] == "tool_calls" and told["message"]["content"] == "One."
    first, second = told["message"]["tool_calls"]
    assert first["type"] == "function" and len(first["id"]) == 9
    assert [(c["function"]["name"], c["function"]["arguments"]) for c in (first, second)] == [A, B]
    answers = [{"role": "tool", "tool_call_id": call["id"], "content": "2"} for call in (first, second)]
    again = [*HELLO, told["message"], *answers]
    assert chat(client(), tools=[tool("f"), tool("g")], messages=again).status_code == 200
    assert "<tool_call>" in engine.tokenizer.decode(engine.requests[-1].prompt)


@pytest.mark.parametrize("template", list(SAYS))
def test_a_single_call_is_whole(client, engine, template):
    engine.tokenizer, engine.say = calling(template), lambda request: SAYS[template]
    more = {"tools": [tool("f"), tool("g")], "parallel_tool_calls": False, "max_tokens": None}
    told = chat(client(), **more).json()["choices"][0]
    assert [(c["function"]["name"], c["function"]["arguments"]) for c in told["message"]["tool_calls"]] == [A]
    assert told["finish_reason"] == "tool_calls"


def test_a_stream_that_calls(client, engine):
    engine.tokenizer = calling("hermes")
    engine.say = lambda request: SAYS["hermes"]
    found = events(chat(client(), tools=[tool("f"), tool("g")], max_tokens=None, stream=True))[:-1]
    deltas = [each["choices"][0]["delta"] for each in found]
    calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
    assert [(c["index"], c["function"]["name"]) for c in calls if "id" in c] == [(0, "f"), (1, "g")]
    for index, (_, arguments) in enumerate((A, B)):
        parts = [c["function"]["arguments"] for c in calls if c["index"] == index]
        assert "".join(parts) == arguments and len(parts) > 5
    assert "".join(delta.get("content") or "" for delta in deltas) == "One."
    assert found[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_calls_of_tools_that_are_not_shown_are_text(client, engine):
    engine.tokenizer = calling("hermes")
    engine.say = lambda request: SAYS["hermes"]
    told = chat(client(), tools=[tool("f")], tool_choice="none", max_tokens=None).json()["choices"][0]
    assert told["message"]["content"] == SAYS["hermes"] and told["finish_reason"] == "stop"


@pytest.mark.parametrize(
    "more", [{"tool_choice": "required"}, {"response_format": {"type": "json_object"}}, {"strict": True}]
)
def test_what_needs_a_known_form(client, engine, more):
    engine.tokenizer = calling("odd")
    strict = more.pop("strict", False)
    told = error(chat(client(), tools=[tool("f", description="It.", strict=strict)], **more), 400)
    assert (
        told["param"] in ("tool_choice", "response_format", "tools")
        and "in no form that can be read" in told["message"]
    )
    assert not engine.requests


def test_strict_tools_need_a_token_that_opens_calls(client, engine):
    engine.tokenizer = calling("glm4")
    told = error(chat(client(), tools=[tool("f", strict=True)]), 400)
    assert told["param"] == "tools" and "opens calls with nothing but their name" in told["message"]


def test_a_name_that_is_not_there(client, engine):
    engine.tokenizer = calling("hermes")
    choice = {"type": "function", "function": {"name": "ff"}}
    told = error(chat(client(), tools=[tool("f"), tool("g")], tool_choice=choice), 400)
    assert told["param"] == "tool_choice" and "did you mean 'f'" in told["message"]


# --- models held to calls ---


def model_of(tokenizer) -> Engine:
    architecture = ARCHITECTURES["llama"]
    settings = architecture.settings | {"vocab_size": len(tokenizer)}
    model = dataclasses.replace(architecture, settings=settings).build()
    model.generation_config.eos_token_id = 1
    return Engine(model, tokenizer, rows=16)


@pytest.mark.parametrize("template", list(SAYS))
def test_an_untrained_model_calls_when_it_has_to(template):
    tokenizer = calling(template)
    engine, written = model_of(tokenizer), call_format(tokenizer)
    assert written is not None
    named = {"type": "function", "function": {"name": "g"}}
    for choice, names in (("required", {"f", "g"}), (named, {"g"})):
        body = ChatBody(model="m", messages=HELLO, tools=[tool("f"), tool("g")], tool_choice=choice)
        grammar = grammar_of(body, written, tokenizer)
        assert isinstance(grammar, Grammar)
        compiled = engine.compiled(grammar)
        requests = [
            Request((5, 6), max_tokens=200, seed=seed, grammar=compiled, shown=written.tokens(tokenizer))
            for seed in range(4)
        ]
        for answer in served(engine, requests):
            reader = CallReader(written, TOOLS)
            pieces = reader.add(answer.text) + reader.rest()
            whole = reader.calls if answer.finish == "stop" else reader.calls[:-1]  # it may go on calling
            calls = [(call.name, json.loads(call.arguments)) for call in whole]
            assert calls and {name for name, _ in calls} <= names, answer.text
            assert not any(piece.text for piece in pieces)
            assert all(arguments in ({"a": 1}, {"a": 2}) for _, arguments in calls)


def test_strict_tools_hold_calls_alone():
    tokenizer = calling("hermes")
    engine, written = model_of(tokenizer), call_format(tokenizer)
    body = ChatBody(model="m", messages=HELLO, tools=[tool("f", strict=True)])
    grammar = grammar_of(body, written, tokenizer)
    assert grammar is not None and written is not None
    for text, good in (
        ("Hi there.", True), ('Hi <tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', True),
        ('<tool_call>\n{"name": "f", "arguments": {"a": 3}}\n</tool_call>', False), ("<tool_call>\n{g", False),
    ):  # fmt: skip
        constraint = engine.compiled(grammar).start()
        for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
            constraint.took(token)
        assert (not constraint.why and constraint.matcher.is_accepting()) is good, (text, constraint.why)


def test_a_form_beside_tools_is_either(client, engine):
    engine.tokenizer = calling("hermes")
    chat(client(), tools=[tool("f")], response_format={"type": "json_object"})
    real = model_of(engine.tokenizer)
    for text, good in (
        ('{"z": 1}', True),
        ('<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', True),
        ("Hi", False),
    ):
        constraint = real.compiled(engine.grammars[-1]).start()
        for token in engine.tokenizer(text, add_special_tokens=False)["input_ids"]:
            constraint.took(token)
        assert (not constraint.why and constraint.matcher.is_accepting()) is good
    told = error(chat(client(), tools=[tool("f")], response_format={"type": "regex", "regex": "a"}), 400)
    assert told["param"] == "response_format"


def test_a_schema_that_cannot_be_followed():
    tokenizer = calling("hermes")
    body = ChatBody(model="m", messages=HELLO, tools=[tool("f", parameters={"type": "objekt"})], tool_choice="required")
    with pytest.raises(LuthierError, match="cannot be used"):
        model_of(tokenizer).compiled(grammar_of(body, call_format(tokenizer), tokenizer))  # type: ignore[arg-type]
