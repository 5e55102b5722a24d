"""Laws of formats: a way out or a reason, nothing half-written, a base that stays as it was; what a format both
writes and reads comes back as it left; folders that nobody wrote, and damaged ones, are refused without a traceback."""

from __future__ import annotations

import random
import shutil
import warnings
from pathlib import Path

import pytest
import torch

import luthier as lt
from luthier.cli.source import card
from luthier.core.contracts.component import find, names
from luthier.core.contracts.format import Format
from luthier.interop.import_adapter import readable, source_of
from support import fresh, recorded
from support.architectures import ARCHITECTURES

FRESH = "import luthier as lt; print(lt.formats.GGUF(dtype='q8_0').dtype, lt.formats.PyReFT(positions='f1').positions)"
FORMATS = names("formats")
READ = [name for name in FORMATS if find("formats", name, Format).reads()]
WRITTEN = [name for name in FORMATS if find("formats", name, Format).writes()]
BOTH = [name for name in WRITTEN if name in READ]
ADAPTERS = {
    "lora": (lt.LoRA(rank=2), "q_proj, v_proj, down_proj"),
    "rslora": (lt.LoRA(rank=3, alpha=7, scaling="rslora"), "all-linear"),
    "dora": (lt.DoRA(rank=2), "q_proj, o_proj"),
    "ia3": (lt.IA3(), "k_proj, v_proj"),
    "bottleneck": (lt.Bottleneck(dim=4), "output(mlp)"),
    "wegeft": (lt.WeGeFT(rank=2), "up_proj"),
    "loreft": (lt.LoReFT(rank=2, positions="f1"), "stream"),
    "norms": (lt.Full(), "params(input_layernorm.weight)"),
    "table": (lt.LoRA(rank=2), "embed_tokens"),
    "head": (lt.LoRA(rank=2), "lm_head, v_proj"),
    "constant": (lt.LobiReFT(rank=2, positions="all"), "stream & layers(1, 2)"),
    "encoder": (lt.LoRA(rank=2, alpha=5.0), "q_proj, out_proj, fc1"),
}
"""What tries the way there and back: a form and where it acts."""
PICTURES = ("diffusers", "kohya")
"""Formats of parts of a pipeline, whose base here is a text encoder."""
SMALLER = ("pruned",)
"""Formats that leave out a part of the model, as they are there for."""
OTHERS = {"control_vector": "constant", "pyreft": "loreft"}
"""What formats hold that hold no changes of weights."""
NEEDS = {"onnx": "onnxruntime"}
"""What a format needs that an environment may lack."""
DAMAGED = (80, pytest.param(400, marks=pytest.mark.thorough))
"""Damaged folders of each format that is read."""


def base(name: str = ""):
    return recorded.base("clip") if name in PICTURES else ARCHITECTURES["llama"].build()


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        if model.config.model_type == "llama":
            return model(**ARCHITECTURES["llama"].inputs()).logits
        return recorded.logits(model)


def tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = ["<pad>", "<s>", "</s>", *"abcdefgh", "ab"]
    core = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, [("a", "b")]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def needed(name: str) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])


def plain(name: str) -> str:
    """What a format is there for: a change of weights, a constant that is added to the stream, or an edit of it."""
    return "encoder" if name in PICTURES else OTHERS.get(name, "lora")


@pytest.mark.parametrize("name", WRITTEN)
def test_a_plain_change_leaves_and_the_base_stays(name, tmp_path):
    needed(name)
    lt.save(attached(plain(name), name), tmp_path / "adapter")
    other = base(name)
    before, flags = logits(other), [p.requires_grad for p in other.parameters()]
    lost = lt.export(tmp_path / "adapter", tmp_path / "out", to=name, base=other, processor=tokenizer())
    assert all(isinstance(value, float) and 0 <= value < (1 if name in SMALLER else 1e-4) for value in lost.values())
    assert any(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert torch.equal(logits(other), before) and [p.requires_grad for p in other.parameters()] == flags
    assert "adapters" not in dict(other.named_modules()) and not other.training


@pytest.mark.parametrize("name", WRITTEN)
def test_what_a_format_is_not_there_for_is_refused_and_nothing_is_left(name, tmp_path):
    form = lt.LoRA(rank=2) if plain(name) == "loreft" else lt.LoReFT(rank=2)
    lt.save(lt.attach(base(name), form), tmp_path / "adapter")
    with pytest.raises(lt.LuthierError):
        lt.export(tmp_path / "adapter", tmp_path / "out", to=name, base=base(name), processor=tokenizer())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]


@pytest.mark.parametrize("name", WRITTEN)
def test_another_base_is_refused(name, tmp_path):
    needed(name)
    lt.save(lt.attach(base(name), lt.LoRA(rank=2)), tmp_path / "adapter")
    other = base(name)
    for parameter in other.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    with pytest.raises(lt.LuthierError, match="another"):
        lt.export(tmp_path / "adapter", tmp_path / "out", to=name, base=other, processor=tokenizer())


def test_what_is_read_is_written_too():
    """So that every format stands in the laws of the way back and of damage below."""
    assert set(READ) <= set(WRITTEN)


