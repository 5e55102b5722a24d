"""Columns: every known name means what it means in the field, in every layout where it may stand; others are told."""

from __future__ import annotations

import json

import pytest

from luthier.core.contracts.example import fingerprint
from luthier.core.errors import LuthierError
from luthier.data import Example, load

TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
SHARED = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
ROWS = {
    "messages": {"messages": TURNS},
    "conversations": {"conversations": SHARED},
    "prompt-completion": {"prompt": "q", "completion": "a"},
    "prompt-completion of turns": {"prompt": TURNS[:1], "completion": TURNS[1:]},
    "instruction": {"instruction": "q", "input": "", "output": "a"},
    "question-answer": {"question": "q", "answer": "a"},
    "source-target": {"source": "q", "target": "a"},
}
"""A row of every generative layout, all of the same meaning."""
STRINGS = ("prompt-completion", "instruction", "question-answer", "source-target")
SYSTEM = {"role": "system", "content": "Be terse."}
TOOL = {"name": "level", "description": "Water level.", "parameters": {"type": "object", "properties": {}}}
WRAPPED = {"type": "function", "function": TOOL}


def read(tmp_path, *rows, **options):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load(path, **options)


def one(tmp_path, row, **options) -> Example:
    examples = read(tmp_path, row, **options)
    assert examples.unread == ()
    return examples.rows[0]


def refused(tmp_path, row) -> str:
    with pytest.raises(LuthierError) as error:
        read(tmp_path, row)
    return str(error.value)


@pytest.mark.parametrize("layout", ROWS)
def test_layouts_mean_the_same(tmp_path, layout):
    example = one(tmp_path, ROWS[layout])
    assert example.messages == TURNS and example.answer == "a" and example.masked == ()


@pytest.mark.parametrize("name", ["system", "system_prompt", "system_message"])
@pytest.mark.parametrize("layout", ROWS)
def test_system(tmp_path, layout, name):
    assert one(tmp_path, ROWS[layout] | {name: "Be terse."}).messages == [SYSTEM, *TURNS]
    for nothing in (None, ""):
        assert one(tmp_path, ROWS[layout] | {name: nothing}).messages == TURNS
    assert "expected a string" in refused(tmp_path, ROWS[layout] | {name: 3})


def test_a_system_turn_and_a_system_column_agree_or_are_refused(tmp_path):
    row = {"messages": [SYSTEM, *TURNS], "system": "Be terse."}
    assert one(tmp_path, row).messages == [SYSTEM, *TURNS]
    assert "differ" in refused(tmp_path, row | {"system": "Be verbose."})
    assert "differ" in refused(tmp_path, ROWS["instruction"] | {"system": "a", "system_prompt": "b"})


