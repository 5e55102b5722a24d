"""Signatures: what the author signed is told from all that somebody else made of it."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import luthier as lt
from luthier.cli import main
from luthier.cli.parse import Signed, commands
from luthier.core.errors import LuthierError
from luthier.core.storage.store import write_spec
from luthier.interop.sign import HIDDEN, PASSWORD, SIGNATURE, requiring, sign, verify
from support.architectures import ARCHITECTURES

pytest.importorskip("model_signing")


def keys(folder: Path, name: str, password: bytes | None = None, curve: str = "SECP256R1") -> tuple[Path, Path]:
    """(private key, public key) in PEM."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    made = ec.generate_private_key(getattr(ec, curve)())
    pem, shape = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    lock = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(made.private_bytes(pem, shape, lock))
    public.write_bytes(made.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture
def adapter(tmp_path) -> Path:
    model = lt.attach(ARCHITECTURES["llama"].build(), lt.LoRA(rank=2))
    return lt.save(model, tmp_path / "adapter")


@pytest.fixture
def author(tmp_path) -> tuple[Path, Path]:
    return keys(tmp_path, "author")


def sealed_anew(folder: Path) -> None:
    """Changes the weights, and writes the spec with checksums that fit, as whoever has the folder can."""
    file = folder / "adapter.safetensors"
    save_file({key: tensor + 1 for key, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    write_spec(folder, json.loads((folder / "adapter.json").read_text()), (folder / "README.md").read_text())


def test_what_is_signed_verifies_and_loads(adapter, author):
    assert sign(adapter, author[0]) == adapter / SIGNATURE
    assert verify(adapter, author[1]) == adapter
    sign(adapter, author[0])
    with requiring(author[1]):
        lt.load(ARCHITECTURES["llama"].build(), adapter)


@pytest.mark.parametrize("curve", ["SECP384R1", "SECP521R1"])
def test_other_curves(adapter, tmp_path, curve):
    private, public = keys(tmp_path, "other", curve=curve)
    sign(adapter, private)
    verify(adapter, public)


def change(name: str, folder: Path) -> None:
    match name:
        case "sealed anew":
            sealed_anew(folder)
        case "card":
            (folder / "README.md").write_text("other")
        case "extra":
            (folder / "more.py").write_text("")
        case "hidden extra":
            (folder / ".gitattributes").write_text("")
        case "hidden folder":
            (folder / HIDDEN).mkdir()
            (folder / HIDDEN / "more.py").write_text("")
        case "missing":
            (folder / "README.md").unlink()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("sealed anew", "adapter.safetensors"), ("card", "README.md"), ("extra", "Extra files .*more.py"),
        ("hidden extra", "Extra files .*gitattributes"), ("missing", "Missing files .*README.md"),
        ("hidden folder", HIDDEN),
    ],
)  # fmt: skip
def test_every_change_is_told(adapter, author, name, told):
    sign(adapter, author[0])
    change(name, adapter)
    with pytest.raises(LuthierError, match=f"is not what was signed: .*{told}"):
        verify(adapter, author[1])
    if name == "sealed anew":
        lt.load(ARCHITECTURES["llama"].build(), adapter)  # all checksums fit
    with requiring(author[1]), pytest.raises(LuthierError, match="is not what was signed"):
        lt.load(ARCHITECTURES["llama"].build(), adapter)


def test_what_no_signature_covers_is_refused(adapter, author, tmp_path):
    sign(adapter, author[0])
    (tmp_path / "elsewhere").mkdir()
    make = [lambda path: path.symlink_to(tmp_path / "elsewhere"), lambda path: path.symlink_to("/nowhere"), os.mkfifo]
    for each in make:
        each(adapter / "more")
        for way, key in zip((sign, verify), author, strict=True):
            with pytest.raises(LuthierError, match="more is a link to a folder, or not a file; no signature covers it"):
                way(adapter, key)
        (adapter / "more").unlink()
    (adapter / HIDDEN).write_text("of a signing that was killed")
    sign(adapter, author[0])
    verify(adapter, author[1])


def test_another_key_signs_for_nobody_else(adapter, author, tmp_path):
    sign(adapter, keys(tmp_path, "thief")[0])
    with pytest.raises(LuthierError, match=r"not of the key .*author\.pub, or is damaged"):
        verify(adapter, author[1])


@pytest.mark.parametrize("bundle", [b"", b"{}", b"[1]", b"\xff" * 40, b'{"dsseEnvelope": 3}'])
def test_a_damaged_signature_is_told(adapter, author, bundle):
    (adapter / SIGNATURE).write_bytes(bundle)
    with pytest.raises(LuthierError, match="or is damaged"):
        verify(adapter, author[1])


def test_no_signature_no_key_no_library(adapter, author, tmp_path, monkeypatch):
    with pytest.raises(LuthierError, match="is not signed"):
        verify(adapter, author[1])
    with pytest.raises(LuthierError, match=r"no private key .*openssl"):
        sign(adapter, tmp_path / "none.pem")
    for wrong in (author[1], adapter / "README.md"):
        with pytest.raises(LuthierError, match="is not a private key to sign with"):
            sign(adapter, wrong)
    sign(adapter, author[0])
    with pytest.raises(LuthierError, match="is not a public key to verify with"):
        verify(adapter, author[0])
    monkeypatch.setitem(__import__("sys").modules, "model_signing.signing", None)
    with pytest.raises(LuthierError, match=r"luthier\[sign\]"):
        sign(adapter, author[0])


def test_a_key_with_a_password(adapter, tmp_path, monkeypatch):
    private, public = keys(tmp_path, "locked", password=b"secret")
    with pytest.raises(LuthierError, match=PASSWORD):
        sign(adapter, private)
    monkeypatch.setenv(PASSWORD, "secret")
    sign(adapter, private)
    verify(adapter, public)


def test_links_of_a_hub_cache_are_followed(adapter, author, tmp_path):
    sign(adapter, author[0])
    copy = tmp_path / "linked"
    copy.mkdir()
    for file in adapter.iterdir():
        (copy / file.name).symlink_to(file)
    verify(copy, author[1])


def test_the_commands(adapter, author, capsys):
    assert main(["verify", str(adapter), "--key", str(author[1])]) == 2
    assert main(["sign", str(adapter), "--key", str(author[0])]) == 0
    assert main(["verify", str(adapter), "--key", str(author[1])]) == 0
    assert "as the owner of" in capsys.readouterr().out
    torch.manual_seed(0)


LOOKS = {"push", "show", "sign", "verify"}  # commands that put no adapter into a model


def test_every_command_that_loads_adapters_can_require_a_signature():
    for name, cls in commands().items():
        flags = [*dataclasses.fields(cls), *(f for each in cls.settings([]) for f in dataclasses.fields(each.cls))]
        if {"adapter", "adapters", "inputs", "objective"} & {flag.name for flag in flags}:
            assert name in LOOKS or issubclass(cls, Signed), name
