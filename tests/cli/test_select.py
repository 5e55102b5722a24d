"""`luthier select`, and `luthier train --select`."""

from __future__ import annotations

import json

import pytest

from luthier.training.folder import read_run
from support.cli_tools import write_rows

WORDS = {"sea": "ship sail wave", "law": "court judge verdict"}


@pytest.fixture
def files(tmp_path):
    """(pool, target): thirty rows on two topics with a column of their own, five on one."""
    pool = [
        {"prompt": f"{WORDS[topic]} {i}", "completion": str(i), "topic": topic}
        for i, topic in enumerate(["sea", "law", "sea"] * 10)
    ]
    target = [{"prompt": f"{WORDS['law']} {i}", "completion": str(i)} for i in range(40, 45)]
    return write_rows(tmp_path / "pool.jsonl", pool), write_rows(tmp_path / "target.jsonl", target)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("by", ["got_d", "bm25"])
def test_rows_are_chosen_and_written_as_they_are(call, files, tmp_path, by, drawn):
    pytest.importorskip({"got_d": "ot", "bm25": "bm25s"}[by])
    pool, target = files
    out = tmp_path / "out.jsonl"
    done = call("select", pool, "--by", by, "--target", target, "--rows", 8, "--out", out, "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["rows"] == 8 and told["of"] == 30 and len(told["fingerprint"]) == 64
    kept = lines(out)
    assert len(kept) == 8 and all(row in lines(pool) for row in kept) and {row["topic"] for row in kept} == {"law"}
    assert (tmp_path / "out.png").stat().st_size > 5000


def test_shots(call, files, tmp_path):
    pool, target = files
    out = tmp_path / "shots.jsonl"
    done = call("select", target, "--by", "bm25", "--shots", 2, "--pool", pool, "--out", out)
    assert done.code == 0 and "2 shots each" in done.out
    for row, query in zip(lines(out), lines(target), strict=True):
        assert len(row["prompt"]) == 5 and row["prompt"][-1]["content"] == query["prompt"]
        assert row["completion"] == [{"role": "assistant", "content": query["completion"]}]
        assert all("court" in turn["content"] for turn in row["prompt"][::2])


@pytest.mark.parametrize(
    "words, told",
    [
        (["--rows", 3], "name them"),
        (["--rows", 31, "--by", "random"], "cannot take 31 of the 30 rows"),
        ([], "give --rows"),
        (["--rows", 3, "--by", "bm26"], "did you mean 'bm25'"),
        (["--rows", 3, "--by", "random", "--out", "nowhere/at/all.jsonl"], "no folder"),
        (["--shots", 2, "--by", "got_d"], "finds none near"),
        (["--rows", 3, "--by", "random", "--pool", "nothere.jsonl"], "leave --pool out"),
        (["--shots", 2, "--by", "bm25", "--target", "nothere.jsonl"], "--target is what --rows chooses for"),
        (["--shots", 2, "--by", "bm25", "--model", "nothere"], "leave --model out"),
        (["--rows", 3, "--by", "random", "--model", "nothere"], "leave --model out"),
    ],
)
def test_refusals(call, files, words, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call("select", files[0], *words)
    assert done.code == 2 and told in done.err
    assert not (tmp_path / "selected.jsonl").exists()


def test_a_picture_that_is_there_stays(call, files, tmp_path):
    picture = tmp_path / "out.png"
    picture.write_bytes(b"mine")
    words = ["select", files[0], "--by", "random", "--rows", 3, "--out", tmp_path / "out.jsonl"]
    done = call(*words)
    assert done.code == 2 and "out.png is there already" in done.err and picture.read_bytes() == b"mine"
    assert call(*words, "--overwrite").code == 0 and picture.read_bytes() != b"mine"


def test_training_on_chosen_rows_is_recorded(call, files, llama, tmp_path):
    pool, target = files
    run = tmp_path / "run"
    words = ["train", llama, pool, "--method", "lora", "--select", "bm25", "--k1", 1.2, "--select-rows", 6]
    done = call(*words, "--target", target, "--steps", 1, "--out", run)
    assert done.code == 0, done.err
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert record["data"]["rows"] == 6 and record["data"]["selected_of"] == 28
    assert record["data"]["target_fingerprint"] and record["run"]["select"]["settings"] == {"k1": 1.2, "b": 0.75}
    assert read_run(run).select_rows == 6
    assert "--select bm25 --k1 1.2" in record["command"]
    assert call(*words, "--out", tmp_path / "other").code == 2  # no target
    assert call("train", llama, pool, "--select-rows", 6, "--out", tmp_path / "other").code == 2


def test_flags_that_training_has_too_carry_the_objectives_name():
    from luthier.cli.parse import parse
    from luthier.training.command import command

    given = ["m", "d.jsonl", "--objective", "mft", "--balance", "coba", "--mft-warmup", "7", "--warmup", "0.5"]
    parsed = parse(["train", *given])
    assert parsed is not None
    run = parsed[0].resolved(parsed[1])  # type: ignore[attr-defined]
    assert (run.objective.warmup, run.training.warmup) == (7, 0.5)
    again = parse(command(run).split()[1:])
    assert again is not None and again[0].resolved(again[1]) == run  # type: ignore[attr-defined]
