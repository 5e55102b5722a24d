"""Answers held to JSON schemas: do they always parse, and what does a token cost beside unconstrained ones?

16 rows with 8 schemas share a batch with sampled tokens, on real weights; every answer has to be JSON that its schema
takes. Then the same rows run with and without their schemas, in turns. A constrained answer ends where its schema is
complete, so both are timed over the same number of steps: rows are asked again until so many tokens were generated.
Ratios are of one round's seconds per step, which every running row gets a token in: seconds of the clock, and those
that the processor spent on this process, which other processes hardly change.

python -m bench structured [--model smollm2-135m] [--rounds 5] [--answers 160]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from bench._registry import results_of
from bench.speed.machine import about, slug

import luthier as lt
from luthier.engine.engine import Engine
from luthier.engine.grammar import Grammar, of_schema
from luthier.engine.request import Chunk, Request
from luthier.serving.http.threads import run_in_thread

ROWS, NEW, STEPS = 16, 256, 12
WORD = {"type": "string", "pattern": "^[A-Za-z ]{1,24}$"}
SCHEMAS: list[dict[str, Any]] = [
    {"type": "object", "properties": {"name": WORD, "age": {"type": "integer", "minimum": 0, "maximum": 120}}},
    {"type": "object", "properties": {"city": WORD, "rain": {"type": "boolean"}, "mood": {"enum": ["good", "bad"]}}},
    {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 2, "maxItems": 6},
    {"type": "object", "properties": {"x": {"type": "number", "minimum": -9, "maximum": 9}, "y": {"type": "null"}}},
    {"anyOf": [WORD, {"type": "integer", "minimum": 1, "maximum": 999}]},
    {"type": "object", "properties": {"at": {"type": "string", "format": "date"}, "tags": {
        "type": "array", "items": WORD, "maxItems": 3}}},
    {"type": "array", "prefixItems": [WORD, {"type": "boolean"}], "items": False, "minItems": 2},
    {"type": "object", "properties": {"in": {"$ref": "#/$defs/place"}}, "$defs": {"place": {
        "type": "object", "properties": {"street": WORD, "no": {"type": "integer", "minimum": 1, "maximum": 99}},
        "required": ["street", "no"], "additionalProperties": False}}},
]  # fmt: skip
for _schema in SCHEMAS:
    if _schema.get("type") == "object":
        _schema |= {"required": list(_schema["properties"]), "additionalProperties": False}


def made(name: str) -> tuple[Engine, Any]:
    """An engine, which is driven from here round by round, and its tokenizer."""
    loaded = lt.model(name, task="causal-lm")
    return Engine(loaded.model, loaded.processor, rows=ROWS), loaded.processor


class Work:
    """Rows that are asked again as they end."""

    def __init__(self, engine: Engine, tokenizer: Any, grammars: Sequence[Any]) -> None:
        self.engine, self.grammars = engine, grammars
        self.prompt = tuple(tokenizer("Tell me about somebody, as JSON:\n")["input_ids"])
        self.done: list[tuple[int, str, str]] = []
        """(number of the schema, text, how it ended)."""

    def ask(self, number: int, seed: int) -> None:
        """One answer that follows a schema."""
        texts: list[str] = []

        def deliver(chunk: Chunk) -> None:
            texts.append(chunk.text)
            if chunk.finish is not None:
                self.done.append((number, "".join(texts), chunk.finish))

        request = Request(self.prompt, max_tokens=NEW, seed=seed, grammar=self.grammars[number])
        self.engine.submit(request, deliver)

    def answers(self, count: int) -> list[tuple[int, str, str]]:
        """So many answers, the schemas in turn."""
        self.done = []
        for seed in range(0, count, ROWS):
            for row in range(ROWS):
                self.ask(row % len(self.grammars), seed + row)
            while len(self.done) < seed + ROWS:
                self.engine._worker.round()
        return list(self.done)

    def step_seconds(self) -> tuple[float, float]:
        """Median seconds of a step with all rows running, of rows in the midst of their answers: clock, processor."""
        worker, took, seed = self.engine._worker, [], 0
        while len(took) < STEPS:
            while worker.live.total() < ROWS:
                self.ask(seed % len(self.grammars), 1000 + seed)
                seed += 1
            full = len(worker.batch.jobs) == ROWS
            began = time.perf_counter(), time.process_time()
            worker.round()
            if full and len(worker.batch.jobs) == ROWS:  # nobody came or went
                took.append((time.perf_counter() - began[0], time.process_time() - began[1]))
        for job in worker.batch.jobs:
            worker.cancel(job)
        worker.round() if worker.live.total() else None
        clock, processor = zip(*took, strict=True)
        return statistics.median(clock), statistics.median(processor)


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value follows one of the schemas above, by what they use alone."""
    schema = schema.get("$defs", {}).get("place") if "$ref" in schema else schema  # type: ignore[assignment]
    if "enum" in schema:
        return value in schema["enum"]
    if "anyOf" in schema:
        return any(fits(value, each) for each in schema["anyOf"])
    kind = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool,
            "null": type(None)}[schema["type"]]  # fmt: skip
    if not isinstance(value, kind) or (schema["type"] in ("integer", "number") and isinstance(value, bool)):
        return False
    if schema["type"] == "object":
        place = schema.get("$defs", {}).get("place")
        inner = {key: place if "$ref" in each else each for key, each in schema["properties"].items()}
        return set(value) == set(inner) and all(fits(value[key], each) for key, each in inner.items())
    if schema["type"] == "array":
        first, rest = schema.get("prefixItems", []), schema.get("items")
        least, most = schema.get("minItems", 0), schema.get("maxItems", len(first) if rest is False else 10**9)
        parts = [*zip(value, first, strict=False), *((each, rest) for each in value[len(first) :])]
        return least <= len(value) <= most and all(fits(each, of) for each, of in parts)
    if schema["type"] in ("integer", "number"):
        return schema["minimum"] <= value <= schema["maximum"]
    return True


