"""What the official Tinker client does with a server: run by `test_sdk.py` with a Python that has it.

`python tinker_session.py URL BASE`; prints a JSON report of what was asserted on the way.
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import numpy as np
import tinker
import torch
from tinker import types

warnings.filterwarnings("ignore")
TEXT = types.ModelInput.from_ints
DONE: list[str] = []


def datum(n: int, start: int = 0) -> types.Datum:
    ids = [(start + 7 * i + i * i) % 60 + 4 for i in range(n + 1)]
    weights = [0.0] + [1.0] * (n - 1)
    return types.Datum(model_input=TEXT(ids[:-1]), loss_fn_inputs={"target_tokens": ids[1:], "weights": weights})


DATA = [datum(9), datum(5, 3), datum(12, 8)]


def losses(model: Any, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        passed = model.forward_backward(DATA, "cross_entropy")
        stepped = model.optim_step(types.AdamParams(learning_rate=5e-3))
        found.append(passed.result().metrics["loss:sum"])
        assert stepped.result().metrics["grad_norm:mean"] > 0
    return found


def supervised(client: Any, base: str) -> Any:
    model = client.create_lora_training_client(base, rank=4, seed=3).result()
    info = model.get_info().result() if hasattr(model.get_info(), "result") else model.get_info()
    assert info.lora_rank == 4 and info.model_data.model_name == base
    curve = losses(model, 4)
    assert curve[-1] < curve[0] * 0.9, curve
    many = model.forward([datum(2, i) for i in range(1030)], "cross_entropy").result()  # two chunks
    assert len(many.loss_fn_outputs) == 1030
    one = model.forward([datum(2, 1029)], "cross_entropy").result()
    assert np.allclose(
        many.loss_fn_outputs[-1]["logprobs"].tolist(), one.loss_fn_outputs[0]["logprobs"].tolist(), atol=1e-5
    )
    DONE.append("supervised, in chunks")
    return model


def custom(model: Any) -> None:
    def squared(data: Any, logs: list[torch.Tensor]) -> Any:
        return sum((each**2).sum() for each in logs), {"seen": float(len(logs))}

    found = model.forward_backward_custom(DATA, squared).result()
    assert found.metrics["seen"] == 3 and "loss:sum" in found.metrics
    assert model.optim_step(types.AdamParams(learning_rate=1e-3)).result().metrics["grad_norm:mean"] > 0
    DONE.append("a custom loss")


def policies(model: Any) -> None:
    ids = [5, 9, 12, 7]
    for loss in ("importance_sampling", "ppo", "cispo", "dro", "gspo"):
        mask = {"sequence_ratio_mask": [0.0, 1.0, 1.0]} if loss == "gspo" else {}
        one = types.Datum(model_input=TEXT(ids[:-1]), loss_fn_inputs=mask | {
            "target_tokens": ids[1:], "logprobs": [0.0, -2.0, -1.5], "advantages": [0.0, 1.0, 1.0]})  # fmt: skip
        found = model.forward_backward([one], loss).result()
        assert len(found.loss_fn_outputs[0]["logprobs"].tolist()) == 3, loss
    wide = torch.tensor([[0, 5, 0], [0, 6, 8], [7, 0, 0]])
    sparse = types.Datum(
        model_input=TEXT(ids[:-1]), loss_fn_inputs={"target_tokens": wide, "weights": (wide > 0) * 0.5}
    )
    found = model.forward_backward([sparse], "cross_entropy").result().loss_fn_outputs[0]["logprobs"]
    assert found.shape == [3, 3]
    model.optim_step(types.AdamParams(learning_rate=1e-3, eps=1e-8, grad_clip_norm=1.0)).result()
    DONE.append("ppo, cispo, dro, gspo, importance_sampling, sparse targets")


def states(client: Any, model: Any) -> str:
    path = model.save_state("a", ttl_seconds=3600).result().path
    curve = losses(model, 2)
    again = client.create_training_client_from_state_with_optimizer(path).result()
    assert losses(again, 2) == curve
    fresh = client.create_training_client_from_state(path).result()
    assert losses(fresh, 1)[0] == curve[0]
    DONE.append("states with and without the optimiser's")
    return path


def samples(client: Any, model: Any, base: str) -> None:
    sampler = model.save_weights_and_get_sampling_client().result()
    params = types.SamplingParams(max_tokens=4, seed=1, stop=[], temperature=1.0)
    found = sampler.sample(TEXT([5, 6, 7]), num_samples=3, sampling_params=params, include_prompt_logprobs=True,
                           topk_prompt_logprobs=2).result()  # fmt: skip
    assert len({each.sequence_id for each in found.sequences}) == 3
    assert all(len(each.tokens) == len(each.logprobs) == 4 for each in found.sequences)
    again = sampler.sample(TEXT([5, 6, 7]), num_samples=3, sampling_params=params).result()
    assert [list(each.tokens) for each in again.sequences] == [list(each.tokens) for each in found.sequences]
    logs = sampler.compute_logprobs(TEXT([5, 6, 7, 8])).result()
    pair = types.Datum(model_input=TEXT([5, 6, 7]), loss_fn_inputs={"target_tokens": [6, 7, 8], "weights": [1.0] * 3})
    passed = model.forward([pair], "cross_entropy").result().loss_fn_outputs[0]["logprobs"].tolist()
    assert logs[0] is None and np.allclose(logs[1:], passed, atol=1e-4), (logs, passed)
    named = model.save_weights_for_sampler("s").result()
    other = client.create_sampling_client(model_path=named.path).result()
    assert np.allclose(other.compute_logprobs(TEXT([5, 6, 7, 8])).result()[1:], logs[1:], atol=1e-5)
    bare = client.create_sampling_client(base_model=base).result()
    assert bare.compute_logprobs(TEXT([5, 6, 7, 8])).result()[1:] != logs[1:]
    stopped = sampler.sample(TEXT([5, 6, 7]), num_samples=1, sampling_params=types.SamplingParams(
        max_tokens=4, seed=1, stop=[found.sequences[0].tokens[0]])).result().sequences[0]  # fmt: skip
    assert len(stopped.tokens) == 1 and stopped.stop_reason == "stop"
    DONE.append("samples, prompt log-probabilities, samplers by path")


def others(client: Any, base: str) -> None:
    for form in ("loreft&positions=f2+l2", "dora", "wegeft", "ia3"):
        model = client.create_lora_training_client(f"{base}?form={form}", rank=2).result()
        curve = losses(model, 3)
        assert curve[-1] < curve[0], (form, curve)
        sampler = model.save_weights_and_get_sampling_client().result()
        found = sampler.sample(TEXT([5, 6]), num_samples=1, sampling_params=types.SamplingParams(max_tokens=2)).result()
        assert found.sequences
    DONE.append("loreft, dora, wegeft, ia3")


def listings(client: Any, path: str) -> None:
    rest = client.create_rest_client()
    runs = rest.list_training_runs().result()
    assert runs.cursor.total_count >= 5
    run = path.removeprefix("tinker://").partition("/")[0]
    assert rest.get_training_run(run).result().last_checkpoint.tinker_path == path
    assert [each.checkpoint_id for each in rest.list_checkpoints(run).result().checkpoints][-1] == "weights/a"
    info = rest.get_weights_info_by_tinker_path(path).result()
    assert info.lora_rank == 4 and info.is_lora
    rest.set_checkpoint_ttl_from_tinker_path(path, None).result()
    assert rest.list_user_checkpoints().result().checkpoints
    assert rest.list_sessions().result().sessions
    session = rest.get_session(run.partition(":")[0]).result()
    assert run in session.training_run_ids
    rest.delete_checkpoint_from_tinker_path(path).result()
    DONE.append("listings, time to live, deletion")


def refusals(client: Any, model: Any, base: str) -> None:
    seen = []
    for what in (
        lambda: client.create_lora_training_client("another", rank=2).result(),
        lambda: client.create_lora_training_client(base, rank=5000).result(),
        lambda: model.forward_backward(DATA, "stable_reinforce").result(),
        lambda: model.save_weights_for_sampler("s").result(),
        lambda: client.create_rest_client().publish_checkpoint_from_tinker_path("tinker://a/weights/b").result(),
    ):
        try:
            what()
        except Exception as error:
            seen.append(type(error).__name__)
        else:
            seen.append("nothing")
    assert "nothing" not in seen, seen
    assert losses(model, 1)  # it goes on after its refusals
    DONE.append(f"refusals: {', '.join(seen)}")


def main(url: str, base: str) -> None:
    client = tinker.ServiceClient(base_url=url, api_key="tml-test")
    model = supervised(client, base)
    custom(model)
    policies(model)
    path = states(client, model)
    samples(client, model, base)
    others(client, base)
    refusals(client, model, base)
    listings(client, path)
    client.close("success").result()
    print(json.dumps({"tinker": tinker.__version__, "done": DONE}))


if __name__ == "__main__":
    main(*sys.argv[1:])
