"""No code from a model's folder runs, and nobody asks whether it may, unless it was asked for."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

import pytest

import luthier
import luthier as lt
from luthier import models
from luthier.cli import main
from luthier.core.errors import LuthierError
from luthier.training import Run, Training
from luthier.training.folder import read_record, read_run
from luthier.training.prepare import prepare
from luthier.training.runfile import read_run_file, save_run_file
from support.tiny import save_model

CODE = """
from pathlib import Path
Path({mark!r}).write_text("ran")
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""
SOURCE = Path(luthier.__file__).parent


class Asked(Exception):
    """Somebody read the terminal."""


class Terminal:
    def __getattr__(self, name: str):
        raise Asked(name)


@pytest.fixture
def own(tmp_path, monkeypatch) -> tuple[str, Path]:
    """(a folder whose every part comes with code, the file that the code writes)."""
    folder, mark = Path(save_model(tmp_path / "own", "llama")), tmp_path / "mark"
    (folder / "own.py").write_text(CODE.format(mark=str(mark)))
    for name, auto in (
        ("config.json", {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["own.OwnTokenizer", "own.OwnTokenizer"]}),
    ):
        values = json.loads((folder / name).read_text())
        kind = {"model_type": "own"} if name == "config.json" else {"tokenizer_class": "OwnTokenizer"}
        (folder / name).write_text(json.dumps(values | kind | {"auto_map": auto}))
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    return str(folder), mark


def test_a_kernel_of_the_hub_is_told_and_left_out(tmp_path):
    folder = Path(save_model(tmp_path / "model", "llama"))
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"attn_implementation": "some/kernel:name"}))
    with pytest.warns(UserWarning, match="names some/kernel:name for attention"):
        models.meta_model(models.config_of(str(folder)))
    with pytest.warns(UserWarning, match="its code is not run"):
        assert models.load(str(folder)).model.config._attn_implementation != "some/kernel:name"


READERS = {
    "load": lambda name, data: models.load(name),
    "config_of": lambda name, data: models.config_of(name),
    "processor_of": lambda name, data: models.processor_of(name, "causal-lm"),
    "prepare": lambda name, data: prepare(Run(name, data, lt.LoRA())),
}


@pytest.mark.parametrize("reader", READERS)
def test_readers_refuse_it_and_say_how_it_is_allowed(reader, own, additions):
    with pytest.raises(LuthierError, match="--trust-remote-code"):
        READERS[reader](own[0], additions)
    assert not own[1].exists()


@pytest.mark.parametrize(
    "words",
    [
        ["train", "MODEL", "DATA", "--out", "OUT"],
        ["evaluate", "MODEL", "DATA"],
        ["generate", "MODEL", "Hello"],
        ["show", "MODEL", "DATA"],
        ["measure", "MODEL", "DATA", "--out", "OUT"],
        ["serve", "MODEL", "--port", "0"],
    ],
    ids=lambda words: words[0],
)
def test_commands_refuse_it_and_say_how_it_is_allowed(words, own, additions, tmp_path, capsys):
    stand = {"MODEL": own[0], "DATA": additions, "OUT": str(tmp_path / "out")}
    assert main([stand.get(word, word) for word in words]) == 2
    assert "--trust-remote-code" in capsys.readouterr().err and not own[1].exists()


def test_it_runs_where_it_is_asked_for_and_is_told(own, additions, tmp_path):
    run = Run(own[0], additions, lt.LoRA(rank=2), "q_proj", str(tmp_path / "run"), training=Training(steps=1))
    result = lt.train(__import__("dataclasses").replace(run, trust_remote_code=True), progress=False)
    assert own[1].read_text() == "ran" and type(result.model).__name__ == "OwnModel"
    assert read_record(result.folder)["run"]["trust_remote_code"] is True
    card = (result.folder / "README.md").read_text()
    assert "code of the base | was run" in card and "--trust-remote-code" in card
    assert not models.trusted(), "it holds for that run alone"


def test_it_runs_for_a_base_in_memory(own, additions, tmp_path):
    import transformers

    base = transformers.LlamaForCausalLM.from_pretrained(save_model(tmp_path / "plain", "llama"))
    base.name_or_path = own[0]  # its tokenizer lies there
    settings = {"method": "lora", "out": str(tmp_path / "run"), "steps": 1, "progress": False}
    with pytest.raises(LuthierError, match="--trust-remote-code"):
        lt.train(base, additions, **settings)
    assert not own[1].exists()
    lt.train(base, additions, trust_remote_code=True, **settings)
    assert own[1].read_text() == "ran" and not models.trusted()


