"""Sixteen tenants at once, each with its own form, rows and loss: what each trains is what it trains alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from serving.training_api.conftest import Running, running
from support.train_client import Client, datum, row

FORMS = [
    "", "form=dora", "form=loreft&positions=f2+l2", "form=wegeft", "form=ia3", "form=noreft&positions=f1+l2",
    "form=red",
    "form=bottleneck", "form=direft&positions=f1+l1", "form=hydra", "where=q_proj,v_proj", "form=dora&where=up_proj",
    "form=lora&where=down_proj", "form=loreft&positions=l3", "form=prefix", "form=full&where=params(*q_proj.weight)",
]  # fmt: skip
LOSSES = ["cross_entropy", "importance_sampling", "ppo", "cispo", "dro", "gspo"]
STEPS = 3


def rows_of(number: int, step: int, loss: str) -> list[dict[str, Any]]:
    """One to three rows of a tenant, of lengths of its own."""
    lengths = [5 + (number + step + i) % 7 for i in range(1 + number % 3)]
    if loss == "cross_entropy":
        return [row(length, 3 * number + step) for length in lengths]
    found = []
    for index, length in enumerate(lengths):
        ids = [(number + 5 * i + step + index) % 60 + 4 for i in range(length + 1)]
        logs = [0.0] + [-4.0 - 0.1 * i for i in range(length - 1)]
        gains = [0.0] + [0.5 - (number + index) % 2] * (length - 1)
        found.append(datum(ids[:-1], ids[1:], logprobs=logs, advantages=gains))
    return found


def trained(server: Running, own: Client, number: int) -> dict[str, torch.Tensor]:
    """What a tenant has in the end."""
    base, loss = "tiny" + (f"?{FORMS[number]}" if FORMS[number] else ""), LOSSES[number % len(LOSSES)]
    model = own.create(own.session(), base, rank=2 + number % 4, seed=number)
    for step in range(STEPS):
        passed = own.submit(model, 2 * step + 1, rows_of(number, step, loss), loss)
        assert passed.status_code == 200, passed.text
        own.step(model, 2 * step + 2, 2e-3 * (1 + number % 5), weight_decay=0.01 * (number % 2))
        assert "error" not in own.result(passed.json(), "ForwardBackwardOutput")
    told = own.result(own.post("save_weights", model_id=model, seq_id=2 * STEPS + 1, path="final"))
    assert "path" in told, told
    folder = server.training.folder / "checkpoints" / model.replace(":", "-") / "weights" / "final"
    return {f"{file.name}/{key}": t for file in sorted(Path(folder).rglob("*.safetensors"))
            for key, t in load_file(file).items() if "random" not in key}  # fmt: skip


def troubles(own: Client, number: int) -> None:
    """A tenant that sends what it should not: NaN, a huge rank, rows too long; or one that leaves."""
    session = own.session()
    if number == 1:
        asked = {"session_id": session, "model_seq_id": 0, "base_model": "tiny", "lora_config": {"rank": 10**6}}
        assert own.call("POST", "create_model", asked).status_code == 400
        return
    model = own.create(session, "tiny")
    for step in range(STEPS):
        if number == 0:
            wild = datum([5, 9], [9, 4], logprobs=[-3e38, -3e38], advantages=[1.0, 1.0])
            assert "error" in own.result(own.submit(model, step + 1, [wild], "importance_sampling").json())
        elif number == 2:
            assert own.submit(model, step + 1, [row(5000, 0)]).status_code == 400
        else:  # nobody asks for the results
            own.submit(model, step + 1, [row(6, step)])


def test_each_has_what_it_would_have_alone(base, tmp_path):
    count = len(FORMS)
    with running(base, tmp_path / "many", adapters=count + 4) as server:
        clients = [server.client for _ in range(count + 4)]
        with ThreadPoolExecutor(count + 4) as pool:
            bad = [pool.submit(troubles, clients[count + number], number) for number in range(4)]
            good = [pool.submit(trained, server, clients[number], number) for number in range(count)]
            many = [each.result(timeout=200) for each in good]
            assert [each.result(timeout=200) for each in bad] == [None] * 4
    with running(base, tmp_path / "single", adapters=2, together=False) as server:
        single = [trained(server, server.client, number) for number in range(count)]
    for number, (one, two) in enumerate(zip(many, single, strict=True)):
        assert one.keys() == two.keys() and one
        for key, t in two.items():
            apart = float((one[key].double() - t.double()).norm())
            assert apart <= 2e-5 * float(t.double().norm()) + 1e-7, (FORMS[number], key)


def test_results_are_kept_for_their_time(base, tmp_path):
    """A result that is gone is told so, and a request that is sent again is known still."""
    with running(base, tmp_path / "kept") as server:
        own = server.client
        model = own.create(own.session(), "tiny")
        promise = own.submit(model, 1, [row(6, 0)]).json()
        assert own.result(promise, "ForwardBackwardOutput")
        server.training.store.forget(0.0)
        assert own.result(promise, "ForwardBackwardOutput")
        server.training.store.forget(float("inf"))
        gone = own.call("POST", "retrieve_future", {"request_id": promise["request_id"]})
        assert gone.status_code == 410 and "is gone" in gone.text
        store = server.training.store
        before = store.rows("SELECT total_changes() n")[0]["n"]
        store.forget(float("inf"))  # what is gone is not written again
        assert store.rows("SELECT total_changes() n")[0]["n"] == before
        assert own.submit(model, 1, [row(6, 0)]).json() == promise
