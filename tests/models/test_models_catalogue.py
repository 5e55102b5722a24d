from __future__ import annotations

import importlib

import pytest

from luthier.core.errors import LuthierError
from luthier.models import TASKS, catalogue, resolve
from luthier.models.fetch import folder_name

_catalogue = importlib.import_module("luthier.models.catalogue")

GOOD = """
["{name}"]
description = "d"
task = "causal-lm"
architecture = "llama"
parameters = 1
licence = "MIT"
registry = "pypi"
version = "1"
size_bytes = 1
format = "folder"
weights = "model.safetensors"
sha256 = "{sha}"
files = [{{ package = "{package}", path = "{path}", sha256 = "{sha}" }}]
"""
VALUES = {"name": "m", "sha": "0" * 64, "package": "p", "path": "a/model.safetensors"}


def written(tmp_path, **changes):
    path = tmp_path / "catalogue.toml"
    path.write_text(GOOD.format(**{**VALUES, **changes}))
    return _catalogue.catalogue(path)


def test_every_entry_can_be_fetched_and_loaded():
    from importlib.util import find_spec

    entries = catalogue()
    assert {"smollm2-135m", "minilm-l6"} <= {entry.name for entry in entries}
    for entry in entries:
        assert entry.task in TASKS
        assert find_spec(f"luthier.models.convert.{entry.format}")
        whole = {file.name: file.sha256 for file in entry.files}
        assert whole.get(entry.weights, entry.sha256) == entry.sha256
        assert len(whole) == len(entry.files)  # no two files of one name


def test_a_well_formed_file_reads(tmp_path):
    (entry,) = written(tmp_path)
    assert entry.packages == ("p",) and entry.files[0].name == "model.safetensors"


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../m"},
        {"path": "../model.safetensors"},
        {"path": "/etc/passwd"},
        {"path": "a\\\\..\\\\b"},
        {"package": "--index-url=http://x"},
        {"package": "p; rm"},
        {"sha": "0" * 63},
    ],
)
def test_names_that_leave_or_inject_are_refused(tmp_path, change):
    with pytest.raises(LuthierError):
        written(tmp_path, **change)


def test_a_file_may_be_of_another_version_and_files_may_be_converted_anew(tmp_path):
    text = GOOD.format(**VALUES)
    more = text.replace("files = [{", 'files = [{ version = "2.1", package = "q", path = "a/t.txt", sha256 = "S" }, {')
    (tmp_path / "c.toml").write_text(more.replace('"S"', f'"{"1" * 64}"') + "conversion = 2\n")
    (entry,), (before,) = _catalogue.catalogue(tmp_path / "c.toml"), written(tmp_path)
    assert [entry.version_of(package) for package in entry.packages] == ["2.1", "1"]
    assert folder_name(entry) == f"{folder_name(before)}-2"
    (tmp_path / "c.toml").write_text(more.replace('"S"', f'"{"1" * 64}"').replace("2.1", "; rm"))
    with pytest.raises(LuthierError, match="not allowed"):
        _catalogue.catalogue(tmp_path / "c.toml")


def test_an_unknown_field_is_named(tmp_path):
    (tmp_path / "c.toml").write_text(GOOD.format(**VALUES) + "speed = 1\n")
    with pytest.raises(LuthierError, match="speed"):
        _catalogue.catalogue(tmp_path / "c.toml")


def test_near_names_and_the_catalogue_are_told():
    with pytest.raises(LuthierError, match=r"did you mean 'smollm2-135m'\?.*minilm-l6"):
        resolve("smolm2-135")


def test_a_hub_id_stays_itself_and_a_folder_is_a_path(tiny_llama):
    assert resolve("org/name") == "org/name"
    assert resolve(str(tiny_llama)) == tiny_llama


def test_a_folder_without_a_model_and_a_missing_gguf_are_refused(tmp_path):
    with pytest.raises(LuthierError, match=r"no config\.json"):
        resolve(str(tmp_path))
    with pytest.raises(LuthierError, match="no file"):
        resolve(str(tmp_path / "absent.gguf"))
