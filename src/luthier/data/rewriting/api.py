"""A model behind OpenAI's API: any server, ours included."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from luthier.core.contracts.rewrite import Asked
from luthier.core.errors import LuthierError
from luthier.core.guard import guarded, reason

T = TypeVar("T")
KEYS = ("LUTHIER_API_KEY", "OPENAI_API_KEY")
"""Variables of the environment that may hold the key, the first that does is sent."""
AGAIN = (0.5, 2.0)
"""Seconds before a request is sent again that was not answered, by the attempt."""
MOST = 300
"""Characters of a reason that are told."""
PASSING = (408, 409, 429)
"""Status codes after which a request is sent again, beside all from 500 on."""


def is_address(text: str) -> bool:
    """Returns whether a text is the address of a server."""
    return text.startswith(("http://", "https://"))


@dataclass
class Server:
    """`http://host:port/v1#model`, asked in several requests at a time; calling it gives the answers, None for none."""

    address: str
    max_tokens: int = 256
    timeout: float = 120.0
    """Seconds to wait for an answer."""
    at_once: int = 8
    """Requests under way at a time."""
    why: dict[str, int] = field(default_factory=dict)
    """Why there was no answer, with how often."""
    pause: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        url, _, model = self.address.partition("#")
        self.url, self.model = url.rstrip("/"), model
        self.url = self.url if self.url.endswith("/v1") else f"{self.url}/v1"

    def __call__(self, conversations: Asked) -> list[str | None]:
        """Returns the answer to each conversation."""
        import httpx

        if not conversations:
            return []
        with httpx.Client(timeout=self.timeout, headers=_headers()) as client:
            model = self.model or self._only(client)
            with ThreadPoolExecutor(self.at_once) as pool:
                return list(pool.map(lambda messages: self._answer(client, model, messages), conversations))

    def _only(self, client: Any) -> str:
        """The model that the server has, where the address names none."""
        with guarded(f"{self.url} does not say which models it has"):
            told = client.get(f"{self.url}/models")
            told.raise_for_status()
            names = [str(each["id"]) for each in told.json()["data"]]
        if not names:
            raise LuthierError(f"{self.url} has no model; name one: {self.url}#model.")
        self.model = names[0]
        return names[0]

    def sent(self, path: str, asked: dict[str, Any]) -> dict[str, Any] | None:
        """Returns what one request gives; None where it gives nothing, and `why` says why."""
        import httpx

        with httpx.Client(timeout=self.timeout, headers=_headers()) as client:
            model = self.model or self._only(client)
            return self._posted(client, path, {"model": model, **asked}, dict)

    def _answer(self, client: Any, model: str, messages: list[dict[str, Any]]) -> str | None:
        body = {"model": model, "messages": messages, "max_tokens": self.max_tokens, "temperature": 0}
        said = lambda told: str(told["choices"][0]["message"]["content"] or "")  # noqa: E731
        return self._posted(client, "chat/completions", body, said)

    def _posted(self, client: Any, path: str, body: dict[str, Any], read: Callable[[Any], T]) -> T | None:
        """What `read` makes of the reply."""
        for wait in (*AGAIN, None):
            try:
                sent = client.post(f"{self.url}/{path}", json=body)
                sent.raise_for_status()
                return read(sent.json())
            except Exception as error:  # of the network, the server and what it sends
                status = getattr(getattr(error, "response", None), "status_code", None)
                passing = status is None or status >= 500 or status in PASSING
                if wait is None or not passing:
                    self._note(error)
                    return None
                self.pause(wait)
        return None

    def _note(self, error: Exception) -> None:
        why = reason(error)  # the server's own words may differ from row to row: those of the first stand for all
        told = next((each for each in self.why if each.startswith(why)), f"{why}{_said(error)}"[:MOST])
        self.why[told] = self.why.get(told, 0) + 1


def _said(error: Exception) -> str:
    """What the server itself says of a request that it refuses."""
    try:
        told = error.response.json()["error"]  # pyright: ignore[reportAttributeAccessIssue]
        return f" ({told['message'] if isinstance(told, dict) else told})"
    except Exception:  # there is no reply, or it says it otherwise
        return ""


def _headers() -> dict[str, str]:
    key = next((os.environ[name] for name in KEYS if os.environ.get(name)), None)
    return {"Authorization": f"Bearer {key}"} if key else {}
