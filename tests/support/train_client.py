"""A small client of the training API: protobuf for passes, JSON for the rest, and no end of retries."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np

from luthier.serving.training_api.wire import decode, encode

PROTOBUF = "application/x-protobuf"


class Client:
    """Calls to one server; `patient` ones are sent again until the server answers, as the official client does."""

    def __init__(self, http: Any, key: str = "tml-test", patient: bool = False) -> None:
        self.http, self.key, self.patient = http, key, patient

    def call(self, method: str, path: str, json: Any = None, **given: Any) -> httpx.Response:
        headers = {"x-api-key": self.key, **given.pop("headers", {})}
        while True:
            try:
                got = self.http.request(method, f"/api/v1/{path}", json=json, headers=headers, **given)
            except httpx.TransportError:
                if not self.patient:
                    raise
            else:
                if not (self.patient and got.status_code in (429, 503)):
                    return got
            time.sleep(0.02)

    def post(self, route: str, /, **body: Any) -> dict[str, Any]:
        got = self.call("POST", route, body)
        assert got.status_code == 200, got.text
        return got.json()

    def result(self, promise: dict[str, Any], protobuf: str | None = None) -> Any:
        """The result behind a promise; of a pass or sample as its message."""
        headers = {"accept": PROTOBUF} if protobuf else {}
        while True:
            got = self.call("POST", "retrieve_future", {"request_id": promise["request_id"]}, headers=headers)
            assert got.status_code == 200, got.text
            if got.headers["content-type"].startswith(PROTOBUF):
                return decode(str(protobuf), got.content)
            told = got.json()
            if told.get("type") != "try_again":
                return told

    def session(self) -> str:
        return self.post("create_session", tags=[], sdk_version="test")["session_id"]

    def create(self, session: str, base: str, number: int = 0, rank: int = 2, seed: int = 3, **lora: Any) -> str:
        promise = self.post("create_model", session_id=session, model_seq_id=number, base_model=base,
                            lora_config={"rank": rank, "seed": seed, **lora})  # fmt: skip
        told = self.result(promise)
        assert "model_id" in told, told
        return told["model_id"]

    def submit(self, model: str, seq: int, data: Sequence[dict[str, Any]], loss: str = "cross_entropy",
               forward_only: bool = False, **config: float) -> httpx.Response:  # fmt: skip
        """Sends a pass, in protobuf."""
        raw = encode("ForwardBackwardRequest", {
            "model_id": model, "seq_id": seq, "loss_fn": loss, "forward_only": int(forward_only), "data": data,
            "loss_fn_config": config, "loss_fn_config_v2": {key: {"number": each} for key, each in config.items()},
        })  # fmt: skip
        return self.call("POST", "forward_backward", content=raw, headers={"content-type": PROTOBUF})

    def passed(self, model: str, seq: int, data: Sequence[dict[str, Any]], loss: str = "cross_entropy",
               forward_only: bool = False, **config: float) -> tuple[list[np.ndarray], dict[str, float]]:  # fmt: skip
        """Log-probabilities by datum, and the metrics, of a pass."""
        got = self.submit(model, seq, data, loss, forward_only, **config)
        assert got.status_code == 200, got.text
        return read(self.result(got.json(), "ForwardBackwardOutput"))

    def step(self, model: str, seq: int, lr: float = 1e-2, **adam: float) -> dict[str, Any]:
        return self.post("optim_step", model_id=model, seq_id=seq, adam_params={"learning_rate": lr, **adam})


def read(output: dict[str, Any]) -> tuple[list[np.ndarray], dict[str, float]]:
    found = []
    for record in output["loss_fn_outputs"]:
        field = record["fields"]["logprobs"]
        values, offsets = np.frombuffer(field["data"], "<f4"), np.frombuffer(field["offsets"], "<i8") // 4
        shape = [-1, *field["trailing_shape"]]
        found += [values[a:b].reshape(shape) for a, b in itertools.pairwise(offsets)]
    return found, output["metrics"]


def tensor(values: Any, kind: str) -> dict[str, Any]:
    array = np.asarray(values, kind)
    return {"dense": array.tobytes(), "dtype": {"<f4": 1, "<i8": 2}[kind], "shape": list(array.shape)}


def datum(tokens: Sequence[int], targets: Any, **inputs: Any) -> dict[str, Any]:
    """A datum as the official client encodes it."""
    sent = {"target_tokens": tensor(targets, "<i8"), **{key: tensor(each, "<f4") for key, each in inputs.items()}}
    text = {"encoded_text": {"tokens": np.asarray(tokens, "<i4").tobytes()}}
    return {"model_input": [text], "loss_fn_inputs": sent}


def row(length: int, start: int, words: int = 60) -> dict[str, Any]:
    """A made-up row for cross_entropy, whose first target has no weight."""
    ids = [(start + 7 * i + i * i) % words + 4 for i in range(length + 1)]
    return datum(ids[:-1], ids[1:], weights=[0.0] + [1.0] * (length - 1))
