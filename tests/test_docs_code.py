"""The code of README, the tutorial and the how-to pages runs as it stands, at small size, on tiny models."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from luthier.cli import main
from support import fresh
from support.pages import FENCE, ROOT, Reader
from support.seeing import save_llava, write_digits
from support.shipped import ROWS, byte_level
from support.tiny import save_model, sums, write_rows
from support.tiny_speech import save_whisper, spoken_rows

PAGES = [ROOT / "README.md", ROOT / "docs" / "tutorial.md", ROOT / "docs" / "choose.md", ROOT / "docs" / "predict.md"]
PAGES += sorted(ROOT.glob("docs/howto/*.md"))


def chat(folder: Path, **changes) -> None:
    """A tiny model under the name of the default one."""
    path = folder / "smollm2-135m"
    save_model(path, "llama", vocab_size=ROWS, max_position_embeddings=512, **changes)
    byte_level().save_pretrained(path)


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Path:
    """A folder with what the pages name: tiny models under the names of real ones, and data."""
    folder = tmp_path_factory.mktemp("desk")
    chat(folder)
    save_model(folder / "minilm-l6", "bert", max_position_embeddings=512)
    save_llava(folder / "small-llava")
    write_digits(folder / "digits", 4)
    for name in ("tickets.csv", "tickets_test.csv"):
        shutil.copy(ROOT / "examples" / name, folder)
    save_whisper(folder / "whisper-tiny-en")
    for name in ("calls/train", "calls/test"):
        (folder / name).mkdir(parents=True)
        lines = [f"{row['audio']},{row['text']}" for row in spoken_rows(folder / name)]
        (folder / name / "metadata.csv").write_text("\n".join(["file_name,transcription", *lines]))
    for name in ("train", "test"):
        write_rows(folder / f"{name}.jsonl", sums(12))
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_code_of_a_page_runs(page, desk, tmp_path, monkeypatch):
    shutil.copytree(desk, tmp_path, dirs_exist_ok=True)
    if "layers(" in page.read_text(encoding="utf-8"):  # it names blocks of the real one, which has 30
        chat(tmp_path, num_hidden_layers=30)
    monkeypatch.chdir(tmp_path)
    assert Reader().read(page)


NOTEBOOKS = sorted(ROOT.glob("docs/notebooks/*.ipynb"))


def code(notebook: Path) -> str:
    """The code cells of a notebook, one after the other, as a script."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_a_notebook_runs(notebook, desk, tmp_path, monkeypatch):
    """Beside the data that it names; one that sets LUTHIER_PATH needs a Python that has not imported Luthier."""
    shutil.copytree(desk, tmp_path / "docs" / "notebooks")
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path / "docs" / "notebooks")
    monkeypatch.setenv("MPLBACKEND", "agg")
    source = re.sub(r"(?m)^epochs = \d+", "epochs = 1", code(notebook))
    if "LUTHIER_PATH" in source:
        done = fresh.run("-c", source)
        assert done.returncode == 0, done.stderr
    else:
        exec(compile(source, notebook.name, "exec"), {"__name__": notebook.stem})


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_a_notebook_is_stored_whole_and_without_what_belongs_to_a_machine(notebook):
    """Without outputs, or as `make notebooks` leaves it: every cell ran, in order, and none failed."""
    text = notebook.read_text(encoding="utf-8")
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    counts = [cell["execution_count"] for cell in cells]
    assert counts in (list(range(1, len(cells) + 1)), [None] * len(cells))
    kinds = {(each["output_type"], each.get("name")) for cell in cells for each in cell["outputs"]}
    assert kinds <= {("stream", "stdout"), ("display_data", None), ("execute_result", None)}
    assert "/root/" not in text and "/home/" not in text and "/tmp/" not in text


def test_every_page_that_teaches_is_run():
    code = {page for page in ROOT.glob("docs/howto/*.md") if FENCE.search(page.read_text(encoding="utf-8"))}
    assert code and code <= set(PAGES)


@pytest.mark.real
def test_the_tutorials_classifier_is_as_good_as_the_page_says(tmp_path, monkeypatch):
    """Its own commands, on real weights: within the interval that the page shows."""
    for name in ("tickets.csv", "tickets_test.csv"):
        shutil.copy(ROOT / "examples" / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    named = ["--columns", "text=body,label=team"]
    assert main(["train", "minilm-l6", "tickets.csv", *named, "--method", "lora", "--epochs", "8", "--lr", "2e-3"]) == 0
    assert main(["evaluate", "minilm-l6", "tickets_test.csv", *named, "--adapter", "run", "--out", "scores.json"]) == 0
    assert 0.725 <= json.loads(Path("scores.json").read_text())["score"] <= 0.95
