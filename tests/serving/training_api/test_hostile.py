"""Requests that are nearly right: each is taken or refused, none fails the server, and none stands in another's way."""

from __future__ import annotations

import inspect
import json
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from luthier.serving.training_api import bodies
from luthier.serving.training_api.asks import JSON, PROTOBUF
from luthier.serving.training_api.wire import encode
from serving.training_api.conftest import running
from support.mutations import Draw, changed_bytes, changed_value, dumped
from support.train_client import Client, row

CASES = 120
TOKENS = {"chunks": [{"type": "encoded_text", "tokens": [1, 2, 3]}]}
TARGETS = {"data": [2, 3, 4], "dtype": "int64", "shape": [3]}
WEIGHTS = {"data": [0.0, 1.0, 1.0], "dtype": "float32", "shape": [3]}
DATUM = {"model_input": TOKENS, "loss_fn_inputs": {"target_tokens": TARGETS, "weights": WEIGHTS}}


class Target:
    """What good requests name, in a server whose state is looked at between them."""

    def __init__(self, server: Any) -> None:
        self.store, self.scheduler, self.own = server.training.store, server.training.scheduler, server.client
        self.session, self.numbers = self.own.session(), iter(range(10**6))
        self.model = self.own.create(self.session, "tiny", next(self.numbers))
        self.path = self.own.result(self.own.post("save_weights", model_id=self.model, seq_id=1, path="a"))["path"]
        opened = self.own.post("create_sampling_session", session_id=self.session, sampling_session_seq_id=0,
                               base_model="tiny")  # fmt: skip
        self.sampler = opened["sampling_session_id"]

    def settled(self) -> int:
        """The model's next number, once nothing waits; of a number that was changed away, nothing ever comes."""
        while True:
            row = self.store.row("SELECT next, state FROM models WHERE id = ?", self.model)
            waiting = "SELECT id FROM requests WHERE owner = ? AND state = 'waiting'"
            if self.store.row(waiting, self.model) is None:
                return row["next"]
            if not self.store.ready():
                self.store.refuse("nobody", self.model, row["next"], "given up")
                self.scheduler.wake()
            time.sleep(0.002)

    def idle(self) -> bool:
        """Whether nothing waits any more, within seconds."""
        end = time.monotonic() + 20
        while self.store.row("SELECT id FROM requests WHERE state = 'waiting'") and time.monotonic() < end:
            time.sleep(0.05)
        return self.store.row("SELECT id FROM requests WHERE state = 'waiting'") is None

    def good(self) -> dict[str, dict[str, Any]]:
        """A good body for each route."""
        numbered = {"model_id": self.model, "seq_id": self.settled()}
        new, sampled = {"session_id": self.session, "model_seq_id": next(self.numbers)}, {"temperature": 1.0, "seed": 1}
        return {
            "create_session": {"tags": ["a"], "user_metadata": {"a": "b"}, "sdk_version": "1"},
            "session_heartbeat": {"session_id": self.session},
            "create_model": new | {"base_model": "tiny", "lora_config": {"rank": 2, "seed": 1}},
            "load_weights": numbered | {"path": self.path, "optimizer": True},
            "get_info": {"model_id": self.model},
            "forward_backward": numbered | {"forward_backward_input": {"data": [DATUM], "loss_fn": "cross_entropy"}},
            "optim_step": numbered | {"adam_params": {"learning_rate": 1e-3, "beta1": 0.9, "eps": 1e-8}},
            "save_weights": numbered | {"path": f"c{numbered['seq_id']}", "ttl_seconds": 3600},
            "save_weights_for_sampler": numbered | {"path": f"d{numbered['seq_id']}"},
            "create_sampling_session": {
                "session_id": self.session, "sampling_session_seq_id": next(self.numbers), "model_path": None,
                "base_model": "tiny",
            },
            "asample": {
                "sampling_session_id": self.sampler, "seq_id": next(self.numbers), "prompt": TOKENS, "num_samples": 1,
                "sampling_params": {"max_tokens": 2, **sampled}, "prompt_logprobs": False,
            },
            "join_sampling_session": {"sampling_session_id": self.sampler},
            "retrieve_future": {"request_id": f"{self.model}:1"},
        }  # fmt: skip

    def packed(self) -> bytes:
        """A good pass, in protobuf."""
        told = {"model_id": self.model, "seq_id": self.settled(), "loss_fn": "cross_entropy", "data": [row(5, 3)]}
        return encode("ForwardBackwardRequest", told | {"forward_only": 0, "loss_fn_config": {}})

    def sent(self, draw: Draw) -> tuple[str, bytes, str]:
        """(route, changed body, its media)."""
        if draw.random() < 0.2:
            return "forward_backward", changed_bytes(self.packed(), draw), PROTOBUF
        route, body = draw.choice(list(self.good().items()))
        raw = dumped(changed_value(body, draw))
        return route, changed_bytes(raw, draw) if draw.random() < 0.15 else raw, JSON


