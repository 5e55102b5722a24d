"""Bad input: one line on stderr with a next step, exit code 2, no traceback, found before training."""

from __future__ import annotations

import io
import json
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from support.cli_tools import Outcome, save_llama, write_rows


@dataclass(frozen=True)
class Place:
    """What the cases stand on."""

    llama: Path
    rows: Path
    adapter: Path
    folder: Path

    def file(self, *rows: dict) -> Path:
        return write_rows(self.folder / "bad.jsonl", list(rows))


def wrong_model(place: Place) -> list:
    return ["train", "smollm2-135n", place.rows]


def empty_selection(place: Place) -> list:
    return ["train", place.llama, place.rows, "--where", "q_prj"]


def other_base(place: Place) -> list:
    return ["evaluate", save_llama(place.folder / "other", seed=1), place.rows, "--adapter", place.adapter]


def truncated_adapter(place: Place) -> list:
    cut = shutil.copytree(place.adapter, place.folder / "cut")
    weights = cut / "adapter.safetensors"
    weights.write_bytes(weights.read_bytes()[:-64])
    return ["generate", place.llama, "hello", "--adapter", cut]


def empty_data(place: Place) -> list:
    return ["train", place.llama, place.file()]


def missing_column(place: Place) -> list:
    return ["train", place.llama, place.file({"prompt": "a", "answr": "b"})]


def unknown_label(place: Place) -> list:
    known = [{"text": f"{label} {i}", "label": label} for label in ("good", "bad") for i in range(3)]
    other = write_rows(place.folder / "other.jsonl", [{"text": "hm", "label": "godo"}, {"text": "ah", "label": "bad"}])
    return ["train", place.llama, place.file(*known), "--eval-data", other]


def long_row(place: Place) -> list:
    long, short = {"prompt": "a " * 99, "completion": "b"}, {"prompt": "a", "completion": "b"}
    return ["train", place.llama, place.file(long, short), "--max-length", 64]


CASES = {
    wrong_model: ("smollm2-135n", "did you mean 'smollm2-135m'"),
    empty_selection: ("q_prj", "did you mean 'q_proj'"),
    other_base: ("its weights differ", "--force"),
    truncated_adapter: ("adapter.safetensors", "again"),
    empty_data: ("empty", "bad.jsonl"),
    missing_column: ("answr", "prompt"),
    unknown_label: ("godo", "did you mean 'good'"),
    long_row: ("row 1", "64"),
}


@pytest.fixture
def place(llama, rows, adapter, tmp_path) -> Place:
    return Place(llama, rows, adapter, tmp_path)


def check(done: Outcome, told: tuple[str, ...]) -> None:
    assert done.code == 2, done.err
    assert done.err.startswith("error: ") and "Traceback" not in done.err
    for text in told:
        assert text in done.err


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_bad_input(call, place, case, monkeypatch):
    monkeypatch.chdir(place.folder)
    check(call(*case(place)), CASES[case])
    assert not (place.folder / "run" / "adapter").exists()


@pytest.mark.parametrize("case", [wrong_model, truncated_adapter], ids=lambda case: case.__name__)
def test_bad_input_in_a_shell(shell, place, case):
    check(shell(*case(place)), CASES[case])


