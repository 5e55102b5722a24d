"""CONTRIBUTING.md's examples, taken from the page as they stand: each is found, made, and does what the page says."""

from __future__ import annotations

import importlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import luthier as lt
from luthier.cli import main
from luthier.core.contracts.component import package_of
from support.architectures import ARCHITECTURES
from test_layers import LAYERS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCK = re.compile(r'^```python title="(?P<folder>\w+)/(?P<name>\w+)\.py"\n(?P<source>.*?)^```$', re.M | re.S)
FILES = {(m["folder"], m["name"]): m["source"] for m in BLOCK.finditer(PAGE)}
METHODS = {axis: name for axis, name in FILES if axis != "commands"}
ROWS = [{"role": "user", "content": "say"}]


FINDINGS = sorted((ROOT / "findings").glob("*.sh"))


@pytest.mark.parametrize("script", FINDINGS, ids=lambda script: script.stem)
def test_a_finding_has_the_form_that_the_page_states(script):
    text = script.read_text(encoding="utf-8")
    assert os.access(script, os.X_OK), "chmod +x"
    code = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert code[0] == "set -euo pipefail" and "mktemp -d" in text
    assert "==" in text and not re.search(r"\b(import|from|install) luthier\b", text)


def base(**settings) -> torch.nn.Module:
    """The same tiny Llama each time."""
    return ARCHITECTURES["llama"].build(**settings)


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(**ARCHITECTURES["llama"].inputs()).logits


@pytest.fixture(scope="module", autouse=True)
def dropped(tmp_path_factory) -> Iterator[Path]:
    """The page's files in a folder, as if LUTHIER_PATH had named it when Python started, and commands among ours."""
    folder = tmp_path_factory.mktemp("contributed")
    for (axis, name), source in FILES.items():
        (folder / axis).mkdir()
        (folder / axis / f"{name}.py").write_text(source, encoding="utf-8")
    packages = {axis: package_of(axis) for axis in METHODS} | {"commands": "luthier.cli.commands"}
    with pytest.MonkeyPatch.context() as patch:
        for axis, package in packages.items():
            module = importlib.import_module(package)
            patch.setattr(module, "__path__", [*module.__path__, str(folder / axis)])
        yield folder


def made(axis: str, **settings):
    return lt.find(axis, METHODS[axis])(**settings)


def test_there_is_an_example_of_each_kind():
    wanted = {"forms", "updates", "objectives", "selections", "examinations", "formats", "commands"}
    assert {axis for axis, _ in FILES} == wanted


@pytest.mark.parametrize("axis", sorted(METHODS))
def test_it_is_found_and_states_its_equation_and_source(axis):
    component = made(axis)
    assert METHODS[axis] in lt.names(axis) and component.name() == METHODS[axis]
    assert len(component.equation()) > 5 and component.paper
    assert component.from_dict(json.loads(json.dumps(component.to_dict()))) == component


def test_the_folder_of_luthier_path_is_enough(dropped, monkeypatch):
    """What the fixture does to a package's path is what LUTHIER_PATH does when Python starts."""
    from luthier.core.contracts.plugins import plugin_folders

    monkeypatch.setenv("LUTHIER_PATH", str(dropped))
    assert all(plugin_folders(axis) == [str(dropped / axis)] for axis, _ in FILES)


def test_the_form_starts_as_a_no_op_trains_b_alone_and_merges(tmp_path):
    plain, model = logits(base()), lt.attach(base(), made("forms", rank=3))
    assert torch.equal(logits(model), plain)
    assert {name.rpartition(".")[2] for name in lt.trainable(model)} == {"B"}
    for parameter in lt.trainable(model).values():
        parameter.data.normal_(std=0.1)
    adapted = logits(model)
    assert not torch.allclose(adapted, plain)
    lt.save(model, tmp_path / "adapter")
    assert torch.equal(logits(lt.load(base(), tmp_path / "adapter")), adapted)
    lt.export(tmp_path / "adapter", tmp_path / "peft", to="peft", base=base())
    torch.testing.assert_close(logits(lt.merge(model)), adapted, rtol=1e-4, atol=1e-5)


def test_the_update_takes_the_mean_off_and_is_adamw_when_neutral():
    gradient = torch.arange(6.0).reshape(2, 3)
    grads = {"A": gradient, "b": torch.ones(2)}
    centred = made("updates").update(grads, {}, None)
    assert centred["A"].tolist() == [[-1, 0, 1], [-1, 0, 1]] and centred["b"] is grads["b"]
    cls = lt.find("updates", METHODS["updates"])
    assert torch.equal(cls(**cls.neutral).update(grads, {}, None)["A"], gradient)
    with pytest.raises(lt.LuthierError, match="from 0 to 1"):
        made("updates", c=2.0)


