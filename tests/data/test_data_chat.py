"""Everything that a row says reaches the text, or the row is refused: over published templates, and on made-up ones."""

from __future__ import annotations

import dataclasses
import re

import pytest

from luthier.core.errors import LuthierError
from luthier.data import Example, encode, prompt_ids, prompt_of, told
from luthier.data.chat import HISTORY, SPACED, UNHEARD
from luthier.data.template import Template
from luthier.data.told import ANSWERLESS
from support.chat_rows import CALL, NOT_LEARNED, ROWS, TOOLS, asked_a_tool, published, said
from support.tiny_tokenizers import CHATML, make

REASONING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.reasoning_content %}"
    "{{ '<think>\n' + m.reasoning_content + '\n</think>\n\n' }}{% endif %}{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
CUTS = CHATML.replace("m['content']", "m['content'].split('</think>')[-1]")
CALLS = (
    "{% if tools %}{{ '<|im_start|>tools\n' + tools | tojson + '<|im_end|>\n' }}{% endif %}{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content }}{% for c in m.tool_calls or [] %}"
    "{{ '<tool>' + c.function.name + ' ARGS</tool>' }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
OBJECTS = CALLS.replace("ARGS", "' + c.function.arguments | tojson + '")
PASTED = CALLS.replace("ARGS", "' + c.function.arguments + '")
PYTHONIC = CALLS.replace("' ARGS</tool>' }}", "' ' }}{{ c.function.arguments }}{{ '</tool>' }}")
PAPERS = CHATML + "{# documents #}"
PHI = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)


def learned(example: Example, tokenizer) -> str:
    feature = encode(example, tokenizer, max_length=None)
    kept = [label for label in feature["labels"] if label != -100]
    return tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def answers(example: Example) -> list[str]:
    turns = example.messages or []
    return [m.get("content") or "" for i, m in enumerate(turns) if m["role"] == "assistant" and i not in example.masked]


@pytest.mark.parametrize("name", published() or ["none"])
def test_with_published_templates_a_row_is_learned_whole_or_refused(name):
    if not published():
        pytest.skip("trl is not installed")
    tokenizer, used = make(published()[name]), 0
    for example in ROWS.values():
        try:
            feature = encode(example, tokenizer, max_length=None)
        except LuthierError as reason:
            assert str(reason).startswith("row 1: the chat template")
            continue
        used += 1
        check_learned(example, feature, tokenizer)
        ids = prompt_ids(example, tokenizer)
        assert feature["input_ids"][: len(ids)] == ids and feature["labels"][len(ids)] != -100
    assert used or name.startswith(("idefics", "llava", "smolvlm"))  # which want content in parts


def check_learned(example: Example, feature: dict, tokenizer) -> None:
    text, notes = learned(example, tokenizer), feature.get("told", {})
    assert not [word for word in NOT_LEARNED if word in text]
    parts = [part for answer in answers(example) for part in re.findall(r"[A-Z]+Q", answer)]
    parts += re.findall(r"[A-Z]+Q", " ".join(m.get("reasoning_content") or "" for m in example.messages))
    lost = [part for part in parts if part not in text]
    assert not lost or (notes.get(HISTORY) == 1 and set(lost) <= {"FIRSTQ", "THINKQ", "LOOKQ"})
    assert ("FIRSTQ" in text) == ("FIRSTQ" in parts and "FIRSTQ" not in lost)
    if example.tools and not lost:
        assert "get_level" in text and "Como" in text and '\\"' not in text
        assert "Water level of a lake." in tokenizer.decode(feature["input_ids"])


TAKEN = {
    "qwen2_5": {"tool", "tool and words", "thought within"},
    "qwen3": {"tool", "tool and words", "thought", "two thoughts", "thought within"},
    "llama3_1": {"tool", "thought within"},
    "gptoss": {"tool", "tool and words", "thought", "two thoughts", "thought within"},
    "glm4moe": {"tool", "tool and words", "thought", "two thoughts", "thought within"},
    "deepseekv3": set(),
    "deepseek_r1_distill": set(),
    "phi3": {"thought within"},
}


