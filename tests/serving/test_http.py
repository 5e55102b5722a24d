"""The endpoints over HTTP, with a fake engine: shapes, refusals, limits, who may ask."""

from __future__ import annotations

import json
import re

import pytest

from luthier.engine.grammar import Grammar
from luthier.engine.shaping import PLAIN, Shaping
from luthier.serving.http.guard import Guard
from luthier.serving.http.schema import ChatBody, CompletionBody, Message
from support.fake_engine import answer

HELLO = [{"role": "user", "content": "hello"}]


def chat(client, **more):
    return client.post("/v1/chat/completions", json={"model": "base", "messages": HELLO, "max_tokens": 9, **more})


def complete(client, **more):
    return client.post("/v1/completions", json={"model": "base", "prompt": "hello", "max_tokens": 9, **more})


def error(response, status: int) -> dict:
    assert response.status_code == status, response.text
    told = response.json()
    assert set(told) == {"error"} and set(told["error"]) == {"message", "type", "param", "code"}
    return told["error"]


def events(response) -> list:
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


# --- answers ---


def test_chat(client, engine):
    body = chat(client()).json()
    assert body["object"] == "chat.completion" and body["id"].startswith("chatcmpl-") and body["model"] == "base"
    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": "I am base", "refusal": None}
    assert choice["finish_reason"] == "length" and choice["logprobs"] is None
    prompt = engine.tokenizer("<u>hello</s><a>", add_special_tokens=False)["input_ids"]
    assert list(engine.requests[0].prompt) == prompt
    assert body["usage"] == {"prompt_tokens": len(prompt), "completion_tokens": 9, "total_tokens": len(prompt) + 9}


def test_answers_are_logged_where_asked_for(client, engine, tmp_path):
    file = tmp_path / "answers.jsonl"
    api = client(log=file)
    chat(api)
    chat(api, stream=True)
    complete(api, n=2, prompt=["a", "b"])
    assert api.post("/v1/chat/completions", json={"model": "nobody", "messages": HELLO}).status_code == 404
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    said = {"role": "assistant", "content": "I am base"}
    assert [line.get("messages") for line in lines[:2]] == [[*HELLO, said]] * 2
    assert [(line["prompt"], line["completion"]) for line in lines[2:]] == [("a", "I am base")] * 2 + [
        ("b", "I am base")
    ] * 2
    assert {line["model"] for line in lines} == {"base"} and {line["finish"] for line in lines} == {"length"}


def test_every_adapter_is_a_model(client, engine):
    api = client()
    assert [m["id"] for m in api.get("/v1/models").json()["data"]] == ["base", "one", "two"]
    assert api.get("/v1/models/one").json()["parent"] == "base"
    assert chat(api, model="two").json()["choices"][0]["message"]["content"] == "I am two."
    assert engine.requests[0].adapter == "two"


def test_system_developer_and_parts_reach_the_template(client, engine):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    turns = [
        {"role": "developer", "content": "be"}, {"role": "user", "content": parts},
        {"role": "assistant", "content": "c", "refusal": None, "tool_calls": None}, *HELLO,
    ]  # fmt: skip
    assert chat(client(), messages=turns).status_code == 200
    text = engine.tokenizer.decode(engine.requests[0].prompt)
    assert text == "<s>be</s><u>a\nb</s><a>c</s><u>hello</s><a>"


def test_settings_reach_the_engine(client, engine):
    api = client()
    chat(api, temperature=0, top_p=0.5, seed=7, stop=["x", "yz"], n=2, max_tokens=None, max_completion_tokens=3)
    chat(api, max_tokens=None, stop="q")
    first, second, third = engine.requests
    assert (first.temperature, first.top_p, first.stop, first.max_tokens) == (0, 0.5, ("x", "yz"), 3)
    assert (first.seed, second.seed, third.seed) == (7, 8, None)
    assert third.max_tokens == engine.max_length and third.temperature == 1 and third.stop == ("q",)


