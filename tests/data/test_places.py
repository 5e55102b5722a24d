"""Known names in places where few rows have them: each means what it means elsewhere, is refused, or is named."""

from __future__ import annotations

import json

import pytest

from luthier.core.errors import LuthierError
from luthier.data import encode_all, load, load_prompts, unheard
from support.call_templates import HERMES
from support.tiny_tokenizers import CHATML, make

ASK, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
TURNS = [ASK, ANSWER]
TOOL = {"name": "level", "description": "Water level.", "parameters": {"type": "object", "properties": {}}}
WRAPPED = {"type": "function", "function": TOOL}
CALL = {"id": "c12345678", "name": "level", "arguments": {"lake": "Como"}}


def written(tmp_path, *rows):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def one(tmp_path, row, **options):
    return load(written(tmp_path, row), **options).rows[0]


def refused(tmp_path, *rows, **options) -> str:
    with pytest.raises(LuthierError) as error:
        load(written(tmp_path, *rows), **options)
    return str(error.value)


# --- tools -------------------------------------------------------------------------------------------

HISTORY = [{"role": "system", "content": "s", "tools": [TOOL]}, ASK, ANSWER]
TOOLED = {
    "first turn of a user": {"messages": [ASK | {"tools": [TOOL]}, ANSWER]},
    "first turn of a prompt": {"prompt": [ASK | {"functions": json.dumps([TOOL])}], "completion": "a"},
    "first turn of the history": {"history": HISTORY, "instruction": "q", "output": "a"},
    "both names, one wrapped": {"messages": TURNS, "tools": [WRAPPED], "functions": [TOOL]},
    "chat_template_kwargs as text": {"messages": TURNS, "chat_template_kwargs": json.dumps({"tools": [TOOL]})},
    "Python's writing": {"messages": TURNS, "tools": str([WRAPPED])},
}


@pytest.mark.parametrize("case", TOOLED)
def test_tools_are_read_wherever_they_stand(tmp_path, case):
    examples = load(written(tmp_path, TOOLED[case]))
    assert examples.rows[0].tools == [WRAPPED] and examples.unread == ()
    assert not any({"tools", "functions"} & set(turn) for turn in examples.rows[0].messages)


def test_tools_that_differ_are_refused_and_those_of_later_turns_named(tmp_path):
    other = [TOOL | {"name": "depth"}]
    assert "differ" in refused(tmp_path, {"messages": TURNS, "tools": [TOOL], "functions": other})
    assert "differ" in refused(tmp_path, TOOLED["first turn of the history"] | {"tools": other})
    late = {"messages": [*TURNS, ASK | {"tools": [TOOL]}, ANSWER]}
    assert load(written(tmp_path, late)).unread == ("messages[].tools",)


FILES = [
    ({"tools": [TOOL], "data": [{"messages": TURNS}]}, "'tools' beside its rows"),
    ({"system": "s", "train": [{"messages": TURNS}]}, "'system' beside its rows"),
    ({"chat_template_kwargs": {"x": 1}, "train": {"rows": [{"messages": TURNS}]}}, "'chat_template_kwargs' beside"),
]


@pytest.mark.parametrize(("content", "reason"), FILES)
def test_what_a_file_says_for_all_of_its_rows_is_refused(tmp_path, content, reason):
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(LuthierError, match=reason):
        load(tmp_path / "a.json")


@pytest.mark.parametrize("rows", [{"data": [{"messages": TURNS}]}, {"train": {"rows": [{"messages": TURNS}]}}])
def test_what_else_stands_beside_rows_is_named(tmp_path, rows):
    (tmp_path / "a.json").write_text(json.dumps({"version": "1.0", "note": "", **rows}))
    assert load(tmp_path / "a.json").unread == ("version (beside the rows)",)
    (tmp_path / "clone").mkdir()
    (tmp_path / "a.json").rename(tmp_path / "clone" / "train.json")
    assert load(tmp_path / "clone").unread == ("version (beside the rows)",)
    assert load(f"mix:x={tmp_path / 'clone'}").unread == ("x/version (beside the rows)",)


