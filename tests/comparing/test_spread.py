"""Studies whose runs are made side by side: the same records as one after another, whatever becomes of a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor, Future
from contextlib import contextmanager
from pathlib import Path

import pytest

from luthier.comparing import Study, places, records, runner, spread
from luthier.core.device import named, on_device
from luthier.core.errors import LuthierError
from support.studies import figures

QUICK = {"steps": 4, "batch": 4, "eval_every": 2, "save_every": 1, "eval_fraction": 0.2}
FATAL = '''
import os, pathlib, signal
from dataclasses import dataclass
from luthier.methods.objectives.sft import SFT

@dataclass(frozen=True)
class Fatal(SFT):
    """The loss of SFT, but the process is killed in its third step where there is a mark"""

    def loss(self, model, batch):
        mark = pathlib.Path(os.environ["MARK"])
        self.steps.append(1)
        if model.training and mark.exists() and len(self.steps) == 3:
            mark.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().loss(model, batch)

Fatal.steps = []
'''

SLEEPS = """
import os, time
from functools import partial
from luthier.cli import terminable
from luthier.comparing.places import Machine

if __name__ == "__main__":
    with terminable():
        worker = Machine(2).worker(0)
        try:
            print(worker.submit(os.getpid).result(), flush=True)
            worker.submit(partial(time.sleep, 1000)).result()
        finally:
            worker.close()
"""


@pytest.fixture
def study(llama, additions) -> Study:
    return Study.from_dict(
        {
            "models": llama,
            "data": {"sums": {"train": additions["train"], "test": additions["test"], "max_new_tokens": 3}},
            "methods": ["base", "lora", "loreft"],
            "seeds": 3,
            "training": QUICK,
            "timing": 0,
            "tune": 2,
        }
    )


def ran(*words: str, **given) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, which starts others as users' do."""
    return subprocess.run(
        [sys.executable, "-m", "luthier", *words], capture_output=True, text=True, timeout=280, **given
    )


@pytest.mark.long
def test_side_by_side_gives_the_same_records(study, tmp_path, capsys, monkeypatch):
    foretold = []
    monkeypatch.setattr(spread, "foretell", lambda planned, _: foretold.append(records(planned.folder)))
    runner.carry_out(study, tmp_path / "one", progress=False)
    done = runner.carry_out(study, tmp_path / "two", True, place=places.Machine(2))
    assert figures(tmp_path / "two") == figures(tmp_path / "one") and len(done.records) == 9
    assert all(spread.BESIDE in record.notes for record in done.records)
    assert "9/9" in capsys.readouterr().err
    assert len(foretold) == 1 and len([run for run in foretold[0] if run.seed in (0, 1)]) == 6  # the pilot was made
    runner.carry_out(study, tmp_path / "two", False, place=places.Machine(2))  # nothing is left
    assert figures(tmp_path / "two") == figures(tmp_path / "one")


@pytest.mark.long
def test_a_run_whose_process_is_killed_starts_again(llama, additions, tmp_path):
    plugin = tmp_path / "plugins" / "objectives"
    plugin.mkdir(parents=True)
    (plugin / "fatal.py").write_text(FATAL)
    recipe = tmp_path / "fatal.toml"
    recipe.write_text('method = "lora"\ndescription = "LoRA"\n[objective]\nname = "fatal"\n')
    environment = os.environ | {"LUTHIER_PATH": str(plugin.parent), "MARK": str(tmp_path / "mark")}
    words = ["compare", llama, additions["train"], "--test", additions["test"], "--methods", str(recipe)]
    words += ["--seeds", "1", "--timing", "0", "--steps", "4", "--save-every", "1", "--max-new-tokens", "3"]
    assert ran(*words, "--out", "one", cwd=tmp_path, env=environment).returncode == 0
    (tmp_path / "mark").touch()
    done = ran(*words, "--jobs", "2", "--out", "two", cwd=tmp_path, env=environment)
    assert done.stderr.count("its process is lost; it starts again") == 1, done.stderr
    assert done.returncode == 0 and not (tmp_path / "mark").exists()
    assert figures(tmp_path / "two") == figures(tmp_path / "one")


class Here(places.Place):
    """One worker, in this process; the first tasks lose it, and one is lost while it has nothing to do."""

    jobs, lost = 1, (BrokenExecutor,)

    def __init__(self, losses: int) -> None:
        self.left, self.made = losses, 0

    @contextmanager
    def reached(self):
        yield

    def worker(self, number: int) -> places.Worker:
        self.made += 1
        return Losing(self)


class Losing(places.Worker):
    def __init__(self, place: Here) -> None:
        self.place, self.first = place, place.made == 1

    def submit(self, task):
        if self.first:
            raise BrokenExecutor
        made: Future = Future()
        if self.place.left:
            self.place.left -= 1
            made.set_exception(BrokenExecutor("it was killed"))
        else:
            made.set_result(task())
        return made

    def close(self) -> None: ...


@pytest.mark.parametrize("losses", (spread.TRIES - 1, spread.TRIES))
def test_a_process_that_is_lost_again_and_again(study, tmp_path, losses, capsys):
    one = Study.from_dict(study.to_dict() | {"methods": ["base", "lora"], "seeds": [0], "tune": 0})
    place = Here(losses)
    if losses < spread.TRIES:
        assert len(runner.carry_out(one, tmp_path / "s", place=place, progress=True).records) == 2
    else:
        with pytest.raises(
            LuthierError, match=r"1 of 2 runs failed(.|\n)*base(.|\n)*its process ended, .* killed.*, 3 times"
        ):
            runner.carry_out(one, tmp_path / "s", place=place, progress=True)
        assert [record.method for record in records(tmp_path / "s")] == ["lora"]
    assert place.made == losses + 2
    assert capsys.readouterr().err.count("its process is lost; it starts again") == min(losses, spread.TRIES - 1)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("number", (signal.SIGTERM, signal.SIGKILL))
def test_the_processes_end_with_the_one_that_started_them(tmp_path, number):
    script = tmp_path / "script.py"
    script.write_text(SLEEPS)
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    assert alive(pid)
    process.send_signal(number)
    process.communicate(timeout=60)
    until = time.monotonic() + 60
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.1)
    assert not alive(pid)


def alive(pid: int) -> bool:
    """Whether a process is there and more than an entry in a table."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


def test_several_accelerators_are_taken_in_turn(monkeypatch):
    import torch

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert [places._device(number) for number in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    with on_device("cpu"):
        assert (places._device(1), named()) == ("cpu", "cpu")


@pytest.mark.parametrize(("jobs", "reason"), ((0, "jobs is 0; expected the number of runs"), (-1, "jobs is -1")))
def test_a_number_that_is_none_is_refused(study, tmp_path, jobs, reason):
    with pytest.raises(LuthierError, match=reason):
        runner.compare(study, out=tmp_path / "s", jobs=jobs)
    assert not (tmp_path / "s").exists()


def test_a_cluster_without_ray_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(LuthierError, match=r"needs the extra ray: pip install 'luthier\[ray\]'"):
        runner.place_of(None, "auto")


@pytest.mark.parametrize(
    ("name", "goes"),
    (("LUTHIER_PATH", True), ("HF_HOME", True), ("HF_TOKEN", False), ("LUTHIER_KEY", False), ("PATH", False)),
)
def test_settings_go_to_the_nodes_and_secrets_do_not(name, goes):
    assert places._passed_on(name) is goes