def test_what_shapes_logits_reaches_the_engine(client, engine):
    settings = {
        "top_k": 5, "min_p": 0.1, "frequency_penalty": 0.5, "presence_penalty": -1, "repetition_penalty": 1.2,
    }  # fmt: skip
    assert chat(client(), **settings, logit_bias={"7": -100, "9": 1.5}).status_code == 200
    assert engine.requests[0].shaping == Shaping(**settings, logit_bias=((7, -100.0), (9, 1.5)))
    complete(client(), top_k=-1)
    assert engine.requests[1].shaping == PLAIN


def test_labels_are_accepted_and_nothing_follows_from_them(client, engine):
    labels = {"user": "me", "metadata": {"a": "b"}, "store": False, "prompt_cache_key": "k", "safety_identifier": "s"}
    assert chat(client(), **labels, messages=[{**HELLO[0], "name": "Ann"}]).status_code == 200
    assert chat(client()).status_code == 200
    assert engine.requests[0] == engine.requests[1]


def test_formats_reach_the_engine(client, engine):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    for given in (
        {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}},
        {"type": "json_object"}, {"type": "regex", "regex": "a+"}, {"type": "grammar", "grammar": "start: /a/"},
        {"type": "text"},
    ):  # fmt: skip
        assert chat(client(), response_format=given).status_code == 200
        assert complete(client(), response_format=given).status_code == 200
    wanted = [
        Grammar("json", json.dumps(schema)), Grammar("json", '{"type": "object"}'), Grammar("regex", "a+"),
        Grammar("lark", "start: /a/"), None,
    ]  # fmt: skip
    assert [request.grammar for request in engine.requests] == [each for each in wanted for _ in range(2)]


def test_echoes_of_texts_and_ids(client, engine):
    assert complete(client(), prompt=["ab", "c"], echo=True, max_tokens=0).status_code in (200, 400)
    complete(client(), prompt=[[5, 6]], echo=True)
    assert [(r.echo, r.max_tokens) for r in engine.requests] == [("ab", 0), ("c", 0), ("bc", 9)]


def test_completions_of_texts_and_ids(client, engine):
    body = complete(client(), prompt=["ab", "c"], n=2).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    ids = [list(request.prompt) for request in engine.requests]
    assert ids == [engine.tokenizer(text)["input_ids"] for text in ("ab", "ab", "c", "c")]
    assert body["usage"]["prompt_tokens"] == 3 and body["usage"]["completion_tokens"] == 36
    complete(client(), prompt=[5, 6])
    complete(client(), prompt=[[5], [6, 7]], max_tokens=None)
    assert [request.prompt for request in engine.requests[4:]] == [(5, 6), (5,), (6, 7)]
    assert engine.requests[-1].max_tokens == 16


def test_chat_logprobs(client):
    choice = chat(client(), max_tokens=2, logprobs=True, top_logprobs=2).json()["choices"][0]
    assert [each["token"] for each in choice["logprobs"]["content"]] == ["I", " "]
    first = choice["logprobs"]["content"][0]
    assert (first["logprob"], first["bytes"]) == (-0.5, [73])
    assert [top["token"] for top in first["top_logprobs"]] == ["x", "y"]


def test_completion_logprobs(client):
    told = complete(client(), max_tokens=3, logprobs=1).json()["choices"][0]["logprobs"]
    assert told["tokens"] == ["I", " ", "a"] and told["text_offset"] == [0, 1, 2]
    assert told["token_logprobs"] == [-0.5] * 3 and told["top_logprobs"] == [{"x": -1.0}] * 3


def test_stop_ends_the_answer(client):
    choice = chat(client(), stop=["am"], max_tokens=50).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("I ", "stop")


# --- streams ---


def test_stream_of_a_chat(client):
    found = events(chat(client(), stream=True, n=2, stream_options={"include_usage": True}))
    assert found.pop() == "[DONE]"
    usage = found.pop()
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == 18
    assert all(chunk["object"] == "chat.completion.chunk" and chunk["usage"] is None for chunk in found)
    for index in (0, 1):
        choices = [chunk["choices"][0] for chunk in found if chunk["choices"][0]["index"] == index]
        assert choices[0]["delta"]["role"] == "assistant" and all("role" not in c["delta"] for c in choices[1:])
        assert "".join(choice["delta"].get("content", "") for choice in choices) == "I am base"
        assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["length"]


