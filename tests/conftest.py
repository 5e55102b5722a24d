"""Every test finds the small architectures, runs on one thread and sees the same random numbers."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parent))

import pytest


@pytest.fixture(autouse=True)
def seeded():
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
