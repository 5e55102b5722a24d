"""LiteLLM's calls against a server: `client_litellm.py ADDRESS FOLDER`.

Run by `support.record_clients` with a Python that has litellm.
"""

from __future__ import annotations

import json
import sys
from typing import Literal

import litellm
from pydantic import BaseModel

HELLO = [{"role": "user", "content": "Hello."}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Looks up the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 8}, "unit": {"type": "string", "enum": ["c", "f"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}


class Verdict(BaseModel):
    good: bool
    grade: Literal["low", "high"]


def main(address: str) -> None:
    base = f"{address}/v1"
    for model in ("openai/base", "hosted_vllm/base"):
        known = {"model": model, "api_base": base, "api_key": "none"}
        done = litellm.completion(**known, messages=HELLO, max_tokens=8, temperature=0.5, seed=1, user="me")
        assert done.usage.completion_tokens == 8 and done.choices[0].finish_reason == "length"
        streamed = {"stream": True, "stream_options": {"include_usage": True}, "stop": ["\n\n"]}
        pieces = list(litellm.completion(**known, messages=HELLO, max_tokens=8, **streamed))
        assert litellm.stream_chunk_builder(pieces, messages=HELLO).usage.completion_tokens > 0
        told = litellm.completion(**known, messages=HELLO, max_tokens=4, logprobs=True, top_logprobs=2, n=2)
        assert len(told.choices) == 2 and told.choices[0].logprobs.content
        held = {"tool_choice": "required", "parallel_tool_calls": False, "temperature": 0, "max_tokens": 100}
        called = litellm.completion(**known, messages=HELLO, tools=[TOOL], **held)
        call = called.choices[0].message.tool_calls[0]
        assert call.function.name == "weather"
        if closed := model.startswith("openai/"):  # for the other, LiteLLM takes `additionalProperties` out of schemas
            assert json.loads(call.function.arguments)["unit"] in "cf"
        else:
            call.function.arguments = '{"city": "a", "unit": "c"}'  # random weights go on until they are cut
        turns = [*HELLO, called.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "12"}]
        litellm.completion(**known, messages=turns, tools=[TOOL], max_tokens=8)
        named = {"type": "function", "function": {"name": "weather"}}
        pieces = litellm.completion(
            **known, messages=HELLO, tools=[TOOL], tool_choice=named, stream=True, max_tokens=100
        )
        whole = litellm.stream_chunk_builder(list(pieces), messages=HELLO)
        assert whole.choices[0].message.tool_calls[0].function.name == "weather"
        held = litellm.completion(**known, messages=HELLO, response_format=Verdict, max_tokens=60)
        assert not closed or Verdict.model_validate_json(held.choices[0].message.content)
        litellm.completion(**known, messages=HELLO, response_format={"type": "json_object"}, max_tokens=20)
        litellm.completion(
            **known, messages=HELLO, max_tokens=4, presence_penalty=0.1, frequency_penalty=0.1, logit_bias={"9": 2},
            extra_body={"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1}, metadata={"run": "one"},
        )  # fmt: skip
    known = {"api_base": base, "api_key": "none"}
    text = litellm.text_completion(
        model="text-completion-openai/base", prompt="Once", max_tokens=4, logprobs=1, **known
    )
    assert text.choices[0].text is not None
    pieces = litellm.text_completion(
        model="text-completion-openai/base", prompt="Once", max_tokens=4, stream=True, **known
    )
    assert list(pieces)
    for model in ("openai/base", "hosted_vllm/base"):
        assert len(litellm.embedding(model=model, input=["a", "b b"], **known).data) == 2
    told = litellm.responses(model="openai/base", input="Hello.", max_output_tokens=8, **known)
    assert told.output


if __name__ == "__main__":
    litellm.drop_params = False
    main(sys.argv[1])
