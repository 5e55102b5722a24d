"""peft's files under other names: known layouts give peft's outputs, others say which name did not fit."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file, save_file

import luthier as lt

peft = pytest.importorskip("peft")

from support.peft_cases import LORA, SEEN, Case, lora  # noqa: E402
from support.tiny import tokenizer  # noqa: E402

PREFIX = "base_model.model."
LAYOUTS: dict[str, Callable[[str], str]] = {
    "compiled": lambda key: key.replace(PREFIX, f"{PREFIX}_orig_mod."),
    "compiled around": lambda key: f"_orig_mod.{key}",
    "a block compiled": lambda key: key.replace(".layers.1.", ".layers.1._orig_mod."),
    "DistributedDataParallel": lambda key: f"module.{key}",
    "FSDP": lambda key: key.replace(".layers.1.", ".layers.1._fsdp_wrapped_module."),
    "inside a model with a value head": lambda key: f"pretrained_model.{key}",
    "inside a trainer's module": lambda key: f"_forward_module.model.{key}",
    "no prefix": lambda key: key.removeprefix(PREFIX),
    "the body alone": lambda key: key.replace(f"{PREFIX}model.", PREFIX),
    "inside a vision-language model, 4": lambda key: key.replace(f"{PREFIX}model.", f"{PREFIX}language_model.model."),
    "inside a vision-language model, 5": lambda key: key.replace(f"{PREFIX}model.", f"{PREFIX}model.language_model."),
    "the adapter's name": lambda key: re.sub(r"(lora_[AB])\.weight$", r"\1.mine.weight", key),
}
LINEAR = ["q_proj", "v_proj"]
NAMED = {
    "lora": Case(lora(*LINEAR, trainable_token_indices=SEEN, modules_to_save=["lm_head"])),
    "dora": Case(lora(*LINEAR, use_dora=True)),
    "a table": Case(lora("embed_tokens", lora_bias=False)),
    "lora_bias": Case(lora("q_proj", lora_bias=True), "qwen2"),
    "a head of two layers": Case(lora("query", task_type="SEQ_CLS"), "roberta"),
    "adalora": Case(lambda: peft.AdaLoraConfig(target_modules=LINEAR, total_step=10, init_r=4)),
    "ia3": Case(lambda: peft.IA3Config(target_modules=LINEAR, feedforward_modules=[])),
    "vera": Case(lambda: peft.VeraConfig(target_modules=LINEAR, r=4)),
    "loha": Case(lambda: peft.LoHaConfig(target_modules=LINEAR, r=2)),
    "lokr": Case(lambda: peft.LoKrConfig(target_modules=LINEAR, r=2)),
    "norms": Case(lambda: peft.LNTuningConfig(target_modules=["input_layernorm"], modules_to_save=["lm_head"])),
    "tokens": Case(lambda: peft.TrainableTokensConfig(target_modules=["embed_tokens"], token_indices=SEEN)),
}
"""Whose keys hold the adapter's name where a trainer writes the model's own."""
WHOLE = Case(
    lora("q_proj", "down_proj", modules_to_save=["lm_head"], trainable_token_indices=SEEN, rank_pattern={"q_proj": 3})
)


def output(model, case: Case) -> torch.Tensor:
    with torch.no_grad():
        return model(**case.inputs()).logits


def renamed(folder, change: Callable[[str], str]) -> None:
    held = load_file(folder / "adapter_model.safetensors")
    save_file({change(key): tensor for key, tensor in held.items()}, folder / "adapter_model.safetensors")


def configured(folder, **changes) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_known_layouts_are_read(layout, tmp_path):
    theirs = WHOLE.fitted()
    theirs.save_pretrained(tmp_path / "peft")
    renamed(tmp_path / "peft", LAYOUTS[layout])
    ours = lt.load(WHOLE.base(), lt.import_adapter(tmp_path / "peft", tmp_path / "ours", base=WHOLE.base()))
    assert (output(ours, WHOLE) - output(theirs, WHOLE)).abs().max() < 1e-5


@pytest.mark.parametrize("name", NAMED)
def test_a_models_own_keys_hold_the_name_of_the_adapter(name, tmp_path):
    """As FSDP and trainers of one's own write them; an adapter may be called anything without a dot."""
    case = NAMED[name]
    theirs = case.fitted("my-adapter 2")
    theirs.peft_config["my-adapter 2"].save_pretrained(tmp_path)
    held = {key: tensor.clone() for key, tensor in theirs.state_dict().items() if "my-adapter 2" in key}
    save_file(held, tmp_path / "adapter_model.safetensors")
    ours = lt.load(case.base(), lt.import_adapter(tmp_path, tmp_path / "ours", base=case.base()))
    wanted = output(theirs, case)
    assert (output(ours, case) - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()))
    assert (output(case.base(), case) - wanted).abs().max() > 1e-3