def test_a_call_without_a_wrapper_keeps_its_id_and_names_what_is_not_read(tmp_path):
    turns = [ASK, {"role": "assistant", "tool_calls": [CALL | {"cost": 3}]}, {"role": "tool", "content": "1"}, ANSWER]
    examples = load(written(tmp_path, {"messages": turns}))
    (call,) = examples.rows[0].messages[1]["tool_calls"]
    assert call["id"] == CALL["id"] and call["function"] == {"name": "level", "arguments": {"lake": "Como"}}
    assert examples.unread == ("messages[].tool_calls[].cost",)
    wrapped = {"id": "c1", "function": {"name": "level", "arguments": "{}", "cost": 3}}
    turns[1] = {"role": "assistant", "tool_calls": json.dumps([wrapped])}
    assert load(written(tmp_path, {"messages": turns})).unread == ("messages[].tool_calls[].function.cost",)


def test_an_empty_call_is_none(tmp_path):
    assert one(tmp_path, {"messages": [ASK, ANSWER | {"function_call": {}, "tool_calls": []}]}).messages == TURNS


# --- what is learned ---------------------------------------------------------------------------------

ASKED = {
    "history": {"history": [ASK, ANSWER | {"weight": 1}], "instruction": "q", "output": "a"},
    "prompt": {"prompt": [*TURNS[:1], ANSWER | {"train": "true"}, ASK], "completion": "a"},
    "prompt as text": {"prompt": json.dumps([ASK, ANSWER | {"loss": True}, ASK]), "completion": "a"},
}


@pytest.mark.parametrize("case", ASKED)
def test_a_turn_before_the_answer_that_asks_to_be_learned_is_refused(tmp_path, case):
    assert "asks to be learned" in refused(tmp_path, ASKED[case])
    silent = json.loads(json.dumps(ASKED[case]).replace("true", "false").replace('": 1', '": 0'))
    assert one(tmp_path, silent).messages[-1] == ANSWER


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_answers_that_are_compared_are_compared_whole(tmp_path, side):
    answers = {name: [ANSWER | {"content": name}, ASK, ANSWER] for name in ("chosen", "rejected")}
    answers[side][0] |= {"weight": 0}
    assert f"'{side}' keeps a turn out" in refused(tmp_path, {"prompt": "q", **answers}, preferences=True)
    before = [ASK, ANSWER | {"weight": 0}, ASK]
    pair = {"prompt": before, "chosen": "a", "rejected": "b"}
    assert len(one(tmp_path, pair, preferences=True).rejected) == 4


@pytest.mark.parametrize("no", [0, False, "false", 0.5])
def test_a_part_of_a_turn_is_not_kept_out_alone(tmp_path, no):
    parts = [{"type": "text", "text": "a", "train": no}, {"type": "text", "text": "b"}]
    assert "keeps a part of itself out" in refused(tmp_path, {"messages": [ASK, ANSWER | {"content": parts}]})


THOUGHTS = [
    {"type": "thinking", "thinking": "Hm."},
    {"type": "reasoning", "text": "Hm."},
    {"type": "thought", "text": "Hm."},
    {"text": "Hm.", "thought": True},
    {"type": "reasoning", "reasoning": "Hm."},
]


@pytest.mark.parametrize("part", THOUGHTS)
def test_a_part_that_is_a_thought_is_no_content(tmp_path, part):
    turn = {"role": "assistant", "content": [part, {"type": "text", "text": "a"}]}
    assert one(tmp_path, {"messages": [ASK, turn]}).messages[1] == ANSWER | {"reasoning_content": "Hm."}


@pytest.mark.parametrize("kind", ["tool_result", "refusal", "input_audio", "file"])
def test_a_part_of_another_kind_is_refused_though_it_has_a_text(tmp_path, kind):
    turn = {"role": "assistant", "content": [{"type": kind, "text": "a"}]}
    assert f"a part that is not text ({kind})" in refused(tmp_path, {"messages": [ASK, turn]})


