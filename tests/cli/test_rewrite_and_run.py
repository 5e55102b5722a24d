"""`luthier rewrite` with judges of every kind, `luthier run` on a plan, `train --from`, and what `evaluate` tells."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml

from support.cli_tools import write_rows


@contextmanager
def api(reply):
    """A server of OpenAI's API whose answers `reply(text)` gives: a text, or a status."""
    seen: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send(200, {"data": [{"id": "judge"}]})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append(body | {"key": self.headers.get("Authorization")})
            told = reply(body["messages"][-1]["content"])
            said = {"choices": [{"message": {"content": told}}]}
            refused = {"error": {"message": "the prompt is too long"}}
            self.send(*((told, refused) if isinstance(told, int) else (200, said)))

        def send(self, status, value):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(value).encode())

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", seen
    finally:
        server.shutdown()
        server.server_close()


def made(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def spoken(monkeypatch):
    """The model says something, which a random one need not."""
    monkeypatch.setattr("luthier.evaluating.rewrite.generate", lambda m, p, prompts, **more: ["mine"] * len(prompts))


def test_a_server_judges(call, llama, rows, tmp_path, monkeypatch, spoken):
    monkeypatch.setenv("LUTHIER_API_KEY", "secret")
    out = tmp_path / "made.jsonl"
    words = ("rewrite", llama, rows, "--out", out, "--max-new-tokens", 3, "--batch", 4, "--patience", 100)
    with api(lambda text: "Yes." if "say two" in text or "say three" in text else "no") as (url, seen):
        done = call(*words, "--judge", url, "--measure", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["rows"] == 8 and found["unjudged"] == 0 and found["origins"]["gold"] == 6
    assert set(found["loss"]) == {"given", "made"}
    assert all(each["key"] == "Bearer secret" and each["model"] == "judge" for each in seen)
    assert [row["from"]["row"] for row in made(out)] == list(range(1, 9))
    with api(lambda text: "perhaps" if "say one" in text else 400) as (url, _):
        done = call(*words, "--judge", f"{url}/v1#judge", "--overwrite")
    assert done.code == 0 and "the judge did not say" in done.err
    assert "(the prompt is too long)" in done.err
    assert len(made(out)) == 8 and all(row["from"]["unjudged"] for row in made(out))


def test_a_server_that_is_gone_stops_the_work_and_loses_nothing(call, llama, rows, tmp_path, monkeypatch, spoken):
    monkeypatch.setattr("luthier.data.rewriting.api.AGAIN", (0.0,))
    out = tmp_path / "made.jsonl"
    words = ("rewrite", llama, rows, "--out", out, "--max-new-tokens", 3, "--batch", 4, "--patience", 4)
    dead = call(*words, "--judge", "http://127.0.0.1:9/v1#judge")
    assert dead.code != 0 and "0 of 8 rows are done" in dead.err and not out.exists()
    file = tmp_path / "judges.py"
    file.write_text("def never(prompt, answer, reference):\n    return False\n")
    done = call(*words, "--judge", f"{file}:never", "--resume")
    assert done.code == 0 and len(made(out)) == 8
    refused = call(*words, "--judge", f"{file}:nevr", "--overwrite")
    assert refused.code != 0 and "no function 'nevr'" in refused.err and "never" in refused.err


def test_critics_and_pairs(call, llama, rows, tmp_path):
    file = tmp_path / "critics.py"
    file.write_text(
        "def strict(messages):\n    return '- too short\\n- wrong'\n\n"
        "def kind(messages):\n    return '- Wrong!'\n\n"
        "def meta(messages):\n    return 'no' if 'short' in messages[0]['content'].split('The flaw:')[1] else 'yes'\n"
    )
    words = ("rewrite", llama, rows, "--by", "multicritique", "--critics", f"{file}:strict,{file}:kind", "--limit", 2)
    done = call(*words, "--meta", f"{file}:meta", "--out", tmp_path / "sft.jsonl", "--max-new-tokens", 2)
    assert done.code == 0, done.err
    assert [row["completion"] for row in made(tmp_path / "sft.jsonl")] == ["- wrong"] * 2
    assert "needs critics" in call("rewrite", llama, rows, "--by", "multicritique", "--judge", "exact_match").err


@pytest.fixture
def plan(llama, rows, tmp_path):
    texts = write_rows(tmp_path / "texts.jsonl", [{"text": "say one two three"}] * 4)
    training = {"steps": 2, "batch": 4, "eval_fraction": 0.0}
    values = {
        "model": str(llama),
        "out": str(tmp_path / "out"),
        "method": "lora",
        "training": training,
        "stage": [{"name": "sft", "data": str(rows)}, {"name": "more", "data": str(texts)}],
        "measure": {"task": str(rows), "general": str(texts), "checkpoints": 1, "max_new_tokens": 2},
    }
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_plan_runs_and_goes_on(call, plan, tmp_path, drawn):
    tried = call("run", plan, "--dry-run")
    assert tried.code == 0 and "nothing was trained" in tried.out and not (tmp_path / "out").exists()
    done = call("run", plan)
    assert done.code == 0, done.err
    assert "on the front" in done.out and (tmp_path / "out" / "pareto.png").stat().st_size > 5000
    assert "holds a plan already" in call("run", plan).err
    found = json.loads(call("run", plan, "--resume", "--json").out)
    assert [each["name"] for each in found["stages"]] == ["sft", "more"]
    assert [each["name"] for each in found["pareto"]["points"]] == ["base", "sft 2", "more 2"]
    longer = call("train", "--from", tmp_path / "out" / "02-more", "--steps", 1, "--out", tmp_path / "longer")
    assert longer.code == 0, longer.err
    record = json.loads((tmp_path / "longer" / "run.json").read_text())
    assert record["run"]["form"]["name"] == "lora" and record["resolved"]["steps"] == 1


def test_evaluate_tells_tasks_and_texts(call, llama, rows, tmp_path):
    several = [{**row, "task": "odd" if i % 2 else "even"} for i, row in enumerate(made(rows))]
    path = write_rows(tmp_path / "tasks.jsonl", several)
    found = json.loads(call("evaluate", llama, path, "--max-new-tokens", 2, "--json").out)
    assert {name: each["rows"] for name, each in found["tasks"].items()} == {"even": 4, "odd": 4}
    text = write_rows(tmp_path / "texts.jsonl", [{"text": "say one two three"}])
    shown = call("evaluate", llama, text)
    assert shown.code == 0 and "loss" in shown.out and "perplexity" in shown.out
    refused = call("evaluate", llama, path, "--max-new-tokens", 2, "--confusion", tmp_path / "c.png")
    assert refused.code != 0 and "these rows have none" in refused.err
