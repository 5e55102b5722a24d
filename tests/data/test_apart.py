"""Rows with pictures and sounds in other files, mixes, selections and shots: none of them is lost on the way."""

from __future__ import annotations

import json
import wave

import pytest

from luthier import data
from luthier.cli import main
from luthier.core.contracts.selection import Pool
from luthier.core.errors import LuthierError
from luthier.data.apart import absolute, apart
from luthier.data.texts import full_text, prompt_text
from luthier.methods.selections.random import Random
from support.seeing import picture, write_digits

SAID = {"role": "assistant", "content": "0"}


def asked(part):
    return [{"role": "user", "content": [part, {"type": "text", "text": "which?"}]}, SAID]


PART = asked({"type": "image", "path": "0.png"})
ROWS = {
    "a path": {"messages": PART},
    "a file's address": {"messages": asked({"type": "image", "url": "file://0.png"})},
    "OpenAI's parts": {"messages": asked({"type": "image_url", "image_url": {"url": "0.png"}})},
    "turns as text": {"messages": json.dumps(PART)},
    "a prompt": {"prompt": PART[:1], "completion": [SAID]},
    "one turn": {"prompt": PART[0], "completion": "0"},
    "a list": {"messages": asked({"type": "image"}), "images": ["0.png"]},
    "a list as text": {"messages": asked({"type": "image"}), "images": '["0.png"]'},
    "an object": {"question": "which?", "answer": "0", "image": {"path": "0.png"}},
    "a column": {"question": "which?", "answer": "0", "image": "0.png"},
    "a class": {"image": "0.png", "label": "x"},
}


def written(folder, *rows):
    folder.mkdir(exist_ok=True)
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def seen(source):
    return [row.images or (row.image,) for row in data.load(source).rows]


@pytest.mark.parametrize("name", ROWS)
def test_another_file_a_mix_and_a_selection_keep_the_picture(name, tmp_path):
    there = tmp_path / "there"
    file = written(there, ROWS[name], ROWS[name] | ({"label": "y"} if name == "a class" else {}))
    picture(0).save(there / "0.png")
    wanted = [(str(there / "0.png"),)] * 2
    table = data.read(file)
    assert seen(written(tmp_path / "here", *(apart(row, table, {}) for _, row in table.rows))) == wanted
    assert seen(f"mix:a={file}") == wanted
    out = str(tmp_path / "out.jsonl")
    assert main(["select", file, "--by", "random", "--rows", "1", "--out", out]) == 0
    assert seen(out) == wanted[:1]


@pytest.mark.parametrize(
    "value", ["data:image/png;base64,AAAA", "https://a.b/c.png", {"bytes": b"x", "path": "0.png"}, ""]
)
def test_what_is_no_path_stays(value, tmp_path):
    assert absolute(value, tmp_path) == value and absolute([value], tmp_path) == [value]


def test_words_that_name_no_picture_stay(tmp_path):
    row = {
        "prompt": '[{"role": "user", "content": "[0.png]"}]',
        "completion": "path: 0.png",
        "n": [1, {"path": "0.png"}],
    }
    assert apart(row, data.read(written(tmp_path, row)), {}) == row


def test_sounds_of_every_file_of_a_mix_are_found(tmp_path):
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        with wave.open(str(tmp_path / place / "x.wav"), "wb") as sound:
            sound.setparams((1, 2, 16000, 4, "NONE", ""))
            sound.writeframes(b"\0" * 8)
        written(tmp_path / place, {"file_name": "x.wav", "transcription": place})
    mixed = data.load(f"mix:a={tmp_path}/a/rows.jsonl,b={tmp_path}/b/rows.jsonl")
    assert [row.audio for row in mixed.rows] == [str(tmp_path / place / "x.wav") for place in ("a", "b")]


def test_selections_by_words_and_shots_refuse_rows_with_pictures(tmp_path):
    examples = data.load(write_digits(tmp_path, 3))
    for text in (full_text, prompt_text):
        with pytest.raises(LuthierError, match="row 1 has pictures"):
            text(examples.rows[0])
    plain = data.load(written(tmp_path / "plain", *({"prompt": str(i), "completion": "x"} for i in range(3))))
    for queries, pool in ((examples, plain), (plain, examples)):
        with pytest.raises(LuthierError, match=r"row 1 of .* has pictures; shots are rows of text alone"):
            data.with_shots(Random(), queries, Pool(pool), 1)
