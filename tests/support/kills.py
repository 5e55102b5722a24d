"""Saves in forked children that are killed, at random moments and at every step; run by `test_killed_saves.py`.

One process imports torch and forks. A child says over a pipe which value it has committed; after its kill, what
loads must be the last value that it told, or the one that it was saving. Prints a JSON report.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

import luthier as lt
from luthier.core.files import sha256
from luthier.core.storage import store
from luthier.core.storage.format import read
from luthier.training.checkpoint import MANIFEST, WRITING, clean, commit, newest

torch.set_num_threads(1)
TINY: dict[str, Any] = {
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
}
WATCHED = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir", "shutil.rmtree"}
"""Steps of the system that Python tells of, what is opened to read aside; `os.fsync` is wrapped besides."""
Save = Callable[[int], None]


def model():
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**TINY)).eval()


def adapter_saver(folder: Path) -> tuple[Save, Callable[[], int | None]]:
    """(saves a value, the value that is on disk)."""
    adapted, bare = lt.attach(model(), lt.LoRA(rank=2), where="q_proj, v_proj"), model()
    bare.load_state_dict({k: v for k, v in adapted.state_dict().items() if ".adapters." not in k})

    def save(value: int) -> None:
        for parameter in lt.trainable(adapted).values():
            parameter.data.fill_(value)
        store.save(adapted, folder, measured={"value": value})

    def load() -> int | None:
        if not folder.exists() and not list(folder.parent.glob(f".{folder.name}.old")):
            return None
        lt.load(bare, folder)
        found = {float(x) for parameter in lt.trainable(bare).values() for x in parameter.detach().flatten()}
        lt.detach(bare)
        found.add(float(read(folder)["measured"]["value"]))
        assert len(found) == 1, f"a mixture of {found}"
        return int(found.pop())

    return save, load


def checkpoint_saver(root: Path) -> tuple[Save, Callable[[], int | None]]:
    """The same of a run's checkpoints."""

    def save(value: int) -> None:
        written = root / WRITING / f"checkpoint-{value}"  # as the trainer does
        shutil.rmtree(root / WRITING, ignore_errors=True)
        written.mkdir(parents=True, exist_ok=True)
        save_file({"x": torch.full((400,), float(value))}, written / "adapter.safetensors")
        torch.save({"step": value}, written / "optimizer.pt")
        for name in ("scheduler.pt", "rng_state.pth"):
            (written / name).write_text(str(value))
        (written / "trainer_state.json").write_text(json.dumps({"global_step": value}))
        commit(written, root / f"step-{value}", "run", value)
        clean(root, 2)

    def load() -> int | None:
        saved = newest(root, {"run"})
        if saved is None:
            return None
        folder = saved.folder
        files = {path.name: sha256(path) for path in folder.iterdir() if path.name != MANIFEST}
        assert len(files) == 5, files
        found = {*load_file(folder / "adapter.safetensors")["x"].tolist(), torch.load(folder / "optimizer.pt")["step"]}
        found.add(json.loads((folder / "trainer_state.json").read_text())["global_step"])
        assert found == {saved.step}
        return int(found.pop())

    return save, load


def fork(work: Callable[[Callable[[int], object]], None]) -> tuple[int, int]:
    """(process, pipe that it tells committed values through)."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        status = 1
        try:
            work(lambda value: os.write(writing, value.to_bytes(4, "big")))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writing)
    return pid, reading


def told(reading: int, last: int) -> int:
    """The last value that came through the pipe."""
    with os.fdopen(reading, "rb") as pipe:
        data = pipe.read()
    return int.from_bytes(data[-4:], "big") if data else last


def check(load: Callable[[], int | None], last: int) -> int:
    """What is on disk, which is the last value told or the next."""
    found = load()
    assert (found or 0) in (last, last + 1), f"{found} is on disk after {last} was committed"
    return found or 0


def killed_at_random(save: Save, load: Callable[[], int | None], root: Path, times: int) -> int:
    """How many of the kills, within 30 ms of the start, left something unfinished in `root`."""
    draw, last, inside = random.Random(0), load() or 0, 0
    for _ in range(times):

        def work(tell: Callable[[int], object], first: int = last + 1) -> None:
            for value in range(first, first + 10_000):
                save(value)
                tell(value)

        pid, reading = fork(work)
        time.sleep(draw.random() * 0.03)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        inside += any(root.rglob(".*"))
        last = check(load, told(reading, last))
    return inside


def killed_at_every_step(save: Save, load: Callable[[], int | None]) -> int:
    """Kills a save before its first step of the system, its second and so on, until one ends; how many there were."""
    last = check(load, load() or 0)
    for steps in range(1, 10_000):

        def work(tell: Callable[[int], object], after: int = steps, value: int = last + 1) -> None:
            left = after

            def step(event: str, given: tuple) -> None:
                nonlocal left
                reads = event == "open" and given and not int(given[2] or 0) & (os.O_WRONLY | os.O_RDWR)
                left -= event in WATCHED and not reads
                if left == 0:
                    left = -1  # a kill is an event too
                    os.kill(os.getpid(), signal.SIGKILL)

            sync = os.fsync

            def fsync(handle: int) -> None:
                step("open", ())
                sync(handle)

            os.fsync = fsync
            sys.addaudithook(step)
            save(value)
            left = -1
            tell(value)

        pid, reading = fork(work)
        status = os.waitpid(pid, 0)[1]
        last = check(load, told(reading, last))
        if not os.WIFSIGNALED(status):
            assert status == 0
            return steps - 1
    raise AssertionError("it never ended")


def half_written(save: Save, load: Callable[[], int | None]) -> None:
    """Dies with half of the tensors' file written."""
    last = load() or 0

    def work(tell: Callable[[int], object]) -> None:
        def half(tensors: dict, path: Path, metadata: dict | None = None) -> None:
            save_file(tensors, path, metadata)
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

        store.save_file = half
        save(last + 1)

    pid, reading = fork(work)
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    assert check(load, told(reading, last)) == last


def main() -> None:
    root, times = Path(sys.argv[1]), int(sys.argv[2])
    report = {}
    for name, make in {"adapter": adapter_saver, "checkpoint": checkpoint_saver}.items():
        (root / name).mkdir()
        warm, _ = make(root / "warm" / name)  # what is imported on use is imported before the forks
        warm(1)
        save, load = make(root / name / "saved")
        report[f"{name} fresh"] = killed_at_every_step(save, load)
        report[f"{name} random"] = killed_at_random(save, load, root / name, times)
        if name == "adapter":
            half_written(save, load)
        report[f"{name} replaced"] = killed_at_every_step(save, load)
        save((load() or 0) + 1)
        report[f"{name} left"] = sorted(path.name for path in (root / name).rglob(".*"))  # type: ignore[assignment]
    print(json.dumps(report))


if __name__ == "__main__":
    main()