@pytest.mark.parametrize(
    "history",
    [
        [["hi", "hello"]],
        [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}],
        [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}],
        '[["hi", "hello"]]',
    ],
)
@pytest.mark.parametrize("layout", ROWS)
def test_history_is_before_the_prompt_and_not_learned(tmp_path, layout, history):
    example = one(tmp_path, ROWS[layout] | {"history": history, "system": "Be terse."})
    assert [m["content"] for m in example.messages] == ["Be terse.", "hi", "hello", "q", "a"]
    assert [m["role"] for m in example.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert example.context >= 3 and example.context <= 4 and example.answer == "a"


@pytest.mark.parametrize("layout", ROWS)
def test_empty_history_is_none_and_another_is_refused(tmp_path, layout):
    for nothing in (None, "", []):
        assert one(tmp_path, ROWS[layout] | {"history": nothing}).messages == TURNS
    for wrong in ("hi", [["hi"]], ["hi"], [["hi", 3]]):
        assert "history" in refused(tmp_path, ROWS[layout] | {"history": wrong})


@pytest.mark.parametrize(
    "tools", [[WRAPPED], [TOOL], json.dumps([TOOL]), [json.dumps(WRAPPED)], WRAPPED, json.dumps(WRAPPED)]
)
@pytest.mark.parametrize("name", ["tools", "functions"])
@pytest.mark.parametrize("layout", ROWS)
def test_tools(tmp_path, layout, name, tools):
    assert one(tmp_path, ROWS[layout] | {name: tools}).tools == [WRAPPED]


@pytest.mark.parametrize("layout", ROWS)
def test_no_tools_are_none_and_others_are_refused(tmp_path, layout):
    for nothing in (None, "", [], "[]"):
        assert one(tmp_path, ROWS[layout] | {"tools": nothing}).tools is None
    for wrong in ("level", [3], [{"description": "x"}], 3):
        assert "tools" in refused(tmp_path, ROWS[layout] | {"tools": wrong})


@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_tools_of_a_system_turn(tmp_path, column):
    example = one(tmp_path, {column: [SYSTEM | {"tools": json.dumps([TOOL])}, *TURNS]})
    assert example.tools == [WRAPPED] and example.messages == [SYSTEM, *TURNS]
    row = {column: [SYSTEM | {"tools": [TOOL]}, *TURNS], "tools": [TOOL | {"name": "other"}]}
    assert "differ" in refused(tmp_path, row)


@pytest.mark.parametrize("layout", ROWS)
def test_documents(tmp_path, layout):
    document = {"title": "t", "text": "x"}
    assert one(tmp_path, ROWS[layout] | {"documents": [document]}).documents == [document]
    assert one(tmp_path, ROWS[layout] | {"documents": json.dumps([document])}).documents == [document]
    assert one(tmp_path, ROWS[layout] | {"documents": ["x", "y"]}).documents == [{"text": "x"}, {"text": "y"}]
    assert one(tmp_path, ROWS[layout] | {"documents": []}).documents is None
    assert "documents" in refused(tmp_path, ROWS[layout] | {"documents": 3})


@pytest.mark.parametrize("layout", ROWS)
def test_chat_template_kwargs(tmp_path, layout):
    given = {"enable_thinking": False}
    assert one(tmp_path, ROWS[layout] | {"chat_template_kwargs": given}).template == given
    assert one(tmp_path, ROWS[layout] | {"chat_template_kwargs": json.dumps(given)}).template == given
    inner = one(tmp_path, ROWS[layout] | {"chat_template_kwargs": given | {"tools": [TOOL]}})
    assert inner.template == given and inner.tools == [WRAPPED]
    assert "sets tokenize" in refused(tmp_path, ROWS[layout] | {"chat_template_kwargs": {"tokenize": True}})
    assert "expected an object" in refused(tmp_path, ROWS[layout] | {"chat_template_kwargs": "x"})


@pytest.mark.parametrize("name", ["reasoning_content", "thinking"])
@pytest.mark.parametrize("layout", ROWS)
def test_a_thought_in_a_column(tmp_path, layout, name):
    example = one(tmp_path, ROWS[layout] | {name: "Hm."})
    assert example.messages == [TURNS[0], TURNS[1] | {"reasoning_content": "Hm."}]
    assert one(tmp_path, ROWS[layout] | {name: None}).messages == TURNS


def test_a_thought_of_a_column_needs_one_answer(tmp_path):
    assert "which of 2 answers" in refused(tmp_path, {"messages": TURNS * 2, "thinking": "Hm."})


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
@pytest.mark.parametrize("column", ["messages", "conversations", "completion"])
def test_a_thought_on_a_turn(tmp_path, column, key):
    turn = {"role": "assistant", "content": "a", key: "Hm."}
    row = {"prompt": "q", column: [turn]} if column == "completion" else {column: [TURNS[0], turn]}
    wanted = [TURNS[0], TURNS[1] | {"reasoning_content": "Hm."}]
    assert one(tmp_path, row).messages == wanted
    turn |= {"reasoning_content": "Hm.", "thinking": "Oh."}
    assert "two thoughts that differ" in refused(tmp_path, row)


@pytest.mark.parametrize("layout", STRINGS)
def test_context_is_in_the_prompt(tmp_path, layout):
    for context in ("It rains.", ["It rains."]):
        example = one(tmp_path, ROWS[layout] | {"context": context})
        assert sorted(example.messages[0]["content"].split("\n\n")) == ["It rains.", "q"]
        assert example.messages[1:] == TURNS[1:]
    assert one(tmp_path, ROWS[layout] | {"context": None}).messages == TURNS
    assert "'context' is" in refused(tmp_path, ROWS[layout] | {"context": 3})


@pytest.mark.parametrize("layout", [name for name in ROWS if name not in STRINGS])
def test_context_beside_turns_is_refused(tmp_path, layout):
    assert "does not say where it belongs" in refused(tmp_path, ROWS[layout] | {"context": "It rains."})
    assert (
        one(tmp_path, ROWS[layout] | {"context": "It rains."}, named="system=context").messages[0]["role"] == "system"
    )


FLAGS = ["weight", "train", "training", "trainable", "loss", "loss_mask", "loss_weight", "learn"]


@pytest.mark.parametrize("no", [0, False, 0.0, "0", "false"])
@pytest.mark.parametrize("key", FLAGS)
@pytest.mark.parametrize("column", ["messages", "conversations", "completion"])
def test_a_turn_is_kept_out_of_the_loss(tmp_path, column, key, no):
    said = [TURNS[1] | {key: no}, TURNS[0] | {key: no}, TURNS[1] | {key: 1}]
    row = {"prompt": "q", column: said} if column == "completion" else {column: [TURNS[0], *said]}
    example = one(tmp_path, row | {"system": "Be terse."})
    assert example.messages == [SYSTEM, *TURNS, *TURNS] and example.masked == (2,)


@pytest.mark.parametrize("key", FLAGS)
def test_flags_that_cannot_be_are_refused(tmp_path, key):
    answer, question = TURNS[1], TURNS[0]
    assert "0, true or false" in refused(tmp_path, {"messages": [question, answer | {key: 0.5}]})
    assert "is a user turn" in refused(tmp_path, {"messages": [question | {key: True}, answer]})
    assert "every assistant turn" in refused(tmp_path, {"messages": [question, answer | {key: 0}]})
    other = FLAGS[FLAGS.index(key) - 1]
    assert "both" in refused(tmp_path, {"messages": [question, answer | {key: 0, other: 1}]})


@pytest.mark.parametrize("name", ["weight", "train", "loss_mask"])
@pytest.mark.parametrize("layout", ROWS)
def test_a_row_that_is_not_to_be_learned_is_refused(tmp_path, layout, name):
    for no in (0, False, "0", "0.0", "False"):
        assert "leave the row out" in refused(tmp_path, ROWS[layout] | {name: no})
        assert "leave the row out" in refused(tmp_path, {"text": "t", name: no})
    for yes in (1, True, "1", "true"):
        assert read(tmp_path, ROWS[layout] | {name: yes}).unread == ()
    assert read(tmp_path, ROWS[layout] | {name: 72}).unread == (name,)
    kept = read(tmp_path, ROWS[layout] | {name: 0}, ROWS[layout] | {name: 1}, skip_bad_rows=True)
    assert [example.row for example in kept.rows] == [2]


@pytest.mark.parametrize(
    "call",
    [
        {"id": "c1", "type": "function", "function": {"name": "level", "arguments": '{"lake": "Como"}'}},
        {"id": "c1", "type": "function", "function": {"name": "level", "arguments": {"lake": "Como"}}},
        {"id": "c1", "name": "level", "arguments": '{"lake": "Como"}'},
    ],
)
@pytest.mark.parametrize("content", [None, ""])
def test_calls_are_decoded(tmp_path, call, content):
    for calls in ([call], json.dumps([call])):
        turn = {"role": "assistant", "content": content, "tool_calls": calls}
        found = one(tmp_path, {"messages": [TURNS[0], turn, {"role": "tool", "content": "198"}, TURNS[1]]}).messages[1]
        assert found["content"] == content
        assert found["tool_calls"][0]["function"] == {"name": "level", "arguments": {"lake": "Como"}}
        assert found["tool_calls"][0]["type"] == "function"


def test_older_and_sharegpt_calls(tmp_path):
    wanted = [{"type": "function", "function": {"name": "level", "arguments": {"lake": "Como"}}}]
    old = {"role": "assistant", "content": None, "function_call": {"name": "level", "arguments": '{"lake": "Como"}'}}
    rows = [
        {"messages": [TURNS[0], old, {"role": "function", "name": "level", "content": "198"}, TURNS[1]]},
        {
            "conversations": [
                SHARED[0],
                {"from": "function_call", "value": '{"name": "level", "arguments": {"lake": "Como"}}'},
                {"from": "observation", "value": "198"},
                SHARED[1],
            ]
        },
    ]
    for row in rows:
        messages = read(tmp_path, row).rows[0].messages
        assert [m["role"] for m in messages] == ["user", "assistant", "tool", "assistant"]
        assert (
            messages[1]["tool_calls"] == wanted and messages[1]["content"] is None and messages[2]["content"] == "198"
        )
        assert "function_call" not in messages[1]


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ({"function": {"name": "f", "arguments": "{lake"}}, "not valid JSON"),
        ({"function": {"name": "f", "arguments": "[1]"}}, "expected an object"),
        ({"function": {"arguments": "{}"}}, "without a name"),
        (3, "a call is an int"),
    ],
)
def test_bad_calls(tmp_path, call, reason):
    assert reason in refused(tmp_path, {"messages": [TURNS[0], TURNS[1] | {"tool_calls": [call]}]})
    assert "only an assistant calls" in refused(tmp_path, {"messages": [TURNS[0] | {"tool_calls": [call]}, TURNS[1]]})


