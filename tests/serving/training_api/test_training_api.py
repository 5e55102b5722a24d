"""The training API over HTTP: what it trains, in which order, for whom, and what it refuses."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import luthier as lt
from luthier.core.adapters.control import prompt
from luthier.models import load
from luthier.serving.training_api.database import Unreachable
from luthier.serving.training_api.tenants import Quota, Tenants
from serving.training_api.conftest import running
from support.train_client import datum, read, row

ROWS = [row(9, 0), row(5, 3), row(12, 8)]


def tokens_of(one) -> list[int]:
    return np.frombuffer(one["model_input"][0]["encoded_text"]["tokens"], "<i4").tolist()


def array(one, name: str) -> np.ndarray:
    kind = "<i8" if name == "target_tokens" else "<f4"
    return np.frombuffer(one["loss_fn_inputs"][name]["dense"], kind)


def plain_log_probs(model, one) -> torch.Tensor:
    """By transformers alone: the row by itself, no padding, no chunks."""
    logits = model(input_ids=torch.tensor([tokens_of(one)])).logits[0].float()
    return logits.log_softmax(-1).gather(1, torch.tensor(array(one, "target_tokens"))[:, None])[:, 0]


def plain_curve(base: str, form, where: str, seed: int, batches, lr: float, **adam) -> list[float]:
    """An own loop of plain torch: the same start, sums of -log p * weight, AdamW."""
    model = load(base).model
    torch.manual_seed(seed)
    lt.attach(model, form, where)
    optimiser = torch.optim.AdamW(lt.trainable(model).values(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0, **adam)
    losses = []
    for batch in batches:
        with prompt(model, 2):  # the first target without a weight is the prompt's last token
            loss = sum(-(plain_log_probs(model, one) * torch.tensor(array(one, "weights"))).sum() for one in batch)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(("spelled", "form", "where"), [
    ("tiny", lt.LoRA(rank=2, alpha=32.0), "all-linear | head"),
    ("tiny?form=loreft&positions=f2+l2", lt.LoReFT(rank=2, positions="f2+l2"), "stream"),
    ("tiny?form=dora&where=q_proj,v_proj&alpha=8", lt.DoRA(rank=2, alpha=8.0), "q_proj, v_proj"),
    ("tiny?form=wegeft", lt.WeGeFT(rank=2), "all-linear | head"),
])  # fmt: skip
def test_a_supervised_curve_is_that_of_a_plain_loop(server, base, spelled, form, where):
    own = server.client
    model = own.create(own.session(), spelled, seed=11)
    batches = [[ROWS[0], ROWS[1]], [ROWS[2]], [ROWS[1], ROWS[2]], [ROWS[0]]]
    found = []
    for step, batch in enumerate(batches):
        log_probs, metrics = own.passed(model, 2 * step + 1, batch)
        told = own.result(own.step(model, 2 * step + 2, 5e-3, eps=1e-8))
        assert told["metrics"]["grad_norm:mean"] > 0
        assert [len(each) for each in log_probs] == [len(tokens_of(one)) for one in batch]
        found.append(metrics["loss:sum"])
    wanted = plain_curve(base, form, where, 11, batches, 5e-3, eps=1e-8)
    assert found == pytest.approx(wanted, rel=1e-5)


def test_weights_of_any_sign_count_and_outputs_cover_every_target(server, base):
    own = server.client
    model = own.create(own.session(), "tiny")
    one = datum([5, 9, 12, 7], [9, 12, 7, 4], weights=[0.0, -1.5, 2.0, 0.25])
    (found,), metrics = own.passed(model, 1, [one], forward_only=True)
    plain = plain_log_probs(load(base).model, one).detach().numpy()
    assert found == pytest.approx(plain, abs=1e-5)
    assert metrics == {"loss:sum": pytest.approx(float(-(plain * array(one, "weights")).sum()), abs=1e-5)}


def test_several_targets_a_place(server, base):
    own = server.client
    model = own.create(own.session(), "tiny")
    targets, weights = [[9, 8], [12, 3], [7, 6]], [[1.0, 0.5], [0.0, 1.0], [0.2, 0.3]]
    (found,), metrics = own.passed(model, 1, [datum([5, 9, 12], targets, weights=weights)])
    logs = load(base).model(input_ids=torch.tensor([[5, 9, 12]])).logits[0].float().log_softmax(-1)
    wanted = logs.gather(1, torch.tensor(targets))
    assert found == pytest.approx(wanted.detach().numpy(), abs=1e-5)
    assert metrics["loss:sum"] == pytest.approx(-(wanted * torch.tensor(weights)).sum().item(), abs=1e-5)


def test_requests_are_run_in_their_order_whatever_order_they_come_in(server):
    own = server.client
    session = own.session()
    first, second = (own.create(session, "tiny", number) for number in (0, 1))
    plain = [own.passed(first, 1, ROWS[:1])[1], own.passed(first, 2, ROWS[1:])[1], own.result(own.step(first, 3)),
             own.passed(first, 4, ROWS, forward_only=True)[1]]  # fmt: skip
    promises = [own.submit(second, 4, ROWS, forward_only=True).json(), own.step(second, 3),
                own.submit(second, 2, ROWS[1:]).json(), own.submit(second, 1, ROWS[:1]).json()]  # fmt: skip
    late = own.result(promises[0], "ForwardBackwardOutput")
    assert read(late)[1] == plain[3]
    assert own.result(promises[1]) == plain[2]


def test_a_repeated_request_is_applied_once(server):
    own = server.client
    model = own.create(own.session(), "tiny")
    again = [own.submit(model, 1, ROWS).json() for _ in range(3)] + [own.submit(model, 1, ROWS).json()]
    assert len({each["request_id"] for each in again}) == 1
    steps = [own.step(model, 2) for _ in range(3)]
    norm = own.result(steps[2])["metrics"]["grad_norm:mean"]
    other = own.create(own.session(), "tiny")
    own.passed(other, 1, ROWS)
    assert own.result(own.step(other, 2))["metrics"]["grad_norm:mean"] == norm
    got = own.submit(model, 1, ROWS[:1])
    assert got.status_code == 400 and "used for another request" in got.text


def test_a_refused_number_is_not_waited_for(server):
    own = server.client
    model = own.create(own.session(), "tiny")
    step = own.step(model, 2)
    refused = [own.submit(model, 1, [datum([5, 1000], [4, 5], weights=[1.0, 1.0])]),
               own.submit(model, 3, ROWS, loss="stable_reinforce")]  # fmt: skip
    assert [each.status_code for each in refused] == [400, 400]
    assert "none of the model's" in refused[0].text and "stability" in refused[1].text
    assert own.result(step)["metrics"]["grad_norm:mean"] == 0
    assert own.passed(model, 4, ROWS)[1]["loss:sum"] > 0


def test_a_mask_without_a_token_is_refused_beside_advantages(server):
    own = server.client
    model = own.create(own.session(), "tiny")
    given = {"logprobs": [-1.0, -1.0], "advantages": [0.0, 1.0], "sequence_ratio_mask": [0.0, 0.0]}
    got = own.submit(model, 1, [datum([5, 9], [9, 4], **given)], loss="gspo")
    assert got.status_code == 400 and "sequence_ratio_mask is 0 at every token" in got.text
    padding = datum([5, 9], [9, 4], **given | {"advantages": [0.0, 0.0]})
    assert own.passed(model, 2, [padding], loss="gspo")[1]["loss:sum"] == 0


def test_a_loss_that_diverges_adds_nothing_and_costs_nobody_else(server):
    own = server.client
    session = own.session()
    model, other = (own.create(session, "tiny", number) for number in (0, 1))
    wild = datum([5, 9], [9, 4], logprobs=[-3e38, -3e38], advantages=[1.0, -1.0])
    promise = own.submit(model, 1, [wild], loss="importance_sampling").json()
    calm = own.passed(other, 1, ROWS)[1]
    told = own.result(promise)
    assert told["category"] == "user" and "is" in told["error"]
    assert own.result(own.step(model, 2))["metrics"]["grad_norm:mean"] == 0
    assert own.passed(model, 3, ROWS)[1] == pytest.approx(calm)


def test_a_large_request_in_pieces_is_the_whole_and_fails_as_a_whole(server, monkeypatch):
    from luthier.serving.training_api import trainer

    own = server.client
    session = own.session()
    whole, pieces, failing = (own.create(session, "tiny", number) for number in range(3))
    own.passed(whole, 1, ROWS)
    monkeypatch.setattr(trainer, "PASS_TOKENS", 10)
    own.passed(pieces, 1, ROWS)
    wild = datum([5, 9], [9, 4], logprobs=[-3e38, -3e38], advantages=[1.0, 1.0])
    fine = datum([5, 9, 3, 2, 6, 7, 8, 9, 10], [9, 3, 2, 6, 7, 8, 9, 10, 4], logprobs=[-1.0] * 9, advantages=[1.0] * 9)
    assert "error" in own.result(own.submit(failing, 1, [fine, wild], loss="importance_sampling").json())
    norms = [own.result(own.step(model, 2))["metrics"]["grad_norm:mean"] for model in (whole, pieces, failing)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-5) and norms[2] == 0


def test_more_models_than_fit_into_memory_go_to_disk_and_back(server):
    own = server.client
    session = own.session()
    models = [own.create(session, "tiny", number) for number in range(5)]  # three fit
    losses = {model: [] for model in models}
    for step in range(3):
        for model in models:
            losses[model].append(own.passed(model, 2 * step + 1, ROWS)[1]["loss:sum"])
            own.result(own.step(model, 2 * step + 2))
    assert len({tuple(each) for each in losses.values()}) == 1


@contextmanager
def held(server) -> Iterator[None]:
    """Requests that are sent within are taken together behind it."""
    free = threading.Event()
    server.training.scheduler.errand(lambda: free.wait(60) and None)
    try:
        yield
    finally:
        free.set()


def test_a_pass_has_no_more_models_than_fit_into_memory(server):
    own = server.client
    session = own.session()
    models = [own.create(session, "tiny", number) for number in range(5)]  # three fit
    with held(server):
        promises = [own.submit(model, 1, ROWS).json() for model in models]
    told = [read(own.result(promise, "ForwardBackwardOutput"))[1]["loss:sum"] for promise in promises]
    assert told == pytest.approx([told[0]] * 5)


def test_a_pass_that_fails_is_the_fault_of_one(server, monkeypatch):
    """What a pass of several raises is the failure of whose rows raise it alone."""
    pool = server.training.trainer.pool
    own = server.client
    session = own.session()
    models = [own.create(session, "tiny", number) for number in range(3)]
    plain = pool.forward_backward

    def failing(works, backward=True):
        if any(work.name.endswith(models[1].replace(":", "-")) for work in works):
            raise MemoryError("too large")
        return plain(works, backward)

    monkeypatch.setattr(pool, "forward_backward", failing)
    with held(server):
        promises = [own.submit(model, 1, ROWS).json() for model in models]
    assert own.result(promises[1])["category"] == "server"
    for place in (0, 2):
        assert read(own.result(promises[place], "ForwardBackwardOutput"))[1]["loss:sum"] > 0


def test_what_others_ask_leaves_a_random_stream_alone(server):
    """Dropout goes on as alone behind a pass without gradients that shares a round, and behind one that failed."""
    own = server.client
    session = own.session()
    spelled = "tiny?dropout=0.3"
    alone, beside = (own.create(session, spelled, number) for number in range(2))
    other = own.create(session, "tiny", 2)
    for model in (alone, beside):  # before a step dropout changes nothing
        own.passed(model, 1, ROWS)
        own.step(model, 2, 0.1)
    wanted = [own.passed(alone, number, ROWS)[1] for number in (3, 4)]
    with held(server):
        first = own.submit(beside, 3, ROWS, forward_only=True).json()
        own.submit(other, 1, ROWS)
    own.result(first, "ForwardBackwardOutput")
    found = [own.passed(beside, 4, ROWS)[1]]
    wild = datum([5, 9], [9, 4], logprobs=[-3e38, -3e38], advantages=[1.0, 1.0])
    assert "error" in own.result(own.submit(beside, 5, [wild], loss="importance_sampling").json())
    found.append(own.passed(beside, 6, ROWS)[1])
    assert found == wanted and wanted[0] != wanted[1]


def test_saved_states_go_on_exactly_and_saved_samplers_are_adapters(server, tmp_path):
    own = server.client
    session = own.session()
    model = own.create(session, "tiny")
    own.passed(model, 1, ROWS)
    own.result(own.step(model, 2))
    saved = own.result(own.post("save_weights", model_id=model, seq_id=3, path="a"))["path"]
    assert saved == f"tinker://{model}/weights/a"
    sampler = own.result(own.post("save_weights_for_sampler", model_id=model, seq_id=4, path="a"))["path"]
    curve = []
    for step in range(2):
        curve.append(own.passed(model, 5 + 2 * step, ROWS)[1]["loss:sum"])
        own.result(own.step(model, 6 + 2 * step))
    promise = own.post("load_weights", session_id=session, model_seq_id=1, path=saved, optimizer=True)
    made = own.result(promise)["model_id"]
    assert made == f"{session}:train:1"
    again = []
    for step in range(2):
        again.append(own.passed(made, 1 + 2 * step, ROWS)[1]["loss:sum"])
        own.result(own.step(made, 2 + 2 * step))
    assert again == curve
    listed = [each["id"] for each in server.http.get("/v1/models").json()["data"]]
    name = next(each for each in listed if each.startswith(session))
    folder = server.training.folder / "checkpoints" / model.replace(":", "-") / "sampler_weights" / "a"
    bare = load(server.training.tokenizer).model
    lt.load(bare, folder)
    ids = [5, 9, 12, 7]
    opened = own.post("create_sampling_session", session_id=session, sampling_session_seq_id=0, model_path=sampler)
    asked = {"sampling_session_id": opened["sampling_session_id"], "seq_id": 0, "num_samples": 2,
             "prompt": {"chunks": [{"type": "encoded_text", "tokens": ids}]}, "prompt_logprobs": True,
             "topk_prompt_logprobs": 2, "sampling_params": {"max_tokens": 3, "seed": 5, "stop": []}}  # fmt: skip
    promise = own.post("asample", **asked)
    assert len(promise["sample_sequence_ids"]) == 2
    told = own.result(promise)
    logs = bare(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    wanted = logs[:-1].gather(1, torch.tensor(ids)[1:, None])[:, 0].tolist()
    assert told["prompt_logprobs"][0] is None and told["prompt_logprobs"][1:] == pytest.approx(wanted, abs=1e-5)
    assert [line[0][0] for line in told["topk_prompt_logprobs"][1:]] == logs[:-1].argmax(-1).tolist()
    for each in told["sequences"]:
        whole = torch.tensor([ids + each["tokens"]])
        logs = bare(input_ids=whole).logits[0].log_softmax(-1)[len(ids) - 1 : -1]
        own_logs = logs.gather(1, whole[0, len(ids) :, None])[:, 0].tolist()
        assert len(each["tokens"]) == 3 and each["logprobs"] == pytest.approx(own_logs, abs=1e-5)
    asked_there = {"model": name, "prompt": ids, "max_tokens": 2, "temperature": 0}
    assert server.http.post("/v1/completions", json=asked_there).status_code == 200
    spec = json.loads((folder / "adapter.json").read_text())
    assert load_file(folder / "adapter.safetensors") and spec["base"]["name"] == "tiny"


def test_sampling_sessions_of_models_without_a_name(server):
    own = server.client
    session = own.session()
    model = own.create(session, "tiny")
    told = own.result(own.post("save_weights_for_sampler", model_id=model, seq_id=1, sampling_session_seq_id=0))
    assert told["sampling_session_id"] == f"{session}:sample:0"
    prompt = {"chunks": [{"type": "encoded_text", "tokens": [5, 6]}]}
    asked = {"sampling_session_id": told["sampling_session_id"], "prompt": prompt}
    drawn = own.post("asample", **asked, seq_id=0, sampling_params={"max_tokens": 4, "top_k": 1, "stop": []})
    greedy = own.post("asample", **asked, seq_id=1, sampling_params={"max_tokens": 4, "temperature": 0, "stop": []})
    drawn, greedy = (own.result(each)["sequences"][0]["tokens"] for each in (drawn, greedy))
    assert drawn == greedy
    ended = own.post("asample", **asked, seq_id=2, sampling_params={"max_tokens": 4, "temperature": 0,
                                                                    "stop": [greedy[1]]})  # fmt: skip
    last = own.result(ended)["sequences"][0]
    assert last["tokens"] == greedy[:2] and last["stop_reason"] == "stop"
    target = {"type": "sampling_session", "sampling_session_id": told["sampling_session_id"]}
    found = own.post("retrieve_futures", target=target)
    assert [each["state"] for each in found["completions"]] == ["finished"] * 3
    assert own.post("retrieve_futures", target=target, prev_cursor=found["cursor"], timeout=0)["completions"] == []
    long = own.post("asample", **asked, seq_id=3, num_samples=2, sampling_params={"max_tokens": 100, "stop": []})
    assert own.call("POST", "cancel_future", {"request_id": long["request_id"]}).status_code == 204
    assert "cancelled" in own.result(long)["error"]
    sampler = own.call("GET", f"samplers/{told['sampling_session_id']}").json()
    assert sampler["base_model"] == "tiny" and sampler["model_path"].endswith("/unnamed-1")


def test_checkpoints_are_listed_kept_and_deleted(server):
    own = server.of("tml-lists")
    session = own.session()
    model = own.create(session, "tiny", train_mlp=False)
    for seq, name in enumerate(["a", "b"], 1):
        own.result(own.post("save_weights", model_id=model, seq_id=seq, path=name, user_metadata={"k": name}))
    taken = own.result(own.post("save_weights", model_id=model, seq_id=3, path="a"))
    assert "there already" in taken["error"]
    assert "path" in own.result(own.post("save_weights", model_id=model, seq_id=4, path="a", overwrite=True))
    listed = own.call("GET", f"training_runs/{model}/checkpoints").json()["checkpoints"]
    assert [each["checkpoint_id"] for each in listed] == ["weights/a", "weights/b"]
    assert listed[1]["user_metadata"] == {"k": "b"} and listed[0]["size_bytes"] > 0
    info = own.post("weights_info", tinker_path=listed[0]["tinker_path"])
    assert info == {"base_model": "tiny", "is_lora": True, "lora_rank": 2, "train_unembed": True, "train_mlp": False,
                    "train_attn": True}  # fmt: skip
    path = f"training_runs/{model}/checkpoints/weights"
    assert own.call("PUT", f"{path}/b/ttl", {"ttl_seconds": 3600}).status_code == 204
    kept = own.call("GET", "checkpoints").json()
    assert kept["cursor"]["total_count"] == 2 and kept["checkpoints"][1]["expires_at"] is not None
    assert own.call("DELETE", f"{path}/b").status_code == 204
    folder = server.training.folder / "checkpoints" / model.replace(":", "-") / "weights"
    until = time.monotonic() + 10
    while (folder / "b").exists() and time.monotonic() < until:
        time.sleep(0.01)
    assert not (folder / "b").exists() and (folder / "a").exists()
    runs = own.call("GET", "training_runs").json()["training_runs"]
    assert [each["training_run_id"] for each in runs] == [model]
    assert runs[0]["last_checkpoint"]["checkpoint_id"] == "weights/a"
    assert own.call("GET", f"sessions/{session}").json()["training_run_ids"] == [model]


def test_nobody_sees_what_is_another_s(server):
    alice, bob = server.of("tml-alice"), server.of("tml-bob")
    session = alice.session()
    model = alice.create(session, "tiny")
    alice.result(alice.post("save_weights", model_id=model, seq_id=1, path="a"))
    there = f"tinker://{model}/weights/a"
    calls = [("session_heartbeat", {"session_id": session}), ("get_info", {"model_id": model}),
             ("retrieve_future", {"request_id": f"{model}:1"}), ("weights_info", {"tinker_path": there}),
             ("unload_model", {"model_id": model}), ("cancel_future", {"request_id": f"{model}:1"}),
             ("load_weights", {"session_id": bob.session(), "model_seq_id": 0, "path": there, "optimizer": True}),
             ("optim_step", {"model_id": model, "seq_id": 2, "adam_params": {}}),
             ("create_sampling_session", {"session_id": bob.session(), "sampling_session_seq_id": 0,
                                          "model_path": there})]  # fmt: skip
    assert {path: bob.call("POST", path, body).status_code for path, body in calls} == {path: 404 for path, _ in calls}
    assert bob.submit(model, 2, ROWS).status_code == 404
    assert bob.call("DELETE", f"training_runs/{model}/checkpoints/weights/a").status_code == 404
    assert bob.call("GET", "checkpoints").json()["checkpoints"] == []
    assert alice.passed(model, 2, ROWS)[1]["loss:sum"] > 0


def test_keys_and_quotas(base, tmp_path):
    listed = {"small": ("tml-small", Quota(adapters=1, tokens=40)), "large": ("tml-large", Quota())}
    with running(base, tmp_path / "kept", tenants=Tenants(None, listed)) as made:
        assert made.of("tml-other").call("POST", "create_session", {"sdk_version": ""}).status_code == 401
        own = made.of("tml-small")
        session = own.session()
        model = own.create(session, "tiny")
        got = own.call("POST", "create_model", {"session_id": session, "model_seq_id": 1, "base_model": "tiny",
                                                "lora_config": {"rank": 2}})  # fmt: skip
        assert got.status_code == 403 and "may train 1" in got.text
        own.passed(model, 1, ROWS)
        got = own.submit(model, 2, ROWS)
        assert got.status_code == 403 and "26 of 40 tokens" in got.text
        assert own.result(own.step(model, 3))["metrics"]["grad_norm:mean"] > 0
        assert own.result(own.post("unload_model", model_id=model))["model_id"] == model
        assert own.submit(model, 4, ROWS[:1]).status_code == 400
        own.create(session, "tiny", 2)


def test_a_full_queue_says_try_again_and_the_number_stays_free(base, tmp_path):
    listed = {"one": ("tml-one", Quota(waiting=1))}
    with running(base, tmp_path / "kept", tenants=Tenants(None, listed)) as made:
        own = made.of("tml-one")
        model = own.create(own.session(), "tiny")
        later = own.step(model, 2)  # waits for number 1
        got = own.submit(model, 1, ROWS)
        assert got.status_code == 429 and got.headers["retry-after"]
        made.training.tenants = Tenants(None, {"one": ("tml-one", Quota())})
        assert own.submit(model, 1, ROWS).status_code == 200
        assert own.result(later)["metrics"]["grad_norm:mean"] > 0


def test_everything_is_there_after_a_restart(base, tmp_path):
    with running(base, tmp_path / "kept") as made:
        own = made.client
        session = own.session()
        model = own.create(session, "tiny")
        own.passed(model, 1, ROWS)
        waiting = own.step(model, 3)  # number 2 comes after the restart
        own.result(own.post("save_weights_for_sampler", model_id=own.create(session, "tiny", 1), seq_id=1, path="s"))
    with running(base, tmp_path / "kept") as made:
        own = made.client
        second = own.submit(model, 2, ROWS[:1]).json()
        own.result(own.result(second, "ForwardBackwardOutput") and waiting)
        found = own.passed(model, 4, ROWS)[1]["loss:sum"]
        other = own.create(session, "tiny", 2)
        own.passed(other, 1, ROWS)
        own.passed(other, 2, ROWS[:1])
        own.result(own.step(other, 3))
        assert own.passed(other, 4, ROWS)[1]["loss:sum"] == found
        assert any(each["id"].endswith("-1-s") for each in made.http.get("/v1/models").json()["data"])


def test_the_calls_of_the_official_client_are_answered_as_they_were_sent(server):
    """The recorded session, with its ids made ours."""
    own = server.client
    recorded = json.loads((Path(__file__).parent / "recorded.json").read_text())["calls"]
    ids, promise = {}, ""
    for call in recorded[: next(i for i, c in enumerate(recorded) if c["headers"].get("content-encoding"))]:
        if call["path"] in ("client/config", "client/dynamic_config") and ids:
            break
        binary = call["headers"].get("content-type") == "application/x-protobuf"
        body = (
            base64.b64decode(call["body"])
            if binary
            else call["body"].replace('"request_id":"r"', f'"request_id":"{promise}"').encode()
        )
        path = call["path"]
        for old, new in ids.items():
            body = body.replace(old.encode(), new.encode()) if not binary else renamed(body, new)
            path = path.replace(old, new)
        method = "GET" if path.startswith("samplers/") else "POST"
        got = own.call(method, path, content=body, headers=call["headers"] | {"x-api-key": own.key})
        assert got.status_code == 200, (path, got.text)
        if path == "create_session":
            ids = {"S:": f"{got.json()['session_id']}:", '"S"': f'"{got.json()["session_id"]}"'}
        elif got.headers["content-type"] == "application/json":
            promise = got.json().get("request_id", promise)
            assert "error" not in got.json(), (path, got.text)
        else:
            assert call["headers"]["accept"] == "application/x-protobuf"
    assert ids and promise.endswith(":sample:0:0")


def renamed(body: bytes, session: str) -> bytes:
    """A recorded pass for another session; its model's id is the first field."""
    from luthier.serving.training_api.wire import decode, encode

    found = decode("ForwardBackwardRequest", body)
    return encode("ForwardBackwardRequest", found | {"model_id": found["model_id"].replace("S:", session)
                                                     if session.endswith(":") else found["model_id"]})  # fmt: skip


