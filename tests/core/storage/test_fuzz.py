"""2,000 damaged and forged adapters: each loads to the very tensors of its file, or is refused with a plain error.

Half of them get checksums that fit, so that what lies behind those is reached. No other exception, no hang, no memory
beyond a bound.
"""

from __future__ import annotations

import copy
import json
import math
import random
import re
import resource
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

import luthier as lt
from support.forged import reseal

COUNT = 2000
SECONDS, MEMORY = 10, 2**30
TINY: dict[str, Any] = {
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
FORMS: dict[str, Callable[[Any], Any]] = {
    "lora": lambda m: lt.attach(m, lt.LoRA(rank=2), where="q_proj, v_proj"),
    "ranked": lambda m: lt.attach(m, lt.LoRA(rank=2), where="mlp.*", ranks={p: i for i, p in enumerate(MLP)}),
    "shared": lambda m: lt.attach(m, lt.WeGeFT(rank=2, share="type"), where="q_proj, v_proj"),
    "relative": lambda m: lt.attach(m, lt.LoRA(rank=2), where="o_proj", subtract_start=True),
    "two parts": lambda m: lt.attach(lt.attach(m, lt.LoReFT(rank=2, positions="f1,l1")), lt.IA3(), where="k_proj"),
    "sparse": lambda m: lt.attach(m, lt.Sparse(k=4), where="q_proj, params(*.norm.weight)"),
    "s2ft": lambda m: lt.attach(m, lt.S2FT(), where="down_proj"),
    "prefix": lambda m: lt.attach(m, lt.Prefix()),
    "dora": lambda m: lt.attach(m, lt.DoRA(rank=2), where="v_proj"),
}
MLP = [f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up", "down")]
WILD: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 7, 2**31, 2**40, 2**53, 2**63, 10**30, 10**400, -(10**30)),
    *(0.0, -0.5, 1e-320, 1e30, 1e308, math.inf, -math.inf, math.nan, "", " ", "a" * 5000, "\x00", "\ud800", "é"),
    *("\u202e", "../x", "/etc/passwd", "__class__", "all-linear", "stream", "attention", "params(*)", "layers(0)"),
    *("(" * 500, "*" * 500, "[", "q_proj", "lora", "ia3", "prefix", "full", "f" + "9" * 400, "f1", "type", "all"),
    *([], {}, [[]], [{}], {"a": 1}, [None], [0] * 1000, ["x", "affine"], {"rank": 2**40}),
]


class Hangs(BaseException):
    """Nothing that is under test catches it."""


def base() -> Any:
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**TINY)).eval()
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.3)
    return model


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> dict[str, Path]:
    root, made = tmp_path_factory.mktemp("fuzz"), {}
    for name, attach in FORMS.items():
        model = attach(base())
        for parameter in lt.trainable(model).values():
            parameter.data += 0.1 * torch.randn_like(parameter)
        made[name] = lt.save(
            model, root / name.replace(" ", "-"), base="tiny", measured={"score": 0.5, "labels": ["a"]}
        )
    return made


def damaged_bytes(data: bytes, draw: random.Random) -> bytes:
    """Bits flipped, bytes overwritten, cut out, repeated, swapped; ends lost or added."""
    at, size = draw.randrange(len(data)), draw.choice([1, 1, 2, 8, 64])
    changes: list[Callable[[], bytes]] = [
        lambda: data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :],
        lambda: data[:at] + draw.randbytes(size) + data[at + size :],
        lambda: data[:at],
        lambda: data[:at] + data[at + size :],
        lambda: data[: at + size] + data[at:],
        lambda: data + draw.randbytes(size),
        lambda: draw.randbytes(size) + data,
        lambda: bytes(len(data)),
    ]
    return draw.choice(changes)()


def damaged_header(data: bytes, draw: random.Random) -> bytes:
    """The header of the tensors, changed as JSON: other types, shapes, offsets and names."""
    size = int.from_bytes(data[:8], "little")
    head = json.loads(data[8 : 8 + size])
    name = draw.choice([key for key in head if key != "__metadata__"])
    entry = head[name]
    size_of = math.prod(entry["shape"])
    changes: list[Callable[[], Any]] = [
        lambda: entry.update(dtype=draw.choice(["I32", "U32", "F64", "F16", "BF16", "BOOL", "C64", "F8_E4M3", "X", 3])),
        lambda: entry.update(
            shape=draw.choice([[], [size_of], [1, size_of], entry["shape"][::-1], [2**40], [-1], [0]])
        ),
        lambda: entry.update(data_offsets=[draw.choice([0, 4, 2**40, -1]), draw.choice([0, 8, 2**63, len(data)])]),
        lambda: head.pop(name),
        lambda: head.update(
            {draw.choice(["0.x", "../x", "", "0." + "a" * 999, "9.model.x.A", name + ".x"]): head.pop(name)}
        ),
        lambda: head.update({"more": entry}),
        lambda: head.update({"__metadata__": draw.choice([3, {"a": 1}, {"format": "tf"}])}),
    ]
    draw.choice(changes)()
    text = json.dumps(head).encode()
    length = draw.choice([len(text)] * 6 + [len(text) + 8, 2**40, 2**63])
    return length.to_bytes(8, "little") + text + data[8 + size :]


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The path of everything in a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inside:
        yield (*path, key)
        yield from places(each, (*path, key))


