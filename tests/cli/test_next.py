"""What was fitted is used with nothing said twice, and every command that is printed as the next step works."""

from __future__ import annotations

import io
import json
import shlex
import struct
import wave
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from luthier.cli import main
from luthier.data import TASKS as KNOWN
from support.cli_tools import save_bert
from support.tiny import save_model, sums, write_rows
from support.tiny_speech import save_whisper, spoken_rows


def _sound(path, high: bool) -> str:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(b"".join(struct.pack("<h", 8000 * (-1) ** (i // (2 if high else 8))) for i in range(4000)))
    return str(path)


def _audio(folder):
    from transformers import Wav2Vec2FeatureExtractor

    base = save_model(folder / "model", "wav2vec2")
    Wav2Vec2FeatureExtractor().save_pretrained(base)
    return base, [{"audio": _sound(folder / f"{i}.wav", i % 2 == 0), "label": "ab"[i % 2]} for i in range(8)]


def _images(folder):
    from PIL import Image
    from transformers import ViTImageProcessor

    base = save_model(folder / "model", "vit")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(base)
    rows = []
    for i in range(8):
        Image.new("RGB", (16, 16), ("red", "blue")[i % 2]).save(folder / f"{i}.png")
        rows.append({"image": str(folder / f"{i}.png"), "label": "ab"[i % 2]})
    return base, rows


def _classes(folder):
    return save_bert(folder / "model"), [{"text": f"x{i}", "label": "yn"[i % 2]} for i in range(8)]


def _numbers(folder):
    return save_bert(folder / "model"), [{"text": f"x{i}", "label": i / 2 + 0.25} for i in range(8)]


def _bert(*rows):
    return lambda folder: (save_bert(folder / "model"), list(rows) * 4)


def _chat(*rows):
    return lambda folder: (save_model(folder / "model", "llama"), list(rows) * 6)


PASSAGE = "abc def ghi"
TASKS = {
    "causal-lm": lambda folder: (save_model(folder / "model", "llama"), sums(12)),
    "text": lambda folder: (save_model(folder / "model", "llama"), [{"text": f"row {i}"} for i in range(12)]),
    "seq2seq": lambda folder: (
        save_model(folder / "model", "t5"),
        [{"prompt": c, "completion": c * 3} for c in "abcd" * 3],
    ),
    "classification": _classes,
    "regression": _numbers,
    "image-classification": _images,
    "audio-classification": _audio,
    "speech-to-text": lambda folder: (save_whisper(folder / "model"), spoken_rows(folder, 8)),
    "multi-label": _bert({"text": "x", "labels": ["a", "b"]}, {"text": "y", "labels": ["b"]}),
    "token-classification": _bert({"tokens": ["x", "y"], "tags": ["O", "B"]}),
    "question-answering": _bert(
        {"question": "a?", "context": PASSAGE, "answers": {"text": ["def"], "answer_start": [4]}}
    ),
    "embedding": _bert(*({"anchor": f"x{i}", "positive": f"y{i}"} for i in range(3))),
    "pairs": _chat({"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "d", "chosen": "e", "rejected": "f"}),
    "judged": _chat(
        {"prompt": "a", "completion": "b", "label": True}, {"prompt": "d", "completion": "c", "label": False}
    ),
    "reward": _chat({"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "d", "chosen": "e", "rejected": "f"}),
}
TOLD = {
    "seq2seq": ["--task", "seq2seq"],
    "judged": ["--objective", "kto"],
    "reward": ["--task", "reward", "--objective", "reward"],
}
"""What has to be said for a task that the rows do not tell."""
WRITES = ("causal-lm", "text", "seq2seq", "pairs", "judged")


@pytest.fixture(scope="module", params=TASKS)
def fitted(request, tmp_path_factory):
    """(task, base, rows, run folder, the screen) of a run of one step."""
    folder = tmp_path_factory.mktemp(request.param) / "a folder"
    folder.mkdir()
    base, rows = TASKS[request.param](folder)
    data = write_rows(folder / "rows.jsonl", rows)
    out = folder / "my run"
    words = ["train", base, data, "--method", "lora", "--rank", 2, "--steps", 1, "--batch", 2, "--eval-fraction", 0]
    with redirect_stdout(io.StringIO()) as screen, redirect_stderr(io.StringIO()) as told:
        code = main([str(word) for word in (*words, *TOLD.get(request.param, []), "--out", out)])
    assert code == 0, told.getvalue()
    return request.param, base, data, out, screen.getvalue()


def test_every_task_is_tried():
    assert set(KNOWN) <= set(TASKS)


def next_of(screen: str) -> list[str]:
    line = next(line for line in screen.splitlines() if line.startswith("Next: luthier "))
    return shlex.split(line.removeprefix("Next: luthier "))


def test_what_train_prints_works_as_it_stands(call, fitted):
    _, _, data, _, screen = fitted
    done = call(*next_of(screen))
    assert done.code == 0, done.err
    seen = f"It was trained on rows of {data}; for a score, take rows that it has not seen." in screen.splitlines()
    assert seen is (next_of(screen)[0] == "evaluate")


def test_a_folder_of_sounds_for_each_class_is_trained_on_and_evaluated(call, tmp_path):
    from luthier.data.folder import undivided

    base, _ = _audio(tmp_path)
    for name, high in (("high", True), ("low", False)):
        (tmp_path / "sounds" / name).mkdir(parents=True)
        for i in range(3):
            _sound(tmp_path / "sounds" / name / f"{i}.wav", high)
    sounds, out = tmp_path / "sounds", tmp_path / "run"
    words = ("--method", "conformer", "--dim", 2, "--kernel", 3, "--steps", 1, "--batch", 2, "--eval-fraction", 0)
    done = call("train", base, sounds, *words, "--out", out)
    assert done.code == 0, done.err
    assert undivided(str(sounds)) and next_of(done.out)[-2:] == ["--split", "train"]
    found = call(*next_of(done.out))
    assert found.code == 0 and "6 rows" in found.out, found.err + found.out
    sounds.rename(tmp_path / "train")
    (tmp_path / "divided").mkdir()
    (tmp_path / "train").rename(tmp_path / "divided" / "train")
    assert not undivided(str(tmp_path / "divided")) and not undivided(str(tmp_path / "no such folder"))
    for place in (tmp_path / "divided" / "train", tmp_path):  # files that name a split, and one that does not
        (place / "metadata.csv").write_text("text\na\n")
    assert undivided(str(tmp_path)) and not undivided(str(tmp_path / "divided"))


def test_what_merge_prints_works_with_data_in_place(call, fitted, tmp_path):
    task, base, data, run, _ = fitted
    done = call("merge", base, run, tmp_path / "merged")
    assert done.code == 0, done.err
    found = call(*[data if word == "DATA" else word for word in next_of(done.out)])
    assert found.code == 0, found.err
    if task not in ("text", "judged", "pairs"):  # nothing to score, or nothing to compare a merged model with
        told = TOLD["reward"][:2] if task == "reward" else []
        scores = [
            call("evaluate", *words, data, "--json")
            for words in ([base, "--adapter", run], [tmp_path / "merged", *told])
        ]
        assert [each.code for each in scores] == [0, 0], scores[1].err
        first, second = (json.loads(each.out) for each in scores)
        assert first["score"] == pytest.approx(second["score"], nan_ok=True) and first["count"] == second["count"]


def test_generate_writes_or_names_the_command_that_answers(call, fitted):
    task, base, data, run, _ = fitted
    prompt = Path(data).with_name("0.wav") if task == "speech-to-text" else "abc"
    done = call("generate", base, prompt, "--adapter", run, "--max-new-tokens", 2)
    if task in (*WRITES, "speech-to-text"):
        assert done.code == 0, done.err
        return
    assert done.code == 2 and f"was fitted for {task}" in done.err
    if task == "embedding":
        return
    words = shlex.split(done.err.split("luthier ", 1)[1])
    found = call(*[{"DATA": data, "FILE": run / "scores.json"}.get(word, word) for word in words])
    assert found.code == 0, found.err
    count = len(Path(data).read_text().splitlines())
    assert len(json.loads((run / "scores.json").read_text())["predictions"]) == count


def test_serve_and_decode_refuse_what_they_cannot_write(call, fitted):
    task, base, _, run, _ = fitted
    if task in set(WRITES) - {"seq2seq"}:
        return
    for words in (
        ["serve", base, "--adapter", f"mine={run}"],
        ["decode", f"{base}@{run}", "abc", "--by", "contrastive", "--pretrained", base],
    ):
        done = call(*words)
        assert done.code == 2 and f"was fitted for {task}" in done.err, done.err


def test_a_task_that_contradicts_the_adapter_is_told(call, fitted):
    task, base, _, run, _ = fitted
    wrong = "seq2seq" if task in set(WRITES) - {"seq2seq"} else "causal-lm"
    done = call("generate", base, "abc", "--adapter", run, "--task", wrong)
    assert done.code == 2 and "was fitted for" in done.err


def test_what_federate_prints_works_as_it_stands(call, tmp_path):
    base, rows = _classes(tmp_path)
    more = [row | {"text": f"{row['text']} again"} for row in rows]
    data = write_rows(tmp_path / "rows.jsonl", rows + more)
    words = ["--clients", 2, "--rounds", 1, "--rank", 2, "--steps", 1, "--batch", 2, "--out", tmp_path / "out"]
    done = call("federate", base, data, *words)
    assert done.code == 0, done.err
    found = call(*next_of(done.out))
    assert found.code == 0, found.err


def test_what_had_to_be_said_of_the_data_is_said_again(call, tmp_path):
    base = save_bert(tmp_path / "model")
    rows = [{"body": f"x{i}", "kind": "yn"[i % 2]} for i in range(8)] + [{"body": "", "kind": "y"}]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    words = ["train", base, data, "--method", "lora", "--rank", 2, "--steps", 1, "--batch", 2, "--eval-fraction", 0]
    words += ["--columns", "text=body,label=kind", "--skip-bad-rows", "--out", tmp_path / "my run"]
    done = call(*words)
    assert done.code == 0, done.err
    found = call(*next_of(done.out))
    assert found.code == 0, found.err
    merged = call("merge", base, tmp_path / "my run", tmp_path / "merged")
    assert merged.code == 0 and "DATA" not in next_of(merged.out), merged.err
    scored = call(*next_of(merged.out))
    assert scored.code == 0, scored.err


def test_what_select_prints_works_with_a_model_in_place(call, tmp_path):
    base, _ = TASKS["causal-lm"](tmp_path)
    rows = [{"ask": row["prompt"], "completion": row["completion"]} for row in sums(12)]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    out = tmp_path / "a folder" / "kept.jsonl"
    out.parent.mkdir()
    done = call("select", data, "--by", "random", "--rows", 6, "--out", out, "--columns", "prompt=ask")
    assert done.code == 0, done.err
    words = [base if word == "MODEL" else word for word in next_of(done.out)]
    found = call(*words, "--dry-run", "--eval-fraction", 0)
    assert found.code == 0, found.err


def test_what_import_prints_works_as_it_stands(call, tmp_path):
    base, rows = TASKS["causal-lm"](tmp_path)
    data = write_rows(tmp_path / "rows.jsonl", rows)
    run = tmp_path / "run"
    words = ["train", base, data, "--method", "lora", "--rank", 2, "--steps", 1, "--batch", 2, "--out", run]
    assert call(*words).code == 0
    assert call("export", run, tmp_path / "peft", "--model", base).code == 0
    done = call("import", tmp_path / "peft", tmp_path / "back", "--model", base)
    assert done.code == 0, done.err
    found = call(*next_of(done.out))
    assert found.code == 0, found.err
