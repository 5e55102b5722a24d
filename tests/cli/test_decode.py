"""`decode`: the command line end to end on tiny models."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from support.cli_tools import save_llama

SHORT = ["--max-new-tokens", 6, "--json"]


def rows_of(done) -> list[dict]:
    assert done.code == 0, done.err
    return [json.loads(line) for line in done.out.splitlines()]


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("large") / "model", seed=7)


def test_a_model_led_by_its_own_adapter_says_what_the_adapter_says(call, llama, adapter):
    words = ["decode", llama, "say one", "say two", "--by", "proxy", "--expert", f"{llama}@{adapter}", "--anti", llama]
    found = rows_of(call(*words, *SHORT))
    wanted = json.loads(call("generate", llama, "say one", "say two", "--adapter", adapter, *SHORT).out)
    assert [(row["prompt"], row["answer"]) for row in found] == [(row["prompt"], row["answer"]) for row in wanted]
    assert all(row["tokens"] <= 6 and row["drafted"] == 0 for row in found)
    drafted = rows_of(call(*words, *SHORT, "--draft", 3))
    assert [row["answer"] for row in drafted] == [row["answer"] for row in found]
    assert all(row["drafted"] >= row["accepted"] for row in drafted)


def test_a_file_of_prompts_and_several_tuned_models(call, llama, large, adapter, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("say one\n\nsay three\n", encoding="utf-8")
    words = ["decode", large, "--file", file, "--by", "emulated", "--tuned", f"{llama}@{adapter}", "--tuned", llama]
    words += ["--reference", llama, "--weights", 0.5, "--weights", 2, "--temperature", 1, "--seed", 3]
    done = call(*words, *SHORT)
    assert [row["prompt"] for row in rows_of(done)] == ["say one", "say three"]
    assert "decoding 2 prompts by emulated" in done.err
    assert done.out == call(*words, *SHORT).out


def test_text_for_people(call, llama, adapter):
    words = ["decode", f"{llama}@{adapter}", "say one", "--by", "contrastive", "--pretrained", llama]
    done = call(*words, "--max-new-tokens", 3, "--alpha", 0.2)
    assert done.code == 0 and done.out.count("\n") >= 1


def test_rounds_draw_again_from_a_base_that_learns(call, llama, adapter):
    words = ["decode", f"{llama}@{adapter}", "say one", "--by", "contrastive", "--pretrained", llama]
    words += ["--temperature", 1, "--rounds", 3, "--step-lr", 0.001]
    found = rows_of(call(*words, *SHORT))
    assert [row["round"] for row in found] == [1, 2, 3] and found == rows_of(call(*words, *SHORT))
    refused = call(*words, *SHORT, "--temperature", 0)
    assert refused.code and "temperature" in refused.err


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["{0}", "a", "--by", "prox"], "did you mean 'proxy'"),
        (["{0}", "a"], "--by"),
        (["{0}", "a", "--by", "proxy", "--expert", "{0}"], "--anti"),
        (["{0}", "a", "--by", "proxy", "--expert", "{0}@nothing", "--anti", "{0}"], "no adapter folder nothing"),
        (["{0}", "a", "--by", "proxy", "--expert", "@x", "--anti", "{0}"], "names no model before the @"),
        (["{0}", "--file", "none.txt", "--by", "contrastive", "--pretrained", "{0}"], "cannot read"),
        (["{0}", "a", "--by", "contrastive", "--pretrained", "{0}", "--draft", "2"], "no small model"),
        (["{0}", "a", "--by", "contrastive", "--pretrained", "{0}", "--alpha", "2"], "from 0 to 1"),
    ],
)
def test_bad_words_are_refused(words, why, call, llama):
    done = call("decode", *[word.format(llama) for word in words])
    assert done.code == 2 and why in done.err, done.err


def test_flags_follow_the_decoding(call):
    text = call("decode", "--by", "proxy", "--help").out
    assert "--anti" in text and "--alpha" in text and "before it was tuned" in text
    assert "--empty" not in call("decode", "--by", "emulated", "--help").out


def test_help_loads_no_torch_without_a_decoding():
    code = "import sys, luthier.cli; luthier.cli.main(['decode', '--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_what_a_model_says_is_printed_as_it_is(capsys):
    from luthier.cli.output import say

    say(":smile: [b]x[/b] :x:")
    assert capsys.readouterr().out == ":smile: [b]x[/b] :x:\n"


def test_a_head_that_was_never_trained_says_nothing(call, llama, tmp_path):
    from luthier.models import load

    loaded = load(str(llama))
    loaded.model.config.tie_word_embeddings = False
    loaded.model.model.save_pretrained(tmp_path / "body")
    loaded.processor.save_pretrained(tmp_path / "body")
    done = call("decode", tmp_path / "body", "a", "--by", "contrastive", "--pretrained", llama)
    assert done.code == 2 and "lm_head" in done.err and "never trained" in done.err