def test_several_adapters_in_one_file_are_refused(tmp_path):
    theirs = WHOLE.fitted("mine")
    theirs.add_adapter("yours", WHOLE.make())
    theirs.peft_config["mine"].save_pretrained(tmp_path)
    save_file(
        {k: t.clone() for k, t in theirs.state_dict().items() if "lora" in k}, tmp_path / "adapter_model.safetensors"
    )
    with pytest.raises(lt.LuthierError, match=r"several adapters in one file \(mine, yours\).*selected_adapters"):
        lt.import_adapter(tmp_path, tmp_path / "ours", base=WHOLE.base())


def test_folders_of_several_adapters_are_named(tmp_path):
    """peft writes each but `default` into a folder of its own."""
    WHOLE.fitted("mine").save_pretrained(tmp_path / "peft")
    with pytest.raises(lt.LuthierError, match=r"peft/mine is one: give that folder"):
        lt.import_adapter(tmp_path / "peft", tmp_path / "ours", base=WHOLE.base())
    assert lt.import_adapter(tmp_path / "peft" / "mine", tmp_path / "ours", base=WHOLE.base())


def test_placeholders_of_a_sharded_run_are_told(tmp_path):
    WHOLE.fitted().save_pretrained(tmp_path)
    held = load_file(tmp_path / "adapter_model.safetensors")
    save_file({key: torch.zeros(0) for key in held}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(lt.LuthierError, match=r"is empty\. DeepSpeed's ZeRO-3"):
        lt.import_adapter(tmp_path, tmp_path / "ours", base=WHOLE.base())


def test_patterns_mean_the_names_of_the_file(tmp_path):
    case = Case(lora("q_proj", "v_proj", rank_pattern={r"model\.layers\.1\.self_attn\.q_proj": 2}))
    theirs = case.fitted()
    theirs.save_pretrained(tmp_path / "peft")
    renamed(tmp_path / "peft", lambda key: key.replace(f"{PREFIX}model.", f"{PREFIX}language_model.model."))
    configured(
        tmp_path / "peft",
        rank_pattern={r"language_model\.model\.layers\.1\.self_attn\.q_proj": 2},
        target_modules=r"language_model\.model\.layers\.\d\.self_attn\.(q_proj|v_proj)",
    )
    ours = lt.load(case.base(), lt.import_adapter(tmp_path / "peft", tmp_path / "ours", base=case.base()))
    assert (output(ours, case) - output(theirs, case)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda key: key.replace("self_attn", "attention"),
            r"layers\.0\.attention\.q_proj, which is neither .* did you mean 'model\.layers\.0\.self_attn\.q_proj'",
        ),
        (lambda key: key.replace("lora_A", "lora_down"), r"lora_down\.weight, which is neither"),
        (lambda key: key.replace("lora_", "ora_"), r"ora_A\.weight, which is neither"),
        (
            lambda key: key.replace(".layers.1.mlp.down_proj.", ".layers.1.block_sparse_moe.experts.0.w2."),
            "transformers 4 kept each expert as modules",
        ),
    ],
)
def test_other_layouts_are_refused_by_the_first_name(change, message, tmp_path):
    WHOLE.fitted().save_pretrained(tmp_path / "peft")
    renamed(tmp_path / "peft", change)
    with pytest.raises(lt.LuthierError, match=message) as caught:
        lt.import_adapter(tmp_path / "peft", tmp_path / "ours", base=WHOLE.base())
    assert "damaged" not in str(caught.value)


CONSTANTS = {
    "llama": {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)},
    "gpt2": {
        "transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.uint8),
        "transformer.h.0.attn.masked_bias": torch.tensor(-1e4),
    },
    "bert": {"bert.embeddings.position_ids": torch.arange(128)[None]},
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_buffers_that_older_versions_of_transformers_saved_are_left_out(name, tmp_path):
    case = Case(
        {"llama": lora("q_proj"), "gpt2": lora("c_attn", fan_in_fan_out=True), "bert": lora("query")}[name], name
    )
    theirs = case.fitted()
    theirs.save_pretrained(tmp_path)
    held = load_file(tmp_path / "adapter_model.safetensors")
    save_file(held | {PREFIX + k: t for k, t in CONSTANTS[name].items()}, tmp_path / "adapter_model.safetensors")
    ours = lt.load(case.base(), lt.import_adapter(tmp_path, tmp_path / "ours", base=case.base()))
    assert (output(ours, case) - output(theirs, case)).abs().max() < 1e-5