@pytest.mark.parametrize(
    ("said", "role"),
    [
        ("human", "user"),
        ("User", "user"),
        ("gpt", "assistant"),
        ("bot", "assistant"),
        ("model", "assistant"),
        ("chatgpt", "assistant"),
        ("system", "system"),
        ("tool", "tool"),
        ("observation", "tool"),
        ("ipython", "tool"),
    ],
)
def test_roles_by_other_words(tmp_path, said, role):
    for first, second in (("role", "content"), ("from", "value")):
        messages = one(tmp_path, {"conversations": [{first: said, second: "x"}, *SHARED]}).messages
        assert messages[0] == {"role": role, "content": "x"}
    assert "unknown role 'narrator'" in refused(tmp_path, {"messages": [{"role": "narrator", "content": "x"}]})


def test_content_in_parts(tmp_path):
    parts = [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "a"}]
    example = one(tmp_path, {"messages": [TURNS[0], {"role": "assistant", "content": parts}]})
    assert example.messages[1] == TURNS[1] | {"reasoning_content": "Hm."}
    sound = [{"type": "input_audio", "input_audio": {"data": "x"}}]
    reason = refused(tmp_path, {"messages": [{"role": "user", "content": sound}, TURNS[1]]})
    assert "a part that is not text (input_audio)" in reason


