"""Files that are nearly right, for every reader: seeded changes of good ones, and what each reader makes of them.

A reader may read a changed file or refuse it with a `LuthierError`; anything else is a fault of ours.
"""

from __future__ import annotations

import functools
import json
import random
import resource
import shutil
import struct
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import luthier as lt
from luthier import data
from luthier.comparing.study import read_study
from luthier.data.template import Template
from luthier.examining.check.gates import read_gates
from luthier.methods.recipe import read_recipe
from luthier.models.convert import gguf
from luthier.serving.http.callreader import CallReader
from luthier.serving.http.calls import call_format
from luthier.serving.training_api.tenants import read_tenants
from luthier.training.folder import read_run
from luthier.training.runfile import read_run_file
from luthier.training.stages.plan import read_plan
from support.architectures import ARCHITECTURES
from support.call_templates import SAYS, calling
from support.gguf_files import write_gguf
from support.tiny import TEMPLATE, sums, tokenizer

STILL = 10
"""One case in so many is a good file, left as it is: it is read."""
SECONDS = 20.0
"""Longest time of one case."""
MEMORY = 512
"""MiB that all cases of a reader may add to the largest size of the process."""

ODD: list[Any] = [
    None, True, 0, -1, 2**63, 10**400, 1e308, float("inf"), float("nan"), "", "a" * 300, "\ud800", "\x00", "../../x",
    [], {}, [[]], [None], {"": None}, [{}], [1, "a", None], "9" * 5000, "(" * 50, "{%", "{{", [[[[]]]],
]  # fmt: skip
"""Values that no reader expects."""
RAW = [b"", b"\x00", b"\xff\xfe", b"\r", b"\n", b'"', b"[" * 200, b"9" * 4400, b"\xed\xa0\x80", b"{", b"}", b",", b"e9"]
"""Bytes that are put into files."""


class Draw(random.Random):
    """What chooses the changes of a case; a `still` one makes none."""

    still = False


def changed_bytes(content: bytes, draw: Draw) -> bytes:
    """A few changes of a file: cut, flipped, doubled, put in."""
    if draw.still:
        return content
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(content) + 1)
        end = min(len(content), at + draw.choice([1, 1, 4, 8, 64]))
        content = draw.choice(
            [
                content[:at],
                content[:at] + bytes([draw.randrange(256)]) + content[at + 1 :],
                content[:at] + draw.choice(RAW) + content[at:],
                content[:at] + content[end:],
                content[:end] + content[at:end] + content[end:],
                content[:at] + draw.randbytes(end - at) + content[end:],
            ]
        )
    return content


