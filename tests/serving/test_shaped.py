"""Penalties, biases, grammars, scores of prompts and vectors: each row as its own request asks, in one batch."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
import transformers as tf

import luthier as lt
from luthier.core.errors import LuthierError
from luthier.engine import scoring
from luthier.engine.engine import Engine
from luthier.engine.grammar import Grammar, of_schema
from luthier.engine.request import Request
from luthier.engine.sampling import choose, drawing
from luthier.engine.shaping import Shaper, Shaping, shaped
from serving.test_engine import PROMPTS, asked, build, ids_of, saved, served
from support import tiny
from support.architectures import ARCHITECTURES
from support.tiny_tokenizers import make

SCHEMAS = [
    {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
    {"type": "string", "maxLength": 4},
    {"enum": ["x", "yes", None]},
]


# --- logits ---


def test_penalties_are_those_of_transformers_and_the_apis():
    draw = torch.Generator().manual_seed(0)
    logits, prompt, answer = torch.randn(1, 50, generator=draw), [3, 4, 4], [7, 7, 3]
    shaper = Shaper(Shaping(repetition_penalty=1.7), prompt, None)
    plain = Shaper(
        Shaping(frequency_penalty=0.3, presence_penalty=0.5, logit_bias=((9, -100.0), (7, 2.0))), prompt, None
    )
    for token in answer:
        shaper.took(token)
        plain.took(token)
    wanted = tf.RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([prompt + answer]), logits.clone())
    assert torch.allclose(shaped(logits, [shaper]), wanted)
    counted = logits.clone()
    counted[0, [3, 7, 9]] += torch.tensor([-0.3 - 0.5, -2 * 0.3 - 0.5 + 2, -100.0])  # of the answer's tokens alone
    assert torch.allclose(shaped(logits, [plain]), counted)
    assert shaped(logits, [None]) is logits


@pytest.mark.parametrize("top_k, top_p, min_p", [(3, 1.0, 0.0), (0, 1.0, 0.3), (4, 0.7, 0.1), (99, 0.9, 0.05)])
def test_tokens_are_drawn_from_what_transformers_leaves(top_k, top_p, min_p):
    logits = torch.tensor([[0.1, 2.0, 1.5, -1.0, 0.7, 1.4]])
    left = tf.TemperatureLogitsWarper(0.8)(None, logits.clone())
    left = tf.TopKLogitsWarper(top_k)(None, left) if top_k else left
    left = tf.TopPLogitsWarper(top_p)(None, left) if top_p < 1 else left
    wanted = (tf.MinPLogitsWarper(min_p)(None, left) if min_p else left).softmax(-1)[0]
    shaping = Shaping(top_k=top_k, min_p=min_p)
    draws = [drawing(0.8, top_p, seed, None, shaping) for seed in range(8000)]
    found = torch.tensor([choice.token for choice in choose(logits.expand(8000, -1), draws) if choice])
    shares = found.bincount(minlength=6) / len(found)
    assert torch.allclose(shares, wanted, atol=0.02) and not shares[wanted == 0].any()


def test_settings_act_on_their_own_row_alone():
    engine = Engine(build(), tiny.tokenizer(), rows=8)
    more = [
        Shaping(), Shaping(repetition_penalty=3.0), Shaping(frequency_penalty=2.0), Shaping(logit_bias=((9, 100.0),)),
        Shaping(presence_penalty=2.0),
    ]  # fmt: skip
    requests = [asked("abab", shaping=shaping) for shaping in more]
    together = served(engine, requests)
    alone = [served(Engine(build(), tiny.tokenizer()), [request])[0] for request in requests]
    assert [answer.ids for answer in together] == [answer.ids for answer in alone]
    assert set(together[3].ids) == {9} and len({tuple(answer.ids) for answer in together}) > 2


@pytest.mark.parametrize(
    "shaping",
    [
        Shaping(top_k=-1), Shaping(min_p=1.1), Shaping(frequency_penalty=3), Shaping(presence_penalty=-2.1),
        Shaping(repetition_penalty=0), Shaping(logit_bias=((97, 1.0),)), Shaping(logit_bias=((1, 101.0),)),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(shaping):
    with pytest.raises(LuthierError, match=r"expected|token id 97"):
        Engine(build(), tiny.tokenizer()).submit(asked("a", shaping=shaping), lambda chunk: None)


# --- grammars ---


def spoken(vocabulary: int = 420) -> Engine:
    """An untrained model over a tokenizer of bytes."""
    architecture = ARCHITECTURES["llama"]
    model = dataclasses.replace(architecture, settings=architecture.settings | {"vocab_size": vocabulary}).build()
    model.generation_config.eos_token_id = 1
    return Engine(model, make(None), rows=16)


def test_a_mixed_batch_follows_each_rows_own_grammar():
    engine, prompt = spoken(440), tuple(make(None)("What is the sum?")["input_ids"])
    grammars = [engine.compiled(of_schema(schema)) for schema in SCHEMAS]
    settings = {"max_tokens": 60, "temperature": 1.0}
    requests = [Request(prompt, seed=i, grammar=grammars[i % 4], **settings) for i in range(8)]
    answers = served(engine, [*requests, Request(prompt, seed=1, **settings)])
    for i, answer in enumerate(answers[:8]):
        value = json.loads(answer.text)
        assert answer.finish == "stop" and fits(value, i % 4), answer.text
    free = served(spoken(440), [Request(prompt, seed=1, **settings)])[0]
    assert answers[8].text == free.text  # an untrained model writes no JSON by itself


def fits(value, schema: int) -> bool:
    return [
        lambda: value in ({"a": 1}, {"a": 2}),
        lambda: len(value) in (2, 3) and all(isinstance(each, bool) for each in value),
        lambda: isinstance(value, str) and len(value) <= 4,
        lambda: value in ("x", "yes", None),
    ][schema]()


def test_expressions_and_grammars():
    engine, prompt = spoken(), tuple(make(None)("What?")["input_ids"])
    for grammar, said in [
        (Grammar("regex", "(yes|no)"), ("yes", "no")),
        (Grammar("lark", 'start: "a" b\nb: "c" | "d"'), ("ac", "ad")),
    ]:
        (answer,) = served(
            engine, [Request(prompt, grammar=engine.compiled(grammar), temperature=0, logprobs=1)], rounds=0
        )
        assert answer.text in said and answer.finish == "stop"


@pytest.mark.parametrize(
    ("grammar", "what"),
    [
        (Grammar("regex", "("), "regular expression"),
        (Grammar("lark", "begin: "), "grammar"),
        (Grammar("json", '{"type": "objekt"}'), "JSON schema"),
        (Grammar("json", '{"not": {"type": "string"}}'), "JSON schema"),
    ],
)
def test_what_cannot_be_followed_is_refused(grammar, what):
    with pytest.raises(LuthierError, match=f"the {what} cannot be used"):
        spoken().compiled(grammar)


def test_a_tokenizer_that_the_library_does_not_take():
    with pytest.raises(LuthierError, match="does not take this model's tokenizer"):
        Engine(build(), tiny.tokenizer()).compiled(of_schema(True))


# --- scores of prompts ---


@pytest.mark.parametrize("logits", [2**25, 200, 1])
def test_an_echo_has_the_log_probabilities_of_its_prompt(tmp_path, monkeypatch, logits):
    monkeypatch.setattr(scoring, "LOGITS", logits)
    folders = saved(tmp_path, "llama", "lora", rank=4)
    engine = Engine(build(), tiny.tokenizer(), adapters=folders)
    names = [None, "a", "b", "a"]
    requests = [
        asked(text, name, echo=text, logprobs=2, max_tokens=tokens)
        for text, name, tokens in zip(PROMPTS, names, (0, 3, 0, 5), strict=False)
    ]
    answers = served(engine, [*requests, asked(PROMPTS[1], "a", max_tokens=3)], rounds=0)
    for request, answer, name in zip(requests, answers, names, strict=False):
        told = [token for chunk in answer.chunks for token in chunk.tokens]
        model = build() if name is None else lt.load(build(), folders[name])
        ids = torch.tensor([[token.id for token in told]])
        logs = model.eval()(ids).logits[0].log_softmax(-1)
        assert ids[0, : len(request.prompt)].tolist() == list(request.prompt) and told[0].logprob is None
        wanted = logs[:-1].gather(1, ids[0, 1:, None])[:, 0].tolist()
        assert [token.logprob for token in told[1:]] == pytest.approx(wanted, abs=1e-5)
        assert [token.top[0][0] for token in told[1:]] == logs[:-1].argmax(-1).tolist()
        assert answer.text.startswith(request.echo) and answer.finish == "length"
    assert answers[1].ids[len(requests[1].prompt) :] == answers[4].ids


def test_no_tokens_only_for_an_echo():
    engine = Engine(build(), tiny.tokenizer())
    with pytest.raises(LuthierError, match="max_tokens is 0; expected at least 1"):
        engine.submit(asked("a", max_tokens=0), lambda chunk: None)
    (answer,) = served(engine, [asked("ab", max_tokens=0, echo="ab", logprobs=None)], rounds=0)
    assert answer.text == "ab" and answer.ids == [] and answer.finish == "length"


# --- vectors ---


def test_vectors_are_pooled_hidden_states(tmp_path):
    folders = saved(tmp_path, "llama", "lora", rank=4)
    engine = Engine(build(), tiny.tokenizer(), adapters=folders)
    model = lt.load(build(), folders["a"]).eval()
    for pooling in ("last", "mean"):
        found = engine.embed([ids_of(text) for text in PROMPTS], "a", pooling)
        for text, vector in zip(PROMPTS, found, strict=True):
            states = model(torch.tensor([ids_of(text)]), output_hidden_states=True).hidden_states[-1][0]
            wanted = states[-1] if pooling == "last" else states.mean(0)
            assert vector == pytest.approx((wanted / wanted.norm()).tolist(), abs=1e-5)