def test_stream_of_a_completion(client):
    found = events(complete(client(), stream=True, logprobs=0))
    assert found.pop() == "[DONE]" and all("usage" not in chunk for chunk in found)
    assert "".join(chunk["choices"][0]["text"] for chunk in found) == "I am base"
    assert [offset for c in found for offset in c["choices"][0]["logprobs"]["text_offset"]] == list(range(9))


def test_a_failure_inside_a_stream_is_its_last_event(client, engine):
    engine.say = lambda request: "fail"
    found = events(chat(client(), stream=True))
    assert found[-1]["error"]["message"] == "the model made no sense" and "[DONE]" not in found
    assert error(chat(client()), 500)["type"] == "server_error"


# --- refusals ---


@pytest.mark.parametrize(
    ("more", "param", "code"),
    [
        ({"tools": [{"type": "function", "function": {"name": "clock"}}]}, "messages", "invalid_value"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"tool_choice": "maybe"}, "tool_choice", "unsupported_value"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "invalid_value"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "invalid_value"),
        ({"tools": [{"type": "function", "function": {"name": "a"}}] * 2}, "tools", "invalid_value"),
        ({"chat_template_kwargs": {"tokenize": True}}, "messages", "invalid_value"),
        ({"response_format": {"type": "yaml"}}, "response_format.type", "unsupported_value"),
        ({"response_format": {"type": ["text"]}}, "response_format.type", "unsupported_value"),
        ({"response_format": {"type": "regex", "regex": "wrong"}}, "response_format", "invalid_value"),
        ({"response_format": {"type": "json_object", "schema": {}}}, "response_format", "invalid_value"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, "response_format.json_schema",
         "invalid_value"),
        ({"frequency_penalty": 2.5}, "frequency_penalty", "invalid_value"),
        ({"repetition_penalty": 0}, "repetition_penalty", "invalid_value"),
        ({"logit_bias": {"a": 2}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"1": 200}}, "logit_bias[1]", "invalid_value"),
        ({"store": True}, "store", "unsupported_parameter"),
        ({"reasoning_effort": "low"}, "reasoning_effort", "unsupported_parameter"),
        ({"temprature": 1}, "temprature", "unknown_parameter"),
        ({"top_k": -2}, "top_k", "invalid_value"),
        ({"min_p": 2}, "min_p", "invalid_value"),
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"temperature": "1"}, "temperature", "invalid_value"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": True}, "n", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_completion_tokens": 8}, "max_tokens", "unsupported_value"),
        ({"stop": list("abcdefghijklmnopq")}, "stop", "invalid_value"),
        ({"stop": [""]}, "stop[0]", "invalid_value"),
        ({"seed": 2**64}, "seed", "invalid_value"),
        ({"top_logprobs": 2}, "top_logprobs", "unsupported_parameter"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "unsupported_parameter"),
        ({"messages": None}, "messages", "missing_parameter"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": "hello"}, "messages", "invalid_value"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role", "unsupported_value"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_parameter"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "invalid_value"),
        (
            {"messages": [{"role": "assistant", "content": "a", "tool_calls": [{"id": "1"}]}]},
            "messages[0].tool_calls[0].function", "missing_parameter",
        ),
        (
            {"messages": [*HELLO, {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[1].content[0].image_url.url", "invalid_value",
        ),
    ],
)  # fmt: skip
def test_what_chat_refuses(client, engine, more, param, code):
    told = error(chat(client(), **more), 400)
    assert (told["param"], told["code"], told["type"]) == (param, code, "invalid_request_error")
    assert any(word in told["message"] for word in re.split(r"[\W\d]+", param) if word)
    assert not engine.requests


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"), ({"echo": "yes"}, "echo"),
        ({"best_of": 2}, "best_of"), ({"suffix": "z"}, "suffix"),
        ({"logprobs": 6}, "logprobs"),
        ({"prompt": None}, "prompt"), ({"prompt": []}, "prompt"), ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"), ({"prompt": [True]}, "prompt"), ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": [10**6]}, "prompt"), ({"prompt": [-1]}, "prompt"), ({"messages": HELLO}, "messages"),
        ({"n": 100, "prompt": ["a", "b"]}, "n"),
    ],
)  # fmt: skip
def test_what_completions_refuse(client, engine, more, param):
    assert error(complete(client(), **more), 400)["param"] == param
    assert not engine.requests


