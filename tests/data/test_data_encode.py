"""The tokens in the loss: for every template, backend and shape of conversation, exactly the answers and their ends."""

from __future__ import annotations

import io

import pytest

from luthier.core.errors import LuthierError
from luthier.data import (
    Example,
    Examples,
    encode,
    encode_all,
    encode_classification,
    encode_seq2seq,
    prompt_ids,
    prompt_of,
    show_example,
    show_plain,
    told,
)
from luthier.data.chat import HISTORY, rendered
from luthier.data.show import Meaning
from support.tiny_tokenizers import BACKENDS, DROPS, END, PARTS, TEMPLATES, make


def chat(*contents: str, system: str | None = None, context: int = 0) -> Example:
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    head = [{"role": "system", "content": system}] if system else []
    return Example(row=7, messages=head + turns, context=context)


CASES = {
    "single": chat("What is 2 + 2?", "4"),
    "words of the template": chat("user?", "assistant"),
    "answer inside the prompt": chat("4 4 4 is 4", "4"),
    "several lines": chat("How many?\n", "48/2 = 24 clips.\n\n#### 24"),
    "opens with a line break": chat("How many?", "\nA: 4"),
    "opens with two line breaks": chat("How many?\n\n", "\n\n4"),
    "ends with whitespace": chat("How many?", "4 \n"),
    "other scripts": chat("¿Cuántos? 多少", "四 🦜🏽 é"),
    "two turns": chat("What is 2 + 2?", "4", "And 3 + 3?", "6"),
    "equal answers": chat("What is 2 + 2?", "4", "And 1 + 3?", "4", "Sure?", "4"),
}


def learned(feature: dict, tokenizer) -> str:
    kept = [label for label in feature["labels"] if label != -100]
    return tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def squeezed(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_the_loss_covers_the_answers_with_their_ends(template, backend, case):
    example, tokenizer = CASES[case], make(template, backend)
    if backend == "metaspace" and case == "other scripts":
        pytest.skip("the tiny vocabulary has no such characters")
    feature = encode(example, tokenizer, max_length=None)
    answers = [m["content"] for m in example.messages if m["role"] == "assistant"]
    thought = "<think></think>" if template == "qwen3" else ""
    end = END[template]
    ends = [end] * len(answers) if template != "headless" else [""] * (len(answers) - 1) + [end]
    wanted = [squeezed(answer) + e for answer, e in zip(answers, ends, strict=True)]
    wanted[-1] = thought + wanted[-1]
    assert squeezed(learned(feature, tokenizer)) == "".join(wanted)
    assert len(feature["labels"]) == len(feature["input_ids"]) == len(feature["attention_mask"])
    assert all(x in (-100, i) for x, i in zip(feature["labels"], feature["input_ids"], strict=True))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("template", TEMPLATES)
def test_training_sees_the_prompt_that_generation_sees(template, case):
    example, tokenizer = CASES[case], make(template)
    ids = prompt_ids(example, tokenizer)
    assert encode(example, tokenizer, max_length=None)["input_ids"][: len(ids)] == ids
    prompt = prompt_of(example, tokenizer)
    alone = tokenizer(prompt, add_special_tokens=template == "none")["input_ids"]
    assert ids == alone or len([m for m in example.messages if m["role"] == "assistant"]) > 1


@pytest.mark.parametrize("answer", ["\n\nA: 4\n  then\n", " 4", "  4 "])
@pytest.mark.parametrize("backend", ["bytes", "bytes-trimmed"])
@pytest.mark.parametrize("template", ["chatml", "generation", "none"])
def test_whitespace_of_an_answer_is_learned_exactly(template, backend, answer):
    tokenizer = make(template, backend)
    feature = encode(chat("How many?\n", answer), tokenizer, max_length=None)
    assert learned(feature, tokenizer) == answer + END[template]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("template", ["chatml", "none"])
def test_cutting_at_a_boundary_changes_no_text(template, backend, case):
    tokenizer = make(template, backend)
    ids = encode(CASES[case], tokenizer, max_length=None)["input_ids"]
    whole = tokenizer(rendered(CASES[case], tokenizer).text, add_special_tokens=template == "none")["input_ids"]
    assert tokenizer.decode(ids) == tokenizer.decode(whole)


@pytest.mark.parametrize("template", TEMPLATES)
def test_one_bos(template):
    tokenizer = make(template)
    ids = encode(CASES["two turns"], tokenizer, max_length=None)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == (template in ("llama3", "gemma", "mistral", "none"))


def test_the_line_break_after_the_end_of_turn_is_not_learned():
    tokenizer = make("chatml")
    feature = encode(CASES["single"], tokenizer, max_length=None)
    assert tokenizer.decode(feature["input_ids"]).endswith("4<|im_end|>\n")
    assert feature["labels"][-1] == -100 and feature["labels"][-2] == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_an_answer_is_learned_where_the_template_keeps_its_thought():
    tokenizer = make("qwen3")
    example = chat("a?", "<think>\nhm\n</think>\n\none", "b?", "<think>\nho\n</think>\n\ntwo")
    feature = encode(example, tokenizer, max_length=None)
    assert squeezed(learned(feature, tokenizer)) == "<think>ho</think>two<|im_end|>"
    assert told([feature]) == {HISTORY: "1 in 1 row"}


def test_only_the_completion_of_a_conversational_prompt_is_learned():
    for template in ("chatml", "generation", "none"):
        example = chat("a?", "one", "b?", "two", context=3)
        assert (
            squeezed(learned(encode(example, make(template), max_length=None), make(template))) == "two" + END[template]
        )


def test_tool_calls_without_content_are_learned():
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m.tool_calls %}"
        "{{ m.tool_calls[0].function.name }}{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "clock"}}]}
    turns = [{"role": "user", "content": "time?"}, call, {"role": "tool", "content": "noon"}]
    turns.append({"role": "assistant", "content": "It is noon."})
    tokenizer = make(template)
    feature = encode(Example(row=1, messages=turns), tokenizer, max_length=None)
    assert learned(feature, tokenizer) == "clock<|im_end|>It is noon.<|im_end|>"


