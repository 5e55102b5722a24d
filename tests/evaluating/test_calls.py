"""DualTune: masks that divide a call, and adapters that take turns while decoding as separate models would."""

from __future__ import annotations

import contextlib
import json
import random

import pytest
import torch

import luthier as lt
from luthier import data, models
from luthier.cli import main
from luthier.core.contracts.objective import Rows
from luthier.data.calls import CallFormat
from luthier.engine.settings import Sampling
from luthier.evaluating.generate import tokenised
from luthier.evaluating.swapped import swapped
from luthier.methods.objectives.dual_tune import DualTune
from luthier.training import Run, Training, train
from support.tiny import save_model, tokenizer, write_rows

QWEN = (
    "{% if tools %}{{ '<s>' + tools | tojson + eos_token }}{% endif %}{% for m in messages %}"
    "{{ '<' + m.role[0] + '>' + (m.content or '') }}{% for c in m.tool_calls or [] %}"
    '{{ \'\n<c>{"n": "\' + c.function.name + \'", "arguments": \' }}{{ c.function.arguments | tojson }}'
    "{{ '}</c>' }}{% endfor %}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}{{ '<a>' }}{% endif %}"
)
ONE = (  # a template that knows one call a turn, and writes the name behind a word
    "{% if tools %}{{ '<s>' + tools | tojson + eos_token }}{% endif %}{% for m in messages %}"
    "{{ '<' + m.role[0] + '>' + (m.content or '') }}{% if m.tool_calls %}"
    "{% if m.tool_calls | length > 1 %}{{ raise_exception('one call') }}{% endif %}"
    "{{ 'do ' + m.tool_calls[0].function.name + ' ' }}{{ m.tool_calls[0].function.arguments | tojson }}{% endif %}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}{{ '<a>' }}{% endif %}"
)


def braced(template: str | None = None):
    words = tokenizer(template)
    words.add_tokens(["{", "}", "\\"])
    return words


def tool(name: str, key: str) -> dict:
    properties = {key: {"type": "string"}}
    about = {"name": name, "description": name, "parameters": {"type": "object", "properties": properties}}
    return {"type": "function", "function": about}


TOOLS = [tool("add", "n"), tool("add_all", "m")]


