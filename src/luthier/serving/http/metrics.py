"""What Prometheus may ask: requests by code, what runs and waits, tokens, and how long clients waited."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from luthier.engine.request import Chunk

if TYPE_CHECKING:
    from luthier.engine.engine import Engine

MEDIA = CONTENT_TYPE_PLAIN_0_0_4
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
"""Upper bounds of the histograms' buckets."""
GAUGES = {
    "running": "Requests that are being decoded.",
    "waiting": "Requests in the queue.",
    "adapters": "Adapters that are loaded.",
}
COUNTERS = {
    "prompt_tokens": "Tokens of prompts.",
    "generated_tokens": "Tokens generated.",
    "finished": "Answers that ended.",
    "failed": "Answers that failed.",
    "steps": "Passes in which every running request got a token.",
}


class EngineCollector(Collector):
    """The engine's own statistics, read when they are asked for."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def collect(self) -> Iterator[Metric]:
        """One family for each figure."""
        now = self.engine.statistics()
        for name, told in GAUGES.items():
            yield GaugeMetricFamily(f"luthier_{name}", told, value=getattr(now, name))
        for name, told in COUNTERS.items():
            yield CounterMetricFamily(f"luthier_{name}", told, value=getattr(now, name))
        yield CounterMetricFamily("luthier_busy_seconds", "Seconds in which the model had work.", value=now.busy)


class Metrics:
    """The figures of one server."""

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(EngineCollector(engine))
        self.requests = Counter(
            "luthier_requests", "HTTP requests.", ("method", "path", "code"), registry=self.registry
        )
        self.first = Histogram(
            "luthier_time_to_first_token_seconds", "From a request to its first token.", buckets=SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "luthier_request_seconds", "From a request to the end of its answer.", buckets=SECONDS,
            registry=self.registry,
        )  # fmt: skip

    def text(self) -> bytes:
        """Returns all of them in Prometheus' text format."""
        return generate_latest(self.registry)


class Watch:
    """The times of one call, from now on."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics, self.start, self.waiting = metrics, time.monotonic(), True

    def chunk(self, chunk: Chunk) -> None:
        """Notes the first token of the call, and the end of each of its answers."""
        passed = time.monotonic() - self.start
        if self.waiting and chunk.generated:
            self.metrics.first.observe(passed)
            self.waiting = False
        if chunk.finish:
            self.metrics.seconds.observe(passed)
