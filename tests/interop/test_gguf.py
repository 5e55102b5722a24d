"""GGUF: llama.cpp and transformers compute what the adapted model computes, and read text as its tokenizer does."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch

import luthier as lt
from support.shipped import ROWS, build, byte_level, characters, logits, moved

gguf = pytest.importorskip("gguf")

LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 32}
MODELS = {
    "llama": ("llama", {}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama 3's positions": ("llama", {"rope_parameters": LLAMA3}),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "gemma3": ("gemma3", {"query_pre_attn_scalar": 8}),
}
UNREAD = ("qwen3", "gemma3", "llama 3's positions")
"""transformers' reader leaves out the width of a head, the scale of queries and the factors of positions."""


def made(case: str, **settings):
    name, more = MODELS[case]
    return build(name, vocab_size=ROWS, **more, **settings)


def shipped(case: str, folder, to, where: str = "all-linear", form=None):
    """(the adapted model, the base, what was lost) of an adapter that left as `to`."""
    model = moved(lt.attach(made(case), form or lt.LoRA(rank=4), where=where))
    lt.save(model, folder / "adapter")
    base = made(case)
    return model, base, lt.export(folder / "adapter", folder / "out", to=to, base=base, processor=byte_level())


def prompt_of(model) -> list[int]:
    """Tokens after which the best one is a text: llama.cpp tells no probabilities of an end or of half a letter."""
    told = byte_level()
    for seed in range(300):
        ids = torch.randint(12, 360, (24,), generator=torch.Generator().manual_seed(seed))
        best = int(logits(model, ids[None])[0, -1].argmax())
        if best > 11 and told.decode([best]).isprintable() and "\ufffd" not in told.decode([best]) != "":
            return ids.tolist()
    raise AssertionError("no such prompt")


def same_as_llamacpp(model, path, adapter=None, bound: float = 1e-4) -> bool:
    from support.llamacpp import Engine

    ids = prompt_of(model)
    theirs = Engine(path, adapter).log_probabilities(ids, ROWS)
    ours = logits(model, torch.tensor([ids]))[0, -1].log_softmax(-1)
    looked_up = "Gemma" in type(model).__name__  # ggml reads its GELU off a table of half precision
    return bool((theirs - ours).abs().max() < (5e-3 if looked_up else bound))


@pytest.mark.parametrize("case", MODELS)
def test_llamacpp_computes_the_adapted_model(case, tmp_path):
    model, base, lost = shipped(case, tmp_path, "gguf")
    assert lost == {}
    assert same_as_llamacpp(model, tmp_path / "out" / "model.gguf")
    assert (logits(model) - logits(base)).abs().max() > 0.1


@pytest.mark.parametrize("case", [case for case in MODELS if case not in UNREAD])
def test_transformers_computes_the_adapted_model(case, tmp_path):
    from transformers import AutoModelForCausalLM

    model, *_ = shipped(case, tmp_path, "gguf")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file="model.gguf", dtype=torch.float32)
    assert (logits(theirs.eval()) - logits(model)).abs().max() < 2e-5


@pytest.mark.parametrize("case", ["llama", "qwen2", "qwen3", "gemma3"])
def test_llamacpp_takes_the_change_beside_the_base(case, tmp_path):
    model, base, lost = shipped(case, tmp_path, "gguf-lora")
    assert lost == {}
    lt.save(lt.attach(made(case), lt.LoRA(rank=1)), tmp_path / "none")
    lt.export(tmp_path / "none", tmp_path / "base", to="gguf", base=base, processor=byte_level())
    path = tmp_path / "base" / "model.gguf"
    assert same_as_llamacpp(base, path)
    assert same_as_llamacpp(model, path, tmp_path / "out" / "adapter.gguf")


def test_llamacpp_looks_a_changed_table_up(tmp_path):
    model, base, lost = shipped("llama", tmp_path, "gguf-lora", where="embed_tokens, q_proj, lm_head")
    assert lost == {}
    lt.save(lt.attach(made("llama"), lt.LoRA(rank=1)), tmp_path / "none")
    lt.export(tmp_path / "none", tmp_path / "base", to="gguf", base=base, processor=byte_level())
    assert same_as_llamacpp(model, tmp_path / "base" / "model.gguf", tmp_path / "out" / "adapter.gguf")