def test_the_objective_is_its_formula_and_fine_tuning_when_neutral():
    model, batch = base().eval(), ARCHITECTURES["llama"].inputs()
    batch = {**batch, "labels": batch["input_ids"].clone()}
    batch["labels"][:, :3] = -100
    cls = lt.find("objectives", METHODS["objectives"])
    assert torch.equal(cls(**cls.neutral).loss(model, batch), lt.SFT().loss(model, batch))
    logp = torch.log_softmax(model(**batch).logits.float(), -1)
    rows, columns = batch["labels"].shape
    terms = [
        (1 - logp[i, t - 1, batch["labels"][i, t]].exp()) ** 2 * -logp[i, t - 1, batch["labels"][i, t]]
        for i in range(rows)
        for t in range(3, columns)
    ]
    torch.testing.assert_close(made("objectives", gamma=2.0).loss(model, batch), sum(terms) / len(terms))


def test_the_selection_prefers_long_answers():
    answers = ["ten", "a hundred", "one"]
    turns = [[*ROWS, {"role": "assistant", "content": answer}] for answer in answers]
    rows = [lt.Example(i + 1, messages=turn) for i, turn in enumerate(turns)]
    rows.append(lt.Example(4, text="a whole text"))
    pool = lt.Pool(lt.Examples(rows, "messages", "rows"))
    assert made("selections").score(pool).tolist() == [3, 9, 3, 12]


def test_the_examination_finds_rank_one_and_nothing_in_nothing():
    site = lt.select(base(), "q_proj")[0]
    place = lt.Place(site, (site.d_out, site.d_in), 2, lambda: torch.zeros(site.d_out, site.d_in))
    one = lt.Delta.low_rank(torch.randn(site.d_out, 1), torch.randn(1, site.d_in))

    def report(delta):
        return made("examinations").measure(
            lt.Pair(lambda: [lt.Change(place, lambda: delta)], nullcontext, nullcontext)
        )

    found = report(one)
    assert found.effect == pytest.approx(1) and 0 < found.null_summary["concentration"] < 0.5
    assert report(lt.Delta.zero(site.d_out, site.d_in)).effect == 0


def test_the_format_writes_merged_weights_reads_them_and_refuses_edits_of_activations(tmp_path):
    import numpy as np

    model = lt.attach(base(), lt.LoRA(rank=2), where="q_proj")
    for parameter in lt.trainable(model).values():
        parameter.data.normal_(std=0.1)
    lt.save(model, tmp_path / "adapter")
    assert lt.export(tmp_path / "adapter", tmp_path / "out", to=made("formats", compressed=True), base=base()) == {}
    held, other = np.load(tmp_path / "out" / "weights.npz"), base()
    assert set(held.files) == set(other.state_dict())
    other.load_state_dict({key: torch.from_numpy(held[key]) for key in held.files})
    torch.testing.assert_close(logits(other), logits(model), rtol=1e-4, atol=1e-5)
    back = lt.import_adapter(tmp_path / "out", tmp_path / "back", base=base())
    torch.testing.assert_close(logits(lt.load(base(), back)), logits(model), rtol=1e-4, atol=1e-5)
    lt.save(lt.attach(base(), lt.LoReFT(rank=2)), tmp_path / "edits")
    with pytest.raises(lt.LuthierError):
        lt.export(tmp_path / "edits", tmp_path / "none", to=made("formats"), base=base())
    assert not (tmp_path / "none").exists()


def test_the_command_is_listed_and_counts(tmp_path, capsys):
    lt.save(lt.attach(base(), replace(lt.LoRA(), rank=2), where="q_proj"), tmp_path / "adapter")
    count = lt.trainable(lt.attach(base(), lt.LoRA(rank=2), where="q_proj"), count=True)
    capsys.readouterr()
    assert main(["size", str(tmp_path / "adapter"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"numbers": count}
    assert main(["--help"]) == 0 and "Count the numbers that an adapter holds." in capsys.readouterr().out


def test_the_flags_of_the_page_are_there(capsys):
    for words in (["train", "--method", METHODS["forms"]], ["export", "--to", METHODS["formats"]]):
        assert main([*words, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Rank of the change." in shown and "--compressed" in shown


def test_the_folders_of_the_page_exist():
    first = re.findall(r"^\| (`[^|]+) \|", PAGE, re.M)
    folders = [each for cell in first for each in re.findall(r"`([\w/]+/)`", cell)]
    assert folders
    missing = [each for each in folders if not any((ROOT / at / each).is_dir() for at in ("", "src/luthier"))]
    assert not missing


def test_the_layers_of_the_page_are_those_that_are_held():
    """In their order, from below; those of one layer in any."""
    (text,) = re.findall(r"from below: (.*?)\. A\s+package", PAGE, re.S)
    told = iter(re.findall(r"`([\w.]+)`", text))
    for layer in LAYERS:
        assert {next(told) for _ in layer} == layer
    assert not list(told)