def test_the_next_step_says_it_again(own, additions, tmp_path, capsys):
    words = ["--method", "lora", "--rank", "2", "--steps", "1", "--out", str(tmp_path / "run"), "--trust-remote-code"]
    assert main(["train", own[0], additions, *words]) == 0
    line = next(each for each in capsys.readouterr().out.splitlines() if each.startswith("Next: luthier "))
    assert line.endswith(" --trust-remote-code")


def test_it_runs_where_a_base_is_quantised(own, monkeypatch):
    seen = []
    monkeypatch.setattr(sys.modules["luthier.models.load"], "quantization", lambda *_: seen.append(models.trusted()))
    models.load(own[0], trust_remote_code=True)
    assert seen == [True] and not models.trusted()


def test_run_files_and_federations_take_it(own, additions, tmp_path):
    file, out = tmp_path / "run.toml", str(tmp_path / "run")
    run = Run(own[0], additions, lt.LoRA(rank=2), out=out, training=Training(steps=1), trust_remote_code=True)
    save_run_file(run, file)
    assert "trust_remote_code = true" in file.read_text() and read_run_file(file).run() == run
    with pytest.raises(LuthierError, match="no file decides"):
        lt.train(file, progress=False)
    assert main(["train", str(file)]) == 2 and not own[1].exists()
    lt.train(file, trust_remote_code=True, progress=False)
    again = read_run_file(tmp_path / "run" / "run.json").run()
    assert again.trust_remote_code and again.form == run.form
    settings = {"clients": 2, "rounds": 1, "training": Training(steps=1), "progress": False}
    lt.federate(own[0], additions, out=str(tmp_path / "federation"), trust_remote_code=True, **settings)
    assert not models.trusted()


OF_DIFFUSERS = ("UNet2DConditionModel",)
"""Classes of diffusers, which run no code of a folder and have no word for it."""


def test_every_reader_of_folders_says_whether_code_may_run():
    """In all of the source: what transformers is not told, it may ask on the terminal."""
    silent = []
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr
            if called in ("from_pretrained", "from_config") and ast.unparse(node.func.value) not in OF_DIFFUSERS:
                told = any(keyword.arg == "trust_remote_code" for keyword in node.keywords)
                silent += [] if told else [f"{file.relative_to(SOURCE)}:{node.lineno}"]
    assert not silent


def test_nothing_reads_the_terminal():
    asks = []
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "input":
                asks.append(f"{file.relative_to(SOURCE)}:{node.lineno}")
    assert not asks


def test_the_record_of_a_run_never_lets_it_run(own, additions, tmp_path):
    """An adapter's folder comes with one, and what reads it loads the base that it names."""
    run = Run(
        own[0], additions, lt.LoRA(rank=2), out=str(tmp_path / "run"), training=Training(steps=1, eval_fraction=0)
    )
    lt.train(__import__("dataclasses").replace(run, trust_remote_code=True), progress=False)
    assert read_run(tmp_path / "run").trust_remote_code is False
    with models.trusting(True):
        assert read_run(tmp_path / "run").trust_remote_code is True
    rows = Path(additions).read_text().splitlines(keepends=True)
    parts = {name: tmp_path / f"{name}.jsonl" for name in ("forget", "retain")}
    for name, some in (("forget", rows[:4]), ("retain", rows[4:])):
        parts[name].write_text("".join(some))
    said = ["--forget", str(parts["forget"]), "--retain", str(parts["retain"]), "--by", "ascent", "--steps", "1"]
    said = ["unlearn", own[0], "--adapter", str(tmp_path / "run"), *said, "--out", str(tmp_path / "out")]
    assert main(said) == 2
    assert main([*said, "--trust-remote-code"]) == 0


def test_a_comparison_says_it_in_the_record_of_each_run(own, additions, tmp_path):
    study = tmp_path / "study.toml"
    study.write_text(
        f'methods = ["lora"]\nseeds = [0]\n[models]\nown = {own[0]!r}\n[data.sums]\ntrain = {additions!r}\n'
        "[training]\nsteps = 1\n"
    )
    assert main(["compare", str(study), "--out", str(tmp_path / "c"), "--trust-remote-code"]) == 0
    records = [read_record(file.parent) for file in (tmp_path / "c").rglob("run.json")]
    assert records and all(record["run"]["trust_remote_code"] for record in records)


def test_every_command_that_takes_a_model_can_be_told_to_run_its_code():
    import dataclasses

    from luthier.cli.parse import Reading, commands

    for name, cls in commands().items():
        if name == "monitor":  # whose model is a name in the log
            continue
        fields = {field.name for field in dataclasses.fields(cls)}
        if fields & {"model", "base", "to_base"}:
            of_a_run = any("trust_remote_code" in {f.name for f in dataclasses.fields(each.cls)} - set(each.skip)
                           for each in cls.settings([]))  # fmt: skip
            assert issubclass(cls, Reading) or of_a_run, name
