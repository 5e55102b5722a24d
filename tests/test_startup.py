"""What is not loaded before it is needed: heavy libraries make every command slow to answer."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "torch", "transformers", "numpy", "scipy", "matplotlib", "datasets", "accelerate", "tokenizers", "safetensors",
    "huggingface_hub", "jinja2", "pandas", "bitsandbytes", "torchao",
)  # fmt: skip
RUN = "import contextlib, io, luthier.cli\nwith contextlib.redirect_stdout(io.StringIO()): luthier.cli.main({words!r})"


def loaded(code: str, names: tuple[str, ...] = HEAVY) -> set[str]:
    """Those of `names` that are loaded after `code`, in a process of its own."""
    tell = f"\nimport sys\nprint(*[name for name in {names!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code + tell], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "code",
    [
        "import luthier; dir(luthier); luthier.LuthierError",
        *(RUN.format(words=words) for words in (["--help"], ["--version"], ["list"], ["list", "forms"], ["models"])),
    ],
)
def test_nothing_heavy(code):
    assert loaded(code) == set()


def test_the_command_line_waits_as_well():
    assert loaded("import luthier", ("rich", "cyclopts")) == set()


@pytest.mark.parametrize("words", [["train", "--help"], ["train", "--method", "lora", "--help"], ["measure", "--help"]])
def test_flags_of_training_need_torch_alone(words):
    """The flags are the fields of forms, and forms are written with torch."""
    assert loaded(RUN.format(words=words)) <= {"torch", "numpy"}