def test_a_template_that_drops_answers_is_an_error():
    with pytest.raises(LuthierError, match=r"row 7.*nothing of it would be learned"):
        encode(CASES["single"], make(DROPS), max_length=None)
    with pytest.raises(LuthierError, match=r"row 7.*does not render the content of message 2"):
        encode(CASES["single"], make(PARTS), max_length=None)


def test_a_template_that_refuses_the_conversation_says_so():
    with pytest.raises(LuthierError, match=r"row 7.*System role not supported"):
        encode(chat("a", "b", system="c"), make("gemma"), max_length=None)


def test_a_system_message_is_not_learned():
    for template in ("chatml", "llama3", "qwen3", "generation", "mistral", "none"):
        tokenizer = make(template)
        text = squeezed(learned(encode(chat("a?", "one", system="Be brief."), tokenizer, max_length=None), tokenizer))
        assert text.removeprefix("<think></think>") == "one" + END[template]


def test_plain_text_is_learned_whole_but_for_the_bos():
    tokenizer = make("chatml")
    feature = encode(Example(row=1, text="What is the sum?"), tokenizer, max_length=None)
    assert learned(feature, tokenizer) == "What is the sum?<|eos|>"
    assert feature["input_ids"][0] == tokenizer.bos_token_id and feature["labels"][0] == -100


def test_no_eos_is_an_error():
    tokenizer = make("none")
    tokenizer.eos_token = None
    with pytest.raises(LuthierError, match="no EOS token"):
        encode(CASES["single"], tokenizer, max_length=None)


def test_a_headless_template_gets_its_header_from_the_prompt():
    assert prompt_of(CASES["single"], make("headless")).endswith("assistant: ")


def test_a_long_row_names_itself_and_both_lengths():
    tokenizer = make("chatml")
    n = len(encode(CASES["single"], tokenizer, max_length=None)["input_ids"])
    assert encode(CASES["single"], tokenizer, max_length=n)["truncated"] == 0
    with pytest.raises(LuthierError, match=rf"row 7: {n} tokens, the maximum is {n - 1}"):
        encode(CASES["single"], tokenizer, max_length=n - 1)


@pytest.mark.parametrize("template", ["chatml", "llama3", "none"])
def test_truncation_cuts_the_prompt_on_the_left_and_no_answer(template):
    tokenizer = make(template)
    whole = encode(CASES["single"], tokenizer, max_length=None)
    n = len(whole["input_ids"])
    cut = encode(CASES["single"], tokenizer, max_length=n - 5, truncate=True)
    assert cut["truncated"] == 5 and len(cut["input_ids"]) == n - 5
    assert learned(cut, tokenizer) == learned(whole, tokenizer)
    opens = whole["input_ids"][0] == tokenizer.bos_token_id
    assert (cut["input_ids"][0] == tokenizer.bos_token_id) == opens
    with pytest.raises(LuthierError, match="the answer alone has"):
        encode(CASES["single"], tokenizer, max_length=1, truncate=True)