@pytest.mark.parametrize("column", ["messages", "conversations", "prompt", "completion", "history"])
def test_turns_as_json_text(tmp_path, column):
    rows = {
        "messages": {"messages": json.dumps(TURNS)},
        "conversations": {"conversations": json.dumps(SHARED)},
        "prompt": {"prompt": json.dumps(TURNS[:1]), "completion": "a"},
        "completion": {"prompt": "q", "completion": json.dumps(TURNS[1:])},
        "history": {"messages": TURNS, "history": ""},
    }
    assert one(tmp_path, rows[column]).messages == TURNS


@pytest.mark.parametrize("text", ['[{"a": 1}]', '{"a": 1}', "[]", '["x"]', "[1] Smith et al."])
def test_json_is_a_text_like_any_where_a_text_stands(tmp_path, text):
    for layout in STRINGS:
        row = {column: text if value else value for column, value in ROWS[layout].items()}
        assert [m["content"] for m in one(tmp_path, row).messages] == [text, text]
        assert text in one(tmp_path, ROWS[layout] | {"context": text}).messages[0]["content"]


@pytest.mark.parametrize("name", ["weight", "train", "loss_mask"])
@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_flags_beside_the_turns_are_theirs(tmp_path, column, name):
    row = {column: [*TURNS, *TURNS], "system": "Be terse."}
    for flags in ([0, 0, 0, 1], [False] * 3 + [True], "[0, 0, 0, 1]"):
        assert one(tmp_path, row | {name: flags}).masked == (2,)
    assert "for each of the 4 turns" in refused(tmp_path, row | {name: [0, 1]})
    assert "message 1, a user turn" in refused(tmp_path, row | {name: [1, 1, 1, 1]})
    assert "every assistant turn" in refused(tmp_path, row | {name: [0, 0, 0, 0]})


@pytest.mark.parametrize("text", [
    '[{"from": "Paris", "to": "Rome"}]', '[{"role": "CEO", "name": "X"}]', '{"role": "user", "rights": []}',
])  # fmt: skip
def test_objects_with_a_role_that_say_nothing_are_no_turns(tmp_path, text):
    assert one(tmp_path, {"prompt": "q", "completion": text}).answer == text


