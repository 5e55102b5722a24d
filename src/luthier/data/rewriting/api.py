"""A model behind OpenAI's API: any server, ours included."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from luthier.core.contracts.rewrite import Asked
from luthier.core.errors import LuthierError
from luthier.core.guard import guarded, reason

KEYS = ("LUTHIER_API_KEY", "OPENAI_API_KEY")
"""Variables of the environment that may hold the key, the first that does is sent."""
AGAIN = (0.5, 2.0)
"""Seconds before a request is sent again that was not answered, by the attempt."""
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

    def _answer(self, client: Any, model: str, messages: list[dict[str, Any]]) -> str | None:
        body = {"model": model, "messages": messages, "max_tokens": self.max_tokens, "temperature": 0}
        for wait in (*AGAIN, None):
            try:
                sent = client.post(f"{self.url}/chat/completions", json=body)
                sent.raise_for_status()
                return str(sent.json()["choices"][0]["message"]["content"] or "")
            except Exception as error:  # of the network, the server and what it sends
                status = getattr(getattr(error, "response", None), "status_code", None)
                passing = status is None or status >= 500 or status in PASSING
                if wait is None or not passing:
                    self._note(error)
                    return None
                self.pause(wait)
        return None

    def _note(self, error: Exception) -> None:
        told = reason(error)
        self.why[told] = self.why.get(told, 0) + 1


def _headers() -> dict[str, str]:
    key = next((os.environ[name] for name in KEYS if os.environ.get(name)), None)
    return {"Authorization": f"Bearer {key}"} if key else {}
