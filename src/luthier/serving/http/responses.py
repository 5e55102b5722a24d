"""POST /v1/responses: OpenAI's newer endpoint, without its state. It is a chat, told in another shape."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from fastapi import APIRouter
from fastapi import Request as Call
from fastapi.responses import JSONResponse, Response
from pydantic import BeforeValidator, Field, ValidationError

from luthier.engine.request import Chunk
from luthier.serving.http.answers import Choice, Shape
from luthier.serving.http.bodies import asked
from luthier.serving.http.body import Body
from luthier.serving.http.callreader import Piece
from luthier.serving.http.claims import client_of
from luthier.serving.http.refusal import Refusal, invalid
from luthier.serving.http.schema import ChatBody, few_labels
from luthier.serving.http.service import Service
from luthier.serving.http.stream import Events, events, whole

Place = tuple[str | int, ...]
"""The keys and indices that lead to a value of a body."""
ENDED = {"stop": "completed", "length": "incomplete"}
TEXTS, PICTURE = ("input_text", "output_text", "text"), "input_image"


class ResponseBody(Body):
    """The body of POST /v1/responses. Nothing is kept, so that what refers to earlier responses is refused."""

    neutral: ClassVar = {
        "store": (False,), "previous_response_id": (), "conversation": (), "prompt": (), "background": (False,),
        "include": ([],), "reasoning": ({},), "truncation": ("disabled",), "service_tier": ("auto", "default"),
        "max_tool_calls": (), "stream_options": ({},), "top_logprobs": (0,), "context_management": (),
    }  # fmt: skip
    model: str
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: Annotated[int | None, Field(ge=1)] = None
    temperature: float = 1.0
    top_p: float = 1.0
    stream: bool = False
    tools: list[dict[str, Any]] = Field([])
    tool_choice: Any = "auto"
    parallel_tool_calls: bool = True
    text: dict[str, Any] = Field({})
    user: str = ""
    metadata: Annotated[dict[str, str], BeforeValidator(few_labels)] = Field({})
    prompt_cache_key: str = ""
    safety_identifier: str = ""

    def chat(self) -> ChatBody:
        """Returns the chat that it is. Raises `Refusal` for what no chat can say."""
        turns = self._turns()
        given = {
            "model": self.model, "messages": [turn for _, turn in turns], "max_tokens": self.max_output_tokens,
            "temperature": self.temperature, "top_p": self.top_p, "stream": self.stream,
            "tools": [_wrapped(tool) for tool in self.tools], "tool_choice": _choice(self.tool_choice),
            "parallel_tool_calls": self.parallel_tool_calls, "response_format": _format(self.text),
        }  # fmt: skip
        try:
            return ChatBody.model_validate(given)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise invalid({**first, "loc": asked_at(first["loc"], [place for place, _ in turns])}) from None

    def _turns(self) -> list[tuple[Place, dict[str, Any]]]:
        """The turns of the chat, each with where it was asked."""
        first: list[tuple[Place, dict[str, Any]]] = []
        if self.instructions:
            first = [(("instructions",), {"role": "system", "content": self.instructions})]
        if isinstance(self.input, str):
            return [*first, (("input",), {"role": "user", "content": self.input})]
        found: list[tuple[Place, dict[str, Any]]] = []
        for index, item in enumerate(self.input):
            turn = _turn(item, f"input[{index}]")
            if found and turn.get("tool_calls") and found[-1][1]["role"] == "assistant":
                place, last = found[-1]
                found[-1] = (place, {**last, "tool_calls": last.get("tool_calls", []) + turn["tool_calls"]})
            else:
                found.append((("input", index), turn))
        return [*first, *found]


ELSEWHERE = {"max_tokens": ("max_output_tokens",), "response_format": ("text", "format")}
"""Fields of a chat that are called otherwise here."""


def asked_at(place: Place, turns: Sequence[Place]) -> Place:
    """Returns where in the body of a response stands what a chat has at a place; `turns` says it of its turns."""
    if place[:1] == ("messages",) and len(place) > 1 and isinstance(place[1], int):
        return (*turns[place[1]], *place[2:])
    if place[:1] == ("tools",):  # whose function has no object of its own here
        return tuple(each for number, each in enumerate(place) if (number, each) != (2, "function"))
    return (*ELSEWHERE.get(str(place[0]), place[:1]), *place[1:]) if place else place


def _turn(item: Mapping[str, Any], where: str) -> dict[str, Any]:
    """An item of the input as a turn of a chat."""
    kind = item.get("type", "message")
    if kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments", "{}")}
        return {"role": "assistant", "tool_calls": [{"id": item.get("call_id"), "function": function}]}
    if kind == "function_call_output":
        return {"role": "tool", "tool_call_id": item.get("call_id"), "content": _content(item.get("output"), where)}
    if kind != "message":
        message = f"{where}: items of type {kind!r:.60} are not supported; there are: {', '.join(ITEMS)}."
        raise Refusal(400, message, param=where, code="unsupported_value")
    return {"role": item.get("role"), "content": _content(item.get("content"), where)}


ITEMS = ("message", "function_call", "function_call_output")


def _content(content: Any, where: str) -> Any:
    if not isinstance(content, list):
        return content
    for part in content:
        if not isinstance(part, dict) or part.get("type") not in (*TEXTS, PICTURE):
            message = f"{where}.content: texts and pictures ({PICTURE}) are supported."
            raise Refusal(400, message, param=where, code="unsupported_value")
    return [
        _picture(part) if part["type"] == PICTURE else {"type": "text", "text": part.get("text")} for part in content
    ]


def _picture(part: Mapping[str, Any]) -> dict[str, Any]:
    """A picture as chats have it."""
    more = {key: each for key, each in part.items() if key not in ("type", "image_url", "detail")}
    return {"type": "image_url", "image_url": {"url": part.get("image_url"), "detail": part.get("detail")}, **more}


def _wrapped(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool as chats have it: its function is an object of its own there."""
    return {"type": tool.get("type"), "function": {key: each for key, each in tool.items() if key != "type"}}


