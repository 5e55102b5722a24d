"""Patching: what is put in comes out, on every architecture of the interface; masks find what is planted."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from luthier.core.contracts.examination import Pair
from luthier.core.sites.answers import spoken
from luthier.core.sites.attention import attention_shapes
from luthier.core.sites.heads import heads
from luthier.examining.plot import plot
from luthier.methods.examinations._patching import (
    direct,
    held,
    noting,
    one,
    patched,
    path_effect,
    read,
    replacing,
    rolled,
    zeros,
)
from luthier.methods.examinations.circuit import Circuit, everything
from support.architectures import ARCHITECTURES

DECODERS = [name for name, each in ARCHITECTURES.items() if each.kind == "decoder" and "ForCausalLM" in each.model]


def batch(seed: int = 1, rows: int = 6) -> dict:
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 97, (rows, 9), generator=draw)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def pair_of(name: str, part: str = "", scale: float = 1.0):
    """A model, and a copy that differs where a parameter's path holds `part`."""
    kind = torch.float32 if "experts" in ARCHITECTURES[name].tags else torch.float64  # experts have no float64
    made = [ARCHITECTURES[name].build(dtype=kind).requires_grad_(False) for _ in range(2)]
    draw = torch.Generator().manual_seed(5)
    for path, parameter in made[1].named_parameters():
        if any(each in path for each in part.split("|")) and part and parameter.dim() > 1:
            parameter.add_(scale * 0.15 * torch.randn(parameter.shape, generator=draw, dtype=kind))
    return made


@pytest.mark.parametrize("name", DECODERS)
def test_self_patching_changes_nothing_and_patching_everything_gives_the_tuned_logits(name):
    base, tuned = pair_of(name, "weight")
    if not attention_shapes(base):
        with pytest.raises(Exception, match="attention interface"), torch.no_grad():
            read(base, batch())
        return
    with torch.no_grad():
        own, plain = read(base, batch())
        near = 1e-12 if base.dtype == torch.float64 else 1e-6
        assert float(patched(base, batch(), own, zeros(own, 1.0))) == pytest.approx(plain, abs=near)
        with noting(tuned) as modules:
            wanted = spoken(tuned, batch())[0]
        outputs, after = read(tuned, batch())
        assert abs(after - plain) > 1e-3
        assert everything(base, (batch(), outputs), dict(modules), wanted) < 100 * near
        assert abs(float(patched(base, batch(), outputs, zeros(own, 1.0))) - after) > 1e-6  # heads are not all


@pytest.mark.parametrize(
    ("name", "part"), [("llama", "q_proj|k_proj|v_proj"), ("gpt2", "c_attn"), ("gemma3", "v_proj")]
)
def test_heads_are_all_where_nothing_else_was_tuned(name, part):
    """Only what heads read was tuned, so that all heads together are exactly the fine-tuned model."""
    base, tuned = pair_of(name, part)
    with torch.no_grad():
        outputs, after = read(tuned, batch())
        before = float(patched(base, batch(), outputs, zeros(outputs)))
        assert abs(after - before) > 1e-3
        assert float(patched(base, batch(), outputs, zeros(outputs, 1.0))) == pytest.approx(after, abs=1e-11)
        with heads(base, replacing(outputs, zeros(outputs, 1.0))):
            logits = spoken(base, batch())[0]
        assert torch.allclose(logits, spoken(tuned, batch())[0], atol=1e-10)


def test_a_path_is_what_one_head_tells_another():
    model = pair_of("llama")[0]
    with torch.no_grad():
        clean, plain = read(model, batch())
        other, paths = rolled(clean), list(clean)
        last, first, middle = (paths[2], 1), (paths[0], 3), (paths[1], 2)
        alone = float(patched(model, batch(), other, one(clean, last)))
        assert direct(model, batch(), clean, other, last) == pytest.approx(alone, abs=1e-12) != plain  # nobody hears it
        assert (
            abs(direct(model, batch(), clean, other, first) - float(patched(model, batch(), other, one(clean, first))))
            > 1e-4
        )
        assert direct(model, batch(), clean, clean, first) == pytest.approx(plain, abs=1e-12)
        # the receiver's own output, computed with all heads before it held but the sender
        before = {path: each for path, each in held(clean, other, first).items() if path != middle[0]}
        with heads(model, replacing(before, {path: torch.ones(4) for path in before})) as seen:
            model(**batch())
        direct_patch = float(patched(model, batch(), {**clean, middle[0]: seen.outputs[middle[0]]}, one(clean, middle)))
        found = path_effect(model, batch(), clean, other, first, middle)
        assert found == pytest.approx(direct_patch, abs=1e-12) and abs(found - plain) > 1e-6
        assert path_effect(model, batch(), clean, clean, first, middle) == pytest.approx(plain, abs=1e-12)


def test_masks_find_a_planted_head_and_the_picture_shows_it(tmp_path, drawn):
    base, tuned = pair_of("llama")
    tuned.model.layers[1].self_attn.q_proj.weight[16:24] *= -12  # head 2 of block 1 looks elsewhere
    data = [batch(seed, 16) for seed in range(4)]
    with torch.no_grad():
        for each in data:
            said = tuned(**each).logits.argmax(-1)
            each["labels"] = torch.cat([said[:, :1], said[:, :-1]], 1)
    pair = Pair(lambda: [], lambda: nullcontext(base), lambda: nullcontext(tuned), {"rows": data})
    found = Circuit(heads=12, cost=0.003, steps=60).measure(pair)
    kept = [name for name, numbers in found.places.items() if numbers["mask"] > 0.5]
    assert kept == ["1.2"], found.places
    assert max(found.places, key=lambda name: found.places[name]["gain"]) == "1.2"
    assert found.summary["kept"] == pytest.approx(found.effect, rel=0.35) and found.summary["everything"] < 1e-9
    assert found.summary["kept"] > found.null_summary["kept"] + 0.5 * found.effect
    assert all(abs(numbers["path"]) < 1e-9 for numbers in found.null.values())  # a head's own output changes nothing
    assert max(abs(numbers["path"]) for numbers in found.places.values()) > 1e-3
    plot(
        {"examination": "circuit", "target": "run", **found.to_dict(), "edges": {"0.1 > 1.2": 0.1}}, tmp_path / "x.png"
    )
    assert (tmp_path / "x.png").stat().st_size > 5000
