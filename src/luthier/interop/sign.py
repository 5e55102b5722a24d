"""Signatures of adapters: who made these files, told by a key that only they have (OpenSSF's model-signing)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from luthier.core.errors import LuthierError
from luthier.core.files import steady
from luthier.core.paths import path_of
from luthier.core.storage.folder import adapter_folder, checked_by

SIGNATURE = "adapter.sig"
"""A Sigstore bundle: the SHA-256 of every other file of the adapter, signed."""
HIDDEN = f".{SIGNATURE}"
"""The signature while it is written."""
PASSWORD = "LUTHIER_KEY_PASSWORD"
"""Environment variable with the password of a private key that has one."""
MAKE = "openssl ecparam -name prime256v1 -genkey -noout -out KEY && openssl ec -in KEY -pubout -out KEY.pub"


def sign(adapter: str | Path, key: str | Path) -> Path:
    """Signs all files of an adapter (a run folder, or an adapter's) with a private key; returns the signature's file.

    The key is an elliptic curve's (P-256, P-384 or P-521) in PEM; the password of one that has one is in
    `$LUTHIER_KEY_PASSWORD`. An older signature is replaced. A checksum in the spec tells damage, and whoever changes an
    adapter can write it anew; the signature only the owner of the key can. Raises `LuthierError` for another key.
    """
    folder = adapter_folder(adapter)
    path = _file(key, "private key", f"make one: {MAKE}")
    signing = _library("signing")
    password = os.environ.get(PASSWORD)
    try:
        config = signing.Config().use_elliptic_key_signer(
            private_key=path,
            password=password.encode() if password else None,  # its annotation says str, and cryptography bytes
        )
    except Exception as error:  # of cryptography, which has many kinds
        raise LuthierError(
            f"{path} is not a private key to sign with ({_first(error)}): expected an elliptic curve's (P-256, P-384 "
            f"or P-521) in PEM, the password of an encrypted one in ${PASSWORD}. To make one: {MAKE}"
        ) from error
    with steady(folder):
        _refuse_odd(folder)
        hidden = folder / HIDDEN
        try:
            hidden.unlink(missing_ok=True)  # of a signing that was killed
            config.set_hashing_config(_hashing(folder)).sign(folder, hidden)
            os.replace(hidden, folder / SIGNATURE)
        except (OSError, ValueError) as error:
            raise LuthierError(f"{folder} cannot be signed: {_first(error)}.") from error
        finally:
            with suppress(OSError):
                hidden.unlink(missing_ok=True)
    return folder / SIGNATURE


def verify(adapter: str | Path, key: str | Path) -> Path:
    """The folder of an adapter whose files are all as the owner of a public key signed them.

    Raises `LuthierError` where there is no signature, where it is another key's, and for every file that is missing,
    changed, or none of those that were signed.
    """
    folder = adapter_folder(adapter)
    path = _file(key, "public key", "ask the author for it")
    if not (folder / SIGNATURE).is_file():
        raise LuthierError(f"{folder} is not signed ({SIGNATURE} is not there), so nothing says who made it.")
    verifying = _library("verifying")
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=path)
    except Exception as error:
        raise LuthierError(
            f"{path} is not a public key to verify with ({_first(error)}): expected an elliptic curve's in PEM, as "
            "`openssl ec -in KEY -pubout` writes it."
        ) from error
    try:
        with steady(folder):
            _refuse_odd(folder)
            if os.path.lexists(folder / HIDDEN):  # signatures of Luthier 0.1 leave it out
                raise LuthierError(f"{folder} is not what was signed: {HIDDEN} is none of its files; take it away.")
            config.set_hashing_config(_hashing(folder)).verify(folder, folder / SIGNATURE)
    except LuthierError:
        raise
    except Exception as error:
        text = _first(error)
        if text.startswith("Signature mismatch"):
            raise LuthierError(f"{folder} is not what was signed: {_differences(text)}.") from error
        raise LuthierError(
            f"the signature of {folder} is not of the key {path}, or is damaged ({text}): these files are not known to "
            "be the author's."
        ) from error
    return folder


@contextmanager
def requiring(key: str | Path | None) -> Iterator[None]:
    """Within the context, every adapter that is loaded has to be signed by this key (None: by none)."""
    if key is None:
        yield
        return
    path = _file(key, "public key", "ask the author for it")
    _library("verifying")
    with checked_by(lambda folder: verify(folder, path)):
        yield


def _hashing(folder: Path) -> Any:
    """All files of the adapter but its signature; links are followed, as in a hub cache: contents are what counts."""
    hashing = _library("hashing")
    config = hashing.Config().use_file_serialization(hashing_algorithm="sha256")
    config.set_allow_symlinks(True)  # the argument of that name is overwritten when a folder is hashed
    return config.set_ignored_paths(paths=[folder / SIGNATURE], ignore_git_paths=False)


def _refuse_odd(folder: Path) -> None:
    """Raises for what no signature covers: links to folders, which are not walked, and what is not a file."""
    for path in sorted(folder.rglob("*")):
        if not (path.is_file() or (path.is_dir() and not path.is_symlink())):
            raise LuthierError(f"{path} is a link to a folder, or not a file; no signature covers it, take it away.")


def _library(part: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"model_signing.{part}")
    except ImportError as error:
        raise LuthierError("signatures need model-signing: pip install 'luthier[sign]'") from error


def _file(path: str | Path, what: str, remedy: str) -> Path:
    found = path_of(path)
    if not found.is_file():
        raise LuthierError(f"there is no {what} {path}; {remedy}")
    return found


def _differences(text: str) -> str:
    """What model-signing tells of files that differ, without the bytes of their digests."""
    changed = re.findall(r"Hash mismatch for \\?'(.+?)\\?': Expected", text)
    others = re.findall(r"(?:Extra|Missing) files [^\"\]]+", text)
    return "; ".join([*([f"{', '.join(changed)} changed"] if changed else []), *others]) or text.partition(": ")[2]


def _first(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0].rstrip(".")