@pytest.mark.parametrize(("body", "says"), [
    ({"base_model": "other"}, "this server trains tiny"),
    ({"base_model": "tiny?form=lorra"}, "lora"),
    ({"base_model": "tiny?rank=3"}, "that of lora_config"),
    ({"base_model": "tiny?form=loreft&postions=f1"}, "positions"),
    ({"base_model": "tiny?form"}, "is not a setting"),
    ({"lora_config": {"rank": 10**6}}, "expected 1 to"),
    ({"lora_config": {"rank": 0}}, "expected 1 to"),
    ({"lora_config": {"rank": 2, "train_attn": False, "train_mlp": False, "train_unembed": False}}, "all off"),
    ({"base_model": "tiny?form=loreft", "lora_config": {"rank": 2, "train_mlp": False}}, "leave it on"),
    ({"optimizer_config": {"type": "dimuon"}}, "adamw"),
    ({"lora_alpha": 3}, "lora_alpha"),
])  # fmt: skip
def test_models_that_cannot_be_made_are_refused(server, body, says):
    own = server.client
    asked = {"session_id": own.session(), "model_seq_id": 0, "base_model": "tiny", "lora_config": {"rank": 2}} | body
    got = own.call("POST", "create_model", asked)
    assert got.status_code == 400 and says in got.text


