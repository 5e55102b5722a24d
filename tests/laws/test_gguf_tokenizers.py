"""Whatever a GGUF file says of how its text is split: the tokens are llama.cpp's own, or the file is refused."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest

import luthier as lt
from luthier.models.convert._bytelevel import Metadata, byte_level
from luthier.models.convert._splits import BY_NAME, UNREAD
from luthier.models.fetch import convert
from support.gguf_files import BATTERY, MARKED, WIDE, write_gguf

gguf = pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")
SIMPLIFIED = {
    **dict.fromkeys(("tekken", "gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), MARKED),
    **dict.fromkeys(("deepseek-llm", "deepseek-coder"), WIDE),
}
"""Where llama.cpp departs from the model's tokenizer.json, for want of Unicode in std::regex: words with combining
marks, and wide spaces beside letters. The model's own is kept."""


def engine(path):
    from support.llamacpp import Engine

    return Engine(path)


def ours(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of files that do not say
        return byte_level(Metadata(path, gguf.GGUFReader(path)))


@pytest.mark.parametrize("name", [*BY_NAME, None])
def test_every_known_split_gives_the_tokens_of_llama_cpp(name, tmp_path):
    from transformers import AutoTokenizer

    path = write_gguf(tmp_path / "t.gguf", name)
    theirs, made = engine(path), ours(path)
    made.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    texts = BATTERY + (MARKED + WIDE if name not in SIMPLIFIED else [])
    texts += ["<|bos|>a <think>b<｜User｜> c<|eos|>"]
    for text in texts:
        wanted = theirs.tokens(text)
        assert made.encode(text, add_special_tokens=False) == wanted, text
        assert again.encode(text, add_special_tokens=False) == wanted, text
        assert made.decode(wanted) == text
    for text in ("Hello 12345", ""):
        assert made.encode(text) == again.encode(text) == theirs.tokens(text, special=True)


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("name", ["llama-bpe", "deepseek-v3"])
def test_a_flag_for_the_first_token_wins_over_what_the_split_implies(name, flag, tmp_path):
    path = write_gguf(tmp_path / "t.gguf", name, add_bos=flag)
    made = ours(path)
    assert made.encode("Hello") == engine(path).tokens("Hello", special=True)
    assert (made.encode("Hello")[0] == made.bos_token_id) is flag


@pytest.mark.parametrize("name", SIMPLIFIED)
def test_a_simplified_split_is_known_to_differ_there(name, tmp_path):
    path = write_gguf(tmp_path / "t.gguf", name)
    theirs, made = engine(path), ours(path)
    assert any(made.encode(t, add_special_tokens=False) != theirs.tokens(t) for t in SIMPLIFIED[name])


@pytest.mark.parametrize("name", [*UNREAD, "split-of-tomorrow", "gpt2"])
def test_every_other_split_is_refused_by_name_with_the_known_ones(name, tmp_path):
    with pytest.raises(lt.LuthierError, match="tokens that the model was not trained on") as told:
        convert("gguf", write_gguf(tmp_path / "t.gguf", name), tmp_path / "m")
    assert repr(name) in str(told.value) and "deepseek-v3" in str(told.value)
    assert UNREAD.get(name, "not known here") in str(told.value)


def test_every_split_that_llama_cpp_knows_has_been_looked_at(tmp_path):
    """Its names stand in its library as plain words near the message for an unknown one."""
    import xllamacpp

    library = next(Path(xllamacpp.__file__).parent.glob("*.so")).read_bytes()
    place = library.index(b"unknown pre-tokenizer type")
    words = re.findall(rb"(?<=\0)[a-z][a-z0-9._-]{2,30}(?=\0)", library[place - 3000 : place + 6000])
    unseen = {word.decode() for word in words} - set(BY_NAME) - set(UNREAD)
    taken = []
    for name in sorted(unseen):
        try:
            engine(write_gguf(tmp_path / "t.gguf", name))
        except RuntimeError:
            continue
        taken.append(name)
    assert len(words) > 20 and not taken


@pytest.mark.parametrize("name", [*BY_NAME, *UNREAD])
def test_llama_cpp_knows_every_name(name, tmp_path):
    engine(write_gguf(tmp_path / "t.gguf", name))


@pytest.mark.parametrize("name", ["deepseek-v3", "falcon", "tekken", "qwen2"])
def test_a_file_becomes_a_folder_whose_tokenizer_is_that(name, tmp_path, monkeypatch):
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    path = write_gguf(tmp_path / "t.gguf", name)
    loaded, theirs = lt.model(str(path)), engine(path)
    for text in BATTERY:
        assert loaded.processor.encode(text, add_special_tokens=False) == theirs.tokens(text)
    assert loaded.processor.model_max_length == 4096
