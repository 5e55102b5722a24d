"""Running decodings on tiny models in float64: caches, padding, adapters, drafts, vocabularies."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

import luthier as lt
from luthier.core.contracts.component import find, names
from luthier.core.contracts.decoding import Decoding
from luthier.decoding import DecodingProcessor, Member, answers, members_of
from luthier.decoding.decode import padded
from luthier.decoding.loop import verified
from luthier.decoding.reader import Ensemble
from luthier.engine.settings import Sampling
from support.architectures import ARCHITECTURES
from support.tiny import tokenizer

PROMPTS = ["ab", "hello 12+3=", "q: why?"]
STEPS = Sampling(max_new_tokens=8)


def model(name: str = "llama", seed: int = 0, noise: float = 0.0, **changes):
    architecture = ARCHITECTURES[name]
    made = dataclasses.replace(architecture, settings=architecture.settings | changes).build(seed, torch.float64)
    torch.manual_seed(int(1000 * noise) + seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += noise * torch.randn_like(parameter)
    return made


@pytest.fixture(scope="module")
def tokens():
    return tokenizer()


@pytest.fixture(scope="module")
def crowd(tokens) -> list[Member]:
    """A large model, and three of another architecture, which counts positions otherwise."""
    return [Member(model(), tokens), *(Member(model("gpt2", seed), tokens) for seed in (1, 2, 3))]


def made(name: str) -> type[Decoding]:
    found = find("decodings", name)
    assert issubclass(found, Decoding)
    return found


def cast(by, crowd) -> dict[str, list[Member]]:
    """A member for every role of any decoding, two for those of `several`."""
    rest = iter(crowd * 2)
    return {role: [next(rest) for _ in range(1 + (role in by.several))] for role in by.roles}


def texts(by, members, draft: int = 0, prompts=PROMPTS, sampling=STEPS) -> list[str]:
    return [answer.text for answer in answers(by, members, prompts, sampling, draft=draft)]


def follow(by, members, prompts: list[list[int]], cached: bool = True, steps: int = 5) -> tuple:
    """(scores [rows, steps, vocabulary], the tokens chosen greedily)."""
    inputs = padded(prompts, members[by.led()][0])
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    ensemble, start = Ensemble(by, members, ids.shape[1], 97, cached=cached), ids.shape[1]
    found = []
    with torch.no_grad():
        for _ in range(steps):
            found.append(ensemble.scores(ids, mask)[:, -1])
            ids = torch.cat([ids, found[-1].argmax(-1, keepdim=True)], 1)
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    return torch.stack(found, 1), ids[:, start:]


ROWS = [[5, 9, 30, 7, 11, 4], [8, 6], [20, 21, 22, 5]]


@pytest.mark.parametrize("name", names("decodings"))
def test_cached_is_uncached_and_padding_is_nothing(name, crowd):
    by = made(name)()
    members = cast(by, crowd)
    scores, ids = follow(by, members, ROWS)
    again, same = follow(by, members, ROWS, cached=False)
    assert torch.equal(ids, same) and torch.allclose(scores, again, rtol=1e-9, atol=1e-9)
    for row, prompt in enumerate(ROWS):
        alone, chosen = follow(by, members, [prompt])
        assert torch.equal(chosen[0], ids[row]) and torch.allclose(alone[0], scores[row], rtol=1e-9, atol=1e-9)


SINGLE = ("bloom", "mixtral", "qwen3_moe")  # their kernels, and BLOOM's mask, know no float64
DECODERS = [name for name, each in ARCHITECTURES.items() if each.kind == "decoder"]


@pytest.mark.parametrize("architecture", DECODERS)
def test_every_decoder_can_be_a_member(architecture, tokens):
    """Caches, padding and drafts, whatever the attention."""
    crowd = [Member(model(architecture, noise=noise), tokens) for noise in (0.0, 0.02, 0.1)]
    close = {"rtol": 1e-6, "atol": 1e-6}
    if architecture in SINGLE:
        for member in crowd:
            member.model.float()
        close = {"rtol": 1e-3, "atol": 1e-3}
    members = {"base": [crowd[0]], "expert": [crowd[1]], "anti": [crowd[2]]}
    scores, ids = follow(lt.Proxy(), members, ROWS)
    again, same = follow(lt.Proxy(), members, ROWS, cached=False)
    assert torch.equal(ids, same) and torch.allclose(scores, again, **close)
    alone, chosen = follow(lt.Proxy(), members, ROWS[1:2])
    assert torch.equal(chosen[0], ids[1]) and torch.allclose(alone[0], scores[1], **close)
    plain = texts(lt.Proxy(), members)
    drafted = answers(lt.Proxy(), members, PROMPTS, STEPS, draft=3)
    assert [each.text for each in drafted] == plain
    assert sum(each.accepted for each in drafted) < sum(each.drafted for each in drafted)  # caches were taken back


@pytest.mark.parametrize("name", names("decodings"))
def test_neutral_settings_say_what_the_first_model_says(name, crowd):
    by = made(name)(**dict(made(name).neutral))
    members = cast(by, crowd)
    led = members[by.led()][0]
    wanted = lt.generate(led.model, led.tokenizer, PROMPTS, max_new_tokens=8)
    assert texts(by, members) == wanted and len(set(wanted)) > 1


def test_an_expert_like_its_anti_expert_leaves_the_base_and_a_base_like_it_makes_the_expert(crowd):
    base, small, other, _ = crowd
    alone = [lt.generate(m.model, m.tokenizer, PROMPTS, max_new_tokens=8) for m in (base, small)]
    assert alone[0] != alone[1]
    assert texts(lt.Proxy(), {"base": [base], "expert": [small], "anti": [small]}) == alone[0]
    assert texts(lt.Proxy(), {"base": [other], "expert": [small], "anti": [other]}) == alone[1]


@pytest.mark.parametrize("name", [n for n in names("decodings") if made(n).draft])
def test_a_drafted_text_is_the_plain_one_token_for_token(name, tokens):
    by = made(name)()
    near = [Member(model(noise=noise), tokens) for noise in (0.0, 0.01, 0.02, 0.03)]
    members = cast(by, near)
    sampling = Sampling(max_new_tokens=14)
    plain = answers(by, members, PROMPTS, sampling)
    for ahead in (1, 4, 20):
        drafted = answers(by, members, PROMPTS, sampling, draft=ahead)
        assert [(a.text, a.tokens) for a in drafted] == [(a.text, a.tokens) for a in plain]
        assert sum(a.accepted for a in drafted) > 0 and all(a.accepted <= a.drafted for a in drafted)
    assert sum(a.drafted - a.accepted for a in drafted) > 0  # some were turned down


def test_verified_tokens_follow_the_wanted_distribution():
    generator = torch.Generator().manual_seed(0)
    p, q = torch.tensor([0.1, 0.2, 0.7]).double(), torch.tensor([[0.5, 0.4, 0.1]]).double()
    wanted, counts = torch.stack([p, torch.tensor([1.0, 0, 0]).double()]), torch.zeros(3)
    for _ in range(3000):
        token = torch.multinomial(q, 1, generator=generator)[0]
        kept, behind = verified(wanted, [q], token, generator)
        counts[token if kept else behind] += 1
    assert torch.allclose((counts / 3000).double(), p, atol=0.03)  # three standard deviations and more


def test_sampling_is_fixed_by_its_seed_and_leaves_the_global_state(crowd):
    by, state = lt.Proxy(), torch.get_rng_state()
    members = cast(by, crowd)
    drawn = [texts(by, members, 0, PROMPTS, Sampling(8, 1.0, 0.9, seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert texts(by, members, 2, PROMPTS, Sampling(8, 1.0, 0.9, 1)) == texts(
        by, members, 2, PROMPTS, Sampling(8, 1.0, 0.9, 1)
    )
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "form", [lt.LoRA(rank=2), lt.LoReFT(rank=2, positions="f1+l1"), lt.Prefix(length=2)], ids=lambda f: f.name()
)
def test_an_adapter_is_a_member_without_a_second_copy_of_the_base(form, tokens):
    base = model()
    alone = lt.generate(copy.deepcopy(base), tokens, PROMPTS, max_new_tokens=8)
    lt.attach(base, form, name="tuned")
    with torch.no_grad():
        for parameter in lt.trainable(base).values():
            parameter += 0.5 * torch.randn_like(parameter)
    adapted = lt.generate(base, tokens, PROMPTS, max_new_tokens=8)
    bare, tuned = Member(base, tokens), Member(base, tokens, "tuned")
    by = lt.Proxy()
    members = {"base": [bare], "expert": [tuned], "anti": [bare]}
    assert texts(by, members) == adapted != alone
    assert texts(lt.Proxy(alpha=0.0), members) == alone
    assert texts(by, members, draft=3) == adapted
    scores, ids = follow(by, members, ROWS)
    again, same = follow(by, members, ROWS, cached=False)
    assert torch.equal(ids, same) and torch.allclose(scores, again, rtol=1e-9, atol=1e-9)
    assert lt.generate(base, tokens, PROMPTS, max_new_tokens=8) == adapted  # it acts as before


def test_the_processor_decodes_in_generate(crowd):
    by = lt.Emulated()
    members = cast(by, crowd)
    base = members["base"][0]
    inputs = padded(ROWS, base)
    processor = DecodingProcessor(by, members, inputs["attention_mask"])
    out = base.model.generate(
        **inputs, logits_processor=[processor], max_new_tokens=5, do_sample=False, eos_token_id=96
    )
    _, ids = follow(by, members, ROWS)
    assert torch.equal(out[:, 6:], ids) and not (ids == 96).any()
    with pytest.raises(lt.LuthierError, match="processor for each call"):
        base.model.generate(**inputs, logits_processor=[processor], max_new_tokens=2)
    with pytest.raises(lt.LuthierError, match="training mode"):
        crowd[1].model.train()
        try:
            DecodingProcessor(by, members, inputs["attention_mask"])
        finally:
            crowd[1].model.eval()
    fresh = DecodingProcessor(by, members, inputs["attention_mask"])
    with pytest.raises(lt.LuthierError, match="num_beams=1"):
        base.model.generate(**inputs, logits_processor=[fresh], max_new_tokens=2, num_beams=2)


def test_the_processor_shares_weights_between_the_base_and_its_adapter(tokens):
    base = lt.attach(model(), lt.LoRA(rank=2), name="tuned")
    with torch.no_grad():
        for parameter in lt.trainable(base).values():
            parameter += 0.5 * torch.randn_like(parameter)
    bare, tuned = Member(base, tokens), Member(base, tokens, "tuned")
    members = {"base": [bare], "expert": [tuned], "anti": [bare]}
    inputs = padded(ROWS, bare)
    greedy = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": 96}
    with lt.disabled(base):
        processor = DecodingProcessor(lt.Proxy(), members, inputs["attention_mask"])
        out = base.generate(**inputs, logits_processor=[processor], **greedy)
    assert torch.equal(out[:, 6:], follow(lt.Proxy(), members, ROWS)[1])
    processor = DecodingProcessor(lt.Proxy(), members, inputs["attention_mask"])
    with pytest.raises(lt.LuthierError, match="'tuned' enabled and none is expected"):
        base.generate(**inputs, logits_processor=[processor], **greedy)


def test_tables_padded_behind_the_last_token_agree(crowd, tokens):
    base = Member(model(vocab_size=120), tokens)
    members = {"base": [base], "expert": [crowd[1]], "anti": [crowd[1]]}
    assert all(text for text in texts(lt.Proxy(), members))
    inputs = padded(ROWS, base)
    found = DecodingProcessor(lt.Proxy(), members, inputs["attention_mask"])(inputs["input_ids"], torch.randn(3, 120))
    assert found.shape == (3, 120) and (found[:, 97:] == -torch.inf).all() and found[:, :97].isfinite().all()


def other_tokenizer(swap: bool):
    made = tokenizer()
    if not swap:
        made.add_tokens(["<new>"])
        return made
    text = made.backend_tokenizer.to_str().replace('"a":', '"\x00":').replace('"b":', '"a":').replace('"\x00":', '"b":')
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(text), pad_token="<pad>")


@pytest.mark.parametrize("swap", [False, True])
def test_other_vocabularies_are_refused_with_both(swap, crowd, tokens):
    stranger = Member(crowd[1].model, other_tokenizer(swap))
    size = len(tokens.get_vocab())
    why = rf"base has {size} tokens and that of expert {size + (not swap)}; .* in the other"
    with pytest.raises(lt.LuthierError, match=why):
        members_of(lt.Proxy(), {"base": crowd[0], "expert": stranger, "anti": crowd[1]})


def test_roles_and_models_that_do_not_fit_are_refused(crowd, tokens):
    base, small = crowd[:2]
    cases = [
        ({"base": base, "expert": small}, "needs a model as anti"),
        ({"base": base, "expert": small, "ant": small}, "did you mean 'anti'"),
        ({"base": base, "expert": [small, small], "anti": small}, "one model as expert, not 2"),
        ({"base": base, "expert": Member(small.model, tokens, "x"), "anti": small}, "no adapter 'x'"),
        ({"base": Member(model("t5"), tokens), "expert": small, "anti": small}, "not a decoder"),
    ]
    for roles, why in cases:
        with pytest.raises(lt.LuthierError, match=why):
            members_of(lt.Proxy(), roles)
    with pytest.raises(lt.LuthierError, match="3 weights for 2 tuned models"):
        lt.decode(
            lt.Emulated(weights=(1.0, 2.0, 3.0)), {"base": base, "tuned": [small, small], "reference": small}, ["a"]
        )
    with pytest.raises(lt.LuthierError, match="without --draft"):
        lt.decode(lt.Contrastive(), {"tuned": base, "pretrained": small}, ["a"], draft=2)
    with pytest.raises(lt.LuthierError, match="a score is NaN"):
        broken = copy.deepcopy(small.model)
        torch.nn.init.constant_(broken.get_input_embeddings().weight, torch.nan)
        lt.decode(lt.Proxy(), {"base": base, "expert": Member(broken, tokens), "anti": small}, ["a"])