@pytest.mark.parametrize(("key", "value"), [("refusal", "I cannot."), ("audio", {"id": "x"}), ("text", "a")])
def test_a_turn_that_says_something_else_than_content_is_told_by_it(tmp_path, key, value):
    turn = {"role": "assistant", "content": None, key: value}
    assert f"has no 'content', and its '{key}' is not read" in refused(tmp_path, {"messages": [ASK, turn]})
    assert load(written(tmp_path, {"messages": [ASK, turn | {"content": "a"}]})).unread == (f"messages[].{key}",)


def test_keys_of_parts_that_nothing_reads_are_named(tmp_path):
    part = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}, "annotations": []}
    examples = load(written(tmp_path, {"messages": [ASK, {"role": "assistant", "content": [part]}]}))
    assert examples.rows[0].messages == TURNS and examples.unread == ("messages[].content[].cache_control",)


@pytest.mark.parametrize("name", ["thinking", "reasoning_content"])
def test_a_thought_that_is_no_text_is_refused_by_its_name(tmp_path, name):
    assert f"'{name}' is a bool" in refused(tmp_path, {"messages": TURNS, name: True})


@pytest.mark.parametrize("beside", ["column", "turn"])
@pytest.mark.parametrize("thought", ["Hm.", "Oh."])
def test_a_thought_stands_in_one_place(tmp_path, beside, thought):
    turn = {"role": "assistant", "content": "<think>\nHm.\n</think>\n\na"}
    row = {"messages": [ASK, turn | ({} if beside == "column" else {"reasoning": thought})]}
    row |= {"thinking": thought} if beside == "column" else {}
    assert "has a thought in its content and one in" in refused(tmp_path, row)


def test_flags_that_are_none_are_told_by_what_they_hold(tmp_path):
    assert "'weight' holds 0.5, expected 1 or 0" in refused(tmp_path, {"messages": TURNS, "weight": [0, 0.5]})


def test_an_empty_system_turn_leaves_its_place_to_the_column(tmp_path):
    row = {"messages": [{"role": "system", "content": ""}, *TURNS], "system": "s"}
    assert one(tmp_path, row).messages == [{"role": "system", "content": "s"}, *TURNS]


@pytest.mark.parametrize(
    ("turn", "keys"),
    [
        ({"role": "user", "from": "gpt", "content": "q"}, "'role' and 'from'"),
        ({"from": "human", "value": "q", "content": "r"}, "'content' and 'value'"),
        ({"role": "user", "content": "q", "parts": [{"text": "r"}]}, "'content' and 'parts'"),
    ],
)
def test_a_turn_that_says_two_things_is_refused(tmp_path, turn, keys):
    assert f"has {keys}, and they differ" in refused(tmp_path, {"messages": [turn, ANSWER]})
    same = {"role": "user", "from": "human", "content": "q", "value": "q"}
    assert one(tmp_path, {"messages": [same, ANSWER]}).messages == TURNS


@pytest.mark.parametrize("beside", ["parts", "value"])
@pytest.mark.parametrize("value", ["", [], {}, "q", ["q"], [{"type": "text", "text": "q"}], [{"text": ""}]])
def test_a_turn_that_says_the_same_twice_or_nothing_beside_is_read(tmp_path, beside, value):
    for turn in ({"role": "user", "content": "q", beside: value}, {"role": "user", "content": value, beside: "q"}):
        assert one(tmp_path, {"messages": [turn, ANSWER]}).messages == TURNS
    flagged = {"role": "user", "content": "q", "parts": [{"type": "text", "text": "q", "train": 0}]}
    assert "and they differ" in refused(tmp_path, {"messages": [flagged, ANSWER]})


