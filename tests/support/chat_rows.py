"""Conversations with all that a row may say, in words that occur nowhere else."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

from luthier.data import Example

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_level",
            "description": "Water level of a lake.",
            "parameters": {
                "type": "object",
                "properties": {"lake": {"type": "string", "description": "Its name."}},
                "required": ["lake"],
            },
        },
    }
]
CALL = {"id": "c12345678", "type": "function", "function": {"name": "get_level", "arguments": '{"lake": "Como"}'}}


def said(role: str, content: str | None = None, **more) -> dict:
    return {"role": role, **({} if content is None else {"content": content}), **more}


def asked_a_tool(content: str = "") -> list[dict]:
    return [
        said("user", "How high is it?"),
        said("assistant", content, tool_calls=[CALL]),
        said("tool", "RESULTQ", tool_call_id="c12345678", name="get_level"),
        said("assistant", "LEVELQ metres."),
    ]


ROWS = {
    "two turns": Example(
        row=1,
        messages=[
            said("user", "ASKQ?"),
            said("assistant", "FIRSTQ"),
            said("user", "MOREQ?"),
            said("assistant", "SECONDQ"),
        ],
    ),
    "masked": Example(
        row=1,
        masked=(1,),
        messages=[
            said("user", "ASKQ?"),
            said("assistant", "FIRSTQ"),
            said("user", "MOREQ?"),
            said("assistant", "SECONDQ"),
        ],
    ),
    "system": Example(row=1, messages=[said("system", "RULEQ"), said("user", "ASKQ?"), said("assistant", "FIRSTQ")]),
    "tool": Example(row=1, tools=TOOLS, messages=asked_a_tool()),
    "tool and words": Example(row=1, tools=TOOLS, messages=asked_a_tool("LOOKQ first.")),
    "thought": Example(
        row=1, messages=[said("user", "ASKQ?"), said("assistant", "FIRSTQ", reasoning_content="THINKQ a while")]
    ),
    "two thoughts": Example(
        row=1,
        messages=[
            said("user", "ASKQ?"),
            said("assistant", "FIRSTQ", reasoning_content="THINKQ a while"),
            said("user", "MOREQ?"),
            said("assistant", "SECONDQ", reasoning_content="PONDERQ on"),
        ],
    ),
    "thought within": Example(
        row=1, messages=[said("user", "ASKQ?"), said("assistant", "<think>\nTHINKQ a while\n</think>\n\nFIRSTQ")]
    ),
    "thought and call": Example(
        row=1,
        tools=TOOLS,
        messages=[
            said("user", "How high is it?"),
            said("assistant", reasoning_content="THINKQ a while", tool_calls=[CALL]),
            *asked_a_tool()[2:],
        ],
    ),
    "mark within words": Example(
        row=1, messages=[said("user", "ASKQ?"), said("assistant", "FIRSTQ bounds </think> SECONDQ")]
    ),
    "answers behind one another": Example(
        row=1, messages=[said("user", "ASKQ?"), said("assistant", "FIRSTQ"), said("assistant", "SECONDQ")]
    ),
    "documents": Example(
        row=1,
        documents=[{"title": "Lakes", "text": "PAPERQ says so."}],
        messages=[said("user", "ASKQ?"), said("assistant", "FIRSTQ")],
    ),
}
NOT_LEARNED = ("ASKQ", "MOREQ", "RULEQ", "RESULTQ", "PAPERQ", "Water level", "How high")
"""What stands in prompts alone."""


@functools.cache
def published() -> dict[str, str]:
    """The chat templates that trl ships, by name: those of the field, as their makers published them, and trl's own."""
    spec = importlib.util.find_spec("trl")
    folder = Path(spec.origin).parent / "chat_templates" if spec and spec.origin else Path("nowhere")
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.jinja"))}
