"""The chat template of training travels in the adapter's spec, whatever characters it has."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest

from luthier.core.checks import plain
from luthier.models import Chat, Loaded, with_chat

ODD = "{{ '\r\n\x0b\u202e\U0001f99c' }}{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.mark.parametrize("template", [ODD, {"default": ODD, "tool_use": "{{ tools }}"}])
def test_a_spec_keeps_it_and_gives_it_back(template):
    chat = Chat(template, {"enable_thinking": False})
    plain("measured", chat.kept())
    assert Chat.of({"measured": chat.kept()}) == chat


@pytest.mark.parametrize(
    "kept",
    [
        None,
        1,
        {},
        {"template": "no JSON", "variables": {}},
        {"template": "{}", "variables": {}},
        {"template": "[1]", "variables": {}},
        {"template": '"x"', "variables": []},
    ],
)
def test_what_is_no_template_is_none(kept):
    assert Chat.of({"measured": {"chat": kept} if kept else {}}) is None


def test_a_base_with_another_template_is_told_and_prompts_are_rendered_by_the_adapters():
    base = Loaded(None, SimpleNamespace(chat_template="{{ 'a' }}"), "base", "base", "causal-lm", [])
    spec = {"measured": Chat("{{ 'b' }}").kept()}
    with pytest.warns(UserWarning, match="the chat template of 'base' is not the one that run was trained with"):
        assert with_chat(base, spec, "run").processor.chat_template == "{{ 'b' }}"
    assert base.processor.chat_template == "{{ 'a' }}"
    same = dataclasses.replace(base, processor=SimpleNamespace(chat_template="{{ 'b' }}"))
    assert with_chat(same, spec, "run") is same and with_chat(base, {"measured": {}}, "run") is base
