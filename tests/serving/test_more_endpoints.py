"""Embeddings, responses and the detail of a model, with the `openai` package and a fake engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from serving.test_calls import A, B, tool
from support.call_templates import SAYS, calling
from support.fake_engine import FakeEngine
from support.served import serving

TOOLS: Any = [{"type": "function", **tool(name)["function"]} for name in "fg"]


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[FakeEngine, str]]:
    engine = FakeEngine("one", max_length=4000)
    engine.tokenizer = calling("hermes")
    with serving(engine) as address:
        yield engine, address


@pytest.fixture
def client(server) -> Any:
    server[0].say = lambda request: "I am."
    with openai.OpenAI(base_url=f"{server[1]}/v1", api_key="none", max_retries=0) as made:
        yield made


# --- embeddings ---


def test_embeddings(client):
    found = client.embeddings.create(model="one", input=["abc", [5, 6]], extra_body={"pooling": "mean"})
    text = len(calling("hermes")("abc")["input_ids"])
    assert [each.embedding for each in found.data] == [[text, 3.0, 1.0], [2.0, 3.0, 1.0]]  # sent in base64
    assert found.pooling == "mean" and found.usage.prompt_tokens == text + 2
    plain = client.embeddings.create(model="base", input="abc", encoding_format="float")
    assert plain.data[0].embedding == [text, 0.0, 0.0] and plain.pooling == "last"


@pytest.mark.parametrize("more", [{"dimensions": 3}, {"input": []}, {"extra_body": {"pooling": "max"}}])
def test_what_embeddings_refuse(client, more):
    with pytest.raises(openai.BadRequestError) as told:
        client.embeddings.create(**{"model": "base", "input": "a", **more})
    assert told.value.param in ("dimensions", "input", "pooling")


# --- responses ---


def test_a_response(client, server):
    told = client.responses.create(
        model="one", instructions="Be.", input="hello", max_output_tokens=4, temperature=0, store=False, user="me"
    )
    assert told.output_text == "I am" and told.status == "incomplete" and told.usage.output_tokens == 4
    assert told.incomplete_details.reason == "max_output_tokens"
    request = server[0].requests[-1]
    text = server[0].tokenizer.decode(request.prompt)
    assert "system\nBe." in text and "user\nhello" in text and (request.temperature, request.max_tokens) == (0, 4)
    assert client.responses.create(model="one", input="hello").status == "completed"


def test_a_response_that_calls_and_what_follows(client, server):
    server[0].say = lambda request: SAYS["hermes"]
    told = client.responses.create(model="one", input="hello", tools=TOOLS)
    calls = [item for item in told.output if item.type == "function_call"]
    assert told.output_text == "One." and [(c.name, c.arguments) for c in calls] == [A, B]
    results = [{"type": "function_call_output", "call_id": call.call_id, "output": "2"} for call in calls]
    turns = [{"role": "user", "content": "hello"}, *[item.model_dump() for item in told.output], *results]
    assert client.responses.create(model="one", input=turns, tools=TOOLS).status == "completed"
    assert "<tool_call>" in server[0].tokenizer.decode(server[0].requests[-1].prompt)


@pytest.mark.parametrize("text", ["I am.", SAYS["hermes"], ""])
def test_a_stream_is_the_whole_response(client, server, text):
    server[0].say = lambda request: text or "fail"
    with client.responses.stream(model="one", input="hello", tools=TOOLS) as stream:
        if not text:
            *_, last = stream
            assert last.type == "error" and last.message == "the model made no sense"
            return
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    whole = client.responses.create(model="one", input="hello", tools=TOOLS)
    keep = lambda items: [(i.type, getattr(i, "arguments", None)) for i in items]  # noqa: E731
    assert final.output_text == whole.output_text and keep(final.output) == keep(whole.output)
    assert kinds[:2] == ["response.created", "response.in_progress"] and kinds[-1] == "response.completed"
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_a_response_in_a_form(client, server):
    form = {"type": "json_schema", "name": "a", "schema": {"type": "object"}, "strict": True}
    client.responses.create(model="one", input="hello", text={"format": form})
    assert server[0].grammars[-1].text == '{"type": "object"}'


@pytest.mark.parametrize(
    "more",
    [
        {"store": True}, {"previous_response_id": "resp_1"}, {"background": True}, {"input": [{"type": "reasoning"}]},
        {"reasoning": {"effort": "low"}}, {"text": {"verbosity": "low"}}, {"tools": [{"type": "web_search"}]},
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, {"temperature": 3},
    ],
)  # fmt: skip
def test_what_responses_refuse(client, server, more):
    count = len(server[0].requests)
    with pytest.raises(openai.BadRequestError):
        client.responses.create(**{"model": "one", "input": "hello", **more})
    assert len(server[0].requests) == count


# --- models ---


def test_the_detail_of_a_model(client):
    told = client.models.retrieve("one").model_dump()
    assert told["max_model_len"] == 4000 and told["parent"] == "base" and told["chat_template"]
    assert told["tool_calls"]["opening"].startswith("<tool_call>")


# --- chats in forms and with tools, by the client's own helpers ---


def test_the_clients_own_parsing(client, server):
    from pydantic import BaseModel

    class Answer(BaseModel):
        a: int

    server[0].say = lambda request: '{"a": 3}'
    hello: Any = [{"role": "user", "content": "hello"}]
    done = client.chat.completions.parse(model="one", messages=hello, response_format=Answer)
    assert done.choices[0].message.parsed == Answer(a=3)
    server[0].say = lambda request: SAYS["hermes"]
    tools: Any = [tool("f"), tool("g")]
    with client.chat.completions.stream(model="one", messages=hello, tools=tools) as stream:
        message = stream.get_final_completion().choices[0].message
    assert [(c.function.name, c.function.arguments) for c in message.tool_calls] == [A, B]
