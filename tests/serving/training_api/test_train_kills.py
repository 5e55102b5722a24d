"""A server that is killed at random moments, and what it trained: that of one that nobody disturbed, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

from support import fresh

SCRIPT = Path(__file__).parents[2] / "support" / "train_kills.py"


def test_every_request_is_applied_once_over_kills():
    done = fresh.run(SCRIPT, 3)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["kills"] >= 1, "the client was done before the server was killed once"
    assert told["differing"] == [] and told["same tensors"] and told["tensors"] > 100
