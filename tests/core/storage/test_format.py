"""The spec on disk: older formats load, newer ones are refused, and nothing absurd gets past the check."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

import luthier as lt
from luthier.core.storage import fingerprint_old
from luthier.core.storage.format import FORMAT, MIGRATIONS, read
from support.forged import forge_spec

OLD = Path(__file__).with_name("format1")


def base():
    """A model whose weights no version of a library changes."""
    config = transformers.LlamaConfig(
        vocab_size=11, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2
    )
    model = transformers.LlamaForCausalLM(config).eval()
    for number, parameter in enumerate(model.parameters(), 1):
        with torch.no_grad():
            parameter.copy_(torch.linspace(number, number + 9, parameter.numel()).sin().reshape(parameter.shape) / 4)
    return model


@pytest.fixture
def adapter(tmp_path) -> Path:
    model = lt.attach(base(), lt.LoRA(rank=2), where="q_proj, v_proj")
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "README.md").write_text("---\nlicense: other\nlicense_name: Tiny Terms\n---\n# tiny\n")
    return lt.save(model, tmp_path / "adapter", base=str(tmp_path / "tiny"), license="MIT")


def test_an_adapter_of_format_1_loads_to_its_tensors():
    model = lt.load(base(), OLD)
    stored = load_file(OLD / "adapter.safetensors")
    held = {re.sub(r"^default:?(\d*)", lambda m: m[1] or "0", key): t for key, t in lt.trainable(model).items()}
    assert held.keys() == stored.keys() and len(stored) == 20
    assert all(torch.equal(held[key], tensor) for key, tensor in stored.items())
    with torch.no_grad():
        logits = model(torch.arange(1, 7)[None]).logits[0, -1]
    known = [-0.024633074179291725, -0.023314502090215683, -0.0069185830652713776, 0.013951573520898819]
    assert torch.allclose(logits[:4], torch.tensor(known), atol=1e-5)


def test_an_adapter_of_format_3_loads_and_says_what_it_cannot_vouch_for(tmp_path):
    """It sampled 19 tensors of the base, which are checked as then: its final norm and head were none of them."""
    with pytest.warns(UserWarning, match=r"19 tensors.*other 2 do \(model\.norm\.weight first\) is not known"):
        model = lt.load(base(), OLD.with_name("format3"))
    with torch.no_grad():
        logits = model(torch.arange(1, 7)[None]).logits[0, -1]
    known = [-0.05770506709814072, -0.015252089127898216, 0.037064388394355774, 0.06541170924901962]
    assert torch.allclose(logits[:4], torch.tensor(known), atol=1e-5)
    other = base()
    other.model.layers[1].mlp.up_proj.weight.data += 0.1
    with pytest.raises(lt.LuthierError, match=r"first in model\.layers\.1\.mlp\.up_proj"):
        lt.load(other, OLD.with_name("format3"))
    other = base()
    other.lm_head.weight.data += 0.1
    with pytest.warns(UserWarning, match="is not known"):
        assert lt.load(other, OLD.with_name("format3"))
    lt.save(model, tmp_path / "new")
    with pytest.raises(lt.LuthierError, match="first in lm_head"):
        lt.load(lt.detach(other), tmp_path / "new")


def test_a_run_of_an_older_format_is_known_by_what_it_sampled():
    """As an older Luthier wrote it into run.json."""
    assert fingerprint_old.digest(base()) == "2beb0d305b4148afb5d15b7e9256c3dfb60fb95a89b0748050f9032497119587"


def test_ranks_that_another_rule_scaled_are_refused(tmp_path):
    model = lt.attach(
        base(), lt.LoRA(scaling="rslora"), "q_proj", ranks={f"model.layers.{i}.self_attn.q_proj": 1 + i for i in (0, 1)}
    )
    adapter = lt.save(model, tmp_path / "adapter")
    assert read(adapter)["format"] == FORMAT
    forge_spec(adapter, lambda spec: spec | {"format": 2})
    with pytest.raises(lt.LuthierError, match="scaled by another rule"):
        read(adapter)


def test_every_older_format_has_its_migration():
    assert sorted(MIGRATIONS) == list(range(1, FORMAT))
    assert json.loads((OLD / "adapter.json").read_text())["format"] == 1
    spec = read(OLD)
    assert spec["format"] == FORMAT and spec["license"] is None and spec["base"]["license"] is None


def test_a_damaged_old_one_is_refused(tmp_path):
    for key in ("base", "parts", "versions"):
        shutil.copytree(OLD, tmp_path / key)
        spec = json.loads((OLD / "adapter.json").read_text())
        (tmp_path / key / "adapter.json").write_text(json.dumps(spec | {key: 7}))
        with pytest.raises(lt.LuthierError):
            lt.load(base(), tmp_path / key)


@pytest.mark.parametrize(
    ("wrote", "wanted"), [("9.4.1", "'luthier>=9.4.1'"), ("1; rm -rf /", "'luthier'"), (3, "'luthier'")]
)
def test_a_newer_format_says_what_to_install(adapter, wrote, wanted):
    forge_spec(adapter, lambda s: s | {"format": FORMAT + 1, "versions": {"luthier": wrote}, "news": 1})
    with pytest.raises(lt.LuthierError, match=f"format {FORMAT + 1}") as caught:
        lt.load(base(), adapter)
    assert str(caught.value).endswith(f"pip install -U {wanted}.")


def test_licences_are_kept(adapter):
    spec = read(adapter)
    assert (spec["license"], spec["base"]["license"]) == ("MIT", "Tiny Terms")
    assert "\nlicense: mit\n" in (adapter / "README.md").read_text()


def test_a_digit_changed_by_hand_or_by_the_disk_is_noticed(adapter):
    path = adapter / "adapter.json"
    text = path.read_text()
    for old, new in (('"alpha": 16.0', '"alpha": 17.0'), ('tiny"', 'tony"'), ('"MIT"', "null")):
        assert old in text
        path.write_text(text.replace(old, new))
        with pytest.raises(lt.LuthierError, match="checksum"):
            lt.load(base(), adapter)
    path.write_text(json.dumps(json.loads(text), indent=7))  # the layout is nothing
    assert lt.load(base(), adapter)


def part(**changes):
    return lambda s: s | {"parts": [s["parts"][0] | changes]}


def settings(**changes):
    return lambda s: s | {"parts": [s["parts"][0] | {"settings": s["parts"][0]["settings"] | changes}]}


def at_base(**changes):
    return lambda s: s | {"base": s["base"] | changes}


NESTED: list = []
for _ in range(40):
    NESTED = [NESTED]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s | {"format": 0}, "format is 0"),
        (lambda s: s | {"format": True}, "format is True"),
        (lambda s: s | {"format": 2.0}, "format is 2.0"),
        (lambda s: s | {"name": "../../etc"}, "letters, digits"),
        (lambda s: s | {"name": "a\n"}, "name is 'a"),
        (lambda s: s | {"name": "ａdapter"}, "letters, digits"),
        (lambda s: s | {"name": 7}, "plain text"),
        (lambda s: s | {"more": 1}, "more"),
        (lambda s: s | {"parts": []}, "a list of 1"),
        (lambda s: s | {"parts": s["parts"] * 100}, "a list of 1"),
        (lambda s: s | {"license": ["MIT"]}, "license is list"),
        (lambda s: s | {"measured": {"deep": NESTED}}, "nesting"),
        (lambda s: s | {"measured": {"loss": float("nan")}}, "finite number"),
        (lambda s: s | {"measured": {"note": "a\x1b[2Jb"}}, "plain text"),
        (lambda s: s | {"created": "\u202ereverse"}, "plain text"),
        (lambda s: {k: v for k, v in s.items() if k != "base"}, "base"),
        (lambda s: [s], "not an adapter's spec"),
        (at_base(sample={"model.norm.weight": [float("inf")]}), "finite number"),
        (at_base(sample={"model.norm.weight": [10**300]}), "finite number"),
        (at_base(sample=[1]), "base.sample"),
        (at_base(architecture="../x"), "a hash"),
        (part(form="../os"), "name of a form"),
        (part(form="__class__"), "name of a form"),
        (part(form="lo\u212aa"), "name of a form"),
        (part(form="lorra"), "did you mean 'lora'"),
        (part(where="all-linear"), "selects"),
        (part(where="(" * 3000), "nested too deep|not closed|too early"),
        (part(where="q_proj," * 5000), "at most"),
        (part(where="*a" * 3000), "matches nothing"),
        (part(where="../../etc/passwd"), "not understood"),
        (part(sites=[["../x", "affine"]]), "selects"),
        (part(sites=[["__class__", "affine"]]), "selects"),
        (part(sites=[["model.layers.0.self_attn.q_proj", "affine"]] * 2), "twice"),
        (part(sites=[["a" + str(i), "affine"] for i in range(200_000)]), "larger|a list of 1"),
        (part(sites=[["a"]]), "path, kind"),
        (part(ranks={"x": 2}), "ranks do not fit"),
        (part(ranks={"x": 2**40}), "whole number"),
        (part(relative="yes"), "true or false"),
        (part(extra=1), "extra"),
        (settings(rank=2**40), "expected \\(1099511627776"),
        (settings(rank=2**53), "expected|fits"),
        (settings(rank=10**400), "finite number"),
        (settings(rank=10**9), "expected \\(1000000000"),
        (settings(rank=-1), "at least 1"),
        (settings(rank="8"), "expected int"),
        (settings(rank=True), "expected int"),
        (settings(rank=[2]), "expected int"),
        (settings(alpha=float("inf")), "finite number"),
        (settings(alpha=1e999), "finite number"),
        (settings(command=1), "no setting"),
        (settings(dropout=2.0), "dropout"),
        (settings(share="type/../.."), "share"),
        (settings(positions="f" + "9" * 500), "cannot run with"),
    ],
)  # fmt: skip
def test_what_is_absurd_or_hostile_is_refused_before_it_is_used(adapter, change, message):
    forge_spec(adapter, change)
    model = base()
    kinds = {path: type(module) for path, module in model.named_modules()}
    with pytest.raises(lt.LuthierError, match=message) as caught:
        lt.load(model, adapter)
    assert str(caught.value).isprintable()
    assert {path: type(module) for path, module in model.named_modules()} == kinds


def test_json_tricks_are_refused(adapter):
    path = adapter / "adapter.json"
    text = path.read_text()
    for bad in (
        text[:50],
        "",
        "null",
        '{"format": 1, "format": 1}',
        "[" * 100_000,
        '{"a":' * 100_000,
        "\x00",
        "9" * 5000,
        text.replace('"format"', '"format": 1, "format"'),
        text.replace('"rank": 2', '"rank": ' + "2" * 5000),
        text.replace('"rank": 2', '"rank": 2, "rank": 2'),
        text.replace("16.0", "NaN"),
        text.replace("16.0", "-Infinity"),
        " " * 9_000_000 + text,
    ):
        path.write_text(bad)
        with pytest.raises(lt.LuthierError):
            lt.load(base(), adapter)
    path.write_bytes(text.encode("utf-16"))
    with pytest.raises(lt.LuthierError, match="cannot be read as JSON"):
        lt.load(base(), adapter)


def test_links_that_lead_out_and_pipes_are_refused(adapter, tmp_path):
    for name in ("adapter.json", "adapter.safetensors"):
        path, moved = adapter / name, tmp_path / name
        path.rename(moved)
        path.symlink_to(moved)
        with pytest.raises(lt.LuthierError, match="leads out"):
            lt.load(base(), adapter)
        path.unlink()
        moved.rename(path)
    (adapter / "adapter.safetensors").rename(adapter / "real")
    (adapter / "adapter.safetensors").symlink_to("real")
    assert lt.load(base(), adapter)
    (adapter / "adapter.safetensors").unlink()
    os.mkfifo(adapter / "adapter.safetensors")
    with pytest.raises(lt.LuthierError, match="regular file"):
        lt.load(base(), adapter)


def test_a_hub_cache_keeps_its_links(adapter, tmp_path):
    blobs, snapshot = tmp_path / "cache" / "blobs", tmp_path / "cache" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for index, path in enumerate(sorted(adapter.iterdir())):
        path.rename(blobs / str(index))
        (snapshot / path.name).symlink_to(f"../../blobs/{index}")
    assert lt.load(base(), snapshot)


def test_what_json_cannot_hold_is_refused_at_saving_and_nan_is_null(tmp_path):
    model = lt.attach(base(), lt.LoRA(rank=2), where="q_proj")
    with pytest.raises(lt.LuthierError, match="Tensor"):
        lt.save(model, tmp_path / "a", measured={"loss": torch.ones(2)})
    assert not list(tmp_path.iterdir())
    lt.save(model, tmp_path / "a", measured={"loss": float("nan"), "all": [1.0, float("inf")]})
    assert read(tmp_path / "a")["measured"] == {"loss": None, "all": [1.0, None]}
