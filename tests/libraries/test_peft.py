"""peft as the oracle: it loads what is exported, and the same factors give the same model."""

from __future__ import annotations

import pytest
import torch

import luthier as lt
from support.architectures import ARCHITECTURES

peft = pytest.importorskip("peft")


def perturbed(architecture, form, where):
    model = ARCHITECTURES[architecture].build()
    lt.attach(model, form, where=where)
    for parameter in lt.trainable(model).values():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def logits(model, architecture) -> torch.Tensor:
    with torch.no_grad():
        return model(**ARCHITECTURES[architecture].inputs()).logits


CASES = {
    "lora": ("llama", lt.LoRA(rank=4), "all-linear"),
    "rslora": ("qwen2", lt.LoRA(rank=4, scaling="rslora"), "q_proj, down_proj"),
    "lora on Conv1D": ("gpt2", lt.LoRA(rank=4), "all-linear"),
    "lora on a table": ("llama", lt.LoRA(rank=4), "q_proj | embeddings"),
    "lora on a scaled table": ("gemma3", lt.LoRA(rank=4), "q_proj | embeddings"),
    "wegeft": ("llama", lt.WeGeFT(rank=4), "all-linear"),
    "wegeft by type": ("llama", lt.WeGeFT(rank=4, share="type"), "q_proj, v_proj, up_proj, down_proj"),
    "gift": ("llama", lt.GIFT(rank=4, block="mlp"), "q_proj"),
}


@pytest.mark.parametrize("case", CASES)
def test_peft_loads_what_is_exported_and_gives_the_same_logits(case, tmp_path):
    architecture, form, where = CASES[case]
    model = perturbed(architecture, form, where)
    lt.save(model, tmp_path / "adapter")
    base = ARCHITECTURES[architecture].build()
    assert lt.export(tmp_path / "adapter", tmp_path / "peft", to="peft", base=base) == {}
    theirs = peft.PeftModel.from_pretrained(ARCHITECTURES[architecture].build(), tmp_path / "peft")
    moved = (logits(model, architecture) - logits(base, architecture)).abs().max()
    error = (logits(theirs, architecture) - logits(model, architecture)).abs().max()
    assert moved > 0.1 and error < 1e-5 * max(1, logits(model, architecture).abs().max())


def test_other_affine_forms_are_truncated_with_the_error_said(tmp_path):
    lt.save(perturbed("llama", lt.Sparse(k=40), "q_proj"), tmp_path / "adapter")
    base = ARCHITECTURES["llama"].build()

    def out(**settings):
        to = lt.formats.PEFT(**settings)
        return lt.export(tmp_path / "adapter", tmp_path / "out", to=to, base=base)

    with pytest.raises(lt.LuthierError, match="rank=…"):
        out()
    with pytest.raises(lt.LuthierError, match="more than the tolerance"):
        out(rank=4)
    lost = out(rank=32, tolerance=1e-4)
    assert len(lost) == 3 and max(lost.values()) < 1e-4


def test_position_dependent_forms_are_refused_with_the_reason(tmp_path):
    lt.save(perturbed("llama", lt.LoReFT(rank=4), "stream"), tmp_path / "adapter")
    with pytest.raises(lt.LuthierError, match="not a weight"):
        lt.export(tmp_path / "adapter", tmp_path / "out", to="peft", base=ARCHITECTURES["llama"].build())


def test_dora_with_the_same_factors_is_pefts():
    """Logits and gradients, so that the norm is held constant as peft holds it."""
    ours = lt.attach(ARCHITECTURES["llama"].build(), lt.DoRA(rank=4, alpha=8), where="q_proj")
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], use_dora=True)
    theirs = peft.get_peft_model(ARCHITECTURES["llama"].build(), config)
    pairs = []
    for i, block in enumerate(theirs.base_model.model.model.layers):
        p = {k.rpartition(".")[2]: t for k, t in lt.trainable(ours).items() if f"layers.{i}." in k}
        layer = block.self_attn.q_proj
        factors = {
            "A": layer.lora_A["default"].weight,
            "B": layer.lora_B["default"].weight,
            "m": layer.lora_magnitude_vector["default"].weight,
        }
        for key, tensor in factors.items():
            p[key].data += 0.1 * torch.randn_like(p[key])
            tensor.data.copy_(p[key].data)
            pairs.append((p[key], tensor))
    inputs = ARCHITECTURES["llama"].inputs()
    for model in (ours, theirs.eval()):
        model(**inputs).logits.pow(2).sum().backward()
    assert torch.allclose(logits(ours, "llama"), logits(theirs, "llama"), atol=1e-5)
    assert all(torch.allclose(a.grad, b.grad, rtol=1e-3, atol=1e-3) for a, b in pairs)
