"""Rows through the command line: what a file says is read, refused with the reason, or named; on every command."""

from __future__ import annotations

import json

import pytest

from support.cli_tools import ROWS, save_bert, write_rows

TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
ASIDE = {"id": 7, "source": "web"}


@pytest.fixture
def dry(call, llama, tmp_path):
    """`dry(file name, text or rows, *words)`: the rehearsal of training on a file."""

    def run(name, content, *words):
        path = tmp_path / name
        text = content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content)
        path.write_text(text, encoding="utf-8")
        return call("train", llama, path, "--method", "lora", "--dry-run", "--eval-fraction", 0, *words)

    return run


READ = {
    "a system column": ("a.jsonl", [{"system": "Be terse.", "messages": TURNS}], "Be terse.", "'Yo<|im_end|>'"),
    "system and history": (
        "a.jsonl",
        [{"instruction": "Add", "input": "2 2", "output": "4", "system": "Be terse.", "history": [["hi", "hello"]]}],
        "hello",
        "'4<|im_end|>'",
    ),
    "sharegpt": (
        "a.jsonl",
        [{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]}],
        "user",
        "'Yo<|im_end|>'",
    ),
    "a list of lists": (
        "a.json",
        json.dumps([[{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]]),
        "user",
        "'Yo<|im_end|>'",
    ),
    "a file of splits": ("a.json", json.dumps({"train": [ROWS[0]]}), "user", "'one<|im_end|>'"),
    "plain text": ("a.txt", "Once upon a time.", "1 to train on", "'Once upon a time.<|im_end|>'"),
    "other names": (
        "a.jsonl",
        [{"ask": "Hi", "say": "Yo"}],
        "user",
        "'Yo<|im_end|>'",
        "--columns",
        "prompt=ask,completion=say",
    ),
}


@pytest.mark.parametrize("case", READ)
def test_what_is_read(dry, case):
    name, content, shown, learned, *words = READ[case]
    done = dry(name, content, *words)
    assert done.code == 0, done.err
    plain = "".join(part.removeprefix("[[").removesuffix("]]") for part in done.out.replace("⏎│\n", "⏎│").split("│"))
    assert shown in plain and f"In the loss: {learned}" in done.out


def test_labels_are_classes(dry):
    done = dry("a.jsonl", [{"text": "good", "labels": "pos"}, {"text": "bad", "labels": "neg"}])
    assert done.code == 0 and "In the loss: class pos" in done.out and "2: neg, pos" in done.out


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_whole_numbers_are_classes_in_every_file(dry, name):
    rows = [{"text": "good", "label": 1.0}, {"text": "bad", "label": 0.0}]
    done = dry(name, "text,label\ngood,1.0\nbad,0.0\n" if name.endswith("csv") else rows)
    assert done.code == 0 and "In the loss: class 1\n" in done.out


def test_labels_of_one_value_are_told_before_training(dry):
    rows = [{"text": "good", "label": 0.5}, {"text": "bad", "label": 0.5}]
    done = dry("a.jsonl", rows)
    assert done.code == 0 and "every row to train on has the same number (0.5)" in " ".join(done.out.split())
    done = dry("a.jsonl", rows, "--strict")
    assert done.code == 2 and "2 rows: every row to train on has the same number (0.5)" in done.err


def test_rows_that_hold_wrong_answers_choose_their_objective(dry):
    """Pairs are fitted by dpo, which the overview says; bad answers beside good ones ask for kto, or are refused."""
    rows = [{"prompt": "Name a fruit.", "completion": "A pear.", "label": True}]
    rows += [{"prompt": "Name a tree.", "completion": "A spoon.", "label": False}]
    for unasked in ((), ("--objective", "sft")):
        done = dry("a.jsonl", rows, *unasked)
        assert done.code == 2 and "KTO" in done.err and "--objective kto" in done.err and "spoon" not in done.out
    done = dry("a.jsonl", rows, "--objective", "kto")
    assert done.code == 0 and "objective kto (beta 0.1" in " ".join(done.out.split()), done.err
    pair = [{"prompt": "q", "chosen": "a", "rejected": "b"}]
    done = dry("a.jsonl", pair)
    assert done.code == 0 and "objective dpo (beta 0.1" in " ".join(done.out.split()), done.err
    assert "no objective: dpo, which the rows call for" in done.err
    assert "In the loss: 'a<|im_end|>'" in done.out and "Compared with it: 'b<|im_end|>'" in done.out
    done = dry("a.jsonl", pair, "--objective", "sft")
    assert done.code == 2 and "preference data" in done.err and "--columns completion=chosen" in done.err
    done = dry("a.jsonl", pair, "--columns", "completion=chosen")
    assert done.code == 0 and "objective" not in done.out and "not read" in done.out


