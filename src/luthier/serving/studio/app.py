"""The app of `luthier studio`: what is there, a look before a run, runs, exports and the chat."""

from __future__ import annotations

import asyncio
import json
import socket
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi import Request as Call
from prometheus_client import CollectorRegistry, Counter

from luthier.core.contracts.component import find, names
from luthier.core.contracts.format import Format
from luthier.core.errors import LuthierError
from luthier.core.files import located
from luthier.core.guard import guarded
from luthier.data.sources import read
from luthier.serving.http import refusal
from luthier.serving.http.bodies import asked
from luthier.serving.http.guard import OPEN_PATHS, Guard, Guarded
from luthier.serving.http.listening import Listening, add_page
from luthier.serving.http.refusal import Refusal
from luthier.serving.studio import runs
from luthier.serving.studio.chat import Chat, chat_routes
from luthier.serving.studio.jobs import Jobs
from luthier.serving.studio.plan import Asked, Named, Plan, Wanted, training_settings
from luthier.serving.studio.shelf import Shelf

OPEN = (*OPEN_PATHS, "/studio.css", "/chart.js", "/chat/", "/chat/page.css", "/chat/page.js", "/chat/theme.js")
"""What needs no key: the two pages, which ask for it."""
FILES = {"/": "page.html", "/page.js": "page.js", "/chart.js": "chart.js", "/studio.css": "studio.css"}
SHOWN_ROWS = 6
"""Rows that a finished run is tried on."""
LONGEST_ANSWER = 48
"""Tokens of a written answer then."""


class Studio:
    """The shelf, the commands under way, and the chat."""

    def __init__(self, shelf: Shelf, at_once: int = 1) -> None:
        self.shelf, self.jobs = shelf, Jobs(shelf.working, at_once)
        self.chat = Chat(shelf, self.jobs)
        self.explained: dict[str, Any] = {}

    def there(self) -> dict[str, Any]:
        """Returns what a person can choose from."""
        return {
            "folders": [str(each) for each in self.shelf.folders],
            "models": self.shelf.models(),
            "data": self.shelf.data(),
            "methods": [{"name": n, "equation": find("forms", n).equation()} for n in sorted(names("forms"))],
            "formats": [n for n in sorted(names("formats")) if find("formats", n, Format).writes()],
            "training": training_settings(),
        }

    async def explain(self, method: str) -> Any:
        """Returns a method's equation, source and settings, as `luthier explain` tells them."""
        if method not in names("forms"):
            raise Refusal(404, f"there is no method {method!r:.80}.", param="method", code="not_found")
        if method not in self.explained:
            found = await self.jobs.result(["explain", method, "--json"])
            self.explained[method] = next((e for e in found if e["axis"] == "forms"), None) if isinstance(
                found, list) else found  # fmt: skip
        return self.explained[method]

    def listed(self) -> dict[str, Any]:
        """Returns every run in few words."""
        running = self.jobs.running("train")
        known = [runs.summary(self.shelf.runs / name, name in running) for name in self.shelf.names()]
        waiting = [{"name": n, "state": "starting"} for n in running if n not in {each["name"] for each in known}]
        return {"runs": [*waiting, *known], "chat": self.chat.names if self.chat.job else []}

    def detail(self, name: str) -> dict[str, Any]:
        """Returns a run with its curves, answers, and what its commands said."""
        running = name in self.jobs.running("train")
        folder = self.shelf.runs / name if f"train {name}" in self.jobs.known else self.shelf.run(name)
        there = (folder / "run.json").is_file()
        state = "starting" if running else "failed"
        told = runs.summary(folder, running) if there else {"name": name, "state": state}
        jobs = {kind: self._of(f"{kind} {name}") for kind in ("train", "export", "try")}
        lines = runs.metrics(folder)
        return told | {"curves": runs.curves(lines), "answers": runs.answers(folder), "jobs": jobs}

    def _of(self, name: str) -> dict[str, Any] | None:
        job = self.jobs.known.get(name)
        if job is None:
            return None
        tail = [line for line in list(job.lines)[-30:] if line.strip()]
        return {"runs": job.runs, "code": job.code, "tail": tail, "trouble": job.trouble() if job.code else None}

    async def start(self, body: Named) -> dict[str, Any]:
        """Starts a run under a name that is free."""
        folder = self.shelf.run(body.name, there=False)
        words = await asyncio.to_thread(body.words, self.shelf)
        await self.jobs.begin(f"train {body.name}", ["train", *words, f"--out={folder}"])
        return {"name": body.name}

    async def resume(self, name: str) -> dict[str, Any]:
        """Goes on with a run from its last checkpoint; one without begins again."""
        folder = self.shelf.run(name)
        await self.jobs.begin(f"train {name}", ["train", str(folder / "run.json"), f"--out={folder}", "--resume"])
        return {"name": name}

    def stop(self, name: str) -> dict[str, Any]:
        """Stops a run, as Ctrl-C does."""
        if name not in self.jobs.running("train"):
            raise Refusal(409, f"{name!r:.80} is not being trained here.", code="not_running")
        self.jobs.known[f"train {name}"].stop()
        return {"name": name}

    async def export(self, name: str, to: str) -> dict[str, Any]:
        """Writes a finished run in the format of other software."""
        folder = self.shelf.run(name)
        if to not in names("formats"):
            raise Refusal(400, f"there is no format {to!r:.80}.", param="to", code="not_found")
        out = self.shelf.exports / f"{name}-{to}"
        base = runs.run_of(folder)["model"]
        await self.jobs.begin(f"export {name}", ["export", str(folder), str(out), f"--to={to}", f"--model={base}"])
        return {"out": str(out)}

    async def tried(self, name: str) -> dict[str, Any]:
        """Returns a few rows of a run's data with what the fine-tuned model makes of them."""
        folder = self.shelf.run(name)
        run = runs.run_of(folder)
        with tempfile.TemporaryDirectory(prefix="luthier-studio-") as made:
            rows, out = Path(made) / "rows.jsonl", Path(made) / "predicted.jsonl"
            await asyncio.to_thread(write_first, run.get("eval_data") or run["data"], self.shelf.working, rows)
            columns = [f"--columns={run['columns']}"] if run.get("columns") else []
            words = ["predict", run["model"], str(rows), f"--adapter={folder}", f"--out={out}", *columns]
            await self.jobs.result([*words, f"--max-new-tokens={LONGEST_ANSWER}", "--json"])
            with guarded(f"{name}: what it said of its rows cannot be read"):
                return {"rows": [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]}


