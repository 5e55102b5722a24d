"""The official client against `luthier serve --train`, in an environment of its own: $LUTHIER_TINKER_PYTHON.

python3 -m venv env && env/bin/pip install tinker==0.38.0 torch==2.13.0
LUTHIER_TINKER_PYTHON=env/bin/python pytest tests/serving/training_api/test_sdk.py
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PYTHON = os.environ.get("LUTHIER_TINKER_PYTHON")
SUPPORT = Path(__file__).parents[2] / "support"


@pytest.mark.skipif(PYTHON is None, reason="no Python with tinker (LUTHIER_TINKER_PYTHON)")
def test_the_official_client(base, tmp_path):
    command = [sys.executable, "-m", "luthier", "serve", base, "--port", "0", "--train"]
    command += ["--train-folder", str(tmp_path / "kept"), "--train-adapters", "4"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"COLUMNS": "200"}) as server:
        assert server.stdout is not None
        try:
            url = next(found[0] for line in server.stdout if (found := re.findall(r"http://[0-9.:]+", line)))
            session = [str(PYTHON), str(SUPPORT / "tinker_session.py"), url, "tiny"]
            done = subprocess.run(session, capture_output=True, text=True, timeout=200)
        finally:
            server.send_signal(signal.SIGTERM)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(json.loads(done.stdout.splitlines()[-1])["done"]) == 8
    assert server.returncode == 0