@pytest.mark.parametrize("path", ["billing/usage/events", "audit", "save_weights_external", "create_custom_loss",
                                  "copy_weights", "auth/token", "sessions/search"])  # fmt: skip
def test_what_is_not_done_is_refused_by_name(server, path):
    got = server.client.call("POST", path, {})
    assert got.status_code == 400 and f"{path} is refused" in got.text


def test_what_is_about_the_server(server):
    own = server.client
    assert own.call("GET", "healthz").json() == {"status": "ok"}
    assert own.call("POST", "telemetry", {"events": []}).json() == {"status": "accepted"}
    models = own.call("GET", "get_server_capabilities").json()["supported_models"]
    assert models == [{"model_name": "tiny", "max_context_length": 128, "trainable": True, "sampleable": True}]


def test_a_database_that_does_not_answer_is_told_and_no_other_lost_connection_is_called_one(server, monkeypatch):
    """Listings wait for it in threads of their own."""
    loop, lost = [], Unreachable("it does not answer")

    def rows(*_) -> None:
        with suppress(RuntimeError):
            loop.append(asyncio.get_running_loop())
        raise lost

    monkeypatch.setattr(server.training.store, "rows", rows)
    for path in ("checkpoints", "sessions", "sessions/x", "training_runs", "training_runs/x", "samplers/x"):
        got = server.client.call("GET", path)
        assert got.status_code == 503 and "database does not answer" in got.text and got.headers["retry-after"]
    lost = ConnectionResetError("by a peer")
    got = server.client.call("GET", "checkpoints")
    assert got.status_code == 500 and "database" not in got.text and not loop
