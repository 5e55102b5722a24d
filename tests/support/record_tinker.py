"""Records what the official Tinker client sends, into tests/serving/training_api/recorded.json.

Run with a Python that has `tinker==0.38.0`: `python tests/support/record_tinker.py`. A stub on the loopback interface
answers just enough; the bodies of the calls are kept as they came, with what the client's own protobuf classes make of
answers of ours.
"""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import tinker
import torch
from tinker import types
from tinker.proto import tinker_public_pb2 as pb

OUT = Path(__file__).parents[1] / "serving" / "training_api" / "recorded.json"
LOG: list[dict[str, Any]] = []
COMPRESSED = False


class Stub(BaseHTTPRequestHandler):
    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        path = self.path.removeprefix("/api/v1/")
        if path != "telemetry":
            LOG.append({"path": path, "headers": {k.lower(): v for k, v in self.headers.items()}, "body": body})
        answer, media = self.answer(path, body)
        self.send_response(200)
        self.send_header("content-type", media)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def answer(self, path: str, body: bytes) -> tuple[bytes, str]:
        if path == "retrieve_future":
            kind = self.headers.get("x-tinker-request-type", "")
            if kind in ("Forward", "ForwardBackward"):
                return fb_output().SerializeToString(), "application/x-protobuf"
            if kind == "Sample":
                return sample_output().SerializeToString(), "application/x-protobuf"
            told = {"CreateModel": {"model_id": "S:train:0"}, "SaveWeights": {"path": "tinker://S:train:0/weights/a"}}
            return json.dumps(told.get(kind, {"sampling_session_id": "S:sample:0"})).encode(), "application/json"
        if path.startswith("samplers/"):
            return b'{"sampler_id": "S:sample:0", "base_model": "tiny"}', "application/json"
        told: dict[str, Any] = {
            "client/config": {"proto_compress_fwdbwd": COMPRESSED},
            "client/dynamic_config": {},
            "create_session": {"session_id": "S"},
            "get_info": {"model_id": "S:train:0", "model_data": {}},
            "telemetry": {"status": "accepted"},
            "asample": {"request_id": "r", "sample_sequence_ids": ["a", "b"]},
        }
        return json.dumps(told.get(path, {"request_id": "r"})).encode(), "application/json"


def fb_output() -> Any:
    values = np.array([-1, -2, -3], "<f4")
    batched = pb.BatchedTensor(
        data=values.tobytes(), offsets=np.array([0, 8, 12], "<i8").tobytes(), dtype=pb.DTYPE_FLOAT32
    )
    made = pb.ForwardBackwardOutput(loss_fn_output_type="ArrayRecord", metrics={"loss:sum": 6.5})
    record = made.loss_fn_outputs.add(type_tag="ArrayRecord", num_datums=2)
    record.fields["logprobs"].CopyFrom(batched)
    return made


def sample_output() -> Any:
    top = pb.TopkLogprobs(token_ids=np.array([5, 6], "<i4").tobytes(), logprobs=np.array([-1, -2], "<f4").tobytes(),
                          k=2, length=1)  # fmt: skip
    made = pb.SampleResponse(prompt_logprobs=np.array([np.nan, -1], "<f4").tobytes())
    for reason in (pb.STOP_REASON_STOP, pb.STOP_REASON_LENGTH):
        made.sequences.add(stop_reason=reason, tokens=np.array([5], "<i4").tobytes(),
                           logprobs=np.array([-1], "<f4").tobytes(), topk_sampled_logprobs=top)  # fmt: skip
    return made


def use(url: str) -> None:
    client = tinker.ServiceClient(base_url=url, api_key="tml-test")
    model = client.create_lora_training_client("tiny", rank=4, seed=1).result()
    text = types.ModelInput.from_ints
    plain = types.Datum(model_input=text([1, 2, 3]), loss_fn_inputs={"target_tokens": [2, 3, 0], "weights": [0, 1, 1]})
    policy = types.Datum(
        model_input=text([1, 2, 3]),
        loss_fn_inputs={"target_tokens": [2, 3, 4], "logprobs": [0.0, -0.5, -1.5], "advantages": [0.0, 0.5, -0.5]},
    )
    wide = torch.tensor([[0, 5, 0, 0], [0, 0, 6, 0], [7, 0, 0, 0]])
    sparse = types.Datum(
        model_input=text([1, 2, 3]), loss_fn_inputs={"target_tokens": wide, "weights": (wide > 0) * 0.5}
    )
    model.forward_backward([plain, plain], "cross_entropy").result()
    model.forward_backward([policy, policy], "ppo", loss_fn_config={"clip_low_threshold": 0.9}).result()
    model.forward([sparse, sparse], "cross_entropy").result()
    model.optim_step(types.AdamParams(learning_rate=1e-3)).result()
    model.save_state("a").result()
    sampler = model.save_weights_and_get_sampling_client().result()
    sampler.sample(text([1, 2]), num_samples=2, sampling_params=types.SamplingParams(max_tokens=1, stop=[7], top_k=3),
                   include_prompt_logprobs=True, topk_prompt_logprobs=2).result()  # fmt: skip


def main() -> None:
    global COMPRESSED
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for packed in (False, True):
        COMPRESSED = packed
        use(f"http://127.0.0.1:{server.server_port}")
    wanted = ("content-type", "content-encoding", "accept", "x-api-key")
    calls = []
    for each in LOG:
        headers = {key: value for key, value in each["headers"].items() if key in wanted}
        binary = headers.get("content-type", "") == "application/x-protobuf"
        body = base64.b64encode(each["body"]).decode() if binary else each["body"].decode()
        calls.append({"path": each["path"], "headers": headers, "body": body})
    kept = {
        "tinker": tinker.__version__,
        "calls": calls,
        "outputs": {
            "ForwardBackwardOutput": base64.b64encode(fb_output().SerializeToString()).decode(),
            "SampleResponse": base64.b64encode(sample_output().SerializeToString()).decode(),
        },
    }
    OUT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