@pytest.mark.parametrize("body", [ChatBody, CompletionBody, Message])
def test_a_neutral_value_asks_for_nothing_and_no_parameter_is_both(client, body):
    assert not set(body.neutral) & set(body.model_fields)
    call = complete if body is CompletionBody else chat
    for name, values in body.neutral.items():
        for value in (None, *values, *(float(each) for each in values if type(each) is int)):
            more = {name: value} if body is not Message else {"messages": [{**HELLO[0], name: value}]}
            assert call(client(), **more).status_code == 200, (name, value)


def test_what_the_engine_refuses(client):
    assert "at most 400" in error(complete(client(), prompt="a" * 400), 400)["message"]


@pytest.mark.parametrize("text", ["", "{", "[]", "5", '"x"', "[" * 100_000, '{"model": NaN}'])
def test_bodies_that_are_no_request(client, text):
    response = client().post("/v1/chat/completions", content=text, headers={"content-type": "application/json"})
    assert error(response, 400)["type"] == "invalid_request_error"


def test_a_form_is_no_request(client, engine):
    """What a page of another site could send without asking first."""
    text = json.dumps({"model": "base", "messages": HELLO})
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        error(client().post("/v1/chat/completions", content=text, headers={"content-type": kind}), 400)
    assert not engine.requests


def test_unknown_model_tells_near_names(client):
    told = error(chat(client(), model="bass"), 404)
    assert told["code"] == "model_not_found" and "did you mean 'base'" in told["message"]
    assert error(client().get("/v1/models/tow"), 404)["param"] == "model"


def test_unknown_path_and_method(client):
    error(client().get("/v1/nothing"), 404)
    error(client().get("/v1/chat/completions"), 405)


def test_a_full_queue(client, engine):
    engine.gate.clear()
    engine.live = {-1, -2}
    told = chat(client(), n=7)
    assert error(told, 429)["type"] == "rate_limit_error" and told.headers["retry-after"] == "1"
    assert not engine.requests  # all or none


def test_draining(client, engine):
    api = client()
    assert api.get("/health").json() == {"status": "ready"}
    service_of(api).draining = True
    assert api.get("/health").status_code == 503
    for call in (chat, complete):
        assert "retry-after" in call(api).headers and error(call(api), 503)["code"] == "draining"
    error(api.post("/v1/adapters", json={"name": "x", "path": "x"}), 503)
    assert not engine.requests


def service_of(api):
    """The service behind a client, found through a route's closure."""
    route = next(r for r in api.app.routes[0].original_router.routes if r.path.endswith("/chat/completions"))
    return dict(zip(route.endpoint.__code__.co_freevars, route.endpoint.__closure__, strict=True))[
        "service"
    ].cell_contents


# --- who may ask, and how much ---


def test_body_limit(client, engine):
    api = client(Guard(max_body=1000))
    long = json.dumps({"model": "base", "messages": [{"role": "user", "content": "x" * 2000}]}).encode()
    json_type = {"content-type": "application/json"}
    assert error(api.post("/v1/chat/completions", content=long, headers=json_type), 413)["code"] == "body_too_large"
    parts = (long[i : i + 100] for i in range(0, len(long), 100))  # chunked: no length is told
    told = api.post("/v1/chat/completions", content=parts, headers=json_type)
    assert "content-length" not in told.request.headers
    error(told, 413)
    assert not engine.requests


