"""The `openai` package against a real server on a free port, with a fake engine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from luthier.serving.http.guard import Guard
from support.fake_engine import FakeEngine
from support.served import serving

HELLO: Any = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[FakeEngine, str]]:
    engine = FakeEngine("one", "two")
    with serving(engine, Guard("secret")) as address:
        yield engine, address


@pytest.fixture
def client(server) -> Any:
    with openai.OpenAI(base_url=f"{server[1]}/v1", api_key="secret", max_retries=0) as made:
        yield made


def test_models(client):
    assert [model.id for model in client.models.list()] == ["base", "one", "two"]
    assert client.models.retrieve("two").id == "two"


def test_chat(client):
    done = client.chat.completions.create(model="one", messages=HELLO, max_tokens=8, logprobs=True, top_logprobs=1)
    assert done.choices[0].message.content == "I am one" and done.choices[0].finish_reason == "length"
    assert done.usage.completion_tokens == 8
    assert done.choices[0].logprobs.content[0].top_logprobs[0].token == "x"


def test_stream(client):
    chunks = list(
        client.chat.completions.create(
            model="two", messages=HELLO, stream=True, stop=". ", stream_options={"include_usage": True}
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "I am two"
    assert chunks[-2].choices[0].finish_reason == "stop" and chunks[-1].usage.completion_tokens == 8


def test_stream_helper(client):
    """The client's own accumulation of a stream."""
    with client.chat.completions.stream(model="base", messages=HELLO, stop=" base") as stream:
        assert stream.get_final_completion().choices[0].message.content == "I am"


def test_completions(client):
    done = client.completions.create(model="one", prompt=["a", "b"], max_tokens=4, logprobs=2)
    assert [choice.text for choice in done.choices] == ["I am"] * 2
    parts = client.completions.create(model="one", prompt="a", max_tokens=4, stream=True)
    assert "".join(part.choices[0].text for part in parts) == "I am"


def test_an_answer_can_be_sent_back(client):
    said = client.chat.completions.create(model="one", messages=HELLO, max_tokens=4).choices[0].message
    turns = [*HELLO, said.model_dump(), *HELLO]
    assert client.chat.completions.create(model="one", messages=turns, max_tokens=4).choices[0].message.content


def test_errors(client, server):
    with pytest.raises(openai.NotFoundError, match="did you mean 'two'"):
        client.chat.completions.create(model="tow", messages=HELLO)
    with pytest.raises(openai.BadRequestError) as told:
        client.chat.completions.create(model="one", messages=HELLO, verbosity="low")
    assert told.value.param == "verbosity" and told.value.code == "unsupported_parameter"
    wrong = openai.OpenAI(base_url=f"{server[1]}/v1", api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        wrong.models.list()


def test_a_full_queue(client, server):
    engine = server[0]
    engine.gate.clear()
    try:
        with ThreadPoolExecutor(1) as pool:
            waits = pool.submit(client.completions.create, model="one", prompt="a", n=8)
            while len(engine.live) < 8:
                time.sleep(0.01)
            with pytest.raises(openai.RateLimitError):
                client.completions.create(model="one", prompt="a")
            engine.gate.set()
            assert len(waits.result().choices) == 8
    finally:
        engine.gate.set()


def test_more_answers_than_there_are_places(client):
    """It can never be had, so that nobody is told to try again."""
    with pytest.raises(openai.BadRequestError, match="9 answers in one call"):
        client.completions.create(model="one", prompt="a", n=9)


def test_a_failure_inside_a_stream(client, server):
    engine, said = server[0], server[0].say
    engine.say = lambda request: "fail"
    try:
        with pytest.raises(openai.APIError, match="made no sense"):
            list(client.chat.completions.create(model="one", messages=HELLO, stream=True))
        with pytest.raises(openai.InternalServerError):
            client.chat.completions.create(model="one", messages=HELLO)
    finally:
        engine.say = said
