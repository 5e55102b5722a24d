"""What a row says is said once: marks of templates and of thoughts within words are told or refused."""

from __future__ import annotations

import re
import time

import pytest

from luthier.core.errors import LuthierError
from luthier.data import Example, encode, told
from luthier.data.chat import AGAIN, ENDED, SPACED, TWICE, WRAPPED
from luthier.data.messages import loose_mark, split_thought
from support.chat_rows import published, said
from support.tiny_tokenizers import CHATML, make

REASONING = [name for name in ("qwen3", "glm4moe", "qwen3_5_think", "deepseek_r1_distill") if name in published()]
LOOSE = [
    "Use the </think> tag to end.",
    "thought</think>answer",
    "<think>\nt\n</think>\n\nThe </think> tag.",
    "Tags <think> and </think> are used.",
    "Sure. <think>a</think> b",
    "<think>a <think> b</think>c",
]
"""Answers within whose words a mark of thoughts stands."""


def asked(content: str, *later) -> Example:
    return Example(row=1, messages=[said("user", "q?"), said("assistant", content), *later])


def learned(example: Example, tokenizer) -> str:
    labels = encode(example, tokenizer, max_length=None)["labels"]
    return tokenizer.decode([i for i in labels if i != -100], skip_special_tokens=False)


@pytest.mark.parametrize("content", LOOSE)
@pytest.mark.parametrize("name", [*REASONING, "tiny"])
def test_an_answer_that_a_template_parts_at_a_mark_is_refused(name, content):
    tokenizer = make("qwen3" if name == "tiny" else published()[name])
    for later in ((), (said("user", "r?"), said("assistant", "b"))):
        with pytest.raises(LuthierError, match=r"bounds thoughts by '</?think>', renders message 2|does not render"):
            encode(asked(content, *later), tokenizer, max_length=None)


@pytest.mark.parametrize("content", LOOSE)
def test_a_template_that_leaves_marks_alone_learns_the_answer_whole(content):
    tokenizer = make("chatml")
    assert learned(asked(content), tokenizer) == f"{content}<|im_end|>"
    assert "told" not in encode(asked(content), tokenizer, max_length=None)


@pytest.mark.parametrize("masked", [(), (1,)])
def test_a_mark_in_an_answer_that_is_only_read_is_refused_too(masked):
    turns = [said("user", "q?"), said("assistant", LOOSE[0]), said("user", "r?"), said("assistant", "b")]
    with pytest.raises(LuthierError, match="row 1"):
        encode(Example(row=1, messages=turns, masked=masked), make("qwen3"), max_length=None)


@pytest.mark.parametrize(
    "content", ["Use the <think> tag.", "thought\n</think>\n\nanswer", "<think>\nt\n</think>\n\nanswer"]
)
def test_marks_that_bound_a_thought_or_change_nothing_are_learned(content):
    assert content in learned(asked(content), make("qwen3"))
    assert SPACED not in told([encode(asked(content), make("qwen3"), max_length=None)])


@pytest.mark.parametrize("role", ["system", "user"])
def test_marks_in_other_turns_are_read_as_they_stand(role):
    turns = [
        said(role, "What is </think>?"),
        *([said("user", "q?")] if role == "system" else []),
        said("assistant", "a"),
    ]
    tokenizer = make("qwen3")
    ids = encode(Example(row=1, messages=turns), tokenizer, max_length=None)["input_ids"]
    assert "What is </think>?" in tokenizer.decode(ids)


def notes(example: Example, template: str) -> list[str]:
    return list(told([encode(example, make(template), max_length=None)]))


def test_an_end_of_the_tokenizer_before_that_of_the_template_is_told():
    assert notes(asked("a<|eos|>"), "chatml") == [ENDED.format("<|eos|>", "<|im_end|>")]
    assert notes(asked("a<|im_end|> \n"), "chatml")[-1] == TWICE.format("<|im_end|>")
    assert notes(asked("a<|eos|>"), "none") == []


@pytest.mark.parametrize(
    ("prompt", "template", "mark"),
    [
        ("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n", "chatml", "<|im_start|>"),
        ("<|bos|>q", "mistral", "<|bos|>"),
        ("<|bos|>q", "{{ '<|bos|>' }}" + CHATML, "<|bos|>"),
        ("<|im_start|>q", "mistral", None),
        ("<|im_start|>q", "none", None),
    ],
)
def test_rows_that_are_rendered_already_are_told(prompt, template, mark):
    row = Example(row=1, messages=[said("user", prompt), said("assistant", "a")])
    assert notes(row, template) == ([AGAIN.format(mark)] if mark else [])


RESPONSE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'tool' %}<tool_response>\n"
    "{{ m.content }}\n</tool_response>{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("content", "told"), [("<tool_response>\n1\n</tool_response>", True), ("<b>1</b>", False), ("1", False)]
)
def test_a_tag_that_a_turn_and_its_template_both_open_with_is_told(content, told):
    row = Example(row=1, messages=[said("user", "<tool_response>q"), said("tool", content), said("assistant", "a")])
    assert notes(row, RESPONSE) == ([WRAPPED.format("<tool_response>")] if told else [])


PIECES = ["<think>", "</think>", "<thinking>", "</thinking>", "a", "\n"]


@pytest.mark.parametrize("start", range(len(PIECES)))
def test_thoughts_are_found_as_a_pattern_finds_them(start):
    pattern = re.compile(r"<(think|thinking|thought|reasoning)>(.*?)</\1>", re.DOTALL)
    for number in range(len(PIECES) ** 5):
        places = [start, *(number // len(PIECES) ** i % len(PIECES) for i in range(5))]
        content = "".join(PIECES[place] for place in places)
        wanted = "".join(found[1] for found in pattern.findall(content)), pattern.sub("", content)
        assert split_thought(content) == wanted


@pytest.mark.parametrize("piece", ["<think>", "</think>", "<think>\n", " \n</think", "<think></thinking>", " " * 9])
def test_marks_by_the_thousand_are_looked_through_at_once(piece):
    begun = time.monotonic()
    loose_mark(piece * 20_000)
    assert time.monotonic() - begun < 2  # a pattern looks for each opening's end to the end of all
