"""LangChain's `ChatOpenAI`, `OpenAI` and `OpenAIEmbeddings` against a server: `client_langchain.py ADDRESS FOLDER`.

Run by `support.record_clients` with a Python that has langchain-openai.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Annotated, Literal

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from openai import LengthFinishReasonError
from pydantic import BaseModel, ConfigDict, Field


class Place(BaseModel):
    """Of what the weather is asked."""

    city: Annotated[str, Field(max_length=8)]
    unit: Literal["c", "f"] = "c"


@tool(args_schema=Place)
def weather(city: str, unit: str = "c") -> str:
    """Looks up the weather of a city."""
    return f"12 {unit} in {city}"


class Verdict(BaseModel):
    """A verdict on a text."""

    model_config = ConfigDict(extra="forbid")
    good: bool
    grade: Literal["low", "high"]


def main(address: str) -> None:
    known = {"base_url": f"{address}/v1", "api_key": "none", "model": "base"}
    chat = ChatOpenAI(**known, temperature=0.7, max_tokens=40, seed=1)
    said = chat.invoke("Hello.")
    assert isinstance(said, AIMessage) and said.usage_metadata["output_tokens"] > 0
    turns = [SystemMessage("Be brief."), HumanMessage([{"type": "text", "text": "Hello."}], name="eve")]
    pieces = list(chat.stream(turns, stop=["\n\n"]))
    assert pieces
    pieces = list(ChatOpenAI(**known, stream_usage=True, max_tokens=9).stream(turns))
    assert any(piece.usage_metadata for piece in pieces)
    assert len(chat.batch(["a", "b", "c"])) == 3
    (ChatPromptTemplate.from_messages([("system", "Be {how}."), ("human", "{what}")]) | chat).invoke(
        {"how": "kind", "what": "Hello."}
    )
    told = chat.bind(logprobs=True, top_logprobs=2).invoke("Hello.").response_metadata["logprobs"]["content"]
    assert len(told[0]["top_logprobs"]) == 2
    shaped = ChatOpenAI(**known, n=2, max_tokens=5, top_p=0.9, presence_penalty=0.1, frequency_penalty=0.1)
    assert len(shaped.generate([turns]).generations[0]) == 2

    # tools: offered, required, named, sent back, streamed
    chat = ChatOpenAI(**known, temperature=0, max_tokens=400)
    chat.bind_tools([weather]).invoke("Hello.", max_tokens=8)
    called = chat.bind_tools([weather], tool_choice="any", strict=True, parallel_tool_calls=False).invoke("Weather?")
    assert called.tool_calls[0]["name"] == "weather" and called.tool_calls[0]["args"]["city"] is not None
    answer = ToolMessage(weather.invoke(called.tool_calls[0]["args"]), tool_call_id=called.tool_calls[0]["id"])
    assert chat.bind_tools([weather]).invoke([HumanMessage("Weather?"), called, answer], max_tokens=8)
    whole = None
    for piece in chat.bind_tools([weather], tool_choice="weather", strict=True).stream("Weather?"):
        whole = piece if whole is None else whole + piece
    assert whole.tool_calls[0]["name"] == "weather"

    # answers in a form, in each of LangChain's ways
    for method in ("json_schema", "function_calling", "json_mode"):
        if method == "json_mode":
            with suppress(LengthFinishReasonError):  # random weights do not close what they open
                chat.bind(response_format={"type": "json_object"}).invoke("A verdict, as JSON.", max_tokens=30)
        else:
            found = chat.with_structured_output(Verdict, method=method, strict=True).invoke("A verdict.")
            assert isinstance(found, Verdict), found
    raw = chat.with_structured_output(Verdict, include_raw=True).invoke("A verdict.")
    assert raw["parsing_error"] is None and isinstance(raw["parsed"], Verdict)

    # the newer endpoint, the older one, vectors
    newer = ChatOpenAI(**known, use_responses_api=True, max_tokens=8)
    assert newer.invoke("Hello.").text and "".join(piece.text for piece in newer.stream("Hello."))
    called = ChatOpenAI(**known, use_responses_api=True, temperature=0).bind_tools(
        [weather], tool_choice="required", strict=True
    )
    assert called.invoke("Weather?").tool_calls[0]["name"] == "weather"
    plain = OpenAI(**known, max_tokens=8, temperature=0)
    assert plain.invoke("Once upon a time") == "".join(plain.stream("Once upon a time"))
    assert len(plain.batch(["a", "b"])) == 2
    vectors = OpenAIEmbeddings(**known, check_embedding_ctx_length=False)
    assert len(vectors.embed_documents(["a", "b b"])) == 2 and len(vectors.embed_query("a")) > 2


if __name__ == "__main__":
    main(sys.argv[1])
