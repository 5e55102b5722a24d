"""A fake engine behind the real app, called in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from support.fake_engine import FakeEngine


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine("one", "two")


@pytest.fixture
def client(engine) -> Callable[..., Any]:
    """`client(guard, adapters_folder=…)`: a client of the app in this process."""
    from starlette.testclient import TestClient

    from luthier.serving.http.app import create_app
    from luthier.serving.http.guard import Guard
    from luthier.serving.http.service import Service

    def make(guard: Guard | None = None, **settings: Any) -> TestClient:
        app = create_app(Service(engine, engine.tokenizer, "base", **settings), guard or Guard())
        return TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)

    return make