def _choice(choice: Any) -> Any:
    named = isinstance(choice, dict) and set(choice) == {"type", "name"} and choice["type"] == "function"
    return {"type": "function", "function": {"name": choice["name"]}} if named else choice


def _format(text: Mapping[str, Any]) -> Any:
    given = {key: each for key, each in text.items() if not (key == "verbosity" and each is None)}
    if set(given) - {"format"}:
        message = f"text: {', '.join(sorted(set(given) - {'format'}))} is not supported; there is format."
        raise Refusal(400, message, param="text", code="unsupported_parameter")
    form = given.get("format")
    if isinstance(form, dict) and form.get("type") == "json_schema":
        return {"type": "json_schema", "json_schema": {key: each for key, each in form.items() if key != "type"}}
    return form


@dataclass
class Spoken(Shape):
    """The answer to one response, whole or as events."""

    end: ClassVar[str] = ""
    body: ResponseBody | None = None
    _number: int = 0
    _items: list[dict[str, Any]] = field(default_factory=list)
    """The output so far."""

    def head_of(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        """Returns the response object."""
        assert self.body is not None
        choice, body = self.choices[0], self.body
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return {
            "id": f"resp_{self.id}", "object": "response", "created_at": self.created, "model": self.model,
            "status": status, "error": None, "incomplete_details": cut, "output": output, "store": False,
            "instructions": body.instructions, "max_output_tokens": body.max_output_tokens,
            "temperature": body.temperature, "top_p": body.top_p, "tools": body.tools, "metadata": body.metadata,
            "tool_choice": body.tool_choice, "parallel_tool_calls": body.parallel_tool_calls,
            "previous_response_id": None, "text": body.text or {"format": {"type": "text"}},
            "usage": self._counts() if choice.finish else None,
        }  # fmt: skip

    def _counts(self) -> dict[str, Any]:
        return {
            "input_tokens": self.prompt_tokens, "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": self.generated, "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.prompt_tokens + self.generated,
        }  # fmt: skip

    def whole(self) -> dict[str, Any]:
        choice = self.choices[0]
        output = [_message(f"msg_{self.id}", choice.text, "completed")] if choice.text or not choice.calls else []
        output += [_call(f"fc_{call.id}", call.id, call.name, call.arguments, "completed") for call in choice.calls]
        return self.head_of(ENDED[choice.finish or "stop"], output)

    def first(self) -> list[dict[str, Any]]:
        begun = self.head_of("in_progress", [])
        return [{"type": f"response.{kind}", "response": begun} for kind in ("created", "in_progress")]

    def parts(self, index: int, chunk: Chunk) -> list[dict[str, Any]]:
        return [event for piece in self.choices[index].add(chunk) for event in self._piece(piece)]

    def _piece(self, piece: Piece) -> list[dict[str, Any]]:
        """The events of one piece: an item is opened by its first, and closed by what follows it."""
        if piece.call is None:
            opened = self._items and self._items[-1]["type"] == "message"
            item = _message(f"msg_{self.id}_{len(self._items)}", "", "in_progress")
            events = [] if opened else [*self._close(), *self._open(item)]
            self._items[-1]["content"][0]["text"] += piece.text
            place = {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1, "content_index": 0}
            return [*events, {"type": "response.output_text.delta", **place, "delta": piece.text, "logprobs": []}]
        if piece.name:
            item = _call(f"fc_{piece.id}", piece.id, piece.name, "", "in_progress")
            return [*self._close(), *self._open(item)]
        self._items[-1]["arguments"] += piece.arguments
        place = {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1}
        return [{"type": "response.function_call_arguments.delta", **place, "delta": piece.arguments}]

    def _open(self, item: dict[str, Any]) -> list[dict[str, Any]]:
        self._items.append(item)
        index, content = len(self._items) - 1, item.get("content")
        bare = item | ({"content": []} if content is not None else {})
        events = [{"type": "response.output_item.added", "output_index": index, "item": bare}]
        if content is not None:
            place = {"item_id": item["id"], "output_index": index, "content_index": 0}
            events.append({"type": "response.content_part.added", **place, "part": dict(content[0])})
        return events

    def _close(self) -> list[dict[str, Any]]:
        """The events that end the newest item, if there is one."""
        if not self._items:
            return []
        item, index = self._items[-1], len(self._items) - 1
        item["status"] = "completed"
        place = {"item_id": item["id"], "output_index": index}
        if item["type"] == "message":
            part = item["content"][0]
            place |= {"content_index": 0}
            told = [
                {"type": "response.output_text.done", **place, "text": part["text"], "logprobs": []},
                {"type": "response.content_part.done", **place, "part": part},
            ]
        else:
            done = {"name": item["name"], "arguments": item["arguments"]}
            told = [{"type": "response.function_call_arguments.done", **place, **done}]
        return [*told, {"type": "response.output_item.done", "output_index": index, "item": item}]

    def last(self, usage: bool) -> list[dict[str, Any]]:
        empty = [] if self._items else self._open(_message(f"msg_{self.id}", "", "in_progress"))
        closed, status = self._close(), ENDED[self.choices[0].finish or "stop"]
        return [*empty, *closed, {"type": f"response.{status}", "response": self.head_of(status, self._items)}]

    def broken(self, error: dict[str, Any]) -> dict[str, Any]:
        told = error["error"]
        return {"type": "error", "code": told["code"], "message": told["message"], "param": told["param"]}

    def event(self, value: dict[str, Any]) -> str:
        told = {**value, "sequence_number": self._number}
        self._number += 1
        return f"event: {value['type']}\ndata: {json.dumps(told, separators=(',', ':'))}\n\n"


def _message(id: str, text: str, status: str) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]
    return {"id": id, "type": "message", "role": "assistant", "status": status, "content": content}


def _call(id: str, call: str | None, name: str, arguments: str, status: str) -> dict[str, Any]:
    return {"id": id, "type": "function_call", "call_id": call, "name": name, "arguments": arguments, "status": status}


def responses(service: Service) -> APIRouter:
    """Returns the route."""
    routes = APIRouter(prefix="/v1")

    @routes.post("/responses")
    async def respond(call: Call) -> Response:
        given = await asked(call, ResponseBody)
        service.refuse_when_draining()
        service.adapter_of(given.model)
        body = await asyncio.to_thread(given.chat)
        with service.claimed(client_of(call), body, 1) as claim:
            prompt, wants = await service.spoken(body, client_of(call))
            flight = service.submit(body, [prompt], body.max_tokens, None, claim, wants)
        answers = Spoken(body.model, False, len(prompt), [Choice(wants.reader())], body=given)
        service.logs(flight, answers, lambda: [body.logged()])
        if body.stream:
            return Events(flight, events(flight, answers, usage=False))
        return JSONResponse(await whole(call, flight, answers))

    return routes
