"""`luthier federate`: flags, the dry run, a run, what is refused."""

from __future__ import annotations

import json

SHORT = ("--clients", "2", "--rounds", "2", "--steps", "2", "--batch", "2", "--eval-fraction", "0.3")


def test_dry_run_shows_who_takes_part_and_writes_nothing(call, llama, rows, tmp_path):
    out = tmp_path / "run"
    done = call("federate", llama, rows, *SHORT, "--ranks", "2,4", "--out", out, "--dry-run")
    assert done.code == 0, done.err
    assert "flora, 2 clients (iid)" in done.out and "2 rounds; the server is measured on 2 rows." in done.out
    assert [line.split()[:2] for line in done.out.splitlines() if line.split()[:1] in (["0"], ["1"])] == [
        ["0", "3"],
        ["1", "3"],
    ]
    assert not out.exists()


def test_a_run_ends_in_an_adapter_that_other_commands_take(call, llama, rows, tmp_path):
    out = tmp_path / "run"
    words = ("federate", llama, rows, *SHORT, "--ranks", "2,4", "--alpha", "4", "--lr", "1e-2", "--out", out)
    done = call(*words)
    assert done.code == 0, done.err
    assert "round 2" in done.err and f"{out}/adapter" in done.out
    assert json.loads((out / "federation.json").read_text())["run"]["form"]["settings"]["alpha"] == 4.0
    assert call("evaluate", llama, rows, "--adapter", out / "adapter", "--max-new-tokens", "2").code == 0
    again = call(*words)
    assert again.code == 2 and "resume" in again.err
    assert call(*words, "--resume").code == 0


def test_flags_of_the_parts_are_shown(call):
    done = call("federate", "--aggregation", "fedit", "--update", "lora_plus", "--help")
    assert done.code == 0 and "--ratio" in done.out and "--concentration" in done.out and "--rank " in done.out


def test_bad_input_is_told_in_a_line(call, llama, rows, tmp_path):
    for words, text in (
        (("--aggregation", "flower"), "did you mean 'flora'"),
        (("--aggregation", "fedit", "--ranks", "2,4"), "ranks are 2, 4"),
        (("--split", "column"), "name the column"),
        (("--method", "wegeft"), "wegeft has none"),
    ):
        done = call("federate", llama, rows, "--out", tmp_path / "run", *words)
        assert done.code == 2 and text in done.err and "Traceback" not in done.err, (words, done.err)