def call(name: str, arguments: dict) -> dict:
    return {"type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


def row(question: str, *calls: dict, content: str = "") -> dict:
    said = {"role": "assistant", "content": content, **({"tool_calls": list(calls)} if calls else {})}
    return {"tools": TOOLS, "messages": [{"role": "user", "content": question}, said]}


ROWS = [
    row("one 7", call("add", {"n": "7"})),
    row("all 31", call("add_all", {"m": '3} "1'})),
    row("both 2", call("add", {"n": "2"}), call("add_all", {"m": "2"}), content="Ok."),
    row("hello", content="Hi."),
]


def shaped(tmp_path, template: str, rows: list[dict], **settings):
    words = braced(template)
    examples = data.load(write_rows(tmp_path / "rows.jsonl", rows))
    encode = lambda part: data.encode_all(part, words, max_length=None)  # noqa: E731
    features = encode(examples)
    return features, DualTune(**settings).rows(Rows(examples, features, encode, words, 900, 0)), words


def text_of(feature: dict, words) -> str:
    return words.decode([label for label in feature["labels"] if label != -100])


@pytest.mark.parametrize("template", [QWEN, ONE])
def test_the_masks_are_disjoint_and_cover_every_call(tmp_path, template):
    rows = ROWS if template == QWEN else [ROWS[0], ROWS[1], ROWS[3]]
    parts = [{}, {"part": "arguments", "tool": "add"}, {"part": "arguments", "tool": "add_all"}]
    whole, chosen, all_arguments = {}, [], {}
    for settings in parts:
        features, found, _ = shaped(tmp_path, template, rows, **settings)
        whole = {f["row"]: f["labels"] for f in features}
        chosen.append({f["row"]: f["labels"] for f in found})
    _, found, _ = shaped(tmp_path, template, rows, part="arguments")
    all_arguments = {f["row"]: f["labels"] for f in found}
    for number, labels in whole.items():
        nothing = [-100] * len(labels)
        each = [part.get(number, nothing) for part in chosen]
        for place, label in enumerate(labels):
            held = [part[place] for part in each if part[place] != -100]
            assert held == ([] if label == -100 else [label])
            assert all_arguments.get(number, nothing)[place] == next(
                (p[place] for p in each[1:] if p[place] != -100), -100
            )


def test_a_name_ends_with_what_tells_it_from_a_longer_one_and_arguments_with_their_call(tmp_path):
    _, selection, words = shaped(tmp_path, QWEN, ROWS)
    assert [text_of(f, words) for f in selection] == [
        '\n<c>{"n": "add"</s>',
        '\n<c>{"n": "add_all"</s>',
        'Ok.\n<c>{"n": "add"\n<c>{"n": "add_all"</s>',
        "Hi.</s>",
    ]
    _, arguments, words = shaped(tmp_path, QWEN, ROWS, part="arguments", tool="add_all")
    assert [f["row"] for f in arguments] == [2, 3]
    assert text_of(arguments[0], words) == ', "arguments": {"m": "3} \\"1"}}</c>'
    _, single, words = shaped(tmp_path, ONE, ROWS[:2], part="arguments")
    assert [text_of(f, words) for f in single] == ['{"n": "7"}', '{"m": "3} \\"1"}']


def test_bad_input_is_told_before_training(tmp_path):
    with pytest.raises(lt.LuthierError, match="the tools that its rows call are: add, add_all"):
        shaped(tmp_path, QWEN, ROWS, part="arguments", tool="sub")
    with pytest.raises(lt.LuthierError, match=r"tool is .*ignored: it acts where part is"):
        DualTune.from_dict({"tool": "add"})
    with pytest.raises(lt.LuthierError, match="writes no calls"):
        CallFormat.of(braced("{% for m in messages %}{{ m.content }}{% endfor %}"))
    with pytest.raises(lt.LuthierError, match="no chat template"):
        CallFormat.of(braced())


@pytest.mark.parametrize("kind", ["qwen2_5", "qwen3"])
def test_published_templates_are_measured(kind):
    from support.chat_rows import published

    if kind not in published():
        pytest.skip("trl is not installed")
    found = CallFormat.of(braced(published()[kind]))
    assert found == CallFormat('<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>")


# --- decoding -----------------------------------------------------------------------------------------

SHORT = Training(steps=60, batch=16, lr=2e-2, eval_fraction=0.0, schedule="constant", save_every=1000, max_length=300)


def made_rows(count: int, seed: int) -> list[dict]:
    """Right calls: of add for `a` and a digit, of add_all for `z` and two."""
    draw, found = random.Random(seed), []
    for _ in range(count):
        one, digits = draw.random() < 0.5, str(draw.randrange(3))
        asked, made = ("a", call("add", {"n": digits})) if one else ("z", call("add_all", {"m": digits}))
        found.append(row(f"{asked}{digits}", made))
    return [{key: value for key, value in each.items() if key != "tools"} for each in found]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(model folder, run folders of the selection and of each tool's arguments)."""
    folder = tmp_path_factory.mktemp("calls")
    base = save_model(folder / "base", "llama", QWEN, vocab_size=100, max_position_embeddings=512)
    braced(QWEN).save_pretrained(base)
    rows, runs = write_rows(folder / "rows.jsonl", made_rows(64, 0)), {}
    parts = {"select": DualTune(), **{n: DualTune(part="arguments", tool=n) for n in ("add", "add_all")}}
    for name, objective in parts.items():
        run = Run(
            base, rows, lt.LoRA(rank=8), "all-linear", out=str(folder / name), objective=objective, training=SHORT
        )
        runs[name] = str(train(run, progress=False).folder)
    return base, runs


def asked_of(loaded, rows: list[dict]) -> list[list[int]]:
    return tokenised(loaded.model, loaded.processor, [each["messages"][:1] for each in rows])


def test_swapped_decoding_is_that_of_separate_models(trained):
    base, runs = trained
    alone = {name: models.load(base) for name in runs}
    for name, loaded in alone.items():
        lt.load(loaded.model, f"{runs[name]}/adapter")
    both = models.load(base)
    for name, folder in runs.items():
        lt.load(both.model, f"{folder}/adapter", name=name)
    prompts = asked_of(both, made_rows(6, 1))
    own = {name: name for name in runs if name != "select"}
    found = swapped(both.model, both.processor, prompts, Sampling(60), "select", own)
    format = CallFormat.of(both.processor)
    for prompt, ids in zip(prompts, found, strict=True):
        names = [owner or "select" for owner in format.owners(ids, both.processor)]
        assert set(names) & set(own) and "select" in names
        for place, (token, name) in enumerate(zip(ids, names, strict=True)):
            with torch.no_grad():  # that adapter's own model, without a cache
                given = torch.tensor([[*prompt, *ids[:place]]])
                assert int(alone[name].model(input_ids=given).logits[0, -1].argmax()) == token
    assert [type(m).__name__ for m in both.model.modules()][:1] == ["LlamaForCausalLM"]


def test_the_server_changes_adapters_within_a_call_beside_other_requests(trained):
    from concurrent.futures import ThreadPoolExecutor

    import httpx

    from luthier.engine.engine import Engine
    from support.served import serving

    base, runs = trained
    both, engine_of = models.load(base), models.load(base)
    for name, folder in runs.items():
        lt.load(both.model, f"{folder}/adapter", name=name)
    rows, own = made_rows(6, 3), {name: name for name in runs if name != "select"}
    asked = [each["messages"][:1] for each in rows]
    prompts = [tokenised(both.model, both.processor, asked, tools=tools) for tools in (None, TOOLS)]
    plain, wanted = (swapped(both.model, both.processor, each, Sampling(60), "select", own) for each in prompts)
    folders = {name: f"{folder}/adapter" for name, folder in runs.items()}
    engine = Engine(engine_of.model, engine_of.processor, adapters=folders, rows=5)
    settings = {"trained": folders, "arguments": own, "selection": "select", "tokenizer": engine_of.processor}

    def answer(model: str, row: int, **more) -> list[str]:
        body = {"model": model, "messages": asked[row], "temperature": 0, "max_tokens": 60, "logprobs": True, **more}
        told = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60)
        assert told.status_code == 200, told.text
        return [each["token"] for each in told.json()["choices"][0]["logprobs"]["content"]]

    def shown(ids: list[int]) -> list[str]:
        return [both.processor.decode([each]) for each in ids]

    engine.start()
    with contextlib.closing(engine), serving(engine, **settings) as address:
        lonely = {name: answer(name, 0, tools=TOOLS) for name in ("add", "base")}
        with ThreadPoolExecutor(16) as threads:
            called = [threads.submit(answer, "select", row, tools=TOOLS) for row in range(len(rows))]
            beside = {name: threads.submit(answer, name, 0, tools=TOOLS) for name in lonely}
            without = threads.submit(answer, "select", 0)
        for ids, each in zip(wanted, called, strict=True):
            assert each.result()[: len(ids)] == shown(ids) and len(each.result()) <= len(ids) + 1
        assert {name: each.result() for name, each in beside.items()} == lonely
        assert shown(plain[0]) != without.result()[: len(plain[0])] == answer("select", 0)[: len(plain[0])]
        assert httpx.get(f"{address}/v1/models/select").json()["arguments"] == own
        assert httpx.get(f"{address}/v1/models/add").json()["arguments"] == {}
        assert (engine.statistics().failed, engine.statistics().running) == (0, 0)


def test_the_command_calls_the_right_tool_with_arguments_of_that_tool(trained, tmp_path, capsys):
    base, runs = trained
    rows = made_rows(12, 2)
    file = write_rows(tmp_path / "held.jsonl", rows)
    words = ["generate", base, "--file", file, "--adapter", runs["select"], "--max-new-tokens", "60", "--json"]
    for name in ("add", "add_all"):
        words += ["--arguments", f"{name}={runs[name]}"]
    assert main(words) == 0
    answers = [each["answer"] for each in json.loads(capsys.readouterr().out)]
    for each, answer in zip(rows, answers, strict=True):
        wanted = each["messages"][1]["tool_calls"][0]["function"]
        made = json.loads(answer.removeprefix("\n<c>").removesuffix("</c>"))
        assert made["n"] == wanted["name"] and made["arguments"].keys() == json.loads(wanted["arguments"]).keys()
    assert main([*words[:-1], "add"]) != 0 and "expected TOOL=ADAPTER" in capsys.readouterr().err
    start = ["serve", base, "--adapter", f"select={runs['select']}"]
    for more, why in [
        (["--arguments", "add"], "expected TOOL=ADAPTER"),
        (["--arguments", "add=selekt"], "no --adapter is named 'selekt'; did you mean 'select'?"),
        (["--selection", "select"], "say who writes their arguments"),
    ]:
        assert main([*start, *more]) != 0 and why in capsys.readouterr().err
