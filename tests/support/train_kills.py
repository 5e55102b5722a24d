"""A server of the training API that is killed at random moments, and a client that asks again until it is answered.

`python train_kills.py KILLS [SEED] [URL]`: one process imports torch and forks; a child is the server, another the
client, and the first one kills servers and forks new ones on the same port and folder. What the client saves at the end
is compared, bit for bit, with a run that nobody disturbed. With the URL of a Postgres database, which is emptied, the
servers that are killed keep their requests there. Prints a JSON report.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import httpx
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1]))

from luthier.core.files import discard
from luthier.engine.engine import Engine
from luthier.models import load
from luthier.serving.http.guard import Guard
from luthier.serving.http.listening import bind
from luthier.serving.http.server import serve
from luthier.serving.http.service import Service
from luthier.serving.training_api.database import SCHEMA
from luthier.serving.training_api.routes import PREFIX
from luthier.serving.training_api.service import TrainingService
from luthier.serving.training_api.tenants import Tenants
from support.tiny import TEMPLATE, save_model
from support.train_client import Client, row

torch.set_num_threads(1)
STEPS_A_KILL = 3


def server(model: str, folder: Path, port: int, snapshots: float, database: str | None) -> None:
    """Serves until it is killed."""
    loaded = load(model)
    engine = Engine(loaded.model, loaded.processor, rows=4)
    service = Service(engine, loaded.processor, "tiny")
    service.training = TrainingService(engine, "tiny", folder, Tenants(None), adapters=2, database=database)
    service.training.trainer.snapshot_seconds = snapshots
    with bind("127.0.0.1", port) as bound:
        serve(service, Guard(own_keys=PREFIX, own_keys_body=2**20), bound, 5.0, lambda: None)


def client(port: int, steps: int, out: Path) -> None:
    """Trains two models in turns: the chunks of a batch arrive the wrong way round, as the official client sends them.

    With two models that fit into memory and a third that does not, one is put away and read back all the time.
    """
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=5) as http:
        own = Client(http, patient=True)
        session = own.session()
        models = [own.create(session, base, number) for number, base in enumerate(
            ["tiny", "tiny?form=loreft&positions=f2+l2", "tiny?form=dora"])]  # fmt: skip
        seq = dict.fromkeys(models, 1)
        for step in range(steps):
            model = models[step % 3 if step % 5 == 0 else 0]
            first = seq[model]
            promises = []
            for number, data in ((first + 1, [row(9, step)]), (first, [row(6, step + 1), row(12, step + 2)])):
                got = own.submit(model, number, data)
                assert got.status_code == 200, got.text
                promises.append(got.json())
            promises.append(own.step(model, first + 2, 3e-3))
            for promise in promises:
                told = own.result(promise, "ForwardBackwardOutput")
                assert "error" not in told, told
            seq[model] += 3
        for number, model in enumerate(models):
            promise = own.post("save_weights", model_id=model, seq_id=seq[model], path="final")
            assert "path" in own.result(promise)
            out.joinpath(str(number)).write_text(model)


def forked(what: Any, *given: Any) -> int:
    child = os.fork()
    if child:
        return child
    try:
        what(*given)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def answers(port: int) -> bool:
    with socket.socket() as one:
        one.settimeout(0.2)
        return one.connect_ex(("127.0.0.1", port)) == 0


def run(
    model: str, folder: Path, kills: int, steps: int, draw: random.Random, snapshots: float, database: str | None = None
) -> dict[str, Any]:
    """One run with so many kills; returns its report and the tensors of each final checkpoint."""
    folder.mkdir()
    with bind("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    began, killed, moments = time.monotonic(), 0, []
    serving = forked(server, model, folder / "kept", port, snapshots, database)
    asking = forked(client, port, steps, folder)
    while True:
        ended, status = os.waitpid(asking, os.WNOHANG)
        if ended:
            break
        if killed < kills and answers(port):
            time.sleep(draw.random() ** 2)
            os.kill(serving, signal.SIGKILL)
            os.waitpid(serving, 0)
            killed += 1
            moments.append(round(time.monotonic() - began, 2))
            serving = forked(server, model, folder / "kept", port, snapshots, database)
        time.sleep(0.02)
    os.kill(serving, signal.SIGKILL)
    os.waitpid(serving, 0)
    assert os.waitstatus_to_exitcode(status) == 0, "the client failed"
    found = {}
    for number in range(3):
        place = (
            folder / "kept" / "checkpoints" / (folder / str(number)).read_text().replace(":", "-") / "weights" / "final"
        )
        found[number] = {
            f"{file.name}/{key}": tensor
            for file in sorted(place.rglob("*.safetensors"))
            for key, tensor in load_file(file).items()
        }
    return {"kills": killed, "seconds": round(time.monotonic() - began, 1), "found": found}


def emptied(url: str) -> None:
    """Drops what a Postgres database holds of the training API."""
    with importlib.import_module("psycopg").connect(url, autocommit=True) as db:
        db.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")


def main(kills: int, seed: int = 0, database: str | None = None, snapshots: float = 0.5) -> dict[str, Any]:
    """Returns the report of a disturbed run beside an undisturbed one."""
    if database is not None:
        emptied(database)
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        model = save_model(place / "model", "llama", TEMPLATE)
        steps = max(12, STEPS_A_KILL * kills)
        quiet = run(model, place / "quiet", 0, steps, draw, 3600.0)
        rough = run(model, place / "rough", kills, steps, draw, snapshots, database)
        differing = [
            f"{number}: {key}"
            for number, held in quiet["found"].items()
            for key, tensor in held.items()
            if not torch.equal(tensor, rough["found"][number][key])
        ]
        same_keys = all(held.keys() == rough["found"][n].keys() for n, held in quiet["found"].items())
        discard(place / "rough")
    return {
        "kills": rough["kills"],
        "steps": steps,
        "tensors": sum(map(len, quiet["found"].values())),
        "differing": differing,
        "same tensors": same_keys,
        "seconds": [quiet["seconds"], rough["seconds"]],
    }


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), *map(int, sys.argv[2:3]), *sys.argv[3:4])))
