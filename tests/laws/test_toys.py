"""The meta-law: the laws of an axis and the command line find a file that was dropped into a folder of LUTHIER_PATH."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support import fresh

AGGREGATION = '''"""A toy."""

from dataclasses import dataclass

from luthier.core.contracts.aggregation import Aggregation
from luthier.core.contracts.combination import weighted


@dataclass(frozen=True)
class Toy(Aggregation):
    """ΔW = c Σ p_k ΔW_k"""

    paper = "nobody 2031"
    merges = True

    size: float = 1.0
    """The factor c."""

    def aggregate(self, deltas, shares):
        return self.size * weighted(deltas, shares)
'''

COMBINATION = '''"""A toy."""

from typing import ClassVar
from dataclasses import dataclass

from luthier.core.contracts.combination import Combination, weighted


@dataclass(frozen=True)
class Toy(Combination):
    """δ = c Σ w_i δ_i"""

    paper = "nobody 2031"
    neutral: ClassVar = {"size": 1.0}

    size: float = 3.0
    """The factor c."""

    def merge(self, deltas, weights, at):
        return self.size * weighted(deltas, weights)
'''

DECODING = '''"""A toy."""

from typing import ClassVar
from dataclasses import dataclass

from luthier.core.contracts.decoding import Decoding


@dataclass(frozen=True)
class Toy(Decoding):
    """scores = base + c other"""

    paper = "nobody 2031"
    roles = {"base": "the one", "other": "the other one"}
    neutral: ClassVar = {"size": 0.0}

    size: float = 3.0
    """The factor c."""

    def scores(self, logits):
        return logits["base"] + self.size * logits["other"]
'''

EXAMINATION = '''"""A toy."""

from dataclasses import dataclass

from luthier.core.contracts.examination import Examination, Report


@dataclass(frozen=True)
class Toy(Examination):
    """c Σ ‖δ‖"""

    paper = "nobody 2031"

    size: float = 3.0
    """The factor c."""

    def measure(self, pair):
        norms = {c.place.site.path: {"norm": self.size * c.delta().norm()} for c in pair.changes()}
        layers = {c.place.site.path: c.place.site.layer for c in pair.changes()}
        total = {"norm": sum(each["norm"] for each in norms.values())}
        return Report(total["norm"], "norm", norms, norms, layers, total, total, "itself", "It is long.")
'''

GATE = '''"""A toy."""
from dataclasses import dataclass
import torch
import luthier as lt

@dataclass(frozen=True)
class Toy(lt.Gate):
    """worsening = 0"""
    paper = "nobody 2026"
    unit = "nothing"
    exact = True
    tolerance: float = 1.0
    """Largest rise that may be released."""
    def check(self):
        self.within("tolerance", 0)
    def measure(self, subject):
        return lt.Probes(torch.zeros(1), torch.zeros(1), torch.zeros(1))
'''

TOYS = {
    "aggregations": (AGGREGATION, "test_aggregations.py", "federate --aggregation toy --help", "The factor c."),
    "combinations": (COMBINATION, "test_combine.py", "combine toy --help", "The factor c."),
    "decodings": (DECODING, "test_decodings.py", "decode --by toy --help", "The other one: MODEL or MODEL@ADAPTER."),
    "examinations": (EXAMINATION, "test_examinations.py", "examine x --by toy --help", "The factor c."),
    "gates": (GATE, "test_gates.py", "list gates", "toy"),
}
"""By axis: the file, its laws, and a command line that says what is in the file."""
HELP = "import sys; from luthier.cli import main; [print(main(line.split())) for line in sys.argv[1:]]"


@pytest.fixture(scope="module")
def within(tmp_path_factory) -> dict[str, str]:
    """The environment with a toy of every axis."""
    folder = tmp_path_factory.mktemp("toys")
    for axis, (source, *_) in TOYS.items():
        (folder / axis).mkdir()
        (folder / axis / "toy.py").write_text(source, encoding="utf-8")
    return {**os.environ, "LUTHIER_PATH": str(folder), "COLUMNS": "200"}


def test_the_laws_hold_a_toy_to_them(within):
    laws = [str(Path(__file__).parent / law) for _, law, *_ in TOYS.values()]
    done = fresh.run("-m", "pytest", "-p", "no:cacheprovider", "-rp", *laws, "-k", "toy", env=within)
    assert done.returncode == 0, done.stdout
    assert all(done.stdout.count(f"{law}::") >= 3 for _, law, *_ in TOYS.values()), done.stdout


def test_the_command_line_says_what_a_toy_is(within):
    lines = [line for _, _, line, _ in TOYS.values()]
    done = fresh.run("-c", HELP, *lines, env=within)
    assert done.returncode == 0, done.stderr
    assert all(told in done.stdout for *_, told in TOYS.values()), done.stdout