def changed_value(value: Any, draw: Draw) -> Any:
    """The value with something in it replaced, dropped, or added."""
    if draw.still:
        return value
    if isinstance(value, dict) and value and draw.random() < 0.85:
        key = draw.choice(list(value))
        rest = {k: v for k, v in value.items() if k != key}
        choice = draw.random()
        if choice < 0.1:
            return rest
        if choice < 0.2:
            return {**rest, draw.choice(["", "role", "content", "x" * 300, "\ud800"]): value[key]}
        return {**value, key: changed_value(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.85:
        at = draw.randrange(len(value))
        return [*value[:at], changed_value(value[at], draw), *value[at + 1 :]]
    return draw.choice(ODD)


def dumped(value: Any) -> bytes:
    """JSON, however odd."""
    return json.dumps(value).encode()


@dataclass
class Reader:
    """A reader with one good file of its own."""

    make: Callable[[Path, Draw], Any]
    """Writes a changed file into a folder, and returns what `read` takes."""
    read: Callable[[Any], Any]
    whole: bool = True
    """What it makes without a change is good."""


@dataclass
class Count:
    """What came of the cases of a reader."""

    cases: int = 0
    read: int = 0
    refused: int = 0
    slowest: float = 0.0
    grown: int = 0
    """MiB that the largest size of the process grew by."""
    faults: list[str] = field(default_factory=list)
    """Tracebacks of what was no `LuthierError`, and cases that took too long."""


def peak() -> int:
    """MiB of the process at its largest."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def run(reader: Reader, folder: Path, cases: int, seed: int = 0) -> Count:
    """Tries so many changed files."""
    count, before = Count(), peak()
    for case in range(cases):
        draw, place = Draw(f"{seed} {case}"), folder / str(case)
        draw.still = case % STILL == 0
        place.mkdir(parents=True)
        given, begun = reader.make(place, draw), time.monotonic()
        try:
            reader.read(given)
            count.read += 1
        except lt.LuthierError as error:
            count.refused += 1
            if draw.still and reader.whole:
                count.faults.append(f"case {case} is a good file, and is refused: {error}")
            if not str(error).strip():
                count.faults.append(f"case {case}: an error that says nothing")
        except Exception:
            count.faults.append(f"case {case}:\n{traceback.format_exc()[-1500:]}")
        took = time.monotonic() - begun
        count.slowest = max(count.slowest, took)
        if took > SECONDS:
            count.faults.append(f"case {case} took {took:.0f} s")
        count.cases += 1
        shutil.rmtree(place, ignore_errors=True)
    count.grown = peak() - before
    return count


CHAT = [
    {
        "messages": [
            {"role": "user", "content": "2+3="},
            {"role": "assistant", "content": "5", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    },
    {"messages": [{"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}]},
]
LABELLED = [{"text": f"row {i}", "label": i % 3} for i in range(6)]


def _rows(draw: Draw) -> list[Any]:
    rows: list[Any] = draw.choice([CHAT, sums(4), LABELLED])
    return rows if draw.random() < 0.3 else [changed_value(row, draw) for row in rows]


def _file(suffix: str, content: Callable[[Draw], bytes]) -> Callable[[Path, Draw], str]:
    def make(folder: Path, draw: Draw) -> str:
        raw = content(draw)
        (folder / f"rows{suffix}").write_bytes(changed_bytes(raw, draw) if draw.random() < 0.7 else raw)
        return str(folder / f"rows{suffix}")

    return make


def _jsonl(draw: Draw) -> bytes:
    return b"\n".join(dumped(row) for row in _rows(draw)) + b"\n"


def _csv(draw: Draw) -> bytes:
    end = draw.choice(["\n", "\r\n", "\r"])
    rows = [["text", "label"], *([f"row {i}", str(i % 3)] for i in range(6))]
    rows[draw.randrange(7)][draw.randrange(2)] = draw.choice(["9" * 4400, '"a""b"', "-" * 9, "1e400", "nan", "x" * 300])
    return end.join(",".join(row) for row in rows).encode() + end.encode()


def _parquet(draw: Draw) -> bytes:
    import io

    import pyarrow
    import pyarrow.parquet

    odd = draw.choice(
        [
            pyarrow.array([2**53, 1, None], pyarrow.timestamp("ms")),
            pyarrow.array([2**30, 1, None], pyarrow.date32()),
            pyarrow.array([b"\xff\xfe", b"a", None], pyarrow.binary()),
            pyarrow.Array.from_buffers(
                pyarrow.string(),
                2,
                [
                    None,
                    pyarrow.py_buffer(struct.pack("<3i", 0, 1, 2)),
                    pyarrow.py_buffer(b"\xffa"),
                ],
            ),
            pyarrow.array([[{"a": 1}], [], None]),
            pyarrow.array([10**30, 1, None], pyarrow.decimal128(38)),
        ]
    )
    text = pyarrow.array([f"row {i}" for i in range(len(odd))])
    sink = io.BytesIO()
    names = draw.choice([["text", "label"], ["label", "text"], ["text", "other"]])
    pyarrow.parquet.write_table(pyarrow.table([text, odd], names=names), sink)
    return sink.getvalue()


def _loaded(source: str) -> None:
    examples = data.load(source, skip_bad_rows=True)
    if examples.task == "causal-lm":
        data.encode_all(examples, tokenizer(TEMPLATE), max_length=64, skip_bad_rows=True)


RECIPE = """description = "one"
paper = "a"
method = "lora"
where = "q_proj"
budget = "0.1%"
[form]
rank = 4
[training]
steps = 3
[[also]]
method = "bitfit"
"""


def _recipe(folder: Path, draw: Draw) -> str:
    (folder / "recipe.toml").write_bytes(changed_bytes(RECIPE.encode(), draw))
    return str(folder / "recipe.toml")


RUN = {
    "model": "m", "data": "d.jsonl", "out": "o", "method": "lora", "where": "q_proj", "form": {"rank": 4},
    "training": {"steps": 3, "lr": 1e-3, "batch": 2}, "update": {"name": "lora_plus", "ratio": 4.0},
    "also": [{"method": "loreft", "where": "stream", "form": {"rank": 2}}],
}  # fmt: skip
STAGES = {
    "model": "m",
    "out": "o",
    "method": "lora",
    "stage": [{"name": "a", "data": "d.jsonl", "training": {"lr": 1}}],
}
STUDY = {
    "models": {"a": "m"}, "data": {"x": {"train": ["a.jsonl"], "test": {"t": "b.jsonl"}}}, "methods": ["lora"],
    "seeds": [0, 1], "budget": "0.1%", "training": {"steps": 3}, "settings": {"lora": {"training": {"lr": 1e-3}}},
}  # fmt: skip
TENANTS = b'[anna]\nkey = "tml-abcdefgh"\nadapters = 4\ntokens = 2000000\n[ben]\nkey = "tml-bbbbbbbb"\n'
GATES = b'[[gate]]\nby = "held_loss"\ndata = "held.jsonl"\ntolerance = 0.05\n'


@functools.cache
def _record() -> dict[str, Any]:
    """A run's record, as far as it is read again."""
    run = lt.training.Run("m", "d.jsonl", lt.LoRA(rank=4), out="o", also=(lt.TargetedForm(lt.LoReFT(), "stream"),))
    return {"run": run.to_dict(), "data": {}, "base": {}, "measured": {}, "versions": {}}


def _config(name: str, good: Any) -> Callable[[Path, Draw], Path]:
    """A file of settings, changed as a value or as bytes; JSON is YAML too."""

    def make(folder: Path, draw: Draw) -> Path:
        raw = good if isinstance(good, bytes) else dumped(changed_value(good, draw))
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(changed_bytes(raw, draw) if isinstance(good, bytes) or draw.random() < 0.2 else raw)
        return folder / name

    return make


def _recorded(folder: Path, draw: Draw) -> Path:
    known = _record()
    told = known | {"run": changed_value(known["run"], draw)} if draw.random() < 0.7 else changed_value(known, draw)
    (folder / "run.json").write_bytes(dumped(told))
    return folder


PARTS = [
    "{% for m in messages %}", "{% endfor %}", "{{ m.content }}", "{{ m['role'] }}", "{% if m.x %}", "{% endif %}", "a",
    "{{ messages | length }}", "{{ 1 / 0 }}", "{{ x.y.z }}", "{{ messages[9] }}", "{{ raise_exception('no') }}",
    "{{ m | tojson(indent=4) }}", "{% set ns = namespace(t='') %}", "{% set ns.t = ns.t ~ m.content %}", "{{ ns.t }}",
    "{% macro f(x) %}{{ x }}{% endmacro %}", "{{ f(1) }}", "{{ 'a' + 1 }}", "{{ 'a' | center(20) }}", "{{ [1] | sum }}",
    "{% generation %}", "{% endgeneration %}", "{{ strftime_now('%Y') }}", "{{ lipsum() }}", "{{ range(4) | list }}",
    "{{ 2 ** 5 }}", "{{ '%5d' % 3 }}", "{{ 'a'.join(['b', 'c']) }}", "{{ dict(a=1).a }}", "{{ m | int }}", "{{ '", "%}",
]  # fmt: skip
"""Pieces of templates."""


def _template(folder: Path, draw: Draw) -> str:
    return "".join(draw.choice(PARTS) for _ in range(draw.randint(1, 9)))


def _rendered(source: str) -> None:
    made = tokenizer(TEMPLATE)
    made.chat_template = source
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    Template(made).render(turns)
    Template(made).unread()


PEFT = {
    "peft_type": "LORA", "r": 2, "lora_alpha": 4, "lora_dropout": 0.0, "target_modules": ["q_proj"], "bias": "none",
    "rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False, "use_dora": False, "modules_to_save": None,
    "peft_version": "0.21", "base_model_name_or_path": "x",
}  # fmt: skip
KEY = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"


def _peft(folder: Path, draw: Draw) -> Path:
    shapes = {"A": (2, 32), "B": (32, 2)}
    tensors = {KEY.format(i, side): torch.ones(*shapes[side]) for i in range(3) for side in "AB"}
    if draw.random() < 0.3 and not draw.still:
        key = draw.choice(list(tensors))
        tensors[key] = draw.choice([torch.ones(0), torch.ones(2), torch.full((2, 32), 1e30), torch.ones(3, 3, 3)])
    made = folder / "peft"
    made.mkdir()
    save_file(tensors, made / "adapter_model.safetensors")
    kind = "LORA" if draw.still else draw.choice(["LORA"] * 6 + ["IA3", "ADALORA", "LN_TUNING", "TRAINABLE_TOKENS"])
    (made / "adapter_config.json").write_bytes(dumped(changed_value({**PEFT, "peft_type": kind}, draw)))
    spoilt = draw.choice(["adapter_config.json", "adapter_model.safetensors", "", "", ""])
    if spoilt:
        (made / spoilt).write_bytes(changed_bytes((made / spoilt).read_bytes(), draw))
    return made


def _pyreft(folder: Path, draw: Draw) -> Path:
    made = folder / "pyreft"
    made.mkdir()
    config = {
        "representations": [[0, "block_output", "pos", 1, 4, None, None, None, None, None]],
        "intervention_types": ["<class 'pyreft.interventions.LoreftIntervention'>"],
        "intervention_dimensions": [32],
        "sorted_keys": ["layer.0.comp.block_output.unit.pos.nunit.1#0"],
        "intervention_params": None,
    }
    (made / "config.json").write_bytes(dumped(changed_value(config, draw)))
    name = "intkey_layer.0.comp.block_output.unit.pos.nunit.1#0.bin"
    torch.save({"weight": torch.ones(4, 32), "bias": torch.ones(4), "rotate_layer": torch.eye(32)[:, :4]}, made / name)
    spoilt = draw.choice(["config.json", name, "", ""])
    if spoilt:
        (made / spoilt).write_bytes(changed_bytes((made / spoilt).read_bytes(), draw))
    return made


@functools.cache
def _base() -> Any:
    return ARCHITECTURES["llama"].build()


def _imported(folder: Path) -> None:
    source = lt.formats.PyReFT(positions="f1+l1") if folder.name == "pyreft" else None
    lt.import_adapter(folder, folder.parent / "ours", base=_base(), source=source)


@functools.cache
def _good_gguf() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return write_gguf(Path(folder) / "model.gguf", "gpt-2").read_bytes()


def _gguf(folder: Path, draw: Draw) -> Path:
    path, content = folder / "model.gguf", _good_gguf()
    end = draw.choice([64, 600, 600, len(content)])  # most that can go wrong is at the beginning
    path.write_bytes(changed_bytes(content[:end], draw) + content[end:])
    return path


def _converted(path: Path) -> None:
    gguf.convert(path, path.parent / "out")


BODY = {
    "model": "base", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2, "temperature": 0.5,
    "top_p": 0.9, "n": 1, "stop": ["x"], "stream": False, "seed": 3, "logprobs": True, "top_logprobs": 2,
    "tools": [],  "stream_options": None,
}  # fmt: skip
COMPLETION = {"model": "base", "prompt": "hello", "max_tokens": 2, "echo": False, "logprobs": 1, "suffix": None}
GOOD = {
    "/v1/chat/completions": BODY,
    "/v1/completions": COMPLETION,
    "/v1/responses": {
        "model": "base", "input": [{"role": "user", "content": [{"type": "input_text", "text": "hello"}]}],
        "instructions": "be short", "max_output_tokens": 2, "tools": [], "text": {"format": {"type": "text"}},
    },
    "/v1/embeddings": {"model": "base", "input": ["hello", "you"], "encoding_format": "float", "pooling": "mean"},
}  # fmt: skip
"""A good body for each place that takes one."""
PLACES = [*GOOD, "/v1/models", "/v1/adapters", "/v1/load_lora_adapter", "/health", "/x"]


def _request(folder: Path, draw: Draw) -> tuple[str, bytes, dict[str, str]]:
    place, good = draw.choice(list(GOOD.items()))
    body = dumped(changed_value(good, draw))
    if draw.random() < 0.2:
        body = changed_bytes(body, draw)
    if draw.random() < 0.2 and not draw.still:
        place = draw.choice(PLACES)
    kinds = ["application/json"] * 12 + ["text/plain", "application/x-www-form-urlencoded", ""]
    return place, body, {"content-type": kinds[0] if draw.still else draw.choice(kinds)}


@functools.cache
def _client() -> Any:
    """A client of the app in this process, over an engine without a model."""
    from starlette.testclient import TestClient

    from luthier.serving.http.app import create_app
    from luthier.serving.http.guard import Guard
    from luthier.serving.http.service import Service
    from support.fake_engine import FakeEngine

    engine = FakeEngine("one", waiting=1000)
    app = create_app(Service(engine, engine.tokenizer, "base"), Guard())  # type: ignore[arg-type]
    return TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=True)


def _asked(request: tuple[str, bytes, dict[str, str]]) -> None:
    """Raises `LuthierError` for an answer that refuses, which is told from one that fails."""
    path, body, headers = request
    answer = _client().post(path, content=body, headers=headers)
    if answer.status_code >= 500:
        raise AssertionError(f"{answer.status_code}: {answer.text[:300]} to {path} {body[:300]!r}")
    if answer.status_code >= 400:
        raise lt.LuthierError(answer.text)


@functools.cache
def _written(template: str) -> Any:
    """How a template writes calls."""
    return call_format(calling(template))


def _answer(folder: Path, draw: Draw) -> tuple[str, str, int]:
    template, size = draw.choice(list(SAYS)), draw.randint(1, 9)
    return template, changed_bytes(SAYS[template].encode(), draw).decode(errors="replace"), size


def _called(answer: tuple[str, str, int]) -> None:
    """An answer is read alike however it comes in pieces; `LuthierError` where it calls nothing."""
    template, text, size = answer
    found = []
    for some in (size, len(text) or 1):
        reader = CallReader(_written(template), {"f": {}, "g": {}})
        pieces = [each for i in range(0, len(text), some) for each in reader.add(text[i : i + some])] + reader.rest()
        said = "".join(piece.text for piece in pieces)
        found.append((said, [(call.name, call.arguments) for call in reader.calls]))
    assert found[0] == found[1], (template, text, found)
    if not found[0][1]:
        raise lt.LuthierError("no call")


READERS = {
    "JSONL": Reader(_file(".jsonl", _jsonl), _loaded),
    "JSON": Reader(_file(".json", lambda draw: dumped(_rows(draw))), _loaded),
    "CSV": Reader(_file(".csv", _csv), _loaded, whole=False),
    "TSV": Reader(_file(".tsv", lambda draw: _csv(draw).replace(b",", b"\t")), _loaded, whole=False),
    "Parquet": Reader(_file(".parquet", _parquet), _loaded, whole=False),
    "TOML": Reader(_recipe, read_recipe),
    "run files": Reader(_config("run.yaml", RUN), read_run_file, whole=False),
    "records of runs": Reader(_recorded, read_run),
    "plans": Reader(_config("plan.yaml", STAGES), read_plan),
    "studies": Reader(_config("study.json", {"study": STUDY}), read_study),
    "tenants": Reader(_config("tenants.toml", TENANTS), read_tenants),
    "gates": Reader(_config("gates.toml", GATES), read_gates),
    "templates": Reader(_template, _rendered, whole=False),
    "peft": Reader(_peft, _imported),
    "pyreft": Reader(_pyreft, _imported),
    "GGUF": Reader(_gguf, _converted),
    "HTTP": Reader(_request, _asked),
    "calls of tools": Reader(_answer, _called),
}
