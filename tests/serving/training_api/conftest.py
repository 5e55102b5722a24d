"""A tiny model behind the real app with its training API, called in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.train_client import Client


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    from support.tiny import TEMPLATE, save_model

    return save_model(tmp_path_factory.mktemp("base") / "tiny", "llama", TEMPLATE)


class Running:
    """A server in this process: its clients, and its parts."""

    def __init__(self, app: Any, service: Any) -> None:
        from starlette.testclient import TestClient

        self.http = TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)
        self.service, self.training = service, service.training
        self._tenants = 0

    @property
    def client(self) -> Client:
        """A client of a tenant of its own."""
        self._tenants += 1
        return self.of(f"tml-{self._tenants}")

    def of(self, key: str) -> Client:
        return Client(self.http, key)


@contextmanager
def running(base: str, folder: Path, **settings: Any) -> Iterator[Running]:
    from luthier.engine.engine import Engine
    from luthier.models import load
    from luthier.serving.http.app import create_app
    from luthier.serving.http.guard import Guard
    from luthier.serving.http.service import Service
    from luthier.serving.training_api.routes import PREFIX
    from luthier.serving.training_api.service import TrainingService
    from luthier.serving.training_api.tenants import Tenants

    loaded = load(base)
    engine = Engine(loaded.model, loaded.processor, rows=8)
    service = Service(engine, loaded.processor, "tiny", None)
    tenants = settings.pop("tenants", None) or Tenants(None)
    service.training = TrainingService(engine, "tiny", folder, tenants, tokenizer=base, **settings)
    engine.start()
    service.training.start()
    try:
        made = Running(create_app(service, Guard(own_keys=PREFIX, own_keys_body=2**22)), service)
        with made.http:
            yield made
    finally:
        service.training.close()
        engine.close()


@pytest.fixture(scope="module")
def server(base, tmp_path_factory) -> Iterator[Running]:
    with running(base, tmp_path_factory.mktemp("kept"), adapters=3) as made:
        yield made