@pytest.mark.parametrize("name", [name for name in TAKEN if name in published()])
def test_what_well_known_templates_can_say(name):
    tokenizer, taken = make(published()[name]), set()
    for row in ("tool", "tool and words", "thought", "two thoughts", "thought within"):
        try:
            encode(ROWS[row], tokenizer, max_length=None)
        except LuthierError:
            continue
        taken.add(row)
    assert taken == TAKEN[name]


def test_phi_3_does_not_learn_what_follows_its_end_of_turn():
    for template in (PHI, PHI.replace("<|end|>\n", "<|end|>"), *(published()[n] for n in published() if "phi3" in n)):
        tokenizer = make(template)
        for extra in ([], ["<|end|>"]):
            tokenizer.add_special_tokens({"additional_special_tokens": extra}, replace_extra_special_tokens=False)
            assert learned(ROWS["two turns"], tokenizer) == "FIRSTQ<|end|>SECONDQ<|end|>"


def test_an_end_of_turn_that_is_no_token_is_told():
    feature = encode(ROWS["system"], make(PHI), max_length=None)
    assert any("'<|end|>', which is not a token here" in note for note in told([feature]))


def test_masked_turns_are_read_and_not_learned():
    for template in ("chatml", "llama3", "generation", "greedy generation", "mistral", "none"):
        text = learned(ROWS["masked"], make(template))
        assert "SECONDQ" in text and "FIRSTQ" not in text
        feature = encode(ROWS["masked"], make(template), max_length=None)
        assert "FIRSTQ" in make(template).decode(feature["input_ids"])
    last = dataclasses.replace(ROWS["two turns"], masked=(3,))
    assert "FIRSTQ" in learned(last, make("chatml")) and "SECONDQ" not in learned(last, make("chatml"))


def test_a_row_whose_answers_are_all_kept_out_is_refused():
    for template in ("chatml", "none"):
        with pytest.raises(LuthierError, match="the row keeps all of them out of the loss"):
            encode(dataclasses.replace(ROWS["two turns"], masked=(1, 3)), make(template), max_length=None)