def damaged_json(text: str, draw: random.Random) -> str:
    """A value replaced, removed, repeated or moved, a name changed: anywhere, of any type."""
    spec = json.loads(text)
    spots = [p for p in places(spec) if not {"sample", "digests"} & set(p) or draw.random() < 0.05]
    spot = draw.choice([p for p in spots if "parts" in p] if draw.random() < 0.6 else spots)
    holder = spec
    for key in spot[:-1]:
        holder = holder[key]
    last = spot[-1]

    def swap() -> None:
        other = draw.choice(spots)
        found = spec
        for key in other:
            found = found[key]
        holder[last] = copy.deepcopy(found)

    def rename() -> None:
        if isinstance(holder, dict):
            holder[str(draw.choice(WILD))[:200] or "x"] = holder.pop(last)
        else:
            holder.append(copy.deepcopy(holder[last]))

    def scale() -> None:
        found = holder[last]
        holder[last] = found * draw.choice([2, 1000, 10**9]) if type(found) in (int, float) else draw.choice(WILD)

    draw.choice([lambda: holder.__setitem__(last, draw.choice(WILD)), lambda: holder.pop(last), swap, rename, scale])()
    return json.dumps(spec)


def forge(folder: Path, draw: random.Random) -> None:
    """One to three kinds of damage, and half the time checksums that fit."""
    spec, tensors = folder / "adapter.json", folder / "adapter.safetensors"
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        try:
            kind = draw.randrange(8)
            if kind == 0:
                spec.write_bytes(damaged_bytes(spec.read_bytes(), draw))
            elif kind == 1:
                tensors.write_bytes(damaged_bytes(tensors.read_bytes(), draw))
            elif kind <= 3:
                tensors.write_bytes(damaged_header(tensors.read_bytes(), draw))
            else:
                spec.write_text(damaged_json(spec.read_text(encoding="utf-8"), draw), encoding="utf-8")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError):
            continue  # what is damaged already is not always understood
    if draw.random() < 0.5:
        reseal(folder)


@contextmanager
def bounded() -> Iterator[None]:
    """No more memory than now and a gibibyte; nothing longer than some seconds."""

    def late(*_: object) -> None:
        raise Hangs

    status = Path("/proc/self/statm")
    now = int(status.read_text().split()[0]) * resource.getpagesize() if status.exists() else None
    before, handler = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGALRM, late)
    if now is not None:
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, before[1]))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def outcome(model: Any, folder: Path) -> str:
    """Loads; the file's very tensors must be there, or the model as it was. Says why it was refused."""
    signal.alarm(SECONDS)
    try:
        lt.load(model, folder)
    except lt.LuthierError as error:
        assert "memory" not in str(error)
        assert "_luthier" not in vars(model) and not any("Adapted" in str(type(m)) for m in model.modules())
        return re.sub(r"\W+|\d+", " ", str(error).replace(str(folder), ""))[:40]
    finally:
        signal.alarm(0)
    stored = load_file(folder / "adapter.safetensors")
    parts = vars(model)["_luthier"].components
    held = {
        f"{index}.{group}.{name}": tensor
        for index, part in enumerate(parts)
        for group, tuner in part.tuners.items()
        for name, tensor in tuner._parameters.items()
    }
    assert held.keys() == stored.keys()
    for key, tensor in stored.items():
        assert held[key].shape == tensor.shape and torch.equal(held[key], tensor.to(held[key].dtype)), key
        assert not tensor.is_floating_point() or bool(tensor.isfinite().all())
    lt.detach(model)
    return "loaded"


def test_damaged_adapters_load_exactly_or_are_refused(originals, tmp_path):
    model, draw, found = base(), random.Random(0), {}
    kinds = {path: type(module) for path, module in model.named_modules()}
    weights = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with bounded(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(COUNT):
            folder = tmp_path / "adapter"
            shutil.copytree(originals[draw.choice(list(originals))], folder)
            forge(folder, draw)
            try:
                told = outcome(model, folder)
            except Exception as error:
                raise AssertionError(f"number {number}: {type(error).__name__}: {error}") from error
            found[told] = found.get(told, 0) + 1
            shutil.rmtree(folder)
    assert {path: type(module) for path, module in model.named_modules()} == kinds
    assert all(torch.equal(tensor, weights[key]) for key, tensor in model.state_dict().items())
    assert found["loaded"] > COUNT / 50 and len(found) > 40, found  # both ends, and many ways between, were reached