def test_a_single_turn_is_a_turn_as_an_object_and_as_text(tmp_path):
    for write in (lambda turn: turn, json.dumps):
        assert one(tmp_path, {"prompt": write(TURNS[0]), "completion": write(TURNS[1])}).messages == TURNS


@pytest.mark.parametrize("text", [
    "[{'role': 'user', 'content': 'q'}\n {'role': 'assistant', 'content': 'a'}]", '[{"role": "user", "content": "q"',
])  # fmt: skip
def test_text_that_opens_as_turns_do_is_never_a_text(tmp_path, text):
    assert "neither JSON nor a list of Python's" in refused(tmp_path, {"prompt": text, "completion": "a"})
    assert "neither JSON nor a list of Python's" in refused(tmp_path, {"prompt": "q", "completion": text})


def test_truth_is_written_in_one_way(tmp_path):
    for yes, no in ((True, False), ("True", "False"), ("TRUE", "FALSE"), ("true", "false")):
        assert read(tmp_path, {"text": "t", "label": yes}, {"text": "u", "label": no}).labels == ["false", "true"]
    with pytest.raises(LuthierError, match="truth values in two forms"):
        read(tmp_path, *({"text": "t", "label": label} for label in (True, 1, False)))
    assert "several classes stand in 'labels'" in refused(tmp_path, {"text": "t", "label": "['joy', 'anger']"})


def test_several_classes_in_one_text_are_refused(tmp_path):
    rows = [{"text": "t", "labels": "joy, anger"}, {"text": "u", "labels": "joy"}]
    with pytest.raises(LuthierError, match="reads as several classes in one text"):
        read(tmp_path, *rows)
    assert read(tmp_path, *rows, named="label=labels").labels == ["joy", "joy, anger"]
    assert read(tmp_path, rows[0], {"text": "u", "labels": "fear, awe"}).labels == ["fear, awe", "joy, anger"]


def test_a_0_or_1_for_each_of_two_classes_is_refused(tmp_path):
    with pytest.raises(LuthierError, match="a 0 or 1 for each class"):
        read(tmp_path, {"text": "t", "labels": [0, 1]}, {"text": "u", "labels": [1, 0]})
    assert read(tmp_path, {"text": "t", "labels": [0, 1]}, {"text": "u", "labels": [1]}).labels == ["0", "1"]


@pytest.mark.parametrize("bad", [
    {"label": False}, {"chosen": TURNS, "rejected": [TURNS[0], {"role": "assistant", "content": "b"}]},
])  # fmt: skip
def test_one_judged_row_among_many_is_enough_to_refuse(tmp_path, bad):
    with pytest.raises(LuthierError, match="rejected answers"):
        read(tmp_path, *[ROWS["messages"]] * 9, ROWS["messages"] | bad)


ITEMS = {"text": "good", "text_pair": "x"}


@pytest.mark.parametrize("name", ["label", "labels"])
@pytest.mark.parametrize("columns", [("text",), ("text", "text_pair")])
def test_labels_are_classes(tmp_path, columns, name):
    item = {column: ITEMS[column] for column in columns}
    examples = read(tmp_path, item | {name: "pos"}, item | {name: "neg"})
    assert examples.task == "classification" and examples.labels == ["neg", "pos"] and examples.unread == ()
    assert [example.label for example in examples.rows] == ["pos", "neg"]


@pytest.mark.parametrize("name", ["label", "labels"])
@pytest.mark.parametrize("kind", ["image", "audio"])
def test_labels_of_files(tmp_path, kind, name):
    (tmp_path / "x").touch()
    examples = read(tmp_path, {kind: "x", name: "pos"}, {kind: "x", name: "neg"})
    assert examples.labels == ["neg", "pos"] and examples.unread == ()


@pytest.mark.parametrize("name", ["label", "labels"])
def test_labels_of_a_few_texts_are_not_passed_over(tmp_path, name):
    rows = [{"text": "a", name: "x"}, {"text": "b", name: "y"}, *({"text": text} for text in "cdefg")]
    with pytest.raises(LuthierError, match=r"5 rows: no 'label' \(texts are learned without any by --task causal-lm\)"):
        read(tmp_path, *rows)
    examples = read(tmp_path, *rows, task="causal-lm")
    assert examples.layout == "text" and examples.unread == (name,)