def test_a_prompt_ends_before_a_last_answer_that_is_kept_out():
    row = dataclasses.replace(ROWS["two turns"], masked=(1, 3))
    assert prompt_of(row, make("chatml")).endswith("MOREQ?<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize("template", [OBJECTS, PASTED, PYTHONIC])
def test_arguments_are_learned_as_an_object(template):
    rows = [ROWS["tool"], dataclasses.replace(ROWS["tool"], messages=asked_a_tool())]
    decoded = {**CALL, "function": {"name": "get_level", "arguments": {"lake": "Como"}}}
    rows[1].messages[1]["tool_calls"] = [decoded]
    for row in rows:
        text = learned(row, make(template))
        assert text == '<tool>get_level {"lake": "Como"}</tool><|im_end|>LEVELQ metres.<|im_end|>'


def test_arguments_that_can_only_be_quoted_are_refused():
    template = CALLS.replace("ARGS", "' + (c.function.arguments | tojson | tojson) + '")
    with pytest.raises(LuthierError, match="as a quoted string"):
        encode(ROWS["tool"], make(template), max_length=None)


def test_a_call_that_is_not_rendered_is_refused():
    for template in ("chatml", CALLS):
        with pytest.raises(LuthierError, match=r"row 1: the chat template does not render"):
            encode(ROWS["tool"], make(template), max_length=None)
    bare = dataclasses.replace(ROWS["tool"], tools=None)
    with pytest.raises(LuthierError, match=r"does not render the call of a function of message 2 \(assistant\)"):
        encode(bare, make("chatml"), max_length=None)


def test_words_beside_a_call_that_are_not_rendered_are_refused():
    template = OBJECTS.replace("'\n' + m.content", "'\n' + ('' if m.tool_calls else m.content)")
    with pytest.raises(LuthierError, match=r"the content of message 2 \(assistant\); nothing of it would be learned"):
        encode(ROWS["tool and words"], make(template), max_length=None)


def test_a_call_after_words_is_learned():
    text = learned(ROWS["tool and words"], make(OBJECTS))
    assert text.startswith('LOOKQ first.<tool>get_level {"lake": "Como"}</tool><|im_end|>')


@pytest.mark.parametrize(("row", "what"), [("tool", "tools"), ("documents", "documents"), ("thought", "thoughts")])
def test_without_a_template_nothing_can_say_them(row, what):
    with pytest.raises(LuthierError, match=f"row 1: the row has {what}.*no chat template"):
        encode(ROWS[row], make("none"), max_length=None)
    with pytest.raises(LuthierError, match=f"row 1: the row has {what}.*encoder-decoder"):
        encode(ROWS[row], make("none"), max_length=None, task="seq2seq")


def test_without_a_template_a_turn_that_only_calls_is_refused():
    row = dataclasses.replace(ROWS["tool"], tools=None)
    for task in ("causal-lm", "seq2seq"):
        with pytest.raises(LuthierError, match="row 1: the row has calls of functions"):
            encode(row, make("none"), max_length=None, task=task)


def test_documents_that_are_not_rendered_are_refused():
    with pytest.raises(LuthierError, match="does not render the row's documents"):
        encode(ROWS["documents"], make(PAPERS), max_length=None)
    shown = "{% if documents %}{{ documents | tojson + '\n' }}{% endif %}" + CHATML
    feature = encode(ROWS["documents"], make(shown), max_length=None)
    assert "PAPERQ" in make(shown).decode(feature["input_ids"])
    assert "PAPERQ" not in learned(ROWS["documents"], make(shown))


def test_tools_of_which_one_is_left_out_are_refused():
    first = OBJECTS.replace("tools | tojson", "tools[0] | tojson")
    both = [*TOOLS, {"type": "function", "function": {"name": "get_depth", "description": "Depth.", "parameters": {}}}]
    encode(ROWS["tool"], make(first), max_length=None)
    with pytest.raises(LuthierError, match="does not render the row's tools"):
        encode(dataclasses.replace(ROWS["tool"], tools=both), make(first), max_length=None)


def test_a_thought_is_learned_where_the_template_has_a_word_for_it():
    for name in ("reasoning_content", "thinking", "reasoning"):
        tokenizer = make(REASONING.replace("reasoning_content", name))
        assert learned(ROWS["thought"], tokenizer) == "<think>\nTHINKQ a while\n</think>\n\nFIRSTQ<|im_end|>"
    with pytest.raises(LuthierError, match=r"thought of message 2 \(assistant\); use a template"):
        encode(ROWS["thought"], make("chatml"), max_length=None)


def test_a_thought_whose_words_stand_elsewhere_is_not_taken_for_rendered():
    row = Example(row=1, messages=[said("user", "a?"), said("assistant", "A pear.", reasoning_content="pear")])
    with pytest.raises(LuthierError, match="does not render the thought"):
        encode(row, make("chatml"), max_length=None)


def test_a_template_that_cuts_a_thought_is_refused_and_one_that_keeps_it_learns_it():
    with pytest.raises(LuthierError, match="does not render the thought of message 2"):
        encode(ROWS["thought within"], make(CUTS), max_length=None)
    assert "<think>\nTHINKQ a while\n</think>\n\nFIRSTQ" in learned(ROWS["thought within"], make("chatml"))


@pytest.mark.parametrize("cut", ["[:20]", ".split('KEPT')[0]", ".replace('PARTQ', '')", " | upper"])
def test_a_template_that_changes_an_answer_is_refused(cut):
    template = CHATML.replace("m['content']", f"(m['content']{cut})")
    row = Example(row=1, messages=[said("user", "a?"), said("assistant", "Some words KEPT and then PARTQ, the end.")])
    with pytest.raises(LuthierError, match=r"does not render the content of message 2 \(assistant\)"):
        encode(row, make(template), max_length=None)


@pytest.mark.parametrize("role", ["system", "user", "tool"])
def test_a_template_that_leaves_out_a_turn_is_refused(role):
    template = CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != '" + role + "' %}")
    row = Example(row=1, messages=[said("user", "u?"), said("tool", "TTT"), said("assistant", "a")])
    row = row if role != "system" else dataclasses.replace(row, messages=[said("system", "SSS"), *row.messages])
    with pytest.raises(LuthierError, match=rf"does not render the content of message \d \({role}\)"):
        encode(row, make(template), max_length=None)


