"""What LangChain, LiteLLM and lm-eval send: every call that was recorded from them is answered.

`make clients` runs the libraries anew against a real server, and records (tests/serving/clients/record.sh).
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from support.call_templates import calling

FILES = sorted((Path(__file__).parent / "clients").glob("*.json"))


def calls(file: Path) -> list[dict[str, Any]]:
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_a_client_sends_is_answered(file, engine, client):
    engine.tokenizer, engine.max_length = calling("hermes"), 10**6
    with client() as app:
        for call in calls(file):
            done = app.request(call["method"], call["path"], json=call["body"])
            assert done.status_code == call["status"] == 200, (call, done.text)
            streamed = bool((call["body"] or {}).get("stream"))
            assert done.headers["content-type"].startswith("text/event-stream" if streamed else "application/json")
    grammars = sum(held(call["body"] or {}) for call in calls(file))
    assert len(engine.grammars) == grammars


def held(body: dict[str, Any]) -> bool:
    """Whether an answer is to have a form."""
    forms = (body.get("response_format"), (body.get("text") or {}).get("format"))
    named = any(form and form["type"] != "text" for form in forms)
    strict = any(each.get("function", each).get("strict") for each in body.get("tools") or [])
    return named or strict or body.get("tool_choice", "auto") not in ("auto", "none")


def test_the_records_hold_what_they_are_for():
    assert {file.stem for file in FILES} == {"langchain", "litellm", "lm_eval"}
    every = [call for file in FILES for call in calls(file)]
    paths = Counter(call["path"].removeprefix("/v1/") for call in every)
    assert {"chat/completions", "completions", "embeddings", "responses"} <= set(paths)
    bodies = [call["body"] for call in every]
    for name in ("tools", "response_format", "stream", "logprobs", "echo", "stop", "seed", "tool_choice"):
        assert any(body.get(name) for body in bodies), name