def test_ranks_of_their_own_keep_their_strength(tmp_path):
    """The file has one alpha, and llama.cpp divides it by the rank of each layer."""
    ranks = {f"model.layers.{i}.self_attn.{name}": r for i in range(3) for name, r in (("q_proj", 2), ("v_proj", 5))}
    model = moved(lt.attach(made("llama"), lt.LoRA(rank=4), where="q_proj, v_proj", ranks=ranks))
    lt.save(model, tmp_path / "adapter")
    base = made("llama")
    lt.export(tmp_path / "adapter", tmp_path / "out", to="gguf-lora", base=base)
    lt.save(lt.attach(made("llama"), lt.LoRA(rank=1)), tmp_path / "none")
    lt.export(tmp_path / "none", tmp_path / "base", to="gguf", base=base, processor=byte_level())
    assert same_as_llamacpp(model, tmp_path / "base" / "model.gguf", tmp_path / "out" / "adapter.gguf")


TYPES = {"f16": 1e-3, "bf16": 5e-3, "q8_0": 1e-2}


@pytest.mark.parametrize("dtype", TYPES)
def test_number_formats_say_what_they_cost(dtype, tmp_path):
    from transformers import AutoModelForCausalLM

    model, _, lost = shipped("llama", tmp_path, lt.formats.GGUF(dtype=dtype))
    assert 0 < max(lost.values()) < TYPES[dtype]
    assert not [name for name in lost if "norm" in name]  # vectors stay exact
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file="model.gguf", dtype=torch.float32)
    error = (logits(theirs.eval()) - logits(model)).abs().max()
    assert 0 < error < 30 * TYPES[dtype]
    assert all(t.tensor_type.name in (dtype.upper(), "F32", "F16") for t in reader(tmp_path).tensors)


def reader(folder):
    return gguf.GGUFReader(folder / "out" / "model.gguf")


def test_the_reader_finds_every_named_template(tmp_path):
    from luthier.interop.formats._gguf.tokenizers import describe

    named = byte_level()
    named.chat_template = {"default": named.chat_template, "tool_use": "{{ tools }}"}
    writer = gguf.GGUFWriter(tmp_path / "names.gguf", "llama")
    describe(writer, named, len(named))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    fields = {key: field.contents() for key, field in gguf.GGUFReader(tmp_path / "names.gguf").fields.items()}
    assert fields["tokenizer.chat_template"] == named.chat_template["default"]
    assert fields["tokenizer.chat_template.tool_use"] == "{{ tools }}"


