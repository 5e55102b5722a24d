"""A sample of every family of transformers' classes, found by its auto mappings and built from their configurations.

`python -m bench architectures` holds all of them to the same laws; its table is docs/architectures.md.
"""

from __future__ import annotations

import pytest
from bench.architectures.classes import FAMILIES, known
from bench.architectures.laws import FORMS
from bench.architectures.report import holds, runs
from bench.architectures.trial import limited, tried

SAMPLE, SECONDS = 3, 20
"""Classes of a family, and the processor seconds of one."""


@pytest.mark.parametrize("family", FAMILIES)
def test_the_forms_hold_on_a_sample_of_the_family_or_say_why_not(family, capsys):
    every = known([family])
    rows = []
    for each in every[:: max(1, len(every) // SAMPLE)][:SAMPLE]:
        with limited(SECONDS):
            rows.append(tried(each, SECONDS))
    ran = [row for row in rows if runs(row)]
    assert ran
    verdicts = [(row["name"], form, row[form]) for row in ran for form in FORMS]
    bad = [(name, form, found["reason"]) for name, form, found in verdicts if found["status"] in ("wrong", "raw")]
    assert not bad
    refused = [found["reason"] for _, _, found in verdicts if found["status"] == "refused"]
    assert all(reason and "\n" not in reason for reason in refused)
    holding = sum(map(holds, ran))
    with capsys.disabled():
        print(f"{family}: {holding} of {len(ran)} hold, of {len(rows)} tried ({len(every)} classes)", end=" ")
    assert holding >= len(ran) / 2
