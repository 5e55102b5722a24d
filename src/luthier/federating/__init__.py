"""Federated fine-tuning: clients train on their own rows, a server aggregates; the rules are in `aggregations`."""

from __future__ import annotations

from luthier.federating.result import Federated
from luthier.federating.run import federate
from luthier.federating.spec import Federation

__all__ = ["Federated", "Federation", "federate"]