@pytest.mark.parametrize("name", FORMATS)
def test_settings_go_there_and_back(name):
    cls = find("formats", name)
    assert issubclass(cls, Format) and cls.from_dict(cls().to_dict()) == cls()
    with pytest.raises(lt.LuthierError, match="no setting"):
        cls.from_dict({"nonsense": 1})


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_can_be_read_or_written_and_says_which(name):
    cls = find("formats", name, Format)
    assert cls.reads() or cls.writes()
    assert cls.reads() == ("fits" in vars(cls)) == ("read" in vars(cls)) and cls.writes() == ("write" in vars(cls))
    assert set(cls.for_reading) <= set(cls.settings()) and (cls.reads() or not cls.for_reading)
    assert set(cls.settings()) == set(cls.for_reading) or cls.writes()
    shown = card("formats", name).defines
    assert ("read" in shown, "write" in shown) == (cls.reads(), cls.writes())


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in BOTH])
def test_the_way_that_is_not_there_is_refused(name, tmp_path):
    lt.save(lt.attach(base(), lt.LoRA(rank=2)), tmp_path / "adapter")
    (tmp_path / "folder").mkdir()
    with pytest.raises(lt.LuthierError, match=r"can be (read|written), but not (read|written)"):
        if name in WRITTEN:
            lt.import_adapter(tmp_path / "folder", tmp_path / "out", base=base(), source=name)
        else:
            lt.export(tmp_path / "adapter", tmp_path / "out", to=name, base=base())


def test_a_setting_of_the_other_way_is_refused(tmp_path):
    with pytest.raises(lt.LuthierError, match=r"peft\.rank says how a folder is written"):
        lt.import_adapter(tmp_path, tmp_path / "out", base=base(), source=lt.formats.PEFT(rank=2))


@pytest.mark.parametrize("name", [*READ, None])
def test_folders_of_nobody_are_refused(name, tmp_path):
    model = base()
    (tmp_path / "empty").mkdir()
    (tmp_path / "model").mkdir()
    model.config.save_pretrained(tmp_path / "model")
    lt.save(lt.attach(model, lt.LoRA(rank=2)), tmp_path / "ours")
    for folder, message in (("empty", "holds nothing"), ("model", "not an adapter of"), ("ours", "already")):
        with pytest.raises(lt.LuthierError, match=message):
            lt.import_adapter(tmp_path / folder, tmp_path / "out", base=model, source=name, name="new")
    with pytest.raises(lt.LuthierError, match="no folder"):
        lt.import_adapter(tmp_path / "nowhere", tmp_path / "out", base=model, source=name)
    assert not (tmp_path / "out").exists()


def attached(kind: str, name: str = ""):
    form, where = ADAPTERS[kind]
    torch.manual_seed(3)
    model = lt.attach(base(name), form, where=where)
    for parameter in lt.trainable(model).values():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    return model


TRIED = [(kind, name) for kind in ADAPTERS for name in BOTH if (kind == "encoder") == (name in PICTURES)]


@pytest.mark.parametrize(("kind", "name"), TRIED)
def test_what_is_written_is_read_as_it_was_or_refused_when_written(kind, name, tmp_path):
    model = attached(kind, name)
    lt.save(model, tmp_path / "adapter")
    try:
        lost = lt.export(tmp_path / "adapter", tmp_path / "out", to=name, base=base(name), processor=tokenizer())
    except lt.LuthierError:
        assert not (tmp_path / "out").exists() and kind != plain(name)
        return
    assert not lost and [each.name() for each in readable() if each.fits(tmp_path / "out")] == [name]
    back = lt.import_adapter(tmp_path / "out", tmp_path / "back", base=base(name))
    found, wanted = logits(lt.load(base(name), back)), logits(model)
    assert (wanted - logits(base(name))).abs().max() > 1e-3
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * max(1.0, float(wanted.abs().max())))


def damaged(folder: Path, draw: random.Random) -> None:
    """One thing in a folder becomes something else: bytes, a cut, a word of a configuration, or a file that is gone."""
    path = draw.choice(sorted(p for p in folder.iterdir() if p.is_file()))
    data = path.read_bytes()
    spot = draw.randrange(len(data) or 1)
    kind = draw.choice(["gone", "cut", "bytes", "digit", "null", "swapped"])
    if kind == "gone":
        path.unlink()
    elif kind == "cut":
        path.write_bytes(data[:spot])
    elif kind == "bytes":
        path.write_bytes(data[:spot] + draw.randbytes(4) + data[spot + 4 :])
    elif kind == "digit":
        path.write_bytes(data.replace(str(draw.randrange(4)).encode(), str(draw.choice([-7, 9, 10**9, 0.5])).encode()))
    elif kind == "null":
        path.write_bytes(data.replace(draw.choice([b'"', b"[", b"true", b"false"]), b"null", 2))
    else:
        path.write_bytes(data.replace(b"weight", b"wieght").replace(b"layers", b"leyers"))


@pytest.mark.parametrize("count", DAMAGED)
@pytest.mark.parametrize("name", BOTH)
def test_damaged_folders_are_refused_without_a_traceback(name, count, tmp_path):
    """Or read, where what was damaged does not matter: every other exception fails here."""
    model, whole, source = sample(name, tmp_path)
    refused, draw = 0, random.Random(name)
    for turn in range(count):
        folder = shutil.copytree(whole, tmp_path / f"damaged{turn}")
        damaged(folder, draw)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = source.read(folder, model) if source_of(folder, None).name() == name else []
            assert isinstance(found, list)
        except lt.LuthierError as error:
            refused += 1
            assert str(error).strip()
        shutil.rmtree(folder)
    assert refused > count / 4


def sample(name: str, tmp_path: Path):
    """(base, a whole folder of a format as we write it, its reader)."""
    lt.save(attached(plain(name), name), tmp_path / "adapter")
    lt.export(tmp_path / "adapter", tmp_path / "whole", to=name, base=base(name), processor=tokenizer())
    return base(name), tmp_path / "whole", find("formats", name, Format)()


def test_a_fresh_process_finds_formats_by_their_axis():
    done = fresh.run("-c", FRESH)
    assert done.stdout.split() == ["q8_0", "f1"], done.stderr
