"""Flower's strategy and client app end as the simulation does; messages hold arrays and nothing pickled."""

# pyright: reportMissingImports=false

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import luthier as lt
from luthier.federating import Federation
from luthier.federating.client import rows_of
from luthier.federating.prepare import planned
from luthier.federating.run import carry_out
from luthier.training import Run, Training
from luthier.training.session import load

pytest.importorskip("flwr", reason="flwr is not installed (pip install 'luthier[federated]')")

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from luthier.federating import flower

SHORT = Training(epochs=1, batch=4, lr=1e-2, eval_fraction=0.2)


@pytest.fixture(autouse=True)
def identity(monkeypatch):
    """Flower gives each of its processes one, without which no message can be made."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


class Here(Grid):
    """Nodes in this process: a message is handed to the app, after a pass through its wire format."""

    def __init__(self, app, nodes: int) -> None:
        self.app, self.nodes = app, nodes
        self.bytes = 0

    def set_run(self, run) -> None:
        """There is none."""

    @property
    def run(self):
        """There is none."""

    def create_message(self, *given, **named):
        raise NotImplementedError

    def get_node_ids(self):
        return list(range(self.nodes))

    def push_messages(self, messages):
        raise NotImplementedError

    def pull_messages(self, message_ids):
        raise NotImplementedError

    def send_and_receive(self, messages, *, timeout=None):
        return [self.answer(message) for message in messages]

    def answer(self, message: Message) -> Message:
        context = Context(0, message.metadata.dst_node_id, {}, RecordDict(), {})
        reply = self.app(message, context)
        self.bytes += sum(len(array.data) for array in reply.content["arrays"].values())
        assert all(array.stype == "numpy.ndarray" for array in reply.content["arrays"].values())
        return reply


def run_of(llama: str, additions: str, out) -> Run:
    return Run(llama, additions, lt.LoRA(rank=4, alpha=8.0), out=str(out), training=SHORT)


@pytest.mark.parametrize("method", [lt.FLoRA(), lt.ZeroPadding()], ids=["flora", "zero_padding"])
def test_flower_ends_as_the_simulation(llama, additions, tmp_path, method):
    federation = Federation(clients=3, rounds=2, ranks="2,4,8")
    wanted = carry_out(run_of(llama, additions, tmp_path / "here"), method, federation, progress=False)
    plan = planned(run_of(llama, additions, tmp_path / "flower"), method, federation)
    loaded = load(plan.run, plan.prepared)

    def member(context: Context) -> flower.Member:
        client = context.node_id
        rows = rows_of(plan.prepared, plan.parts[client])
        return flower.Member(plan.run, rows, loaded, plan.ranks[client], client, 3)

    grid = Here(flower.client_app(member, method), 3)
    adapter = flower.serve(grid, plan.run, method, federation, None)
    found = load_file(adapter / "adapter.safetensors")
    expected = load_file(wanted.adapter / "adapter.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)
    assert grid.bytes > 0


def test_members_know_the_classes_of_all(bert, letters, tmp_path):
    run = replace(run_of(bert, letters, tmp_path), training=replace(SHORT, eval_fraction=0.0))
    found = flower.own(run, ["c", "b", "x", "a"])
    assert found.loaded.model.config.num_labels == 4 and found.prepared.examples.labels == ["c", "b", "x", "a"]
    assert {row["labels"] for row in found.prepared.train} == {0, 1, 3}
    with pytest.raises(lt.LuthierError, match="the others lack: c"):
        flower.own(run, ["a", "b"])


def test_a_member_of_one_class_learns_beside_the_others(bert, tmp_path):
    rows = [{"text": "a b", "label": "a"}] * 4
    source = tmp_path / "one.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = replace(run_of(bert, str(source), tmp_path), training=replace(SHORT, eval_fraction=0.0))
    assert {row["labels"] for row in flower.own(run, ["b", "a"]).prepared.train} == {1}
    with pytest.raises(lt.LuthierError, match="the only class"):
        flower.own(run)


def test_a_client_of_another_aggregation_is_refused(llama, additions, tmp_path):
    run = run_of(llama, additions, tmp_path)
    app = flower.client_app(lambda context: flower.own(run), lt.FlexLoRA())
    with pytest.raises(lt.LuthierError, match="aggregates by fedit, this client by flexlora"):
        flower.serve(Here(app, 1), run, lt.FedIT(), Federation(clients=1, rounds=1), None)


def test_nodes_that_fail_are_left_out():
    strategy = flower.Aggregating(lt.FLoRA())
    assert strategy.aggregate_train(1, []) == (None, None)
