"""Odd values in every field of every body: taken as what they are, or refused with the field's name; never coerced."""

from __future__ import annotations

import ast
import copy
import importlib
import json
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError, create_model

import luthier.serving
from luthier.core.errors import LuthierError
from luthier.serving.http.bodies import parsed
from luthier.serving.http.refusal import Refusal
from luthier.serving.training_api import asks, bodies, sampling
from support.mutations import GOOD

ROOT = Path(luthier.serving.__file__).parent
DEEP = json.loads("[" * 300 + "]" * 300)
ODD: list[Any] = [
    True, False, 0, 1, -1, 1.0, 1.5, 2**63, 10**300, float("nan"), float("inf"), "1", "1.0", "true", "nan", "", [], {},
    [[]], ["1"], [1.0], [True], [None], {"a": 1}, DEEP,
]  # fmt: skip
"""What JSON can hold; 1e400 is read as infinity."""


def kinds(of: type[BaseModel] = BaseModel) -> Iterator[type[BaseModel]]:
    for each in of.__subclasses__():
        if each.__module__.startswith("luthier.serving."):
            yield each
        yield from kinds(each)


for _module in pkgutil.walk_packages(luthier.serving.__path__, "luthier.serving."):
    importlib.import_module(_module.name)
FIELDS = sorted(
    {(kind.__name__, field): kind for kind in kinds() for field in kind.model_fields}.items(), key=lambda each: each[0]
)


def as_it_is(found: Any, given: Any) -> bool:
    """Whether a value was taken as what it is; a text may stand for a list of one, a whole number for any."""
    if isinstance(found, BaseModel):
        return isinstance(given, dict)
    if isinstance(given, str) and isinstance(found, list):
        return not given or [getattr(each, "text", each) for each in found] == [given]
    if type(given) is int and type(found) is float:
        return found == float(given)
    return type(found) is type(given) and json.dumps(found) == json.dumps(given)


def named(error: Any) -> list[Any]:
    """What an error names: the field of a body, or one that a check of the whole body says."""
    return [*error["loc"][:1], error.get("ctx", {}).get("field")]


def test_fields_take_a_value_as_it_is_or_refuse_it():
    assert len(FIELDS) > 150
    for (name, field), kind in FIELDS:
        own: Any = {field: (kind.model_fields[field].annotation, kind.model_fields[field])}
        alone: Any = create_model(name, __config__=kind.model_config, **own)
        for odd in ODD:
            try:
                found = getattr(alone.model_validate({field: odd}), field)
            except ValidationError:
                with pytest.raises(ValidationError) as told:
                    kind.model_validate({field: odd})
                assert field in {place for each in told.value.errors() for place in named(each)}, (name, field, odd)
            else:
                assert as_it_is(found, odd), (name, field, odd, found)


def test_bodies_are_read_in_one_place():
    """What the law above looks at is all that is read of a call."""
    readers = {
        path.relative_to(ROOT).as_posix()
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("body", "json", "form", "stream")
        if isinstance(node.value, ast.Name) and node.value.id in ("call", "request")
    }
    assert readers == {"http/bodies.py", "training_api/calls.py", "studio/chat.py"}  # the last passes it on


# --- what lies in the fields ---

TOKENS = {"chunks": [{"type": "encoded_text", "tokens": [1, 2, 3]}]}
WHOLE, REAL = {"data": [2, 3, 4], "dtype": "int64", "shape": [3]}, {"data": [0.5, 1.0, 1.0], "dtype": "float32"}
SPREAD = {"sparse_crow_indices": [0, 1, 2, 3], "sparse_col_indices": [0, 1, 2]}
SPARSE = {"data": [2, 3, 4], "dtype": "int64", "shape": [3, 3], **SPREAD}
WEIGHED = {"data": [0.5, 1.5, 1.5], "dtype": "float32", "shape": [3, 3], **SPREAD}


def _pass(loss: str, config: dict[str, Any], **inputs: Any) -> dict[str, Any]:
    datum = {"model_input": TOKENS, "loss_fn_inputs": inputs}
    given = {"data": [datum], "loss_fn": loss, "loss_fn_config": config}
    return {"model_id": "m", "seq_id": 1, "forward_backward_input": given}


INNER = {
    "cross_entropy": _pass("cross_entropy", {}, target_tokens=WHOLE, weights=REAL),
    "sparse": _pass("cross_entropy", {}, target_tokens=SPARSE, weights=WEIGHED),
    "dro": _pass("dro", {"beta": 0.05}, target_tokens=WHOLE, logprobs=REAL, advantages=REAL),
    "sample": {
        "sampling_session_id": "s", "seq_id": 1, "prompt": TOKENS, "sampling_params": {"max_tokens": 2, "stop": [3]},
        "target_prompt_logprobs": {"data": [1, 2], "dtype": "int64", "shape": [2, 1]},
    },
}  # fmt: skip
FREE = {"stop", "prompt", "input", "content", "parameters", "schema"}
"""Fields of several kinds: texts or lists, and what is a JSON schema."""


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield from [at] if at else []
    for key, each in value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else []):
        yield from places(each, (*at, key))


def replaced(value: Any, at: tuple[Any, ...], odd: Any) -> tuple[Any, Any]:
    """(what stood at a place, the whole with another value there)."""
    value = inner = copy.deepcopy(value)
    for key in at[:-1]:
        inner = inner[key]
    before, inner[at[-1]] = inner[at[-1]], odd
    return before, value


def alike(odd: Any, before: Any) -> bool:
    """Whether a value is of the kind that stood in its place; null is as if left out."""
    return odd is None or type(odd) is type(before) or (type(odd) is int and type(before) is float)


def look(good: Any, refusal: Callable[[bytes], str | None], every: int) -> None:
    """One in `every` odd values in each place of a body: `refusal` returns why it is refused, None if it is taken."""
    assert refusal(json.dumps(good).encode()) is None
    for number, at in enumerate(places(good)):
        for odd in ODD[number % every :: every]:
            before, body = replaced(good, at, odd)
            why = refusal(json.dumps(body).encode())
            if why is None:
                assert alike(odd, before) or FREE & set(at), (at, odd)
            elif odd not in ([], {}):  # of what is empty, what it lacks is named
                assert any(key in why for key in at if isinstance(key, str)), (at, odd, why)


@pytest.mark.parametrize("name", INNER)
def test_tensors_tokens_and_settings_of_losses(name):
    def refusal(raw: bytes) -> str | None:
        try:
            if name == "sample":
                sampling.sample_of(parsed(raw, bodies.SampleBody), 50, 100)
            else:
                asks.asked(raw, asks.JSON, 50, 100)
        except (LuthierError, Refusal) as error:
            return str(getattr(error, "detail", error))
        return None

    look(INNER[name], refusal, 2)


@pytest.mark.parametrize("path", GOOD)
def test_the_answer_names_the_field(path, client, engine):
    engine.waiting, asked = 1000, client()

    def refusal(raw: bytes) -> str | None:
        found = asked.post(path, content=raw, headers={"content-type": "application/json"})
        assert found.status_code < 500, (raw, found.text)
        return None if found.status_code == 200 else json.dumps(found.json()["error"])

    look(GOOD[path], refusal, 6)