def test_requests_that_are_nearly_right_are_taken_or_refused(base, tmp_path):
    with running(base, tmp_path / "kept", adapters=3) as server:
        target, codes = Target(server), Counter()
        for case in range(CASES):
            draw = Draw(f"training api {case}")
            draw.still = case % 10 == 0
            route, raw, media = target.sent(draw)
            got = target.own.call("POST", route, content=raw, headers={"content-type": media})
            assert got.status_code < 500, (case, route, got.text, raw[:500])
            assert got.status_code == 200 or not draw.still, (case, route, got.text)
            codes[got.status_code] += 1
        assert codes[200] > CASES / 10 and codes[400] > CASES / 4
        target.settled()
        assert target.idle()
        failed = target.store.rows("SELECT id, kind, error FROM requests WHERE category = 'server'")
        assert not [dict(each) for each in failed]
        assert works(server.client)


def works(own: Client) -> bool:
    """Whether an honest tenant trains."""
    model = own.create(own.session(), "tiny")
    return own.passed(model, 1, [row(5, 3)])[1]["loss:sum"] > 0


def numbers() -> Iterator[tuple[type[BaseModel], str]]:
    for name, kind in inspect.getmembers(bodies, inspect.isclass):
        if issubclass(kind, BaseModel) and kind.__module__ == bodies.__name__:
            for field, told in kind.model_fields.items():
                if "int" in str(told.annotation):
                    yield pytest.param(kind, field, id=f"{name}.{field}")


@pytest.mark.parametrize(("kind", "field"), numbers())
def test_no_number_is_larger_than_the_database_holds(kind, field):
    with pytest.raises(ValidationError) as told:
        listed = "list[" in str(kind.model_fields[field].annotation)
        kind.model_validate({field: [10**30] if listed else 10**30})
    assert field in {error["loc"][0] for error in told.value.errors()}


@pytest.mark.parametrize(("kind", "field", "value"), [
    (bodies.SampleBody, "num_samples", 0), (bodies.SampleBody, "num_samples", 129), (bodies.SampleBody, "seq_id", -1),
    (bodies.ModelBody, "model_seq_id", -1), (bodies.LoadBody, "seq_id", 0), (bodies.SaveBody, "ttl_seconds", 1),
    (bodies.SamplingBody, "max_tokens", 0), (bodies.SamplingBody, "max_tokens", 2**40), (bodies.StepBody, "seq_id", 0),
])  # fmt: skip
def test_numbers_keep_their_own_bounds(kind, field, value):
    with pytest.raises(ValidationError) as told:
        kind.model_validate({field: value})
    assert field in {error["loc"][0] for error in told.value.errors()}


@pytest.mark.parametrize("raw", [
    {"model_id": "\ud800", "seq_id": 1}, {"model_id": "m", "seq_id": 10**400}, {"model_id": "m", "seq_id": 2**63},
    {"model_id": [], "seq_id": 1}, [1], "a",
], ids=repr)  # fmt: skip
def test_the_head_of_a_pass_is_checked(server, raw):
    got = server.client.call("POST", "forward_backward", content=json.dumps(raw), headers={"content-type": JSON})
    assert got.status_code == 400


@pytest.mark.parametrize("loss", [[[]], {}, None, 3, "\x00"])
def test_a_loss_that_has_no_name_is_refused(server, loss):
    own = server.client
    model = own.create(own.session(), "tiny")
    body = {"model_id": model, "seq_id": 1, "forward_backward_input": {"data": [DATUM], "loss_fn": loss}}
    assert own.call("POST", "forward_backward", body).status_code == 400


@pytest.mark.parametrize("coding", ["utf-8-sig", "utf-16", "utf-32"])
def test_what_is_taken_is_read_again_as_it_was(server, coding):
    own = server.client
    model = own.create(own.session(), "tiny")
    body = json.dumps({"model_id": model, "seq_id": 1, "adam_params": {}}).encode(coding)
    got = own.call("POST", "optim_step", content=body, headers={"content-type": JSON})
    assert "metrics" in own.result(got.json())


@pytest.mark.parametrize("adapters", [1, 2])
def test_a_model_that_cannot_be_saved_keeps_no_other_out(base, tmp_path, monkeypatch, adapters):
    with running(base, tmp_path / "kept", adapters=adapters) as server:
        own = server.client
        stuck = own.create(own.session(), "tiny")
        put_away = server.training.trainer.save_snapshot

        def save(model: str) -> None:
            if model == stuck:
                raise OSError("File name too long")
            put_away(model)

        monkeypatch.setattr(server.training.trainer, "save_snapshot", save)
        assert all(works(own) for _ in range(3))
        assert own.passed(stuck, 1, [row(5, 3)])[1]["loss:sum"] > 0


def test_listings_bound_their_numbers(server):
    assert server.client.call("GET", f"sessions?offset={10**30}").status_code == 400