@pytest.mark.parametrize(
    "words, told",
    [
        (["trian"], ("unknown command", "train")),
        (["train"], ("MODEL", "`luthier train --help`")),
        (["train", "m", "d", "--rnk", "3"], ("--rnk", "--rank")),
        (["train", "m", "d", "--method", "lora", "--rnk", "3"], ("luthier train --method lora --help",)),
        (["train", "m", "d", "--method", "loraa"], ("did you mean 'lora'",)),
        (["train", "m", "d", "--method", "loreft", "--scaling", "lora"], ("--scaling",)),
        (["train", "m", "d", "--method", "lora", "--scaling", "loar"], ("rslora",)),
        (["train", "m", "d", "--rank", "many"], ("--rank", "whole number")),
        (["train", "m", "d", "--epochs=-1"], ("epochs is -1.0",)),
        (["train", "m", "d", "--positions", "f7+l7"], ("wegeft acts on whole layers",)),
        (["train", "m", "d", "--objective", "sfft"], ("did you mean 'sft'",)),
        (["train", "m", "d", "e"], ("unexpected argument 'e'",)),
        (["evaluate", "m", "no/such/file.jsonl"], ("no data file",)),
        (["generate", "m"], ("no prompt",)),
        (["generate", "m", "--file", "nowhere.txt"], ("cannot read nowhere.txt",)),
        (["merge", "m", "nowhere", "out"], ("no adapter folder nowhere",)),
        (["models", "list", "x"], ("luthier models fetch x",)),
        (["evaluate", "m", "d.jsonl", "--json", "maybe"], ("unexpected argument 'maybe'",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_flags(call, words, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    check(call(*words), told)


def test_debug_shows_the_traceback(shell):
    done = shell("list", "nothing", LUTHIER_DEBUG="1")
    assert done.code == 1 and "Traceback" in done.err and "LuthierError" in done.err


def test_a_bug_keeps_its_traceback(call, monkeypatch):
    import luthier.cli

    def broken(tokens):
        raise RuntimeError("a bug")

    monkeypatch.setattr(luthier.cli, "_run", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        call("list")


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_a_command_in_a_line(sent, code, monkeypatch, capsys, request):
    import luthier.cli

    monkeypatch.setattr(luthier.cli, "_run", lambda tokens: signal.raise_signal(sent))
    was = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what it starts behind `&` ignore it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, was))
    assert luthier.cli.main(["list"]) == code and capsys.readouterr().err.strip() == "stopped: nothing was written"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_that_meets_a_finaliser_ends_a_command_too(sent, code, monkeypatch, capsys, request):
    """Python writes "Exception ignored", and the command would have gone on until it is killed."""
    import luthier.cli

    class Finalised:
        def __del__(self):
            signal.raise_signal(sent)

    def run(tokens):
        Finalised()
        time.sleep(20)

    monkeypatch.setattr(luthier.cli, "_run", run)
    was, hook = signal.signal(signal.SIGINT, signal.default_int_handler), sys.unraisablehook
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, was))
    begun = time.monotonic()
    assert luthier.cli.main(["list"]) == code and time.monotonic() - begun < 15
    assert capsys.readouterr().err.strip() == "stopped: nothing was written"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL and sys.unraisablehook is hook


@pytest.mark.parametrize("command", ["train", "federate"])
def test_an_interruption_says_how_to_go_on_where_there_is_something_to_go_on_from(command, call, monkeypatch, tmp_path):
    import luthier.cli.commands.federate as federate
    import luthier.cli.commands.train as train

    def interrupted(self, given):
        raise KeyboardInterrupt

    monkeypatch.setattr(train.Train, "run", interrupted)
    monkeypatch.setattr(federate.Federate, "run", interrupted)
    out = tmp_path / "out"
    words = (command, "m", "d", "--out", str(out))
    assert call(*words).err.strip() == "stopped: nothing was written"
    out.mkdir()
    for name in ("run.json", "federation.json"):
        (out / name).write_text("{}")
    assert "start anew with --overwrite" in call(*words).err and "--resume" not in call(*words).err
    for name in ("checkpoints/step-1/manifest.json", "state/state.json"):
        (out / name).parent.mkdir(parents=True)
        (out / name).write_text("{}")
    done = call(*words)
    assert done.code == 130 and done.err.strip() == "stopped: continue with --resume"
    monkeypatch.undo()


def test_an_interruption_while_the_command_line_is_imported_is_a_line(call, monkeypatch):
    class Slow(ModuleType):
        def __getattr__(self, name):
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "luthier.core.first_import", Slow("slow"))
    done = call("list")
    assert done.code == 130 and done.err == "stopped: nothing was written\n"


def test_a_closed_pipe_is_no_error(shell, tmp_path):
    import subprocess
    import sys

    script = f"{sys.executable} -m luthier list --json | head -c 1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {script}"], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr


def test_a_damaged_spec(call, adapter):
    spec = json.loads((adapter / "adapter.json").read_text())
    del spec["base"]
    (adapter / "adapter.json").write_text(json.dumps(spec))
    done = call("show", adapter)
    assert done.code == 2 and "damaged" in done.err


@pytest.mark.parametrize("flag", ["--rank", "--steps", "--batch", "--seed", "--max-length"])
@pytest.mark.parametrize("value", ["2.5", "2.", "1e1", "none"])
def test_a_fraction_is_never_rounded_to_a_whole_number(call, tmp_path, flag, value):
    """cyclopts would take 2.5 for 2; every flag of a whole number is converted alike."""
    done = call("train", tmp_path / "base", tmp_path / "rows.jsonl", "--method", "lora", flag, value)
    assert done.code == 2
    assert value == "2." or (f"for {flag}" in done.err and "is not a whole number" in done.err), done.err