def test_an_objective_refuses_rows_that_it_does_not_read(dry):
    done = dry("a.jsonl", [{"prompt": "q", "completion": "a"}], "--objective", "dpo")
    assert done.code == 2 and "dpo reads pairs of answers (prompt, chosen, rejected)" in done.err
    done = dry("a.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "a"}], "--objective", "orpo")
    assert done.code == 2 and "are the same: nothing is preferred" in done.err
    done = dry("a.jsonl", [{"prompt": "q", "chosen": "a", "rejected": " "}])
    assert done.code == 2 and "empty 'rejected'" in done.err
    rows = [{"prompt": "q", "completion": "a", "label": True}]
    done = dry("a.jsonl", rows, "--objective", "kto")
    assert done.code == 2 and "reads answers with a label" in done.err
    pairs = [
        {"prompt": "q", "chosen": "a", "rejected": "b", "margin": 1},
        {"prompt": "r", "chosen": "a", "rejected": "b"},
    ]
    done = dry("a.jsonl", pairs, "--objective", "reward")
    assert done.code == 2 and "finite number as 'margin'" in done.err


def test_a_stray_quote_costs_its_own_row(dry):
    text = 'question,answer\n1,one\n2,two\n3,"3 inch\n4,four\n5,five\n6,six\n'
    done = dry("a.csv", text)
    assert done.code == 2 and "1 of 6 rows" in done.err and "row 4: malformed" in done.err
    done = dry("a.csv", text, "--skip-bad-rows")
    assert done.code == 0 and "5 to train on, 0 held out, 1 bad ones left out" in done.out


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv"])
def test_near_names_are_suggested_in_every_file_and_mode(dry, name):
    rows = [{"body": "good", "category": "pos"}, {"body": "bad", "category": "neg"}]
    texts = {"a.json": json.dumps(rows), "a.csv": "body,category\ngood,pos\nbad,neg\n"}
    for words in ([], ["--json"]):
        done = dry(name, texts.get(name, rows), *words)
        assert done.code == 2 and "--columns text=body,label=category" in done.err and not done.out
    done = dry(name, texts.get(name, rows), "--json", "--columns", "text=body,label=category")
    assert json.loads(done.out)["columns"] == {"text": "body", "label": "category"}


def test_a_way_into_an_object_is_a_column(dry):
    rows = [{"talk": {"q": "Hi", "a": "Yo"}, "id": 7}]
    named = ["--columns", "prompt=talk.q,completion=talk.a"]
    done = dry("a.jsonl", rows, "--json", *named)
    told = json.loads(done.out)
    assert told["columns"] == {"prompt": "talk.q", "completion": "talk.a"} and told["not_read"] == ["id"]


def test_bad_rows_are_grouped(dry):
    done = dry("a.jsonl", [{"prompt": "", "completion": "a"}, {"prompt": "q", "completion": "a"}] * 3)
    assert done.code == 2 and "3 rows: empty 'prompt'; lines 1, 3, 5" in done.err


def test_unread_columns_are_named_or_refused(dry):
    rows = [row | ASIDE for row in ROWS]
    done = dry("a.jsonl", rows)
    assert done.code == 0 and "not read" in done.out and "id, source" in done.out
    done = dry("a.jsonl", rows, "--strict")
    assert done.code == 2 and "nothing reads: id, source" in done.err
    assert dry("a.jsonl", ROWS, "--strict").code == 0


def test_a_key_of_a_turn_is_read_where_the_template_names_it(call, dry, llama, tmp_path):
    rows = [{"messages": [TURNS[0] | {"name": "Ann"}, TURNS[1]]}]
    assert "messages[].name" in dry("a.jsonl", rows).out
    base = tmp_path / "base"
    base.mkdir()
    for file in llama.iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    template = base / "chat_template.jinja"
    template.write_text(template.read_text().replace("m['role'] + '\n'", "m['role'] + (m['name'] or '') + '\n'"))
    done = call("train", base, tmp_path / "a.jsonl", "--method", "lora", "--dry-run", "--eval-fraction", 0, "--strict")
    assert done.code == 0 and "not read" not in done.out and "A│n│n" in done.out


def test_a_long_text_is_cut_and_counted(dry):
    done = dry("a.txt", "Once upon a time. " * 20, "--max-length", 64)
    assert done.code == 0 and "6 to train on" in done.out and "1 cut into 6 pieces" in done.out


def test_evaluation_data_of_another_layout_are_told(dry, tmp_path):
    held = write_rows(tmp_path / "held.jsonl", [{"question": "say nine", "answer": "nine", "level": 3}])
    done = dry("a.jsonl", ROWS, "--eval-data", held)
    assert done.code == 0
    assert "rows of another layout: question-answer, where those to train on are prompt-completion" in done.out
    assert "level" in done.out


def test_what_was_not_read_is_on_record(call, llama, tmp_path):
    path = write_rows(tmp_path / "a.jsonl", [{"ask": r["prompt"], "say": r["completion"]} | ASIDE for r in ROWS])
    named = ["--columns", "prompt=ask,completion=say"]
    words = [
        llama,
        path,
        "--method",
        "lora",
        "--rank",
        2,
        "--steps",
        1,
        "--batch",
        2,
        *named,
        "--out",
        tmp_path / "run",
    ]
    done = call("train", *words)
    assert done.code == 0 and "not read" in done.err
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["unread"] == ["id", "source"] and "--columns prompt=ask,completion=say" in record["command"]
    assert call("train", *words, "--resume").code == 0


NAMED = ["--columns", "prompt=ask,completion=say"]
COMMANDS = {
    "evaluate": ["evaluate", "MODEL", "DATA", "--split", "train", "--max-new-tokens", 2],
    "measure": ["measure", "MODEL", "DATA", "--ranks", "eva", "--rank", 2],
    "show": ["show", "MODEL", "DATA"],
    "select": ["select", "DATA", "--by", "random", "--rows", 3, "--out", "OUT/chosen.jsonl"],
    "federate": ["federate", "MODEL", "DATA", "--clients", 2, "--dry-run"],
    "compare": [
        "compare",
        "MODEL",
        "DATA",
        "--methods",
        "lora",
        "--seeds",
        1,
        "--steps",
        1,
        "--dry-run",
        "--out",
        "OUT/s",
    ],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_names_of_columns(call, llama, tmp_path, command):
    rows = [{"ask": r["prompt"], "say": r["completion"]} | ASIDE for r in ROWS * 2]
    path = write_rows(tmp_path / "a.jsonl", [row | {"ask": f"{row['ask']} {i}"} for i, row in enumerate(rows)])
    there = {"MODEL": llama, "DATA": path}
    words = [there.get(word, str(word).replace("OUT", str(tmp_path))) for word in COMMANDS[command]]
    done = call(*words)
    assert done.code == 2 and "--columns" in done.err
    done = call(*words, *NAMED)
    assert done.code == 0, done.err
    if command != "compare":
        assert "id, source" in done.out + done.err
    if command == "select":
        assert json.loads((tmp_path / "chosen.jsonl").read_text().splitlines()[0]).keys() == rows[0].keys()


def test_the_column_that_clients_are_divided_by_is_read(call, llama, tmp_path):
    path = write_rows(tmp_path / "a.jsonl", [row | {"hospital": "ab"[i % 2]} for i, row in enumerate(ROWS)])
    words = ["federate", llama, path, "--split", "column", "--column", "hospital", "--dry-run"]
    done = call(*words, "--strict")
    assert done.code == 0 and "not read" not in done.out


def test_generate_answers_rows_as_training_reads_them(call, llama, tmp_path):
    asked = [{"role": "system", "content": "Be terse."}, {"role": "user", "content": "say one"}]
    files = {
        "turns": {"messages": asked},
        "answered": {"messages": [*asked, {"role": "assistant", "content": "one"}]},
        "columns": {"system": "Be terse.", "prompt": "say one"},
        "named": {"system": "Be terse.", "ask": "say one"},
    }
    found = {}
    for name, row in files.items():
        path = write_rows(tmp_path / f"{name}.jsonl", [row])
        words = ["--columns", "prompt=ask"] if name == "named" else []
        done = call("generate", llama, "--file", path, *words, "--max-new-tokens", 4, "--json")
        assert done.code == 0, done.err
        found[name] = json.loads(done.out)
    assert found["turns"][0]["prompt"] == asked
    assert all(each == found["turns"] for each in found.values())
    done = call("generate", llama, "say one", "--columns", "prompt=ask")
    assert done.code == 2 and "--columns" in done.err


def test_generate_goes_on_with_texts(call, llama, tmp_path):
    path = write_rows(tmp_path / "a.jsonl", [{"text": "Once"}])
    done = call("generate", llama, "--file", path, "--max-new-tokens", 3, "--json")
    assert done.code == 0 and json.loads(done.out)[0]["prompt"] == "Once"


def test_names_of_columns_for_a_classifier(call, tmp_path):
    base = save_bert(tmp_path / "bert")
    path = write_rows(tmp_path / "a.jsonl", [{"body": f"t{i}", "category": "ab"[i % 2]} for i in range(4)])
    words = ["train", base, path, "--method", "lora", "--dry-run", "--eval-fraction", 0]
    done = call(*words)
    assert done.code == 2 and "--columns text=body,label=category" in done.err
    assert call(*words, "--columns", "text=body,label=category").code == 0
