"""Runs other libraries' clients against a real server, and records what they send.

`python -m support.record_clients WORK NAME PYTHON` serves a small model with a template that writes calls, runs
`support/client_NAME.py` with the client's own PYTHON, and keeps the bodies of the calls, as they came, with the status
that each was answered with, in tests/serving/clients/NAME.json (tests/serving/clients/record.sh runs it for all).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from luthier.engine.engine import Engine
from luthier.serving.http import server
from support.call_templates import calling
from support.served import serving
from support.shipped import build

OUT = Path(__file__).parents[1] / "serving" / "clients"
PATHS = "/v1/"


class Recording:
    """An ASGI app that keeps the calls of another."""

    def __init__(self, app: Any) -> None:
        self.app, self.calls = app, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.app, name)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        call: dict[str, Any] = {"method": scope["method"], "path": scope["path"], "body": b"", "status": 0}
        self.calls.append(call)

        async def heard() -> Any:
            message = await receive()
            call["body"] += message.get("body", b"")
            return message

        async def said(message: Any) -> None:
            call["status"] = message.get("status", call["status"])
            await send(message)

        await self.app(scope, heard, said)


def small_engine(folder: Path) -> tuple[Engine, Any]:
    """A model with random weights whose template writes calls as Hermes does; its tokenizer goes to the folder."""
    torch.manual_seed(0)
    tokenizer = calling("hermes")
    tokenizer.save_pretrained(folder)
    model = build("llama", vocab_size=len(tokenizer), max_position_embeddings=4096)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return Engine(model, tokenizer, rows=4, waiting=64), tokenizer


def main(work: str, name: str, python: str) -> None:
    """Runs one client, and writes down what it sent; a client that fails ends this with its code."""
    folder = Path(work) / f"{name}-tokenizer"
    (engine, tokenizer), recordings = small_engine(folder), []
    made = server.create_app

    def create_app(*arguments: Any) -> Any:
        recordings.append(Recording(made(*arguments)))
        return recordings[-1]

    server.create_app = create_app
    engine.start()
    with serving(engine, tokenizer=tokenizer) as address:
        script = Path(__file__).with_name(f"client_{name}.py")
        code = subprocess.run([python, str(script), address, str(folder)], check=False).returncode
    engine.close()
    calls = [each for each in recordings[0].calls if each["path"].startswith(PATHS)]
    unique = {json.dumps(call := told(each), sort_keys=True): call for each in calls}
    text = json.dumps(list(unique.values()), indent=1, ensure_ascii=False)
    (OUT / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    print(f"{name}: {len(calls)} calls, {len(unique)} different")
    sys.exit(code)


def told(call: dict[str, Any]) -> dict[str, Any]:
    """A call as it is kept."""
    return call | {"body": json.loads(call["body"]) if call["body"] else None}


if __name__ == "__main__":
    main(*sys.argv[1:])
