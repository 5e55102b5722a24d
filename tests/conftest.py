"""Every test finds the small architectures, runs on one thread and sees the same random numbers. Models to share.

Cases marked `thorough` are left out, unless they are asked for (`make thorough`) or named: by `-k`, or as file::test.
Tests marked `long` come first, so that no process is left with one when the others have nothing to do.
"""

from __future__ import annotations

import gc
import os
import sys
from unittest import mock

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

from support.tiny import save_model, sums, write_rows


def pytest_addoption(parser) -> None:
    parser.addoption("--thorough", action="store_true", help="run the cases of products that a sample stands for, too")


def pytest_collection_modifyitems(config, items) -> None:
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
    named = config.option.keyword or config.option.markexpr or any("::" in each for each in config.args)
    if config.option.thorough or named:
        return
    left = [item for item in items if item.get_closest_marker("thorough")]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if not item.get_closest_marker("thorough")]


@pytest.fixture(autouse=True)
def seeded():
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="module", autouse=True)
def frozen():
    """What is there before a module's tests is left out of garbage collections: the Trainer asks for one in every run,
    and to go through all that torch and transformers hold takes longer than a tiny model's training."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def unsynced():
    """No test takes the power away, so nothing waits for the disk: a tiny run asks for it some forty times."""
    with mock.patch("os.fsync", lambda handle: None):
        yield


@pytest.fixture(scope="session", autouse=True)
def blank():
    from support import drawing

    with drawing.skipped():
        yield


@pytest.fixture
def drawn():
    """Asked for by tests that look at pictures and the curves of a run."""
    from support import drawing

    with drawing.drawn():
        yield


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch):
    """The curves of a run are made for tests that look at them alone."""
    session = sys.modules.get("luthier.training.session")
    if session is not None and "drawn" not in request.fixturenames:
        monkeypatch.setattr(session, "plot", lambda *args: None)


@pytest.fixture(scope="session")
def llama(tmp_path_factory) -> str:
    """The folder of a tiny Llama, which tests leave as it is."""
    return save_model(tmp_path_factory.mktemp("models") / "llama", "llama")


@pytest.fixture(scope="session")
def bert(tmp_path_factory) -> str:
    """The folder of a tiny BERT without a classifier: the head is new."""
    import transformers

    folder = tmp_path_factory.mktemp("models") / "bert"
    save_model(folder, "bert")
    transformers.AutoModelForSequenceClassification.from_pretrained(folder).bert.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def additions(tmp_path_factory) -> str:
    """The file of 40 rows for it."""
    return write_rows(tmp_path_factory.mktemp("data") / "sums.jsonl", sums(40))


@pytest.fixture(scope="module")
def browser():
    """A browser for the pages of a module's tests (see `browsing`)."""
    from support import browsing

    with browsing.started() as driver:
        yield driver