CHANGES = {
    "other layers": {"layers_to_transform": [0, 2]},
    "one left out": {"exclude_modules": ["down_proj"]},
    "one left out by its whole name": {"exclude_modules": ["model.layers.1.self_attn.q_proj"]},
    "fewer names": {"target_modules": ["q_proj"]},
    "of training alone": {
        "lorap_emb_lr": 1e-6,
        "lorap_lr_ratio": 16.0,
        "lora_dropout": 0.3,
        "of_a_later_version": None,
        "another": {},
        "and_one": False,
        "more": 0,
    },
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("change", CHANGES)
def test_what_the_configuration_says_now_is_what_counts(change, tmp_path):
    """As in peft, which loads no tensors of layers that the configuration leaves out."""
    case = Case(lora("q_proj", "down_proj"))
    case.fitted().save_pretrained(tmp_path / "peft")
    configured(tmp_path / "peft", **CHANGES[change])
    wanted = output(peft.PeftModel.from_pretrained(case.base(), tmp_path / "peft").eval(), case)
    ours = lt.load(case.base(), lt.import_adapter(tmp_path / "peft", tmp_path / "ours", base=case.base()))
    assert (output(ours, case) - wanted).abs().max() < 1e-5
    assert (output(case.base(), case) - wanted).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["modules_to_save embed_tokens, tied", "modules_to_save both, kept tied"])
def test_files_without_the_head_of_a_tied_base(name, tmp_path):
    """Older versions of peft write one of the two names."""
    case = LORA[name]
    theirs = case.fitted()
    theirs.save_pretrained(tmp_path / "peft")
    held = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    held.pop(f"{PREFIX}lm_head.weight", None)
    save_file(held, tmp_path / "peft" / "adapter_model.safetensors")
    ours = lt.load(case.base(), lt.import_adapter(tmp_path / "peft", tmp_path / "ours", base=case.base()))
    assert (output(ours, case) - output(theirs, case)).abs().max() < 1e-5


@pytest.mark.parametrize("case", [Case(lora(), settings={"tie_word_embeddings": True}), Case(lora(), "gemma3")])
@pytest.mark.parametrize("where", [None, "embeddings", "lm_head"])
def test_our_own_export_of_a_tied_table_comes_back_exactly(case, where, tmp_path):
    """Trained whole (none), at its reading place alone, at the head alone; peft runs it alike."""
    model = lt.attach(case.base(), lt.LoRA(rank=2), f"q_proj | {where}" if where else "q_proj")
    if where is None:
        lt.attach(model, lt.Full(), "params(model.embed_tokens.weight)")
    for parameter in lt.trainable(model).values():
        parameter.data += 0.1 * torch.randn_like(parameter)
    lt.save(model, tmp_path / "ours")
    lt.export(tmp_path / "ours", tmp_path / "peft", to="peft", base=case.base())
    wanted = output(model, case)
    theirs = peft.PeftModel.from_pretrained(case.base(), tmp_path / "peft").eval()
    back = lt.load(case.base(), lt.import_adapter(tmp_path / "peft", tmp_path / "back", base=case.base()))
    for other in (theirs, back):
        assert (output(other, case) - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()))


def test_a_template_and_tokens_of_the_folder_are_kept_and_told(tmp_path):
    case = Case(lora("q_proj"))
    case.fitted().save_pretrained(tmp_path / "peft")
    theirs = tokenizer("{{ messages }}!")
    theirs.add_tokens(["<tool>"])
    theirs.save_pretrained(tmp_path / "peft")

    def take(name: str, processor=None) -> None:
        lt.import_adapter(tmp_path / "peft", tmp_path / name, base=case.base(), processor=processor)
        for file in ("chat_template.jinja", "tokenizer.json"):
            assert (tmp_path / name / file).read_bytes() == (tmp_path / "peft" / file).read_bytes()

    with pytest.warns(UserWarning, match=r"chat template that is not the base's and 1 added tokens .*'<tool>' first"):
        take("other", tokenizer("{{ messages }}?"))
    with pytest.warns(UserWarning, match="holds a chat template and"):
        take("unknown")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(chat template|added tokens)")
        take("same", theirs)
    assert lt.load(case.base(), tmp_path / "same")