def test_all_rows_are_judged_before_any_is_used():
    tokenizer = make("chatml")
    rows = [Example(row=i, messages=chat("hi", "x" * (i * 40)).messages) for i in range(1, 5)]
    examples = Examples(rows, "messages", "file.jsonl")
    with pytest.raises(LuthierError, match=r"2 of 4 rows of file.jsonl[\s\S]*2 rows: [\s\S]*lines 3, 4") as error:
        encode_all(examples, tokenizer, max_length=120)
    assert "skip_bad_rows" in str(error.value)
    kept = encode_all(examples, tokenizer, max_length=120, skip_bad_rows=True)
    assert [f["row"] for f in kept] == [1, 2]
    with pytest.raises(LuthierError, match="4 of 4"):
        encode_all(examples, tokenizer, max_length=3, skip_bad_rows=True)


def test_an_unknown_task_names_near_ones():
    with pytest.raises(LuthierError, match="did you mean 'causal-lm'"):
        encode(CASES["single"], make("chatml"), max_length=None, task="causal_lm")


def test_classification_by_index_and_regression_by_number():
    tokenizer = make("none")
    example = Example(row=3, text="What is", text_pair="the sum", label="no")
    feature = encode_classification(example, tokenizer, ["yes", "no"], 64)
    assert feature["labels"] == 1 and feature["input_ids"] == tokenizer("What is", "the sum")["input_ids"]
    with pytest.raises(LuthierError, match=r"row 3: label 'no' is none of the 2 classes"):
        encode_classification(example, tokenizer, ["yes", "maybe"], 64)
    assert encode_classification(Example(row=1, text="a", label=2.5), tokenizer, None, 64)["labels"] == 2.5
    with pytest.raises(LuthierError, match=r"row 3: \d+ tokens, the maximum is 4"):
        encode_classification(example, tokenizer, ["yes", "no"], 4)
    cut = encode_classification(example, tokenizer, ["yes", "no"], 4, truncate=True)
    assert len(cut["input_ids"]) == 4 and cut["truncated"] > 0


def test_seq2seq_keeps_prompt_and_answer_apart():
    tokenizer = make("chatml")
    feature = encode_seq2seq(CASES["single"], tokenizer, 64)
    assert tokenizer.decode(feature["input_ids"], skip_special_tokens=True) == "What is 2 + 2?"
    assert tokenizer.decode(feature["labels"], skip_special_tokens=True) == "4"
    assert feature["labels"][-1] == tokenizer.eos_token_id
    with pytest.raises(LuthierError, match="the answer has"):
        encode_seq2seq(CASES["single"], tokenizer, 1, truncate=True)
    short = encode_seq2seq(CASES["single"], tokenizer, 4, truncate=True)
    assert len(short["input_ids"]) == 4 and short["truncated"] > 0


def test_an_example_can_be_shown():
    from rich.console import Console

    tokenizer = make("chatml")
    feature = encode(CASES["other scripts"], tokenizer, max_length=None)
    plain = show_plain(feature, tokenizer)
    assert "🦜" in plain and "�" not in plain and "[[<|im_end|>]]" in plain
    n = sum(label != -100 for label in feature["labels"])
    assert plain.startswith(f"row 7: {len(feature['labels'])} tokens, {n} in the loss")
    shown = "".join(p.split("│")[0] for p in plain.split("\n")[1:2])
    assert shown == "<|im_start|>"
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(show_example(feature, tokenizer))
    assert "in the loss" in console.export_text()
    label = encode_classification(Example(row=1, text="a", label="x"), tokenizer, ["x"], 9)
    assert "tokens, label 0" in show_plain(label, tokenizer)


@pytest.mark.parametrize(("task", "example", "said"), [
    ("classification", Example(row=1, text="a", label="pos"), "In the loss: class pos"),
    ("regression", Example(row=1, text="a", label=0.5), "In the loss: 0.5"),
    ("multi-label", Example(row=1, text="a", labels=("neg", "pos")), "In the loss: classes neg, pos"),
    ("multi-label", Example(row=1, text="a", labels=()), "In the loss: none of the classes"),
    ("token-classification", Example(row=1, tokens=("a", "b"), labels=("pos", "neg")), "In the loss: pos neg"),
    ("embedding", Example(row=1, texts=("a", "b")), "In the loss: how near "),
    ("seq2seq", CASES["single"], "tokens, 3 in the loss"),
])  # fmt: skip
def test_what_is_learned_of_a_row_is_said_in_the_words_of_its_task(task, example, said):
    tokenizer, names = make("chatml"), None if task == "regression" else ["neg", "pos"]
    examples = Examples([example], "any", "rows.jsonl", labels=names, task=task)
    (feature,) = encode_all(examples, tokenizer, max_length=None)
    shown = show_plain(feature, tokenizer, meaning=Meaning(task, names or ()))
    assert said in shown and ("[[" in shown) == (task == "token-classification")
