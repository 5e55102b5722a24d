"""Positions: the masks equal a loop over rows, under padding, caches, beams and labels."""

from __future__ import annotations

import math

import pytest
import torch

import luthier as lt
from luthier.core.adapters.call import Call, Prompt
from luthier.core.contracts.positions import Invocation, Positions
from luthier.core.sites.caches import cache_argument, cache_in
from support.architectures import ARCHITECTURES


def loop(mask: list[int], first: int, last: int, end: int) -> set[int]:
    """Edited columns of a row, from the definition."""
    prompt = [c for c, real in enumerate(mask) if real and c < end]
    n = len(prompt)
    p, s = min(first, n // 2), min(last, math.ceil(n / 2))
    return set(prompt[:p]) | set(prompt[n - s :] if s else [])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("spec", ["f7+l7", "f3", "l1", "f2+l3"])
@pytest.mark.parametrize("end", [None, 9])
def test_located_columns_equal_a_loop(side, spec, end):
    lengths, total = [16, 11, 5, 2, 1], 16
    real = [[1] * n + [0] * (total - n) for n in lengths]
    real = [row[::-1] for row in real] if side == "left" else real
    positions = Positions.parse(spec)
    assert positions is not None
    call = Call(len(real), total, mask=torch.tensor(real), prompt=Prompt(end))
    located = call.locate(positions)
    assert located is not None
    for row, (index, keep) in enumerate(zip(*located, strict=True)):
        got = {int(i) for i, k in zip(index, keep, strict=True) if k}
        assert got == loop(real[row], positions.first, positions.last, end or total)
        assert len(set(index.tolist())) == len(index)


def test_a_pass_after_the_prompt_edits_nothing():
    positions = Positions(2, 2)
    assert Call(2, 1, past=8).locate(positions) is None
    assert Call(2, 1, past=8, prompt=Prompt(8)).locate(positions) is None
    located = Call(1, 4, past=4, prompt=Prompt(8)).locate(positions)  # the second half of a prompt in chunks
    assert located is not None and set(located[0][located[1]].tolist()) == {2, 3}


@pytest.mark.parametrize("end", [None, 9])
def test_columns_behind_an_invocation_equal_a_loop(end):
    """The last one within the prompt, where that is told; tokens of padding are none."""
    ids = torch.full((4, 12), 7)
    mask = torch.ones_like(ids)
    ids[0, [2, 3, 6, 7, 9, 10]] = torch.tensor([5, 6, 5, 6, 5, 6])  # the third stands behind column 9
    ids[1, [0, 1]] = ids[3, [8, 9]] = torch.tensor([5, 6])  # the second, half of it behind column 9
    ids[2, 4:6] = torch.tensor([5, 6])
    mask[2, :5] = 0
    starts = [9 if end is None else 6, 0, 12, 8 if end is None else 12]
    call = Call(4, 12, mask=mask, prompt=Prompt(end))
    call.note_text(ids)
    located = call.locate(Invocation((5, 6)))
    assert located is not None
    for start, index, keep in zip(starts, *located, strict=True):
        assert index[keep].tolist() == list(range(start, 12))


def test_an_invocation_is_known_to_the_tokens_behind_it():
    """With any cache, in beams, in prompts whose start another pass has read; chunks and embeddings do not tell."""
    model = fitted(lt.LoRA(rank=4, positions="from:5.6")).eval()
    ids, mask = torch.randint(7, 97, (3, 9)), torch.ones(3, 9, dtype=torch.long)
    ids[0, 2:4] = ids[0, 5:7] = ids[1, 7:9] = torch.tensor([5, 6])
    mask[1, :4] = ids[1, :4] = 0
    given = {"input_ids": ids, "attention_mask": mask, **SETTINGS}
    plain = model.generate(**given)
    with lt.disabled(model):
        bare = model.generate(**given)
        started = cache_in(model(input_ids=ids[:1, :5], use_cache=True))
    assert torch.equal(plain[2], bare[2]) and not torch.equal(plain[:2], bare[:2])
    static = {"cache_implementation": "static", "disable_compile": True}
    for other in ({"use_cache": False}, static):
        assert torch.equal(model.generate(**given, **other), plain), other
    alone = model.generate(input_ids=ids[:1], **SETTINGS, **cache_argument(model, started))
    assert torch.equal(alone[0], plain[0])
    beams = model.generate(**given, num_beams=2)
    assert torch.equal(beams[1, 9:], model.generate(input_ids=ids[1:2, 4:], **SETTINGS, num_beams=2)[0, 5:])
    with pytest.raises(lt.LuthierError, match="in chunks"):
        model.generate(**given, prefill_chunk_size=4)
    with pytest.raises(lt.LuthierError, match="given embeddings"):
        model(inputs_embeds=model.get_input_embeddings()(ids))


def test_bad_positions_say_what_is_expected():
    for text in ("f7-l7", "x3", "", "f0", "7", "from:", "from:5..6", "from:-5"):
        with pytest.raises(lt.LuthierError, match="f7\\+l7"):
            lt.LoReFT(positions=text)
    with pytest.raises(lt.LuthierError, match="positions"):
        lt.WeGeFT(positions="f3")
    with pytest.raises(lt.LuthierError, match="names the token 97, and this model's are 0 to 96"):
        fitted(lt.LoRA(rank=4, positions="from:5.97"))


def fitted(form, architecture="llama"):
    model = lt.attach(ARCHITECTURES[architecture].build(dtype=torch.float64), form)
    for parameter in lt.trainable(model).values():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


SETTINGS = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "gemma3", "falcon"])
def test_generation_is_one_by_one_with_every_kind_of_cache(architecture):
    model = fitted(lt.LoReFT(rank=4, positions="f3+l2,l1"), architecture)
    ids, mask = torch.randint(3, 97, (3, 9)), torch.ones(3, 9, dtype=torch.long)
    for row, n in enumerate([9, 6, 3]):
        ids[row, : 9 - n] = mask[row, : 9 - n] = 0
    given = {"input_ids": ids, "attention_mask": mask}
    plain = model.generate(**given, **SETTINGS)
    others = [{"use_cache": False}, {"prefill_chunk_size": 4}, {"num_beams": 1}]
    if architecture == "llama":
        others.append({"cache_implementation": "static", "disable_compile": True})
    for other in others:
        assert torch.equal(model.generate(**given, **SETTINGS, **other), plain), other
    for row, n in enumerate([9, 6, 3]):
        alone = model.generate(input_ids=ids[row : row + 1, 9 - n :], **SETTINGS)
        assert torch.equal(alone[0, n:], plain[row, 9:])
    beams = model.generate(**given, **SETTINGS, num_beams=3)
    single = model.generate(input_ids=ids[2:, 6:], **SETTINGS, num_beams=3)
    assert torch.equal(beams[2, 9:], single[0, 3:])