def test_a_developer_is_heard_as_the_system_where_the_template_has_no_other_word():
    row = Example(row=1, messages=[said("developer", "RULEQ"), said("user", "ASKQ?"), said("assistant", "FIRSTQ")])
    assert "<|im_start|>system\nRULEQ<|im_end|>" in prompt_of(row, make("chatml"))


def test_earlier_answers_without_their_thoughts_are_told_and_not_learned():
    tokenizer = make("qwen3")
    row = dataclasses.replace(
        ROWS["two turns"],
        messages=[
            said("user", "ASKQ?"),
            said("assistant", "<think>\nTHINKQ\n</think>\n\nFIRSTQ"),
            said("user", "MOREQ?"),
            said("assistant", "<think>\nPONDERQ\n</think>\n\nSECONDQ"),
        ],
    )
    features = [encode(row, tokenizer, max_length=None)] * 3
    assert told(features) == {HISTORY: "3 in 3 rows"}
    assert learned(row, tokenizer) == "<think>\nPONDERQ\n</think>\n\nSECONDQ<|im_end|>"
    masked = dataclasses.replace(row, masked=(1,))
    assert told([encode(masked, tokenizer, max_length=None)]) == {UNHEARD: "1 in 1 row"}


def test_variables_reach_every_render():
    row = dataclasses.replace(ROWS["two turns"], template={"enable_thinking": False})
    feature = encode(row, make(REASONING), max_length=None)
    assert learned(row, make(REASONING)) == "FIRSTQ<|im_end|>SECONDQ<|im_end|>"
    empty = "<|im_start|>assistant\n<think>\n\n</think>\n\nSECONDQ"
    assert empty in make(REASONING).decode(feature["input_ids"])
    assert prompt_of(row, make(REASONING)).endswith(empty.removesuffix("SECONDQ"))
    assert "told" not in feature


def test_a_variable_that_is_never_read_is_told():
    row = dataclasses.replace(ROWS["two turns"], template={"enable_thinking": False, "mood": "x"})
    feature = encode(row, make(REASONING), max_length=None)
    assert list(told([feature])) == ["the chat template never reads 'mood' of chat_template_kwargs"]
    assert any("nothing reads" in note for note in told([encode(row, make("none"), max_length=None)]))


@pytest.mark.parametrize("name", ["tools", "chat_template", "tokenize", "add_generation_prompt", "messages"])
def test_variables_do_not_reach_the_settings_of_the_library(name):
    with pytest.raises(LuthierError, match=f"chat_template_kwargs holds '{name}'"):
        encode(dataclasses.replace(ROWS["two turns"], template={name: 1}), make("chatml"), max_length=None)


def test_a_variable_that_opens_what_the_answer_does_not_close_is_refused():
    template = REASONING.replace("<think>\n\n</think>\n\n", "<think>\n")
    row = dataclasses.replace(ROWS["two turns"], template={"enable_thinking": False})
    with pytest.raises(LuthierError, match="make the prompt end with '<think>'"):
        encode(row, make(template), max_length=None)


def test_another_prompt_for_generation_is_told():
    template = CHATML.replace("{{ '<|im_start|>assistant\n' }}", "{{ '<|im_start|>assistant\n<think>\n' }}")
    (note,) = told([encode(ROWS["two turns"], make(template), max_length=None)])
    assert note.endswith("goes on with '<think>', and answers are learned behind nothing instead")