def test_an_empty_developer_turn_stays_one(tmp_path):
    row = {"messages": [{"role": "developer", "name": "n", "content": ""}, *TURNS], "system": "s"}
    assert one(tmp_path, row).messages[0] == {"role": "developer", "name": "n", "content": "s"}


@pytest.mark.parametrize("column", ["documents", "chat_template_kwargs"])
def test_nulls_say_nothing_in_a_column_that_is_json_text(tmp_path, column):
    """As the cells of CSV files are, of rows that mean the same in every file."""
    held = {"text": "x", "title": None}
    read = [one(tmp_path, {"messages": TURNS, column: each}) for each in (held, json.dumps(held))]
    assert read[0].documents == read[1].documents == ([{"text": "x"}] if column == "documents" else None)
    assert read[0].template == read[1].template == ({"text": "x"} if column != "documents" else {})


def test_nulls_of_objects_say_nothing_in_any_file(tmp_path):
    """Files that are written from Arrow's tables hold its nulls: rows mean the same before and after; text stays."""
    tool = WRAPPED | {"strict": None}
    call = {"function": {"name": "level", "arguments": {"lake": "Como", "zone": None}}}
    turns = [
        ASK,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "1"},
        ANSWER,
    ]
    row = {"messages": turns, "tools": [tool], "documents": [{"text": "x", "title": None}]}
    found = one(tmp_path, row)
    assert found.tools == [WRAPPED] and found.documents == [{"text": "x"}]
    assert found.messages[1]["tool_calls"][0]["function"]["arguments"] == {"lake": "Como"}
    call["function"]["arguments"] = '{"zone": null}'
    found = one(tmp_path, row)
    assert found.messages[1]["tool_calls"][0]["function"]["arguments"] == {"zone": None}


def test_a_number_that_is_none_is_missing_in_every_file(tmp_path):
    """`DataFrame.to_dict("records")` and JSON written of it hold NaN where a text is missing."""
    import pyarrow
    import pyarrow.parquet

    around = ("input", "system", "history", "tools", "context", "chat_template_kwargs", "reasoning_content", "weight")
    row = {"instruction": "q", "output": "a", **dict.fromkeys(around, float("nan"))}
    examples = load(written(tmp_path, row | {"other": float("nan")}))
    assert examples.rows[0].messages == TURNS and examples.unread == ()
    assert "no 'label'" in refused(tmp_path, {"text": "t", "label": float("nan")}, {"text": "u", "label": 0.5})
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "a.parquet")
    assert load(tmp_path / "a.parquet").rows[0].messages == TURNS


def test_a_column_without_a_name_is_named(tmp_path):
    (tmp_path / "a.csv").write_text(",prompt,completion\n0,q,a\n1,r,b\n")
    assert load(tmp_path / "a.csv").unread == ("a column without a name",)


def test_nulls_among_variables_say_nothing(tmp_path):
    """A template takes a null for false."""
    assert one(tmp_path, {"messages": TURNS, "chat_template_kwargs": {"a": None, "b": False}}).template == {"b": False}


# --- keys of turns that only some templates read -------------------------------------------------------

NAMED = CHATML.replace("m['role'] + '\n'", "m['role'] + (m['name'] or '' if m['role'] == 'tool' else '') + '\n'")


@pytest.mark.parametrize(
    ("template", "left"),
    [
        (CHATML, ["messages[].name", "messages[].lang"]),
        (HERMES, ["messages[].name", "messages[].lang"]),  # which has the word: of the functions
        (NAMED, ["messages[].name of user turns", "messages[].lang"]),
        (NAMED.replace("'tool'", "'user' or m['role'] == 'tool'"), ["messages[].lang"]),
        (None, ["messages[].name", "messages[].lang"]),
    ],
)
def test_a_key_of_turns_is_read_where_what_is_rendered_goes_by_it(tmp_path, template, left):
    asked = ASK | {"name": "Ann", "lang": "en"}
    rows = [{"messages": TURNS}, {"messages": [asked, {"role": "tool", "content": "x", "name": "level"}, ANSWER]}]
    examples = load(written(tmp_path, *rows))
    assert unheard(examples.unread, examples.rows, make(template)) == left
    assert unheard(("id", "file x.csv"), examples.rows, make(template)) == ["id", "file x.csv"]