def test_api_key(client, engine):
    api = client(Guard("right"))
    for headers in (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Basic right"},
        {"authorization": "right"},
    ):
        told = api.post("/v1/chat/completions", json={"model": "base", "messages": HELLO}, headers=headers)
        assert error(told, 401)["code"] == "invalid_api_key" and told.headers["www-authenticate"] == "Bearer"
    error(api.get("/v1/models", headers={"authorization": "Bearer r\xefght".encode("latin-1")}), 401)
    error(api.get("/metrics"), 401)
    assert not engine.requests
    assert [api.get(path).status_code for path in ("/", "/page.js", "/page.css", "/health")] == [200] * 4
    assert api.get("/v1/models", headers={"authorization": "Bearer right"}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "[::1", "localhost@x"]
)
def test_foreign_names_are_refused(client, host):
    assert error(client().get("/health", headers={"host": host}), 403)["code"] == "wrong_host"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000", "mine.example"])
def test_own_names_are_answered(client, host):
    guard = Guard(hosts=("127.0.0.1", "localhost", "::1", "mine.example"))
    assert client(guard).get("/health", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "http://127.0.0.1:9999", "null", "http://localhost:8000"])
def test_foreign_pages_are_refused(client, engine, origin):
    told = client().post(
        "/v1/chat/completions", json={"model": "base", "messages": HELLO}, headers={"origin": origin}
    )  # fmt: skip
    assert error(told, 403)["code"] == "wrong_origin" and not engine.requests
    assert "access-control-allow-origin" not in told.headers


def test_its_own_page_is_answered(client):
    assert client().get("/v1/models", headers={"origin": "http://127.0.0.1:8000"}).status_code == 200


def test_headers_of_every_answer(client):
    for path in ("/", "/v1/models", "/nothing"):
        headers = client().get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
        assert headers["x-content-type-options"] == "nosniff"


# --- adapters ---


@pytest.fixture
def shelf(tmp_path):
    """A folder with adapters, one of them damaged, and adapters outside of it."""
    for name in ("shelf/good", "shelf/run/adapter", "shelf/bad", "outside"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "adapter.json").write_text("{}")
    (tmp_path / "shelf/bad/damaged").touch()
    (tmp_path / "shelf/empty").mkdir()
    (tmp_path / "shelf/link").symlink_to(tmp_path / "outside")
    (tmp_path / "shelf/loop").symlink_to(tmp_path / "shelf/loop")
    (tmp_path / "shelf/half").mkdir()
    (tmp_path / "shelf/half/adapter").symlink_to(tmp_path / "outside")
    (tmp_path / "shelf/file").mkdir()
    (tmp_path / "shelf/file/adapter.json").symlink_to(tmp_path / "outside/adapter.json")
    return tmp_path / "shelf"


def test_adapters_come_and_go(client, engine, shelf):
    api = client(adapters_folder=shelf)
    for name, path in (("new", "good"), ("run", "run"), ("whole", str(shelf / "good"))):
        told = api.post("/v1/adapters", json={"name": name, "path": path})
        assert told.status_code == 201 and told.json()["id"] == name
    assert chat(api, model="new").status_code == 200
    assert api.delete("/v1/adapters/new").json() == {"id": "new", "object": "model", "deleted": True}
    error(chat(api, model="new"), 404)
    error(api.delete("/v1/adapters/new"), 404)
    error(api.delete("/v1/adapters/base"), 400)
    assert engine.names == ["one", "two", "run", "whole"]


@pytest.mark.parametrize(
    ("name", "path", "status", "param"),
    [
        ("x", "../outside", 403, "path"), ("x", "link", 403, "path"), ("x", "half", 403, "path"),
        ("x", "/etc", 403, "path"), ("x", "file", 403, "path"), ("x", "good\0", 400, "path"),
        ("x", "loop", 400, "path"), ("x", "x" * 5000, 400, "path"), ("x", "empty", 400, "path"),
        ("x", "none", 400, "path"), ("x", "bad", 400, "path"), ("one", "good", 409, "name"),
        ("base", "good", 409, "name"), ("../x", "good", 400, "name"), ("", "good", 400, "name"),
        ("x" * 65, "good", 400, "name"),
    ],
)  # fmt: skip
def test_what_cannot_be_loaded(client, engine, shelf, name, path, status, param):
    told = error(client(adapters_folder=shelf).post("/v1/adapters", json={"name": name, "path": path}), status)
    assert told["param"] == param and engine.names == ["one", "two"]