def write_first(source: str, folder: Path, out: Path) -> None:
    """Writes the first rows of a run's data; a relative path is one from `folder`, where commands run."""
    found = read(located(source, folder))
    rows = [{key: _whole(value, found.folder) for key, value in found.rows[i][1].items()}
            for i in range(min(SHOWN_ROWS, len(found.rows)))]  # fmt: skip
    lines = [json.dumps(row, ensure_ascii=False, default=str) for row in rows]
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _whole(value: Any, folder: Path | None) -> Any:
    """A cell, or the whole path of a file that it names beside the data."""
    try:
        beside = folder is not None and isinstance(value, str) and bool(value) and (folder / value).is_file()
    except (OSError, ValueError):  # a text too long for a name, or with a NUL
        beside = False
    return str((folder / value).resolve()) if beside and folder is not None else value


def create_app(studio: Studio, guard: Guard) -> FastAPI:
    """Returns the app; `guard` says who may use it."""

    @asynccontextmanager
    async def lasting(app: FastAPI) -> AsyncIterator[None]:
        yield
        await studio.jobs.close()

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False, lifespan=lasting)
    add_page(app, FILES, Path(__file__).parent)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ready"}

    app.include_router(looking(studio))
    app.include_router(running(studio))
    app.include_router(chat_routes(studio.chat))
    refusal.install(app)
    requests = Counter("studio_requests", "Answers by code", ("method", "path", "code"), registry=CollectorRegistry())
    app.add_middleware(Guarded, guard=guard, requests=requests)
    return app


def looking(studio: Studio) -> APIRouter:
    """What there is, and the look before a run."""
    routes = APIRouter(prefix="/api")

    @routes.get("/there")
    async def there() -> dict[str, Any]:
        return await asyncio.to_thread(studio.there)

    @routes.get("/methods/{name}")
    async def method(name: str) -> Any:
        return await studio.explain(name)

    @routes.post("/look")
    async def look(call: Call) -> Any:
        body = await asked(call, Plan)
        words = await asyncio.to_thread(body.words, studio.shelf)
        free = f"--out={studio.shelf.runs / '.look'}"
        told = await studio.jobs.result(["train", *words, free, "--dry-run", "--json"])
        return await asyncio.to_thread(studio.shelf.within, told)

    return routes


def running(studio: Studio) -> APIRouter:
    """Runs: listed, started, watched, stopped, resumed, tried, exported, talked to."""
    routes = APIRouter(prefix="/api")

    @routes.get("/runs")
    async def every() -> dict[str, Any]:
        return await asyncio.to_thread(studio.listed)

    @routes.post("/runs", status_code=201)
    async def start(call: Call) -> dict[str, Any]:
        return await studio.start(await asked(call, Named))

    @routes.get("/runs/{name}")
    async def one(name: str) -> dict[str, Any]:
        return await asyncio.to_thread(studio.detail, name)

    @routes.post("/runs/{name}/stop")
    async def stop(name: str) -> dict[str, Any]:
        return studio.stop(name)

    @routes.post("/runs/{name}/resume")
    async def resume(name: str) -> dict[str, Any]:
        return await studio.resume(name)

    @routes.post("/runs/{name}/try")
    async def tried(name: str) -> Any:
        return await studio.tried(name)

    @routes.post("/runs/{name}/export")
    async def export(name: str, call: Call) -> dict[str, Any]:
        return await studio.export(name, (await asked(call, Wanted)).to)

    @routes.post("/chat")
    async def chat(call: Call) -> dict[str, Any]:
        return await studio.chat.open((await asked(call, Asked)).runs)

    return routes


def serve(studio: Studio, guard: Guard, bound: socket.socket, ready: Callable[[], None]) -> None:
    """Serves the studio on a bound socket until a signal ends it; runs under way are stopped, to be resumed."""
    try:
        server = Listening(create_app(studio, guard), ready, connections=64, patience=30.0, last_words=2)
        asyncio.run(server.serve(sockets=[bound]))
    except OSError as error:
        raise LuthierError(f"the studio cannot be served ({error.strerror}).") from error
