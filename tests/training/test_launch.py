"""Several processes, started from the shell: the losses of one process, one whole adapter, restarts."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest
import torch

import luthier as lt
from luthier.training import Result, Run, Training, metrics, train
from luthier.training.command import flags
from support import fresh
from support.tiny import save_model

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
ACCELERATE = (
    "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1",
    "--mixed_precision=no", "--dynamo_backend=no",
)  # fmt: skip
ALONE = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
ASKING = """
import json, os, pathlib, sys
pathlib.Path(sys.argv[1], os.environ["RANK"]).write_text(json.dumps({**os.environ}))
"""
FATAL = """
import os, pathlib, signal
from dataclasses import dataclass
from luthier.methods.objectives.sft import SFT

@dataclass(frozen=True)
class Fatal(SFT):
    \"\"\"The loss of SFT, until the second process is killed in the middle of its sixth step\"\"\"

    def loss(self, model, batch):
        marks = pathlib.Path(os.environ["MARKS"])
        with open(marks / os.environ["RANK"], "a") as file:
            file.write(".")
        seen = len((marks / os.environ["RANK"]).read_text())
        if os.environ["RANK"] == "1" and model.training and seen == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().loss(model, batch)
"""


@pytest.fixture(scope="module")
def alone(additions, tmp_path_factory) -> Result:
    """Eight steps of one process; the vocabulary is large enough for the loss to go in chunks."""
    folder = tmp_path_factory.mktemp("launch")
    model = save_model(folder / "model", "llama", vocab_size=4200)
    settings = Training(steps=8, batch=8, save_every=2, eval_fraction=0, lr=1e-2)
    return train(Run(model, additions, lt.LoRA(rank=4), out=str(folder / "one"), training=settings), progress=False)


def launch(launcher: tuple[str, ...], run: Run, *more: str, environment: dict[str, str] | None = None) -> None:
    """`luthier train` on the command line, as users start it; the launcher's own imports are there."""
    done = fresh.run(*launcher, *command(run), *more, env=ALONE | (environment or {}))
    assert done.returncode == 0, done.stderr[-3000:]


def command(run: Run) -> list[str]:
    return [
        *("-m", "luthier", "train", run.model, run.data, "--method", "lora", "--rank", "4"),
        *("--out", run.out, *flags(run.training)),
    ]


def again(alone: Result, folder, **changes) -> Run:
    """The same run with half the batch a process."""
    from luthier.training.folder import read_record

    run = Run.from_dict(read_record(alone.folder)["run"])
    return replace(run, out=str(folder / "two"), training=replace(run.training, batch=4, **changes))


def same(alone: Result, run: Run) -> None:
    """Each step is there once with the loss of one process, and the adapter serves one process."""
    lines = [line for line in metrics.read(run.folder) if "loss" in line]
    assert [line["step"] for line in lines] == [step for step, _ in alone.losses]
    assert [line["loss"] for line in lines] == pytest.approx([loss for _, loss in alone.losses], rel=1e-5)
    model = lt.load(lt.model(run.model).model, run.folder / "adapter")
    ids = torch.arange(4, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, alone.model(ids).logits, rtol=1e-3, atol=1e-3)


@pytest.mark.thorough
def test_accelerate_launch(alone, tmp_path):
    run = again(alone, tmp_path)
    launch(ACCELERATE, run)
    same(alone, run)


def test_what_accelerate_launch_says_to_its_processes(alone, tmp_path):
    """They are asked for the variables that they find, with which two others train."""
    asking = tmp_path / "asking.py"
    asking.write_text(ASKING)
    done = fresh.run(*ACCELERATE, asking, tmp_path, env=ALONE)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / rank).read_text()) for rank in "01")
    assert [each["RANK"] for each in (first, second)] == ["0", "1"]
    assert first["WORLD_SIZE"] == "2" and any(name.startswith("ACCELERATE_") for name in first)
    ranked = {name: value for name, value in first.items() if not name.startswith("TORCHELASTIC")}  # the launcher's own
    run = again(alone, tmp_path)
    done = fresh.run(*command(run), env=ranked, ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
    same(alone, run)


def test_a_killed_process_is_restarted_behind_the_last_checkpoint(alone, tmp_path):
    """The sixth step of a process is killed; both start again behind step 4 and end as if nothing had been."""
    run = again(alone, tmp_path, shard=True)
    plugin = tmp_path / "plugins" / "objectives"
    plugin.mkdir(parents=True)
    (plugin / "fatal.py").write_text(FATAL)
    marks = tmp_path / "marks"
    marks.mkdir()
    environment = {"LUTHIER_PATH": str(plugin.parent), "MARKS": str(marks)}
    launch((*TORCHRUN, "--max-restarts=1"), run, "--objective", "fatal", "--resume", environment=environment)
    same(alone, run)
    assert len((marks / "1").read_text()) == 6 + 4  # six up to the kill, then steps 5 to 8


def test_launchers_that_would_spread_the_adapters_are_refused(alone, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(lt.LuthierError, match="--shard"):
        train(again(alone, tmp_path), progress=False)


def test_sharding_needs_processes(alone, tmp_path):
    with pytest.raises(lt.LuthierError, match="torchrun"):
        train(again(alone, tmp_path, shard=True), progress=False)
    with pytest.raises(lt.LuthierError, match="quantised"):
        Training(shard=True, quantize="nf4")
