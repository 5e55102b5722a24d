"""Pictures in conversations: every layout that names them, their places among tokens, and what is refused."""

from __future__ import annotations

import base64
import io
import json

import pytest
import torch

from luthier import data, models
from luthier.core.errors import LuthierError
from luthier.data.pictures import MARK
from support.seeing import picture, qwen2_vl, save_llava, write_digits


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return models.load(str(save_llava(tmp_path_factory.mktemp("llava"))))


def url(index: int) -> str:
    kept = io.BytesIO()
    picture(index).save(kept, format="PNG")
    return "data:image/png;base64," + base64.b64encode(kept.getvalue()).decode()


def rows_of(tmp_path, *rows) -> data.Examples:
    for index in range(3):
        picture(index).save(tmp_path / f"{index}.png")
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return data.load(file)


ANSWER = {"role": "assistant", "content": "0"}
ASKED = {"type": "text", "text": "which?"}
LAYOUTS = {
    "a path": {"messages": [{"role": "user", "content": [{"type": "image", "path": "0.png"}, ASKED]}, ANSWER]},
    "hub's parts": {"messages": [{"role": "user", "content": [{"type": "image", "image": "0.png"}, ASKED]}, ANSWER]},
    "OpenAI's parts": {
        "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "0.png"}}, ASKED]}, ANSWER]
    },
    "parts and a column": {"messages": [{"role": "user", "content": [{"type": "image"}, ASKED]}, ANSWER],
                           "images": ["0.png"]},
    "TRL's column": {"prompt": [{"role": "user", "content": "which?"}], "completion": [ANSWER], "images": ["0.png"]},
    "LLaVA's tag": {"image": "0.png", "conversations": [{"from": "human", "value": "<image>which?"},
                                                       {"from": "gpt", "value": "0"}]},
    "a question": {"image": "0.png", "question": "which?", "answer": "0"},
    "an instruction": {"images": ["0.png"], "instruction": "which?", "output": "0"},
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_names_its_picture(name, tmp_path, llava):
    found = rows_of(tmp_path, LAYOUTS[name])
    (row,) = found.rows
    assert row.images == (str(tmp_path / "0.png"),) and not found.unread
    assert [m["content"] for m in row.messages] == [MARK + "which?", "0"]
    (encoded,) = data.encode_all(found, llava.processor, max_length=64, pictures=True)
    reference = llava_rows(
        llava, ["<|im_start|>user\n<image>which?<|im_end|>\n<|im_start|>assistant\n0<|im_end|>\n"], [0]
    )
    assert encoded["input_ids"] == reference["input_ids"][0].tolist()
    assert [label for label in encoded["labels"] if label != -100] == encoded["input_ids"][-3:-1]


def llava_rows(llava, texts, indices):
    """What the library's own processor makes of rendered texts."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(llava.path)
    pictures = [picture(i) for i in indices]
    return processor(text=texts, images=pictures, padding=True, padding_side="right", return_tensors="pt")


def test_a_data_url_is_the_picture(tmp_path, llava):
    turns = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url(0)}}, ASKED]}, ANSWER]
    held = rows_of(tmp_path, {"messages": turns}, LAYOUTS["a path"])
    one, other = data.encode_all(held, llava.processor, max_length=64, pictures=True)
    assert one["input_ids"] == other["input_ids"]
    batches = [data.collator_for("causal-lm", llava.processor)([each])["pixel_values"] for each in (one, other)]
    assert torch.equal(*batches)


def test_a_batch_is_what_the_processor_makes(tmp_path, llava):
    """Two pictures in one turn, one, and none: tokens, masks and pictures are those of transformers' processor."""
    two = [
        {"type": "image", "path": "0.png"},
        {"type": "text", "text": "and "},
        {"type": "image", "path": "1.png"},
        ASKED,
    ]
    found = rows_of(
        tmp_path,
        {"messages": [{"role": "user", "content": two}, ANSWER]},
        {"messages": [{"role": "user", "content": "none?"}, ANSWER]},
        {"messages": [{"role": "user", "content": [{"type": "image", "path": "2.png"}, ASKED]}, ANSWER]},
    )
    batch = data.collator_for("causal-lm", llava.processor)(
        data.encode_all(found, llava.processor, max_length=64, pictures=True)
    )
    head, tail = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n0<|im_end|>\n"
    texts = [f"{head}{body}{tail}" for body in ("<image>and <image>which?", "none?", "<image>which?")]
    wanted = llava_rows(llava, texts, [0, 1, 2])
    for name in ("input_ids", "attention_mask", "pixel_values"):
        assert torch.equal(batch[name], wanted[name]), name


def test_columns_that_tokens_of_pictures_need(tmp_path):
    _, tokenizer = qwen2_vl()
    found = data.load(write_digits(tmp_path, 2))
    more = rows_of(tmp_path, {"messages": [{"role": "user", "content": "none?"}, ANSWER]})
    features = [f for each in (found, more) for f in data.encode_all(each, tokenizer, max_length=64, pictures=True)]
    batch = data.collator_for("causal-lm", tokenizer)(features)
    place = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert torch.equal(batch["mm_token_type_ids"], (batch["input_ids"] == place).long())
    assert batch["mm_token_type_ids"].sum(1).tolist() == [4, 4, 0]
    assert batch["image_grid_thw"].tolist() == [[1, 4, 4]] * 2 and len(batch["pixel_values"]) == 32


def test_a_large_file_keeps_its_pictures(tmp_path, llava, monkeypatch):
    """Rows on disk have the same features as rows in memory."""
    monkeypatch.setattr("luthier.data.kept.MANY", 1)
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    found = data.load(write_digits(tmp_path, 3))
    how = {"max_length": 64, "pictures": True}
    kept, held = data.encode_kept(found, llava.processor, **how), data.encode_all(found, llava.processor, **how)
    assert type(kept).__name__ == "Stored" and [kept[i] for i in range(3)] == held


BAD = {
    "no image file": {**LAYOUTS["a question"], "image": "9.png"},
    "nothing is fetched": {**LAYOUTS["a question"], "image": "https://example.org/0.png"},
    "pictures beside the turns: 2, and places for them: 1": {**LAYOUTS["parts and a column"], "images": ["0.png"] * 2},
    "pictures beside the turns: 0, and places for them: 1": {"messages": LAYOUTS["parts and a column"]["messages"]},
    "pictures: 1, and signs .* 2": {**LAYOUTS["a question"], "question": f"{MARK} which?"},
    "is an answer with a picture": {
        "messages": [{"role": "user", "content": "draw"},
                     {"role": "assistant", "content": [{"type": "image", "path": "0.png"}, ASKED]}]
    },
    "holds a picture with 'crop'": {
        "messages": [{"role": "user", "content": [{"type": "image", "path": "0.png", "crop": 1}, ASKED]}, ANSWER]
    },
}  # fmt: skip


@pytest.mark.parametrize("why", BAD)
def test_bad_rows(why, tmp_path):
    with pytest.raises(LuthierError, match=why):
        rows_of(tmp_path, BAD[why])


def test_an_unreadable_picture_and_a_long_row_are_bad_rows(tmp_path, llava):
    (tmp_path / "text.png").write_text("no picture")
    rows = [{**LAYOUTS["a question"], "image": name} for name in ("text.png", "0.png")]
    found = rows_of(tmp_path, *rows)
    with pytest.raises(LuthierError, match="unreadable image"):
        data.encode_all(found, llava.processor, max_length=64, pictures=True)
    with pytest.raises(LuthierError, match="1 picture among them, and such a row is not cut"):
        data.encode_all(found.keep(found.rows[1:]), llava.processor, max_length=12, truncate=True, pictures=True)


def test_who_does_not_read_pictures_says_so(tmp_path, llava):
    from support.cli_tools import tiny_tokenizer

    found = rows_of(tmp_path, LAYOUTS["a question"])
    with pytest.raises(LuthierError, match="read by train, evaluate"):
        data.encode_all(found, llava.processor, max_length=64)
    with pytest.raises(LuthierError, match="this model reads none"):
        data.encode_all(found, tiny_tokenizer(), max_length=64, pictures=True)


def test_a_text_may_hold_the_sign_of_an_object(tmp_path):
    (row,) = rows_of(tmp_path, {"prompt": f"what is {MARK}?", "completion": "an object"}).rows
    assert not row.images and MARK in row.messages[0]["content"]


def gemma(folder):
    """A LLaVA whose processor writes line breaks around a picture, as Gemma 3's does."""
    from luthier.models.seeing import give_eyes
    from support.seeing import tokenizer_of

    class Processor:
        image_token, chat_template = "<image>", None

        def __init__(self) -> None:
            self.tokenizer = tokenizer_of("<image>")

        def __call__(self, text, images, **how):
            whole = [each.replace("<image>", "\n\n<image><image>\n\n") for each in text]
            return dict(self.tokenizer(whole, add_special_tokens=False, return_tensors="pt"))

    tokenizer = tokenizer_of("<image>")
    give_eyes(tokenizer, Processor())
    return tokenizer


def test_white_space_around_a_picture_is_the_processors(tmp_path):
    found = rows_of(tmp_path, LAYOUTS["a path"])
    tokenizer = gemma(tmp_path)
    (feature,) = data.encode_all(found, tokenizer, max_length=64, pictures=True)
    assert tokenizer.decode(feature["input_ids"]).count("<image>") == 2
    learned = [token for token in feature["labels"] if token != -100]
    assert tokenizer.decode(learned) == "0<|im_end|>"


def test_answers_between_pictures_keep_their_places(tmp_path, llava):
    """Of two turns with a picture each, both answers are learned and nothing else."""
    asked = [{"role": "user", "content": [{"type": "image", "path": f"{i}.png"}, ASKED]} for i in (0, 1)]
    answers = [{"role": "assistant", "content": text} for text in ("first", "second")]
    found = rows_of(tmp_path, {"messages": [asked[0], answers[0], asked[1], answers[1]]})
    (feature,) = data.encode_all(found, llava.processor, max_length=128, pictures=True)
    learned = [token for token in feature["labels"] if token != -100]
    assert llava.processor.decode(learned) == "first<|im_end|>second<|im_end|>"


def test_a_text_that_holds_the_token_of_a_picture_is_a_bad_row(tmp_path, llava):
    found = rows_of(tmp_path, {"prompt": "what is <image>?", "completion": "a tag"})
    for read in (lambda: data.encode_all(found, llava.processor, max_length=64, pictures=True),
                 lambda: data.prompt_ids(found.rows[0], llava.processor)):  # fmt: skip
        with pytest.raises(LuthierError, match="stands for a picture, and none is given"):
            read()


def test_pictures_beside_the_text_of_a_turn(tmp_path):
    turns = [{"role": "user", "content": "<image> which?", "images": ["0.png"]}, ANSWER]
    (row,) = rows_of(tmp_path, {"messages": turns}).rows
    assert row.images == (str(tmp_path / "0.png"),) and row.messages[0]["content"] == f"{MARK} which?"
    turns[0] = {"role": "user", "content": "which?", "images": ["0.png", "1.png"]}
    (row,) = rows_of(tmp_path, {"messages": turns}).rows
    assert len(row.images) == 2 and row.messages[0]["content"] == f"{MARK}{MARK}which?"


def test_numbered_marks_stand_in_order(tmp_path):
    asked = {"prompt": "<|image_1|> and <|image_2|>", "completion": "0", "images": ["0.png", "1.png"]}
    (row,) = rows_of(tmp_path, asked).rows
    assert row.messages[0]["content"] == f"{MARK} and {MARK}"
    with pytest.raises(LuthierError, match="numbered 2, 1"):
        rows_of(tmp_path, {**asked, "prompt": "<|image_2|> and <|image_1|>"})


def test_answers_may_hold_tags_of_html(tmp_path):
    rows = [{"image": "0.png", "question": "write this page", "answer": "<video src='a'></video><video>"}]
    assert len(rows_of(tmp_path, *rows).rows[0].images) == 1


def test_pictures_are_bounded_together_before_any_is_unpacked(tmp_path, llava, monkeypatch):
    monkeypatch.setattr("luthier.data.pictures.MOST_PIXELS", 400)
    two = [{"type": "image", "path": "0.png"}, {"type": "image", "path": "1.png"}, ASKED]
    found = rows_of(tmp_path, {"messages": [{"role": "user", "content": two}, ANSWER]})
    with pytest.raises(LuthierError, match="512 pixels together"):
        data.encode_all(found, llava.processor, max_length=64, pictures=True)


def test_the_bound_of_pixels_is_of_a_row_and_not_of_a_batch(tmp_path, llava, monkeypatch):
    monkeypatch.setattr("luthier.data.pictures.MOST_PIXELS", 400)
    features = data.encode_all(data.load(write_digits(tmp_path, 3)), llava.processor, max_length=64, pictures=True)
    assert len(data.collator_for("causal-lm", llava.processor)(features)["pixel_values"]) == 3


def test_a_batch_never_drops_its_pictures(tmp_path, llava):
    features = data.encode_all(data.load(write_digits(tmp_path, 2)), llava.processor, max_length=64, pictures=True)
    with pytest.raises(LuthierError, match="nothing here makes inputs of them"):
        data.collate(features, 0)


def test_what_is_sent_is_read_by_few_decoders(tmp_path, llava):
    kept = io.BytesIO()
    picture(0).save(kept, format="TIFF")
    sent = "data:image/png;base64," + base64.b64encode(kept.getvalue()).decode()
    found = rows_of(tmp_path, {**LAYOUTS["a question"], "image": sent})
    with pytest.raises(LuthierError, match="unreadable image"):
        data.encode_all(found, llava.processor, max_length=64, pictures=True)


def test_a_conversation_in_parts_is_a_prompt(tmp_path, llava):
    from luthier.evaluating import generate

    (row,) = rows_of(tmp_path, LAYOUTS["a path"]).rows
    asked = [{"role": "user", "content": [{"type": "image", "path": str(tmp_path / "0.png")}, ASKED]}]
    by_parts, by_row = (
        generate(llava.model, llava.processor, [each], max_new_tokens=4)
        for each in (asked, data.Example(row=1, messages=row.messages[:1], context=1, images=row.images))
    )
    assert by_parts == by_row
