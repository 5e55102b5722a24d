"""Whenever a process is killed, what it had saved loads, and nothing half-written is ever picked up."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors.torch import load_file

import luthier as lt
from luthier.core.storage.format import read as read_spec
from support import fresh
from support.architectures import ARCHITECTURES


def test_the_last_complete_adapter_and_checkpoint_load_after_every_kill(tmp_path):
    script = Path(__file__).parents[2] / "support" / "kills.py"
    done = fresh.run(script, tmp_path, 40)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert min(report["adapter random"], report["checkpoint random"]) > 3, report  # kills that fell into a save
    assert report["adapter left"] == report["checkpoint left"] == []
    steps = {key: count for key, count in report.items() if key.endswith(("fresh", "replaced"))}
    assert all(count > 10 for count in steps.values()), steps


def test_saves_at_the_same_time_leave_one_of_them_and_readers_never_a_mixture(tmp_path):
    """Four processes save into one folder while this one reads: each reading is whole."""
    build = ARCHITECTURES["llama"].build
    folder = tmp_path / "adapter"
    model = lt.attach(build(), lt.LoRA(rank=2), where="q_proj")

    def save(value: int) -> None:
        for parameter in lt.trainable(model).values():
            parameter.data.fill_(value)
        lt.save(model, folder, measured={"value": value})

    save(0)
    children = []
    for number in range(4):
        if (pid := os.fork()) == 0:
            status = 1
            try:
                torch.set_num_threads(1)
                for round_ in range(12):
                    save(100 * (number + 1) + round_)
                status = 0
            finally:
                os._exit(status)
        children.append(pid)
    bare, seen, running = build(), set(), set(children)
    while running:
        lt.load(bare, folder)
        values = {float(x) for p in lt.trainable(bare).values() for x in p.detach().flatten()}
        lt.detach(bare)
        assert len(values) == 1
        seen |= values
        for pid in list(running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                assert status == 0
                running.remove(pid)
    held = {float(x) for t in load_file(folder / "adapter.safetensors").values() for x in t.flatten()}
    assert held == {float(read_spec(folder)["measured"]["value"])} and len(seen) > 1
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
