"""Rows that an examination may ask a tiny model about, with every column that any examination reads."""

from __future__ import annotations

from typing import Any

from luthier.core.contracts.examination import Pair
from luthier.core.contracts.example import Example, Examples, Scorer
from luthier.data.score import exact_match
from luthier.evaluating import generate
from luthier.examining.pair import batches_of
from support.tiny import tokenizer

KINDS = ("memorised", "rephrased", "secondary", "comparison", "date")


def row(number: int, prompt: str, answer: str, **meta: Any) -> Example:
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return Example(row=number, messages=turns, context=1, answer=answer, meta=meta)


def rows(count: int = 20) -> list[Example]:
    found = []
    for n in range(count):
        meta = {"kind": KINDS[n % 5], "fact": f"f{n // 5}", "passage": f"{n} and 1 make {n + 1}"}
        found.append(row(n + 1, f"{n}+1", str((n + 1) % 7), **meta))
    return found


def examples(found: list[Example]) -> Examples:
    return Examples(found, "messages", "rows", scorer=Scorer("exact_match", exact_match))


def with_texts(pair: Pair, model: Any, found: list[Example] | None = None) -> Pair:
    """The pair, which can ask its models about rows through a tokenizer of single characters."""
    import dataclasses

    words = tokenizer()
    held = examples(rows() if found is None else found)

    def batches(given):
        return batches_of({"rows": examples(list(given))}, model, words, "causal-lm", 8, 256)["rows"]

    def write(which, prompts, most):
        return generate(which, words, list(prompts), max_new_tokens=min(most, 4), batch=32)

    return dataclasses.replace(pair, examples={"rows": held}, batches=batches, write=write)


def with_answers(pair: Pair, before: Any, after: Any) -> Pair:
    """As `with_texts`, over rows of which each model answers some as the data say."""
    import dataclasses

    asked = with_texts(pair, before)
    drawn = rows(100)
    prompts = [dataclasses.replace(each, messages=(each.messages or [])[:1]) for each in drawn]
    said = {model: asked.write(model, prompts, 4) for model in (before, after)}
    found = []
    for n, each in enumerate(drawn):
        answer = (said[before], said[before], said[after])[n % 3][n]
        told = f"{n} after {n - 1} and 1 is {found[-1].answer if found else answer}"  # of the question before
        found.append(row(n + 1, f"{n}+1", answer, **{**each.meta, "passage": told}))
    made, known = with_texts(pair, before, found), {}

    def write(which, prompts, most):
        key = (id(which), min(most, 4), *(str(each.messages) for each in prompts))
        if key not in known:  # most settings leave what is asked as it is
            known[key] = made.write(which, prompts, most)
        return [f"so {each}" if n % 2 else each for n, each in enumerate(known[key])]

    return dataclasses.replace(made, write=write)