def test_beams_repeat_what_is_told_of_each_prompt():
    model = fitted(lt.LoReFT(rank=4, positions="f2+l2"))
    ids, beams = torch.randint(3, 97, (2, 9)), {**SETTINGS, "num_beams": 2}
    with lt.prompt(model, [4, 6]):
        found = model.generate(input_ids=ids, **beams)
    for row, end in enumerate([4, 6]):
        with lt.prompt(model, end):
            assert torch.equal(model.generate(input_ids=ids[row : row + 1], **beams)[0], found[row])
    with lt.prompt(model, [4, 6, 8]), pytest.raises(lt.LuthierError, match="3 prompts were told, but the pass has 2"):
        model(input_ids=ids)


def test_labels_end_the_prompt():
    model = fitted(lt.LoReFT(rank=4, positions="f2+l2"))
    ids = torch.randint(3, 97, (2, 9))
    labels = ids.clone()
    labels[0, :5], labels[1, :7] = -100, -100
    with torch.no_grad():
        trained = model(input_ids=ids, labels=labels).logits
        with lt.prompt(model, [5, 7]):
            assert torch.equal(model(input_ids=ids).logits, trained)
        assert not torch.allclose(model(input_ids=ids).logits, trained)
        alone = model(input_ids=ids[:1, :5]).logits  # as in generation: the prompt alone
        assert torch.allclose(trained[:1, :5], alone, atol=1e-12)


def test_a_row_without_a_prompt_is_its_own_prompt():
    model = fitted(lt.LoReFT(rank=4, positions="f2"))
    ids = torch.randint(3, 97, (1, 6))
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in lt.trainable(model).values())


def test_packed_rows_are_refused():
    model = fitted(lt.LoReFT(rank=4))
    ids = torch.randint(3, 97, (1, 6))
    with pytest.raises(lt.LuthierError, match="packs"):
        model(input_ids=ids, position_ids=torch.tensor([[0, 1, 2, 0, 1, 2]]))


def test_an_encoder_decoder_places_prompts_on_each_side():
    model = fitted(lt.LoReFT(rank=4, positions="f2+l1"), "bart")
    ids = torch.randint(3, 97, (2, 7))
    mask = torch.ones_like(ids)
    mask[1, 4:] = ids[1, 4:] = 0
    together = model.generate(input_ids=ids, attention_mask=mask, **SETTINGS)
    alone = model.generate(input_ids=ids[1:, :4], **SETTINGS)
    assert torch.equal(together[1], alone[0])


def test_a_table_is_edited_at_positions_and_dropout_falls_on_whole_tokens():
    model = ARCHITECTURES["llama"].build()
    ids = torch.arange(5, 17)[None]
    plain = model.get_input_embeddings()(ids)
    lt.attach(model, lt.LoRA(rank=2, alpha=4.0, positions="f3", dropout=0.5), "embed_tokens")
    for parameter in lt.trainable(model).values():
        parameter.data.normal_()
    rows = []
    model.get_input_embeddings().register_forward_hook(
        lambda module, args, output: rows.append(output.detach() - plain)
    )
    model(ids)
    p = {key.rpartition(".")[2]: value for key, value in lt.trainable(model).items()}
    change = 2.0 * p["A"].mT[ids[0]] @ p["B"].mT
    assert torch.allclose(rows[0][0, :3], change[:3], atol=1e-5) and not rows[0][0, 3:].any()
    model.train()
    torch.manual_seed(0)
    for _ in range(8):
        model(ids)
    sizes = torch.stack([(each[0, :3] / change[:3]).mean(-1) for each in rows[1:]])
    assert set(sizes.round().flatten().tolist()) == {0.0, 2.0}