def test_the_reader_finds_sizes_tokens_and_the_template(tmp_path):
    shipped("llama", tmp_path, "gguf")
    fields = {key: field.contents() for key, field in reader(tmp_path).fields.items() if not key.startswith("GGUF")}
    wanted = {
        "general.architecture": "llama",
        "general.type": "model",
        "llama.block_count": 3,
        "llama.attention.head_count_kv": 2,
        "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }
    assert wanted.items() <= fields.items()
    assert "<|im_start|>" in fields["tokenizer.chat_template"]
    assert len(fields["tokenizer.ggml.tokens"]) == ROWS and fields["tokenizer.ggml.tokens"][-1] == f"[PAD{ROWS - 1}]"


# --- tokenizers ------------------------------------------------------------------------------------

TEXTS = [
    "The answer is 1234567 and 3.14; isn't it?\n\n  Two  spaces,\ttabs\r\n\r\nWE'LL see. ",
    "user asked: «Что?» 你好, naïve café 🦙 x=y*2;\n\n\n\nif (a) {\n    return b;\n}",
    "   leading and trailing   ",
]


def splitting(steps: list, whole: bool = False) -> Any:
    """The byte-level tokenizer with another split before merging."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    core = json.loads(byte_level().backend_tokenizer.to_str())
    core["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    core["model"]["ignore_merges"] = whole
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(core)), bos_token="<|bos|>", eos_token="<|eos|>"
    )


def byte_step(use_regex: bool) -> dict:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def named_split(name: str) -> tuple[list, bool]:
    """The steps, and whether a word of the vocabulary stays whole."""
    from luthier.interop.formats._gguf.tokenizers import NAMES

    steps, whole = next(key for key, each in NAMES.items() if each == name)
    made = {"bytes split": byte_step(True), "bytes": byte_step(False)}
    made["digits"] = {"type": "Digits", "individual_digits": True}
    split = {"type": "Split", "behavior": "Isolated", "invert": False}
    return [made.get(step, {**split, "pattern": {"Regex": step}}) for step in steps], whole


@pytest.mark.parametrize("name", ["gpt-2", "smollm", "llama-bpe", "smaug-bpe", "qwen2", "deepseek-v3", "falcon"])
def test_llamacpp_reads_text_as_the_tokenizer_does(name, tmp_path):
    from support.llamacpp import Engine

    tokenizer = splitting(*named_split(name))
    lt.save(lt.attach(made("llama"), lt.LoRA(rank=1)), tmp_path / "none")
    lt.export(tmp_path / "none", tmp_path / "out", to="gguf", base=made("llama"), processor=tokenizer)
    assert reader(tmp_path).get_field("tokenizer.ggml.pre").contents() == name
    engine = Engine(tmp_path / "out" / "model.gguf")
    for text in TEXTS:
        assert engine.tokens(text) == tokenizer(text, add_special_tokens=False)["input_ids"]
    marked = "<|im_start|>user\nWhat?<|im_end|>\n"
    assert engine.tokens(marked, special=True) == tokenizer(marked)["input_ids"]


def test_llamacpp_reads_text_as_a_sentencepiece_tokenizer_does(tmp_path):
    from support.llamacpp import Engine

    tokenizer = characters()
    lt.save(lt.attach(made("llama"), lt.LoRA(rank=1)), tmp_path / "none")
    lt.export(tmp_path / "none", tmp_path / "out", to="gguf", base=made("llama"), processor=tokenizer)
    engine = Engine(tmp_path / "out" / "model.gguf")
    for text in ("The cat sat on the mat.", "Once there was a hat", "the 🦙 sat"):
        assert engine.tokens(text, special=True) == tokenizer(text)["input_ids"]


# --- refusals --------------------------------------------------------------------------------------


def words():
    from support import tiny

    return tiny.tokenizer()


REFUSED = {
    "another kind of model": ("bert", {}, "none of the models that leave as GGUF"),
    "a head for classes": ("llama", {"class": "LlamaForSequenceClassification"}, "none of the models"),
    "a sliding window": ("mistral", {"sliding_window": 8}, "sliding window"),
    "another activation": ("llama", {"hidden_act": "gelu"}, "its activation is gelu"),
    "scaled positions": ("qwen2", {"rope_parameters": {**LLAMA3, "rope_type": "yarn"}}, "of type yarn"),
    "another order of layers": ("gemma3", {"layer_types": ["full_attention"] * 6}, "another order"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_models_without_a_word_in_llamacpp_are_refused_at_once(case, tmp_path):
    from support.architectures import ARCHITECTURES

    name, settings, message = REFUSED[case]
    settings, cls = dict(settings), settings.get("class")
    settings.pop("class", None)
    model = build(name, **settings)
    if cls:
        architecture = dataclasses.replace(ARCHITECTURES[name], model=cls)
        model = architecture.build()
    for to in ("gguf", "gguf-lora"):
        with pytest.raises(lt.LuthierError, match=message):
            lt.export(tmp_path / "not looked at", tmp_path / "out", to=to, base=model, processor=byte_level())


def test_tokenizers_that_gguf_cannot_hold_are_refused(tmp_path):
    def out(tokenizer, **settings):
        lt.export(tmp_path / "x", tmp_path / "out", to="gguf", base=build("llama", **settings), processor=tokenizer)

    with pytest.raises(lt.LuthierError, match="pass processor"):
        out(None)
    with pytest.raises(lt.LuthierError, match="WordLevel"):
        out(words())
    with pytest.raises(lt.LuthierError, match="ways to split text"):
        out(splitting([{"type": "Digits", "individual_digits": False}, byte_step(True)]))


def test_a_vocabulary_larger_than_the_model_is_refused(tmp_path):
    lt.save(lt.attach(build("llama"), lt.LoRA(rank=1)), tmp_path / "adapter")
    with pytest.raises(lt.LuthierError, match="97 rows"):
        lt.export(tmp_path / "adapter", tmp_path / "out", to="gguf", base=build("llama"), processor=byte_level())
    assert not (tmp_path / "out").exists()


def test_a_change_that_is_no_layer_of_its_own_is_refused(tmp_path):
    for where in ("lm_head", "embeddings"):
        with pytest.raises(lt.LuthierError, match="whole GGUF"):
            shipped("llama, tied", tmp_path / where, "gguf-lora", where)


def test_a_whole_model_takes_every_affine_form(tmp_path):
    """DoRA, a table and its tied head, an output head: they are folded in."""
    model, *_ = shipped("llama, tied", tmp_path, "gguf", "q_proj | lm_head", lt.DoRA(rank=2))
    assert same_as_llamacpp(model, tmp_path / "out" / "model.gguf")
    assert "output.weight" in {tensor.name for tensor in reader(tmp_path).tensors}  # untied, as the head alone moved