def compared(pairs: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Steps without and with schemas, in milliseconds, and the ratio of each round."""
    ratios = [bound / free for free, bound in pairs]
    return {
        "step_ms_unconstrained": 1e3 * statistics.median(free for free, _ in pairs),
        "step_ms_constrained": 1e3 * statistics.median(bound for _, bound in pairs),
        "ratio": statistics.median(ratios), "lowest_ratio": min(ratios), "highest_ratio": max(ratios),
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints and writes it down."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--answers", type=int, default=160)
    chosen = parser.parse_args(arguments)
    torch.manual_seed(0)
    engine, tokenizer = run_in_thread(lambda: made(chosen.model))
    began = time.perf_counter()
    held = [engine.compiled(of_schema(schema)) for schema in SCHEMAS]
    first = time.perf_counter() - began
    began = time.perf_counter()
    engine.compiled(Grammar("json", json.dumps(SCHEMAS[0], indent=1)))  # another text, so compiled anew
    again = time.perf_counter() - began
    bound, free = Work(engine, tokenizer, held), Work(engine, tokenizer, [None] * len(SCHEMAS))
    answers = bound.answers(chosen.answers)
    whole = [(number, text) for number, text, finish in answers if finish == "stop"]
    parsed = sum(fits(json.loads(text), SCHEMAS[number]) for number, text in whole)
    pairs = []
    for _ in range(chosen.rounds):
        pairs.append((free.step_seconds(), bound.step_seconds()))
    clock, processor = ([(a[i], b[i]) for a, b in pairs] for i in (0, 1))
    found = {
        "machine": about(), "model": chosen.model, "rows": ROWS, "schemas": len(SCHEMAS),
        "answers": len(answers), "complete": len(whole), "parse_and_fit": parsed,
        "cut_at_max_tokens": len(answers) - len(whole),
        "clock": compared(clock), "processor": compared(processor),
        "compile_first_8_ms": 1e3 * first, "compile_one_more_ms": 1e3 * again,
    }  # fmt: skip
    results_of(f"structured-{slug()}").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))
    if parsed != len(whole):
        raise SystemExit("an answer does not follow its schema")
