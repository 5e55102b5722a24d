"""Clients that ask for too much, too slowly, or for nothing: they are refused, and the others are answered."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import time
from collections.abc import Callable

import pytest

from luthier.serving.http.bodies import Counting, Once
from luthier.serving.http.claims import Claims, lane
from luthier.serving.http.connections import Connections
from luthier.serving.http.guard import LOOPBACK, Guard
from luthier.serving.http.refusal import Refusal
from support.fake_engine import FakeEngine
from support.served import serving

HELLO = {"model": "base", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}
HASTY = Guard(hosts=LOOPBACK, patience=0.3)


def place(address: str) -> tuple[str, int]:
    host, port = address.removeprefix("http://").split(":")
    return host, int(port)


def post(address: str, body: object, path: str = "/v1/chat/completions", source: str = "127.0.0.1", **headers: str):
    """(status, JSON) of a call from an address of this machine."""
    call = http.client.HTTPConnection(*place(address), timeout=10, source_address=(source, 0))
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    call.request("POST", path, raw, {"content-type": "application/json", **headers})
    answer = call.getresponse()
    return answer.status, json.loads(answer.read())


def silence(address: str, said: bytes) -> bytes:
    """What a connection is told that says this much and no more."""
    with socket.create_connection(place(address), timeout=10) as made:
        made.sendall(said)
        found = b""
        while part := made.recv(4096):
            found += part
        return found


def get(address: str, path: str) -> bytes:
    """The body of an answer."""
    call = http.client.HTTPConnection(*place(address), timeout=10)
    call.request("GET", path)
    return call.getresponse().read()


def until(holds: Callable[[], bool]) -> bool:
    """Whether something comes to hold within some seconds."""
    end = time.monotonic() + 5
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (
            b'{"model": "base", "messages": [{"role": "user", "content": "\\ud800"}]}',
            "\\\\ud800 without its other half",
        ),
        (b'{"model": "\\udc00"}', "without its other half"),
        (b'{"model": "base", "\\uDFFF": 1}', "without its other half"),
        (b'{"model": "base", "messages": "\xff"}', "cannot be read as JSON"),
        (b"[" * 100_000, "not JSON|read as JSON"),
        (b'{"model": ' + b"9" * 5000 + b"}", "cannot be read as JSON"),
        (b'{"model": "base", "messages": [' + b"1," * 9000 + b"1]}", "messages"),
        (b'{"model": "base", "messages": [' + b'{"role":"x"},' * 5000 + b"{}]}", "messages\\[0\\]|role"),
        (b'"a text"', "expected a JSON object"),
        (b'{"model": "base", "max_tokens": 1, "max_tokens": 2}', "'max_tokens' stands twice"),
        (b'{"model": "base", "messages": [{"role": "user", "role": "system"}]}', "'role' stands twice"),
        (b'{"x": [' + b"1," * 9000 + b'{"a": 1, "a": 2}]}', "'a' stands twice"),
    ],
)
def test_bodies_that_are_no_request_are_400(client, body, told):
    import re

    found = client().post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert found.status_code == 400 and re.search(told, found.json()["error"]["message"])


VALUES = b"[], " * 40_000 + b"1"
"""More than a body may hold, in 160 kB."""


@pytest.mark.parametrize("place", ["messages", "documents", "tools", "prompt", "x"])
def test_bodies_of_too_many_values_are_refused_wherever_they_stand(client, place):
    body = b'{"model": "base", "%s": [' % place.encode() + VALUES + b"]}"
    found = client().post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert found.status_code == 400 and found.json()["error"]["code"] == "too_many_values"


@pytest.mark.parametrize(
    "body",
    [
        HELLO | {"x" * 100_000: 1}, HELLO | {"model": "y" * 100_000},
        HELLO | {"messages": [{"role": "r" * 100_000, "content": "a"}]},
        HELLO | {"metadata": {str(i): "a" for i in range(17)}},
        HELLO | {"metadata": {str(i): i for i in range(30_000)}},
    ],
)  # fmt: skip
def test_what_is_long_and_wrong_is_told_shortly(client, body):
    found = client().post("/v1/chat/completions", json=body)
    assert found.status_code in (400, 404) and len(found.content) < 1000


@pytest.mark.parametrize(
    "text",
    ['{"a": [1, -2.5e3, true, null, "x\\u00e9\\ud83d\\ude42", {}], "b": 2, "": {"b": [[]]}}', "[]", "3", ' "" ',
     "[1e400, -Infinity, NaN]"],
)  # fmt: skip
def test_many_values_are_read_as_few_are(text):
    assert repr(json.loads(text, cls=Counting)) == repr(json.loads(text))


@pytest.mark.parametrize(
    "text", ["", "[", "[1,]", '{"a"}', '{"a": 1,}', "1 2", "nul", '"\n"', "[" * 10_000, "9" * 5000, '{"a": 1, "a": 1}']
)
def test_many_values_are_refused_as_few_are(text):
    with pytest.raises((ValueError, RecursionError)):
        json.loads(text, cls=Once)
    with pytest.raises((ValueError, RecursionError)):
        json.loads(text, cls=Counting)


def test_clients_take_turns():
    """A client's second prompt waits for its first, and another client's for neither."""

    async def clients() -> list[str]:
        said: list[str] = []

        async def read(client: str, what: str, turns: int) -> None:
            async with lane(client):
                for _ in range(turns):
                    await asyncio.sleep(0)
                said.append(what)

        await asyncio.gather(read("a", "long", 50), read("a", "second", 0), read("b", "other", 0))
        return said

    assert asyncio.run(clients()) == ["other", "long", "second"]


def test_whole_pairs_of_surrogates_are_characters(client):
    body = b'{"model": "base", "messages": [{"role": "user", "content": "\\ud83d\\ude42"}], "max_tokens": 3}'
    found = client().post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert found.status_code == 200


@pytest.mark.parametrize(("origin", "status"), [("http://[", 400), ("http://[::1", 400), ("null", 403), ("", 403)])
def test_an_origin_that_is_none(client, origin, status):
    assert client().get("/v1/models", headers={"origin": origin}).status_code == status


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_long_prompts_are_refused_by_their_characters(client, engine, path, monkeypatch):
    text = "a b " * 200_000
    body = {"model": "base", "prompt": text} if path == "completions" else HELLO | {
        "messages": [{"role": "user", "content": text}]
    }  # fmt: skip
    began = time.perf_counter()
    found = client().post(f"/v1/{path}", json=body)
    assert found.status_code == 400 and found.json()["error"]["code"] == "context_length_exceeded"
    assert "800,000 characters" in found.json()["error"]["message"]
    assert time.perf_counter() - began < 1 and not engine.requests


def test_more_than_there_are_places_is_refused_for_ever(client, engine):
    found = client().post("/v1/chat/completions", json=HELLO | {"n": 9})
    assert found.status_code == 400 and "a client may have 8" in found.json()["error"]["message"]
    assert not engine.requests


def test_one_client_cannot_take_all_places():
    engine = FakeEngine(waiting=6)
    engine.gate.clear()
    with serving(engine, per_client=4) as address:
        host, port = place(address)
        held = http.client.HTTPConnection(host, port, source_address=("127.0.0.2", 0))
        held.request("POST", "/v1/chat/completions", json.dumps(HELLO | {"n": 4}), {"content-type": "application/json"})
        while len(engine.requests) < 4:
            time.sleep(0.01)
        status, told = post(address, HELLO, source="127.0.0.2")
        assert status == 429 and told["error"]["code"] == "client_queue_full"
        assert post(address, HELLO | {"n": 5}, source="127.0.0.2")[0] == 400
        engine.gate.set()
        assert post(address, HELLO, source="127.0.0.3")[0] == 200
        assert held.getresponse().status == 200
        assert post(address, HELLO, source="127.0.0.2")[0] == 200, "its places came back"


def test_places_come_back_however_a_call_ends(client, engine):
    api = client(per_client=2)
    for body in (HELLO | {"n": 2}, HELLO | {"model": "none"}, HELLO | {"messages": [{"role": "user"}]}, HELLO):
        api.post("/v1/chat/completions", json=body)
    engine.say = lambda request: "fail"
    api.post("/v1/chat/completions", json=HELLO | {"n": 2})
    with api.stream("POST", "/v1/chat/completions", json=HELLO | {"n": 2, "stream": True}) as stream:
        list(stream.iter_lines())
    engine.say = lambda request: "fine"
    assert api.post("/v1/chat/completions", json=HELLO | {"n": 2}).status_code == 200


def test_claims_are_counted_by_client_and_given_back_once():
    claims = Claims(10, 3)
    one, other = claims.take("a", 2), claims.take("b", 3)
    with pytest.raises(Refusal, match="for 3"):
        claims.take("a", 2)
    one.over(), one.over()
    with claims.take("a", 3):
        pass
    claims.take("a", 3)
    with pytest.raises(Refusal):
        claims.take("b", 1)
    other.over()
    claims.take("b", 3)


@pytest.mark.parametrize("said", [b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\nx: "])
def test_a_head_that_does_not_come_ends_the_connection(engine, said):
    with serving(engine, HASTY) as address:
        began = time.monotonic()
        assert silence(address, said) == b"" and time.monotonic() - began < 3


def test_a_head_that_trickles_ends_the_connection_too(engine):
    with serving(engine, HASTY) as address, socket.create_connection(place(address), timeout=10) as made:
        made.sendall(b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
        assert b"200" in made.recv(4096)
        with pytest.raises(OSError):
            for _ in range(100):
                made.sendall(b"GET /health HTTP/1.1\r\n"[:1])
                time.sleep(0.05)


def test_a_body_that_does_not_come_is_408(engine):
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    with serving(engine, HASTY) as address:
        for rest in (b'content-length: 90\r\n\r\n{"model"', b'transfer-encoding: chunked\r\n\r\n2\r\n{"\r\n'):
            told = silence(address, head + rest)
            assert b" 408 " in told and b"connection: close" in told.lower() and b"body_too_slow" in told
        assert post(address, HELLO)[0] == 200


def test_a_client_that_leaves_within_its_body_is_no_failure(engine, caplog):
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    with serving(engine) as address:
        with socket.create_connection(place(address), timeout=10) as made:
            made.sendall(head + b"content-length: 90\r\n\r\n{")
            time.sleep(0.1)
        assert until(lambda: b'code="499"' in get(address, "/metrics"))
    assert not [each for each in caplog.records if each.levelname == "ERROR"]


def test_a_refused_body_is_not_taken_for_ever(engine):
    with serving(engine) as address:
        told = silence(address, b"POST /v1/none HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 100\r\n\r\nx")
        assert b" 404 " in told and b"connection: close" in told.lower()


def test_connections_are_counted(engine):
    with serving(engine, connections=4) as address:
        held = [socket.create_connection(place(address)) for _ in range(2)]
        time.sleep(0.1)
        told = silence(address, b"")
        assert b" 503 " in told and b"connections_full" in told and b"connection: close" in told
        assert post(address, HELLO, source="127.0.0.2")[0] == 200
        for each in held:
            each.close()
        time.sleep(0.1)
        assert post(address, HELLO)[0] == 200


def test_connections_by_address():
    limits = Connections(4, 1.0)
    assert [limits.take(address) for address in "aaabbb"] == [True, True, False, True, True, False]
    limits.give_back("a")
    assert limits.take("c") and not limits.take("a")


def test_every_handler_of_errors_answers(client):
    """What FastAPI itself finds wrong goes through a handler of its own."""
    from fastapi.exceptions import RequestValidationError

    app = client().app
    found = []

    async def ask() -> None:
        handler = app.exception_handlers[RequestValidationError]
        error = RequestValidationError([{"type": "missing", "loc": ("path", "name"), "msg": "Field required"}])
        found.append(await handler(None, error))

    asyncio.run(ask())
    assert found[0].status_code == 400 and json.loads(found[0].body)["error"]["param"] == "name"