def test_several_labels_a_row_are_classes(tmp_path):
    found = read(tmp_path, {"text": "t", "labels": [2, 0]}, {"text": "u", "labels": []})
    assert found.task == "multi-label" and found.labels == ["0", "2"] and found.rows[1].labels == ()
    assert "holds 1 more than once" in refused(tmp_path, {"text": "t", "labels": [0, 1, 1]})
    assert "'labels' holds a float" in refused(tmp_path, {"text": "t", "labels": [0.0, 1.0]})


PREFERENCES = {
    "explicit prompt": ({"prompt": "q", "chosen": "a", "rejected": "b"}, "completion=chosen"),
    "turns": ({"prompt": TURNS[:1], "chosen": TURNS[1:], "rejected": TURNS[1:]}, "completion=chosen"),
    "implicit prompt": ({"chosen": TURNS, "rejected": TURNS}, "messages=chosen"),
    "whole beside a prompt": (
        {"prompt": "q", "chosen": TURNS, "rejected": TURNS, "score_chosen": 1},
        "messages=chosen",
    ),
    "texts": ({"chosen": "Human: q Assistant: a", "rejected": "Human: q Assistant: b"}, "text=chosen"),
    "alpaca": ({"instruction": "q", "input": "", "chosen": "a", "rejected": "b"}, "output=chosen"),
    "question": ({"system": "s", "question": "q", "chosen": "a", "rejected": "b"}, "answer=chosen"),
    "beside messages": ({"messages": TURNS, "chosen": TURNS, "rejected": TURNS}, "messages=chosen"),
}


@pytest.mark.parametrize("case", PREFERENCES)
def test_preferences_are_refused_with_a_way_that_works(tmp_path, case):
    row, way = PREFERENCES[case]
    reason = refused(tmp_path, row)
    assert "preference data" in reason and f"--columns {way}" in reason
    examples = read(tmp_path, row, named=way)
    assert "rejected" in examples.unread
    if examples.layout != "text":
        assert examples.rows[0].messages[-2:] == TURNS


def test_openai_preferences_and_steps_are_refused(tmp_path):
    row = {"input": {"messages": TURNS[:1]}, "preferred_output": TURNS[1:], "non_preferred_output": TURNS[1:]}
    assert "OpenAI's preference data" in refused(tmp_path, row)
    row = {"prompt": "q", "completions": ["a", "b"], "labels": [True, False]}
    assert "stepwise" in refused(tmp_path, row)


@pytest.mark.parametrize("values", [(True, False), (1, 0), ("True", "False"), (1.0, 0.0), ("1", "0")])
@pytest.mark.parametrize("name", ["label", "kto_tag"])
@pytest.mark.parametrize("layout", [name for name in ROWS if name != "source-target"])
def test_answers_with_a_judgement_are_refused(tmp_path, layout, name, values):
    rows = [ROWS[layout] | {name: value} for value in values]
    with pytest.raises(LuthierError, match="KTO"):
        read(tmp_path, *rows)
    assert read(tmp_path, *[row | {name: "science"} for row in rows]).unread == (name,)


def test_unread_columns_are_named_once(tmp_path):
    odd = {"id": 3, "source": "web", "idx": 0, "__index_level_0__": 7, "empty": None, "blank": "", "none": []}
    rows = [{"question": "q", "answer": "a"} | odd, {"question": "r", "answer": "a", "late": 1} | odd]
    assert read(tmp_path, *rows).unread == ("id", "source", "idx", "__index_level_0__", "late")


@pytest.mark.parametrize("column", ["messages", "conversations", "prompt"])
def test_unread_keys_of_turns_are_named(tmp_path, column):
    row = {"prompt": [TURNS[0] | {"lang": "en"}], "completion": TURNS[1:]}
    if column != "prompt":
        row = {column: [TURNS[0] | {"lang": "en", "name": None}, TURNS[1]]}
    examples = read(tmp_path, row)
    assert examples.unread == (f"{column}[].lang",) and examples.rows[0].messages[0]["lang"] == "en"


