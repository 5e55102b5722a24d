"""`luthier annotate`: labels from a pipe, gone on with; and its page."""

from __future__ import annotations

import io
import json
import sys

import pytest

from luthier import data
from luthier.core.contracts.selection import Pool
from luthier.core.errors import LuthierError
from luthier.data.annotate import Annotation
from luthier.methods.selections.random import Random
from support.cli_tools import write_rows

ROWS = [{"text": f"{word} number {i}", "label": "none"} for i in range(4) for word in ("ship", "oven", "judge")]


@pytest.fixture
def pool(tmp_path):
    return write_rows(tmp_path / "pool.jsonl", ROWS)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def annotate(call, monkeypatch, said, *words, of=Terminal):
    monkeypatch.setattr(sys, "stdin", of(said))
    return call("annotate", *words)


def test_labels_are_read_kept_and_gone_on_with(call, monkeypatch, pool, tmp_path):
    out = tmp_path / "labels.jsonl"
    common = (pool, "--budget", 5, "--by", "random", "--classes", "a,b", "--out", out)
    done = annotate(call, monkeypatch, "a\nc\nb\n-\n.\n", *common)
    assert done.code == 0 and "holds 2 labels; left: 3" in done.out and "'c' is none of the classes" in done.err
    first = lines(out)
    assert [row["label"] for row in first] == ["a", "b"] and all(
        row["text"] in {r["text"] for r in ROWS} for row in first
    )
    done = annotate(call, monkeypatch, "a\n" * 9, *common, "--json")
    assert done.code == 0 and json.loads(done.out)["classes"] == {"a": 4, "b": 1} and json.loads(done.out)["left"] == 0
    assert lines(out)[:2] == first and len({row["row"] for row in lines(out)}) == 5
    assert len(data.load(str(out), columns=("row",))) == 5  # train reads it
    done = call(
        "annotate", write_rows(tmp_path / "other.jsonl", ROWS[::-1]), "--out", out, "--budget", 5, "--by", "random"
    )
    assert done.code != 0 and "of other data" in done.err


def test_a_pipe_ends_at_what_is_no_label(call, monkeypatch, pool, tmp_path):
    """Its next line is the label of the next row, and would have been this one's."""
    out = tmp_path / "labels.jsonl"
    common = (pool, "--budget", 5, "--by", "random", "--classes", "a,b", "--out", out)
    done = annotate(call, monkeypatch, "a\nc\nb\na\n", *common, of=io.StringIO)
    assert done.code == 2 and "has no label, and nothing behind it was read: 'c' is none of the classes" in done.err
    assert [row["label"] for row in lines(out)] == ["a"]
    done = annotate(call, monkeypatch, "b\n-\na\n", *common, of=io.StringIO)
    assert done.code == 0 and "holds 3 labels; left: 2" in done.out


@pytest.mark.parametrize(
    "words, told",
    [
        (["--by", "got_d"], "does not say which row to label next"),
        (["--budget", 13, "--by", "random"], "cannot label 13 of the 12 rows"),
        (["--by", "random", "--model", "x"], "reads no model"),
        (["--by", "random", "--port", "8101"], "--port is of the page"),
        (["--by", "margin", "--embedding", "states"], "give --model"),
        (["--by", "random", "--out", "nowhere/labels.jsonl"], "no folder nowhere"),
    ],
)
def test_what_cannot_be_asked_is_refused(call, pool, words, told):
    done = call("annotate", pool, *(["--budget", 3] if "--budget" not in words else []), *words)
    assert done.code != 0 and told in done.err


def session(pool, tmp_path, **more) -> Annotation:
    return Annotation(Pool(data.load(pool)), Random(), 3, tmp_path / "labels.jsonl", **more)


def test_skipped_rows_are_not_asked_again(pool, tmp_path):
    sitting = session(pool, tmp_path)
    gone = []
    for _ in range(9):
        gone.append(sitting.next())
        sitting.skip(gone[-1])
    assert len(set(gone)) == 9
    while (place := sitting.next()) is not None:
        assert place not in gone
        sitting.label(place, "a")
    with pytest.raises(LuthierError, match="has a label already"):
        sitting.label(next(iter(sitting.known)), "b")


def test_the_page(pool, tmp_path):
    """Behind the guard of `serve`: the key, the name and the origin; a label of another row than the shown one."""
    pytest.importorskip("fastapi")
    from starlette.testclient import TestClient

    from luthier.serving.http.annotate import create_app
    from luthier.serving.http.guard import Guard

    app = create_app(session(pool, tmp_path, classes=("a", "<b>")), Guard("secret"))
    client = TestClient(app, base_url="http://127.0.0.1:8100", raise_server_exceptions=False)
    for path, media in (("/", "text/html"), ("/page.js", "text/javascript"), ("/page.css", "text/css")):
        answer = client.get(path)
        assert answer.status_code == 200 and media in answer.headers["content-type"]
        assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert client.get("/row").status_code == 401
    client.headers["authorization"] = "Bearer secret"
    assert client.get("/row", headers={"host": "evil.example"}).status_code == 403
    assert client.post("/label", json={"row": 1}, headers={"origin": "http://evil.example"}).status_code == 403
    told = client.get("/row").json()
    assert told["choices"] == ["a", "<b>"] and told["left"] == 3 and client.get("/row").json() == told
    assert client.post("/label", json={"row": told["row"] + 100, "label": "a"}).status_code == 409
    wrong = client.post("/label", json={"row": told["row"], "label": "c"})
    assert wrong.status_code == 400 and "none of the classes" in wrong.json()["error"]["message"]
    second = client.post("/label", json={"row": told["row"], "label": "<b>"}).json()
    assert second["labelled"] == 1 and second["row"] not in (None, told["row"])
    third = client.post("/label", json={"row": second["row"]}).json()
    assert third["labelled"] == 1 and third["row"] not in (told["row"], second["row"])
    while third["row"] is not None:
        third = client.post("/label", json={"row": third["row"], "label": "a"}).json()
    assert third["labelled"] == 3 and [row["label"] for row in lines(tmp_path / "labels.jsonl")] == ["<b>", "a", "a"]
