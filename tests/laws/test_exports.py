"""Laws of export formats: a way out or a reason, nothing half-written, a base that stays as it was."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import luthier as lt
from luthier.core.contracts.component import find, names
from luthier.core.contracts.export import Format
from support.architectures import ARCHITECTURES

FRESH = "import luthier as lt; print(lt.formats.GGUF(dtype='q8_0').dtype, lt.sources.PyReFT(positions='f1').positions)"
FORMATS = names("formats")


def base():
    return ARCHITECTURES["llama"].build()


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(**ARCHITECTURES["llama"].inputs()).logits


def tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = ["<pad>", "<s>", "</s>", *"abcdefgh", "ab"]
    core = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, [("a", "b")]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("name", FORMATS)
def test_a_plain_change_leaves_and_the_base_stays(name, tmp_path):
    model = lt.attach(base(), lt.LoRA(rank=2), where="q_proj, v_proj")
    lt.save(model, tmp_path / "adapter")
    other = base()
    before, flags = logits(other), [p.requires_grad for p in other.parameters()]
    lost = lt.export(tmp_path / "adapter", tmp_path / "out", to=name, base=other, processor=tokenizer())
    assert all(isinstance(value, float) and 0 <= value < 1e-4 for value in lost.values())
    assert any(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert torch.equal(logits(other), before) and [p.requires_grad for p in other.parameters()] == flags
    assert "adapters" not in dict(other.named_modules()) and not other.training


@pytest.mark.parametrize("name", FORMATS)
def test_an_edit_of_the_stream_is_refused_and_nothing_is_left(name, tmp_path):
    lt.save(lt.attach(base(), lt.LoReFT(rank=2)), tmp_path / "adapter")
    with pytest.raises(lt.LuthierError):
        lt.export(tmp_path / "adapter", tmp_path / "out", to=name, base=base(), processor=tokenizer())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]


@pytest.mark.parametrize("name", FORMATS)
def test_another_base_is_refused(name, tmp_path):
    lt.save(lt.attach(base(), lt.LoRA(rank=2)), tmp_path / "adapter")
    other = ARCHITECTURES["llama"].build(seed=1)
    with pytest.raises(lt.LuthierError, match="another"):
        lt.export(tmp_path / "adapter", tmp_path / "out", to=name, base=other, processor=tokenizer())


@pytest.mark.parametrize("name", FORMATS)
def test_settings_go_there_and_back(name):
    cls = find("formats", name)
    assert issubclass(cls, Format) and cls.from_dict(cls().to_dict()) == cls()
    with pytest.raises(lt.LuthierError, match="no setting"):
        cls.from_dict({"nonsense": 1})


def test_a_fresh_process_finds_formats_by_their_axis():
    done = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["q8_0", "f1"]