def test_names_for_columns(tmp_path):
    rows = [{"body": "good", "category": "pos", "text": "other"}, {"body": "bad", "category": "neg", "text": "other"}]
    examples = read(tmp_path, *rows, named="text=body, label=category")
    assert [(e.text, e.label) for e in examples.rows] == [("good", "pos"), ("bad", "neg")]
    assert examples.unread == ("text (another column is it)",)
    assert read(tmp_path, *rows, named={"text": "body", "label": "category"}).rows == examples.rows
    swapped = read(tmp_path, {"question": "a", "answer": "q"}, named="question=answer,answer=question")
    assert [m["content"] for m in swapped.rows[0].messages] == ["q", "a"]


@pytest.mark.parametrize(
    ("more", "named", "unread"),
    [
        ({}, "text=text.body", []),
        ({"lang": "en", "note": None}, "text=text.body", ["text.lang"]),
        (
            {"kind": "y", "of": {"a": 1}},
            "text=text.body,label=text.kind",
            ["text.of.a", "label"],
        ),
    ],
)
def test_a_way_through_the_column_of_its_name_reads_it(tmp_path, more, named, unread):
    found = read(tmp_path, *({"text": {"body": each, **more}, "label": each} for each in "xy"), named=named)
    assert [row.text for row in found.rows] == ["x", "y"]
    assert found.unread == tuple(f"{name} (another column is it)" for name in unread)


@pytest.mark.parametrize(
    ("named", "reason"),
    [
        ("text", "expected name=column"),
        ("text=", "expected name=column"),
        ("text=a,text=b", "expected name=column"),
        ("text=body,label=body", "two meanings"),
        ("txt=body", "nothing reads 'txt'; did you mean 'text'"),
        ("text=bdy", "no column 'bdy', which is to be text; did you mean 'body'"),
    ],
)
def test_names_that_cannot_be(tmp_path, named, reason):
    with pytest.raises(LuthierError, match=reason):
        read(tmp_path, {"body": "good", "category": "pos"}, named=named)


def test_a_flag_of_the_row_may_have_another_name(tmp_path):
    rows = [ROWS["messages"] | {"keep": keep} for keep in (1, 0)]
    examples = read(tmp_path, *rows, named="weight=keep", skip_bad_rows=True)
    assert len(examples) == 1 and examples.skipped[0][0] == 2 and examples.unread == ()


def test_names_settle_which_layout_is_meant(tmp_path):
    row = {"messages": TURNS, "text": "all of it"}
    assert "--columns messages=messages" in refused(tmp_path, row)
    examples = read(tmp_path, row, named="messages=messages")
    assert examples.layout == "messages" and examples.unread == ("text",)


@pytest.mark.parametrize(
    ("columns", "flag"),
    [
        (["body", "category"], "text=body,label=category"),
        (["sentence1", "sentence2", "label"], "text=sentence1,text_pair=sentence2"),
        (["query", "response"], "prompt=query,completion=response"),
        (["instruction", "response"], "output=response"),
        (["conversation"], "messages=conversation"),
        (["Text"], "text=Text"),
        (["promt", "completion"], "prompt=promt"),
        (["img", "class"], "image=img,label=class"),
    ],
)
def test_near_names_are_suggested_as_a_flag_that_works(tmp_path, columns, flag):
    values = {"label": "pos", "class": "pos", "category": "pos", "conversation": TURNS, "img": "a.jsonl"}
    row = {column: values.get(column, "q") for column in columns}
    reason = refused(tmp_path, row)
    assert reason.split("--columns ")[1].split(" Layouts")[0] == f"{flag}."
    assert len(read(tmp_path, row, named=flag)) == 1


def test_the_fingerprint_of_rows_without_new_fields_is_as_it_was():
    old = Example(row=1, messages=TURNS, answer="a")
    assert fingerprint([old]) == "39ff67ab817e8834728c28020eed12d40c3d2dcd5426c98dd6a1bbf40fc18c8d"
    assert fingerprint([Example(row=1, messages=TURNS, answer="a", masked=(1,))]) != fingerprint([old])


@pytest.mark.parametrize("name", ["tools", "documents"])
def test_what_stands_beside_the_turns_is_part_of_the_problem(name):
    bare, given = Example(row=1, messages=TURNS), Example(row=2, messages=TURNS, **{name: [{"name": "x"}]})
    assert bare.key() != given.key() and bare.problem() != given.problem()
    assert given.key() == Example(row=3, messages=TURNS, **{name: [{"name": "x"}]}).key()
