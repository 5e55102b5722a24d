"""The registry of benchmarks: each is found, says what it measures, and takes its command line."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from bench._registry import RESULTS, ROOT, benchmarks

from luthier.core.contracts.component import names

KNOWN = benchmarks()


def bench(*words: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "bench", *map(str, words)]
    return subprocess.run(command, cwd=ROOT.parent, capture_output=True, text=True, check=False)


def test_all_are_listed_with_a_line_each():
    done = bench()
    listed = [line.partition(" ") for line in done.stdout.splitlines()[2:]]
    assert done.returncode == 0 and {name: told.strip() for name, _, told in listed} == {
        name: each.line() for name, each in KNOWN.items()
    }
    assert {"speed", "startup", "axes-inits"} <= set(KNOWN)
    assert all(each.line().endswith((".", "?")) for each in KNOWN.values())


def test_an_unknown_one_is_told_with_near_names():
    done = bench("speeed")
    assert done.returncode == 2 and "Did you mean speed?" in done.stderr


@pytest.mark.parametrize("name", KNOWN)
def test_each_takes_the_rest_of_the_command_line(name, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pytest", "--no-such-flag"])
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(KNOWN[name].module).main(["--help"])
    assert stopped.value.code == 0 and "usage" in capsys.readouterr().out


def test_one_runs_and_writes_where_it_is_told(tmp_path):
    done = bench("startup", "--rounds", 1, "--only", "import luthier", "--out", tmp_path / "startup.json")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "startup.json").read_text())["seconds"]["import luthier"]["median"] > 0


def test_the_page_of_choices_is_of_the_records():
    from bench.choose import PAGE, written

    page = PAGE.read_text(encoding="utf-8")
    assert written(page) == page, "write docs/choose.md anew: python -m bench choose"


@pytest.mark.parametrize("axis", ["inits", "updates", "selections", "combinations"])
def test_records_name_methods_as_they_are_called(axis):
    """A record of a former name is in no table, and its runs would be made again."""
    ways = {run["way"] for run in json.loads((RESULTS / f"axes-{axis}.json").read_text(encoding="utf-8"))["runs"]}
    called = {way.split(", ")[-1].split()[0] for way in ways}
    assert called - {*names(axis), *names("forms"), "base", "the", "all", "oracle", "adapter"} == set()


def test_results_bear_the_name_of_their_benchmark():
    files = [file for file in RESULTS.iterdir() if file.is_file()]
    assert files and all(any(file.stem == name or file.stem.startswith(f"{name}-") for name in KNOWN) for file in files)


def test_what_is_written_of_benchmarks_names_those_that_are():
    """`python -m bench NAME` in the documents, in the Makefile and in the benchmarks themselves."""
    pages = [ROOT.parent / "README.md", ROOT.parent / "Makefile", *ROOT.rglob("*.md"), *ROOT.rglob("*.py")]
    texts = {file: file.read_text(encoding="utf-8") for file in [*pages, *Path(ROOT.parent / "docs").glob("*.md")]}
    for file, text in texts.items():
        words = " ".join(text.split()).split("python -m bench")[1:]
        for said in (each.split()[0].strip("`.,;:)") for each in words if each.startswith(" ")):
            assert said in KNOWN or said in ("NAME", "", '{name}"'), f"{file}: python -m bench {said}"
        assert not any(each.startswith(".") for each in words), f"{file}: python -m bench.…"


def test_a_run_takes_the_place_of_one_like_it_and_of_no_other():
    """A given place and the same one found by a search are two runs; so are two counts of rows for the memory."""
    from bench import editing, per_sample

    plain = {"by": "locft_bf", "facts": 50, "where": "w", "lr": 1e-3, "batch": 10, "epochs": 30}
    searched = {**plain, "search_layers": 4, "search_facts": 10}
    assert editing.kept([plain, searched], {**plain, "steps": 1}) == [searched, {**plain, "steps": 1}]
    assert editing.kept([plain, searched], {**searched, "steps": 1}) == [plain, {**searched, "steps": 1}]
    small = {"model": "m", "data": "digits", "only": ["memory"], "batch": 8, "rows": 48, "size": 4, "rows_many": 96}
    large, again = {**small, "memory_rows": 200, "rows_many": 200}, {**small, "memory_rows": 96}
    assert per_sample.kept([small, large], again) == [large, again]
    time = {**small, "only": ["time"], "memory_rows": 96}
    assert per_sample.kept([time], {**time, "memory_rows": 5}) == [{**time, "memory_rows": 5}]


def test_what_training_beside_sampling_raises_is_raised(monkeypatch):
    from bench.together import Busy

    held = object.__new__(Busy)
    monkeypatch.setattr(Busy, "sample", lambda self: None)
    monkeypatch.setattr(Busy, "train", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        held.beside()


def test_a_machine_is_told_with_the_versions_that_were_measured():
    from bench.speed.machine import about

    assert {"cpu", "threads", "python", "luthier", "torch", "transformers"} <= about().keys()
