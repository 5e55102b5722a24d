"""The studio without a browser: what it may name, whom it answers, and that its commands are those of the terminal."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest
from starlette.testclient import TestClient

from luthier.cli import main
from luthier.core.owner import owned
from luthier.serving.http.guard import Guard
from luthier.serving.http.refusal import Refusal
from luthier.serving.studio import jobs, runs
from luthier.serving.studio.app import OPEN, Studio, create_app, write_first
from luthier.serving.studio.plan import Plan
from luthier.serving.studio.shelf import MOST, Shelf
from support.tiny import save_model, sums, write_rows

PLAN = {"model": "desk/tiny", "data": "desk/sums.jsonl", "method": "lora"}


@pytest.fixture
def shelf(tmp_path) -> Shelf:
    desk = tmp_path / "desk"
    desk.mkdir()
    save_model(desk / "tiny", "llama")
    write_rows(desk / "sums.jsonl", sums(4))
    (tmp_path / "secret.jsonl").write_text('{"text": "x"}\n')
    (desk / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    (desk / ".hidden.jsonl").write_text("{}\n")
    made = desk / "runs" / "old"
    made.mkdir(parents=True)
    run = {"model": "m", "data": "d", "form": {"name": "lora", "settings": {"rank": 4}}, "training": {}}
    resolved = {"steps": 9, "task": "causal-lm", "lr": 0.1, "where": "x"}
    record = {"run": run, "resolved": resolved, "created": "now", "command": "luthier train"}
    (made / "run.json").write_text(json.dumps(record))
    return Shelf((desk,), desk / "runs", tmp_path)


@pytest.fixture
def ask(shelf):
    """A client of the studio; `key=` guards it."""

    def made(key: str | None = None) -> TestClient:
        return TestClient(create_app(Studio(shelf), Guard(key, open_paths=OPEN)), base_url="http://127.0.0.1")

    return made


def test_what_is_there(ask):
    told = ask().get("/api/there").json()
    assert [each["name"] for each in told["data"]] == ["desk/link.jsonl", "desk/sums.jsonl"]
    folders = [each["name"] for each in told["models"] if each["kind"] == "folder"]
    assert folders == ["desk/tiny"] and "smollm2-135m" in {each["name"] for each in told["models"]}
    assert {"name": "lora", "equation": "W' = W + s B A"} in told["methods"] and "peft" in told["formats"]
    assert "report_to" not in told["training"] and told["training"]["batch"] == 8


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"data": "desk/link.jsonl"}, "data"),
        ({"data": "../secret.jsonl"}, "data"),
        ({"data": "desk/../secret.jsonl"}, "data"),
        ({"data": "/etc/passwd"}, "data"),
        ({"data": "desk/sums.jsonl\0"}, "data"),
        ({"data": "gym:chain_sum"}, "data"),
        ({"model": "desk"}, "model"),
        ({"model": "../desk/tiny"}, "model"),
        ({"model": "--help"}, "model"),
        ({"method": "--resume"}, "method"),
        ({"settings": {"trust_remote_code": True}}, "trust_remote_code"),
        ({"training": {"report_to": "wandb"}}, "report_to"),
        ({"training": {"out": "elsewhere"}}, "out"),
        ({"trust_remote_code": True}, "trust_remote_code"),
        ({"model": None}, "model"),
    ],
)
def test_what_has_no_name_here_is_refused(ask, change, param):
    told = ask().post("/api/look", json=PLAN | change)
    assert told.status_code in (400, 404) and told.json()["error"]["param"] == param


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".look", "exports", "x" * 65, "a\0", "-x"])
def test_runs_have_plain_names(ask, shelf, name):
    told = ask().post("/api/runs", json=PLAN | {"name": name})
    assert told.status_code == 400 and told.json()["error"]["param"] == "name"
    with pytest.raises(Refusal):
        shelf.run(name)


def test_a_run_is_not_replaced_nor_read_through_a_link(ask, shelf, tmp_path):
    assert ask().post("/api/runs", json=PLAN | {"name": "old"}).status_code == 409
    (shelf.runs / "linked").symlink_to(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    assert ask().get("/api/runs/linked").status_code == 404
    assert ask().post("/api/runs/none/stop").status_code == 409
    assert ask().post("/api/runs/old/export", json={"to": "nothing"}).status_code == 400
    assert ask().post("/api/chat", json={"runs": ["none"]}).status_code == 404
    assert ask().post("/chat/v1/chat/completions", json={}).status_code == 409


def test_whom_it_answers(ask):
    assert ask().get("/api/runs", headers={"origin": "http://elsewhere"}).status_code == 403
    assert ask().get("/api/runs", headers={"host": "elsewhere"}).status_code == 403
    locked = ask("secret")
    for path in ("/api/there", "/api/runs", "/chat/v1/models"):
        assert locked.get(path).status_code == 401
    assert locked.get("/api/runs", headers={"authorization": "Bearer secret"}).status_code == 200
    for path in OPEN:
        answer = locked.get(path)
        assert answer.status_code == 200 and "script-src 'self'" in answer.headers["content-security-policy"]
        assert "http:" not in answer.text.replace("http://www.w3.org", "") and "https:" not in answer.text
    assert 'href="../">studio</a>' in locked.get("/chat/").text
    assert ask().post("/api/look", content=b"x" * (2**20 + 1)).status_code == 413


def test_words_are_those_of_the_command_line(shelf, tmp_path):
    plan = Plan(**PLAN, settings={"rank": 4, "scaling": "rslora"}, training={"lr": 1e-3, "truncate": True, "batch": 2},
                columns="text=a b; rm -rf /", where="q_proj", eval_data="desk/sums.jsonl", limit=3)  # fmt: skip
    rows = str(tmp_path / "desk" / "sums.jsonl")
    assert plan.words(shelf) == [
        str(tmp_path / "desk" / "tiny"), rows, "--method=lora", "--rank=4", "--scaling=rslora", "--lr=0.001",
        "--truncate", "--batch=2", f"--eval-data={rows}", "--where=q_proj", "--columns=text=a b; rm -rf /", "--limit=3",
    ]  # fmt: skip
    assert Plan(**PLAN | {"model": "owner/name"}).words(shelf)[0] == "owner/name"


def test_runs_are_read_as_they_are_written(ask, shelf):
    folder = shelf.runs / "old"
    lines = [{"step": i, "loss": 9.0 - i} for i in range(1, 4)] + [{"step": 3, "eval_loss": 5.0, "seconds": 2.0}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4, "lo')
    told = ask().get("/api/runs/old").json()
    assert told["state"] == "begun" and (told["step"], told["loss"], told["eval_loss"]) == (3, 6.0, 5.0)
    assert told["curves"] == {"loss": [[1, 8.0], [2, 7.0], [3, 6.0]], "eval_loss": [[3, 5.0]]}
    (folder / "run.json").write_text("{")
    assert ask().get("/api/runs").json()["runs"][0]["state"] == "damaged"


def test_a_figure_that_is_no_number_has_a_gap(ask, shelf):
    """As earlier versions wrote them, and as they are written now."""
    text = '{"step": 1, "eval_pearson": NaN}\n{"step": 2, "eval_pearson": null}\n{"step": 3, "eval_pearson": 0.5}\n'
    (shelf.runs / "old" / "metrics.jsonl").write_text(text)
    assert ask().get("/api/runs/old").json()["curves"] == {"eval_pearson": [[1, None], [2, None], [3, 0.5]]}


def test_long_curves_are_thinned_and_keep_their_end():
    points = [[i, float(i)] for i in range(1001)]
    assert len(runs.thinned(points)) <= runs.POINTS and runs.thinned(points)[-1] == points[-1]
    assert runs.thinned(points[:3]) == points[:3] and runs.thinned([]) == []


def test_what_is_broken_in_a_folder_leaves_the_page_alone(ask, shelf):
    desk = shelf.folders[0]
    (desk / "gone.jsonl").symlink_to(desk / "nowhere.jsonl")
    (desk / "pictures").mkdir()
    for number in range(MOST + 1):
        (desk / "pictures" / f"{number}.png").touch()
    for name, told in (("bad", "{"), ("list", "[]")):
        (desk / name).mkdir()
        (desk / name / "config.json").write_text(told)
        (desk / name / "model.safetensors").touch()
    told = ask().get("/api/there").json()
    assert [each["name"] for each in told["data"]] == ["desk/link.jsonl", "desk/sums.jsonl"]
    assert [each["name"] for each in told["models"] if each["kind"] == "folder"] == ["desk/tiny"]


def test_a_damaged_record_is_told_and_a_run_of_another_process_is_its_own(ask, shelf):
    folder = shelf.runs / "old"
    (folder / "metrics.jsonl").write_text('{"loss": 1}\n3\n{"step": 2, "loss": 0.5}\n')
    assert ask().get("/api/runs/old").json()["curves"] == {"loss": [[2, 0.5]]}
    with owned(folder):
        assert runs.state_of(folder, False) == "elsewhere"
    assert runs.state_of(folder, False) == "begun"
    (folder / "run.json").write_text("{}")
    for path, body in (("/api/runs/old/export", {"to": "peft"}), ("/api/runs/old/try", None)):
        answer = ask().post(path, json=body)
        assert answer.status_code == 400 and "record of 'old' is damaged" in answer.text


def test_a_command_is_stopped_on_windows_as_elsewhere(monkeypatch):
    """By Ctrl-Break to a group of its own, which the command line takes for Ctrl-C."""
    assert jobs.apart() == {"start_new_session": True} and jobs.interrupt() == signal.SIGINT
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 512, raising=False)
    monkeypatch.setattr(signal, "CTRL_BREAK_EVENT", 1, raising=False)
    monkeypatch.setattr(signal, "SIGBREAK", signal.SIGUSR1, raising=False)
    assert jobs.apart() == {"creationflags": 512} and jobs.interrupt() == 1
    before = signal.getsignal(signal.SIGUSR1)
    try:
        assert main(["list", "no such axis"]) == 2
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_folders_of_pictures_by_class_are_data(ask, shelf):
    from support.seeing import picture

    desk = shelf.folders[0]
    for name in ("cats", "dogs"):
        (desk / "pets" / name).mkdir(parents=True)
        picture(0).save(desk / "pets" / name / "0.png")
    told = {each["name"]: each["bytes"] for each in ask().get("/api/there").json()["data"]}
    assert told["desk/pets"] == 2 * (desk / "pets" / "cats" / "0.png").stat().st_size
    assert shelf.source("desk/pets") == str(desk / "pets")
    for other in ("desk/pets/cats", "desk/runs", "desk/tiny", "desk"):
        with pytest.raises(Refusal):
            shelf.source(other)


def test_pictures_outside_of_the_folders_are_not_shown(shelf, tmp_path):
    inside, outside = str(shelf.folders[0] / "a.png"), str(tmp_path / "b.png")
    names = [inside, outside, str(shelf.folders[0] / ".." / "b.png"), None]
    told = {"rows": [{"pictures": [{"name": name, "url": "data:"} for name in names]}]}
    assert [each["name"] for each in shelf.within(told)["rows"][0]["pictures"]] == [inside, None]


def test_files_that_rows_name_are_found_from_a_copy_of_the_rows(tmp_path):
    (tmp_path / "0.png").touch()
    rows = write_rows(tmp_path / "rows.jsonl", [{"image": "0.png", "label": "a"}])
    (tmp_path / "copy").mkdir()
    write_first(rows, tmp_path, tmp_path / "copy" / "rows.jsonl")
    told = json.loads((tmp_path / "copy" / "rows.jsonl").read_text())
    assert told == {"image": str((tmp_path / "0.png").resolve()), "label": "a"}


def test_folders_of_very_many_files_are_not_read_to_their_end(shelf, monkeypatch):
    for name in ("pets/cats/0.png", "pets/dogs/0.png"):
        (shelf.folders[0] / name).parent.mkdir(parents=True, exist_ok=True)
        (shelf.folders[0] / name).write_bytes(b"0")
    assert "desk/pets" in {each["name"] for each in shelf.data()}
    monkeypatch.setattr("luthier.serving.studio.shelf.LOOKED", 1)
    assert "desk/pets" not in {each["name"] for each in shelf.data()}