def test_adapters_are_fixed_without_a_folder(client, engine):
    for told in (client().post("/v1/adapters", json={"name": "x", "path": "x"}), client().delete("/v1/adapters/one")):
        assert "--adapters-folder" in error(told, 403)["message"]
    assert engine.names == ["one", "two"]


# --- metrics ---


def test_metrics(client):
    from prometheus_client.parser import text_string_to_metric_families

    api = client()
    chat(api)
    chat(api, model="none")
    api.get("/v1/wp-admin")
    response = api.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = {
        (s.name, s.labels.get("path"), s.labels.get("code")): s.value
        for family in text_string_to_metric_families(response.text)
        for s in family.samples
    }
    assert found["luthier_requests_total", "/v1/chat/completions", "200"] == 1
    assert found["luthier_requests_total", "/v1/chat/completions", "404"] == 1
    assert found["luthier_requests_total", "other", "404"] == 1
    assert found["luthier_generated_tokens_total", None, None] == 9
    assert found["luthier_running", None, None] == 0 and found["luthier_adapters", None, None] == 2
    assert found["luthier_time_to_first_token_seconds_count", None, None] == 1
    assert found["luthier_request_seconds_count", None, None] == 1


def test_answers_differ_by_model():
    assert len({answer(name) for name in (None, "one", "two")}) == 3


SAYS_ALL = (
    "{% for t in tools or [] %}{{ t.function.name + ' ' + t.function.description + '\n' }}{% endfor %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if quiet %}{{ '<think></think>' }}{% endif %}{% endif %}"
)
CLOCK = {"type": "function", "function": {"name": "clock", "description": "The time.", "parameters": {}}}


def test_tools_calls_and_variables_are_in_the_prompt_as_in_training(client, engine):
    from luthier.data import Example, prompt_ids

    engine.tokenizer.chat_template = SAYS_ALL
    call = {"id": "c1", "type": "function", "function": {"name": "clock", "arguments": '{"zone": "UTC"}'}}
    turns = [*HELLO, {"role": "assistant", "content": None, "tool_calls": [call]}]
    turns += [{"role": "tool", "tool_call_id": "c1", "content": "noon"}]
    assert chat(client(), messages=turns, tools=[CLOCK], chat_template_kwargs={"quiet": True}).status_code == 200
    messages = [*turns, {"role": "assistant", "content": "It is noon."}]
    wanted = prompt_ids(Example(row=1, messages=messages, tools=[CLOCK], template={"quiet": True}), engine.tokenizer)
    text = engine.tokenizer.decode(wanted)
    assert list(engine.requests[-1].prompt) == wanted and text.endswith("<think></think>")
    assert "clock The time." in text and '"zone": "UTC"' in text
    assert chat(client(), tools=[CLOCK], tool_choice="none").status_code == 200
    assert "The time." not in engine.tokenizer.decode(engine.requests[-1].prompt)


def test_an_adapter_is_spoken_to_as_it_was_trained(client, engine, monkeypatch):
    from luthier.models import Chat
    from luthier.serving.http import service

    engine.tokenizer.chat_template = SAYS_ALL
    kept = {"one": Chat(SAYS_ALL.replace("im_start", "begin"), {"quiet": True})}
    monkeypatch.setattr(service, "read", lambda folder: {"measured": kept[folder.name].kept()})
    with pytest.warns(UserWarning, match="adapter 'one' was trained with another chat template"):
        api = client(trained={"one": "one"})
    texts = []
    for name in ("one", "base"):
        assert chat(api, model=name).status_code == 200
        texts.append(engine.tokenizer.decode(engine.requests[-1].prompt))
    assert "begin" in texts[0] and texts[0].endswith("assistant\n<think></think>")
    assert "im_start" in texts[1] and texts[1].endswith("assistant\n")