def test_named_templates_are_chosen_by_what_the_row_says():
    tokenizer = make("chatml")
    papers = "{% if documents %}{{ documents | tojson + '\n' }}{% endif %}" + CHATML
    tokenizer.chat_template = {"default": CHATML, "tool_use": OBJECTS, "rag": papers}
    assert Template.of(ROWS["two turns"], tokenizer).source == CHATML
    assert '<tool>get_level {"lake": "Como"}</tool>' in learned(ROWS["tool"], tokenizer)
    assert "PAPERQ" in prompt_of(ROWS["documents"], tokenizer)
    tokenizer.chat_template = {"tool_use": OBJECTS}
    with pytest.raises(LuthierError, match="chat templates do not fit this row"):
        encode(ROWS["two turns"], tokenizer, max_length=None)


def test_a_named_template_that_marks_its_answers_is_believed():
    tokenizer = make("generation")
    tokenizer.chat_template = {"default": tokenizer.chat_template}
    assert learned(ROWS["masked"], tokenizer) == "SECONDQ<|im_end|>"


def test_no_token_is_doubled_or_it_is_told():
    row = Example(row=1, messages=[said("user", "a?"), said("assistant", "one<|im_end|>")])
    (note,) = told([encode(row, make("chatml"), max_length=None)])
    assert note == "answers end with '<|im_end|>' already, and the template adds another; take it out of the rows"
    opened = make("{{ bos_token }}{{ bos_token }}" + CHATML)
    (note,) = told([encode(ROWS["system"], opened, max_length=None)])
    assert note == "the text opens with '<|bos|>' twice"
    plain = Example(row=1, messages=[said("user", "a?"), said("assistant", "one<|eos|>")])
    assert learned(plain, make("none")) == "one<|eos|>"
    assert learned(Example(row=1, text="<|bos|>all<|eos|>"), make("none")) == "<|bos|>all<|eos|>"


def test_a_cut_prompt_that_loses_its_system_message_is_told():
    tokenizer = make("llama3")
    n = len(encode(ROWS["system"], tokenizer, max_length=None)["input_ids"])
    feature = encode(ROWS["system"], tokenizer, max_length=n - 2, truncate=True)
    assert [note for note in told([feature]) if "lost their system message or tools" in note]


def test_an_encoder_decoder_tells_what_it_does_not_learn():
    feature = encode(ROWS["two turns"], make("none"), max_length=None, task="seq2seq")
    assert [count for note, count in told([feature]).items() if "one answer a row" in note] == ["1 in 1 row"]
    with pytest.raises(LuthierError, match="the last answer is kept out of the loss"):
        encode(dataclasses.replace(ROWS["two turns"], masked=(3,)), make("none"), max_length=None, task="seq2seq")


def test_white_space_that_a_template_takes_off_is_told():
    """Indented code is another answer without its indentation; line breaks around a thought are the template's."""
    trimmed = make(CHATML.replace("m['content']", "(m['content'] | trim)"))
    for content, changed in (("  return 1", True), ("return 1", False), ("<think>a</think>\n\nreturn 1", False)):
        example = Example(row=1, messages=[{"role": "user", "content": "q"}, {"role": "assistant", "content": content}])
        assert (SPACED in told([encode(example, trimmed, max_length=None)])) == changed
        assert SPACED not in told([encode(example, make(CHATML), max_length=None)])


@pytest.mark.parametrize(
    ("content", "missing"), [("nan", True), ("None", True), ("N/A", True), ("None of them", False)]
)
def test_answers_that_seem_to_be_missing_ones_are_told(content, missing):
    example = Example(row=1, messages=[{"role": "user", "content": "q"}, {"role": "assistant", "content": content}])
    assert (ANSWERLESS in told([encode(example, make(CHATML), max_length=None)])) == missing
