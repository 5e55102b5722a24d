"""Ollama's Modelfile: its template, run by Go's own text/template where Go is installed, writes what ours writes."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

import luthier as lt
from luthier.core.errors import LuthierError
from luthier.interop.formats._modelfile import in_go, measured, modelfile
from support.chat_rows import published
from support.shipped import ROWS, build, byte_level, moved
from support.tiny import tokenizer

pytest.importorskip("gguf")
CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FOLDED = (  # the system's text stands in the first turn of the user, behind a BOS that the file adds
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}[INST] <<{{ m.content }}>> "
    "{% elif m.role == 'user' %}"
    "{% if loop.index0 == 0 or messages[loop.index0 - 1].role == 'assistant' %}[INST] {% endif %}"
    "{{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
PROGRAM = """
package main

import ("encoding/json"; "os"; "text/template")

type turn struct { Role, Content string }

func main() {
    var asked struct { Template string; Chats [][]turn }
    if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil { panic(err) }
    made := template.Must(template.New("").Parse(asked.Template))
    for _, chat := range asked.Chats {
        if err := made.Execute(os.Stdout, map[string]any{"Messages": chat}); err != nil { panic(err) }
        os.Stdout.WriteString("\\x00")
    }
}
"""


def chats() -> list[list[dict[str, str]]]:
    turns = [
        ("system", 'Say {{ it }} "twice".'),
        ("user", "a\nb"),
        ("assistant", "c"),
        ("user", "d é"),
        ("assistant", "e"),
    ]
    made = [{"role": role, "content": content} for role, content in turns]
    return [made[:2], made[:4], made[1:2], made[1:4]]


def rendered_by_go(template: str, tmp_path) -> list[str]:
    (tmp_path / "main.go").write_text(PROGRAM)
    told = [[{"Role": turn["role"], "Content": turn["content"]} for turn in chat] for chat in chats()]
    done = subprocess.run(
        ["go", "run", "main.go"],
        input=json.dumps({"Template": template, "Chats": told}),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    return done.stdout.split("\0")[:-1]


@pytest.mark.skipif(shutil.which("go") is None, reason="needs Go, to run its templates")
@pytest.mark.parametrize("template", [CHATML, FOLDED, "qwen2_5", "llama3", "gemma"])
def test_go_renders_the_conversations_that_training_renders(template, tmp_path):
    if len(template) < 20 and template not in published():
        pytest.skip("trl has no such template")
    words = tokenizer(published().get(template, template))
    found = rendered_by_go(in_go(*measured(words), bos=""), tmp_path)
    for chat, made in zip(chats(), found, strict=True):
        left = chat[1:] if template == "gemma" and chat[0]["role"] == "system" else chat  # it raises for them
        assert made == words.apply_chat_template(left, tokenize=False, add_generation_prompt=True)


def test_the_file_names_model_template_and_stops():
    words = tokenizer(CHATML)
    text = modelfile(words, None, adds_bos=False)
    assert text.startswith('FROM ./model.gguf\nTEMPLATE """{{ $last := "" }}{{ range .Messages }}')
    assert '"<|im_end|>\\n<|im_start|>user\\n"' in text and "Be kind." in text
    assert text.endswith(f'PARAMETER stop "{words.eos_token}"\n')
    said = "{{ m.content }}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    alone = modelfile(tokenizer("{% for m in messages %}<a>" + said + "{% endfor %}"), None, adds_bos=False)
    assert "# Turns that the chat template refuses are left out: system at the start, user after system" in alone
    assert 'eq .Role "system"' not in alone
    plain = tokenizer()
    assert modelfile(plain, None, adds_bos=False) == "FROM ./model.gguf\n"


def test_text_that_ends_as_an_action_of_go_begins_is_quoted():
    words = tokenizer("{% for m in messages %}[{{ m.role }}]{{ '{' }}{{ m.content }}{{ '}' }}{% endfor %}")
    assert "[user]{{{" not in in_go(*measured(words), bos="") and '"[user]{"' in in_go(*measured(words), bos="")


def test_a_bos_that_the_file_adds_is_not_written_twice():
    words = tokenizer(FOLDED)
    words.bos_token = "</s>"
    kept, cut = (in_go(*measured(words), bos=bos) for bos in ("", "</s>"))
    assert kept.count("</s>[INST]") == 2 + cut.count("</s>[INST]")


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{% for m in messages %}{{ loop.index }}{{ m.content }};{% endfor %}", "more than fixed texts"),
        (CHATML + "{{ strftime_now('%d') }}", "the date of the day"),
        ("{% for m in messages %}{{ m.content if m.role == 'user' }}{% endfor %}", "fixed texts"),
    ],
)
def test_templates_that_are_no_fixed_texts_are_refused(template, why):
    with pytest.raises(LuthierError, match=why):
        measured(tokenizer(template))


def test_a_model_is_written_with_its_modelfile(tmp_path):
    model = moved(lt.attach(build("llama", vocab_size=ROWS), lt.LoRA(rank=4), where="q_proj"))
    lt.save(model, tmp_path / "adapter")
    for to in ("gguf", "ollama"):
        base = build("llama", vocab_size=ROWS)
        lt.export(tmp_path / "adapter", tmp_path / to, to=to, base=base, processor=byte_level())
    assert (tmp_path / "ollama" / "model.gguf").read_bytes() == (tmp_path / "gguf" / "model.gguf").read_bytes()
    assert "<|im_start|>user" in (tmp_path / "ollama" / "Modelfile").read_text()
    assert lt.formats.Ollama.writes() and not lt.formats.Ollama.reads()