def test_what_stands_within_openai_s_input_is_read_or_named(tmp_path):
    given = {"messages": [ASK | {"name": "Ann"}], "tools": [], "parallel_tool_calls": True, "tool_choice": None}
    row = {"input": given, "preferred_output": [ANSWER], "non_preferred_output": [ANSWER | {"content": "b", "x": 1}]}
    examples = load(written(tmp_path, row), preferences=True)
    assert set(examples.unread) == {
        "input.parallel_tool_calls", "input.messages[].name", "non_preferred_output[].x",
    }  # fmt: skip
    (feature,) = encode_all(examples, make("chatml"), max_length=None)
    assert len(feature["also"]) == 1


def test_keys_of_earlier_turns_are_named(tmp_path):
    row = {"history": [ASK | {"lang": "en"}, ANSWER], "instruction": "q", "output": "a", "loss_mask": [0, 1]}
    assert load(written(tmp_path, row)).unread == ("history[].lang",)


# --- names of classes beside answers --------------------------------------------------------------------


def saved(folder, rows, names, column="label"):
    import datasets

    text = datasets.Value("string")
    features = datasets.Features(dict.fromkeys(rows[0], text) | {column: datasets.ClassLabel(names=names)})
    datasets.Dataset.from_list(rows, features=features).save_to_disk(folder / "saved")
    return folder / "saved"


JUDGED = [{"prompt": "q", "completion": "a", "label": 0}, {"prompt": "r", "completion": "b", "label": 1}]


def test_a_number_of_a_class_judges_by_its_name(tmp_path):
    rows = load(saved(tmp_path, JUDGED, ["desirable", "undesirable"]), preferences=True).rows
    assert [row.wanted for row in rows] == [True, False]


def test_a_number_of_a_class_that_is_no_judgement_is_none(tmp_path):
    examples = load(saved(tmp_path, JUDGED, ["maths", "code"]))
    assert examples.layout == "prompt-completion" and examples.unread == ("label",)


def test_an_answer_that_is_a_class_is_learned_by_its_name(tmp_path):
    rows = [{"question": "q", "answer": 1}, {"question": "r", "answer": 0}]
    found = load(saved(tmp_path, rows, ["no", "yes"], "answer")).rows
    assert [row.answer for row in found] == ["yes", "no"]


def test_one_truth_among_other_words_judges_the_answer(tmp_path):
    rows = [{"prompt": "q", "completion": "a", "label": label} for label in (True, False, "unsure")]
    assert "KTO" in refused(tmp_path, *rows)
    assert "row 3: label 'unsure' is neither true nor false" in refused(tmp_path, *rows, preferences=True)
    kinds = [row | {"label": label} for row, label in zip(rows, ("good", "bad", "neutral"), strict=True)]
    assert load(written(tmp_path, *kinds)).unread == ("label",)


# --- ways into objects ------------------------------------------------------------------------------------

