"""What a row says besides its turns, from training to the prompt of an answer, on the command line."""

from __future__ import annotations

import json
import shutil

import pytest

from support.cli_tools import write_rows

TEMPLATE = (
    "{% for t in tools or [] %}{{ t.function.name + ': ' + t.function.description + '\n' }}{% endfor %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name + (c.function.arguments | tojson) }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if quiet %}{{ '<think></think>' }}{% endif %}{% endif %}"
)
CLOCK = {"type": "function", "function": {"name": "clock", "description": "Tells the time.", "parameters": {}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "clock", "arguments": '{"zone": "UTC"}'}}
TURNS = [
    {"role": "user", "content": "What time is it?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "noon"},
    {"role": "assistant", "content": "It is noon."},
]
ROW = {"messages": TURNS, "tools": [CLOCK], "chat_template_kwargs": {"quiet": True}}


@pytest.fixture(scope="module")
def speaker(llama, tmp_path_factory):
    """A model whose template renders tools and a variable."""
    folder = tmp_path_factory.mktemp("speaker") / "llama"
    shutil.copytree(llama, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def test_tools_and_variables_reach_training_and_prompts(call, speaker, llama, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", [ROW, ROW])
    done = call(
        "train", speaker, rows, "--where", "q_proj", "--steps", 1, "--eval-fraction", 0, "--out", tmp_path / "run"
    )
    assert done.code == 0, done.err
    spec = json.loads((tmp_path / "run" / "adapter" / "adapter.json").read_text())
    assert spec["measured"]["chat"] == {"template": json.dumps(TEMPLATE), "variables": {"quiet": True}}
    assert "chat template" in call("show", tmp_path / "run").out
    (tmp_path / "tools.json").write_text(json.dumps([CLOCK]))
    asked = ("What time is it?", "--adapter", tmp_path / "run", "--max-new-tokens", 1)
    assert call("generate", speaker, *asked, "--tools", tmp_path / "tools.json").code == 0
    other = call("generate", llama, *asked)
    assert other.code == 0 and "is not the one that" in other.err
    named = tmp_path / "named"
    assert "is not the one that" in call("merge", llama, tmp_path / "run", named).err
    assert (named / "chat_template.jinja").read_text() == TEMPLATE
    refused = call("generate", llama, asked[0], "--tools", tmp_path / "tools.json", "--max-new-tokens", 1)
    assert refused.code == 2 and "does not render the row's tools" in refused.err


def test_models_that_decode_together_are_asked_as_the_adapter_was_trained(call, speaker, llama, tmp_path):
    from luthier.core.contracts.component import find
    from luthier.decoding import members_of

    rows = write_rows(tmp_path / "rows.jsonl", [ROW, ROW])
    words = ["train", speaker, rows, "--where", "q_proj", "--steps", 1, "--eval-fraction", 0]
    assert call(*words, "--out", tmp_path / "run").code == 0
    roles = {"tuned": f"{llama}@{tmp_path / 'run'}", "pretrained": str(llama)}
    by = find("decodings", "contrastive")()
    with pytest.warns(UserWarning, match="the adapter's is used"):
        members = members_of(by, roles)  # type: ignore[arg-type]
    (tuned,), (plain,) = members["tuned"], members["pretrained"]
    assert tuned.tokenizer.chat_template == TEMPLATE and tuned.template == {"quiet": True}
    assert plain.tokenizer.chat_template != TEMPLATE and not plain.template and tuned.model is plain.model
    done = call("decode", roles["tuned"], "hi", "--by", "contrastive", "--pretrained", llama, "--max-new-tokens", 1)
    assert done.code == 0, done.err


def test_prompts_of_commands_have_the_tokens_of_training(speaker):
    from luthier.data import Example, encode
    from luthier.evaluating.generate import tokenised
    from luthier.models import load

    loaded = load(str(speaker))
    example = Example(row=1, messages=TURNS, tools=[CLOCK], template={"quiet": True})
    feature = encode(example, loaded.processor, max_length=None)
    (ids,) = tokenised(loaded.model, loaded.processor, [TURNS[:-1]], [CLOCK], {"quiet": True})
    assert feature["input_ids"][: len(ids)] == ids and feature["labels"][len(ids)] != -100
    assert loaded.processor.decode(ids).endswith("<think></think>")


def test_notes_are_told_before_training_and_strict_refuses_them(call, llama, tmp_path):
    row = {"messages": [TURNS[0], TURNS[-1]], "chat_template_kwargs": {"mood": 1}}
    rows = write_rows(tmp_path / "rows.jsonl", [row, row])
    words = ("train", llama, rows, "--where", "q_proj", "--dry-run", "--eval-fraction", 0, "--out", tmp_path / "run")
    done = call(*words)
    assert done.code == 0 and "never reads 'mood' of chat_template_kwargs: 2 in 2 rows" in " ".join(done.out.split())
    done = call(*words, "--strict")
    assert done.code == 2 and "never reads 'mood'" in done.err


def test_without_a_place_for_them_tools_are_refused_in_one_line(call, llama, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", [ROW, ROW])
    done = call("train", llama, rows, "--dry-run", "--eval-fraction", 0, "--out", tmp_path / "run")
    assert done.code == 2 and "does not render the row's tools" in done.err and "Traceback" not in done.err


def test_chat_template_kwargs_that_are_no_object_are_refused(call, llama):
    for given in ("no", "[1]", '{"a": 1, "a": 2}'):
        done = call("generate", llama, "hi", "--chat-template-kwargs", given)
        assert done.code == 2 and "--chat-template-kwargs" in done.err