PAIR = {"translation": {"en": "q", "de": "a"}}
WAY = "source=translation.en,target=translation.de"


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_columns_within_objects_are_named_by_their_way(tmp_path, suffix):
    rows = [PAIR, {"translation": {"en": "r", "de": "b"}}]
    path = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif suffix == "csv":
        cells = [json.dumps(row["translation"]).replace('"', '""') for row in rows]
        path.write_text("translation\n" + "".join(f'"{cell}"\n' for cell in cells))
    else:
        path.write_text(json.dumps(rows) if suffix == "json" else "".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(LuthierError, match=f"Say so: --columns {WAY}"):
        load(path)
    examples = load(path, named=WAY)
    assert [row.answer for row in examples.rows] == ["a", "b"] and examples.unread == ()


@pytest.mark.parametrize(
    ("row", "flag"),
    [
        ({"example": {"question": "q", "answer": "a"}, "id": 3}, "prompt=example.question,completion=example.answer"),
        ({"data": {"deeper": {"messages": TURNS}}, "id": 3}, "messages=data.deeper.messages"),
        ({"body": "q", "meta": {"category": "x", "body": "y"}}, "text=body,label=meta.category"),
    ],
)
def test_ways_are_suggested_as_a_flag_that_works(tmp_path, row, flag):
    reason = refused(tmp_path, row)
    assert reason.split("--columns ")[1].split(" Layouts")[0] == f"{flag}."
    assert len(load(written(tmp_path, row), named=flag)) == 1


def test_what_is_left_of_an_object_is_named_and_a_wrong_way_told(tmp_path):
    path = written(tmp_path, {"translation": {"en": "q", "de": "a", "fr": "x"}})
    assert load(path, named=WAY).unread == ("translation",)
    with pytest.raises(LuthierError, match=r"no column 'translation.dee', which is to be target; did you mean 'transl"):
        load(path, named="source=translation.en,target=translation.dee")
    dotted = written(tmp_path, {"a.b": "q", "answer": "a"})
    assert load(dotted, named="question=a.b").rows[0].messages == TURNS


# --- rows to answer, and folders ---------------------------------------------------------------------------

PAIRS = {
    "implicit prompt": {"chosen": TURNS, "rejected": [ASK, ANSWER | {"content": "b"}]},
    "ranking": {"conversations": [ASK], "chosen": ANSWER, "rejected": ANSWER | {"content": "b"}},
    "openai": {"input": {"messages": [ASK]}, "preferred_output": [ANSWER], "non_preferred_output": [ASK, ANSWER]},
    "alpaca": {"instruction": "q", "chosen": "a", "rejected": "b"},
}


@pytest.mark.parametrize("case", PAIRS)
def test_pairs_of_answers_ask_what_both_answer(tmp_path, case):
    (found,) = load_prompts(written(tmp_path, PAIRS[case] | {"system": "s"}))
    assert found.messages == [{"role": "system", "content": "s"}, ASK]


@pytest.mark.parametrize("row", [{"prompt": "q"}, {"prompt": [ASK]}, {"messages": [ASK]}, {"instruction": "q"}])
@pytest.mark.parametrize("value", ["4", 4])
def test_a_prompt_has_its_reference_in_a_column_of_its_own(tmp_path, row, value):
    examples = load(written(tmp_path, row | {"answer": value}), prompts=True)
    assert examples.rows[0].answer == "4" and examples.scorer.name == "number" and examples.unread == ()
    examples = load(written(tmp_path, row | {"solution": value}), prompts=True, named="answer=solution")
    assert examples.rows[0].answer == "4" and examples.unread == ()
    assert load(written(tmp_path, row), prompts=True).rows[0].answer is None
    assert "'answer' is a list" in refused(tmp_path, row | {"answer": ["4"]}, prompts=True)


def test_a_reference_beside_an_answer_is_what_is_scored(tmp_path):
    row = {"prompt": "q", "completion": "2 + 2 is 4, so 4", "answer": 4}
    assert load(written(tmp_path, row), prompts=True).rows[0].answer == "4"
    assert load(written(tmp_path, row)).unread == ("answer",)


def test_files_of_a_folder_that_nothing_reads_are_named(tmp_path):
    for name in ("cat/1.png", "dog/2.png", "loose.png", "LICENSE"):
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pictures" / name).touch()
    assert load(tmp_path / "pictures").unread == ("file loose.png",)
    (tmp_path / "rows").mkdir()
    for name in ("notes.txt", "README.md"):
        (tmp_path / "rows" / name).write_text("x")
    written(tmp_path / "rows", {"prompt": "q", "completion": "a"})
    assert load(tmp_path / "rows").unread == ("file notes.txt",)
