"""The page of a check: every gate's worsening with its interval, beside what may be released."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from luthier.core.families import CHECKLIST
from luthier.core.palette import policy_digest, rendered, styled
from luthier.examining.check.verdict import PASSES, TRIPPED, UNMEASURED, UNTOLD, Verdict

HERE = Path(__file__).parent
WIDTH = 260
"""Pixels of a gate's picture."""


def page(target: str, outcome: str, verdicts: Sequence[Verdict], checklist: dict[str, bool]) -> str:
    """Returns the page as HTML that needs nothing beside it; what files and gates are called is text to it."""
    style = styled(HERE / "page.css")
    return rendered(
        HERE / "page.html",
        target=target,
        outcome=outcome,
        sentence=sentence(verdicts),
        verdicts=[(verdict, told(verdict), drawn(verdict)) for verdict in verdicts],
        style=Markup(style),
        digest=policy_digest(style),
        number=number,
        plain=plain,
        nulls=nulls,
        checklist=[(item, CHECKLIST[item], done) for item, done in checklist.items()],
    )


SAID = {TRIPPED: "Tripped", UNMEASURED: "Not measured", UNTOLD: "Too few probes to tell"}
"""How the finding opens what it says of gates that do not pass."""


def sentence(verdicts: Sequence[Verdict]) -> str:
    """Returns the finding: the gates that do not pass, the gravest first."""
    if all(verdict.outcome == PASSES for verdict in verdicts):
        return f"All {len(verdicts)} gates pass." if len(verdicts) > 1 else "The gate passes."
    named = {said: [each.name for each in verdicts if each.outcome == outcome] for outcome, said in SAID.items()}
    return " ".join(f"{said}: {', '.join(names)}." for said, names in named.items() if names)


def told(verdict: Verdict) -> str:
    """Returns what the probes of a gate could have seen, or why there are none."""
    if verdict.outcome == UNMEASURED:
        return verdict.reason or ""
    if verdict.gate.exact:
        return "exact"
    if math.isinf(verdict.high):
        return f"{verdict.probes} probes tell nothing; give at least 10"
    return f"{verdict.probes} probes would have told a worsening of {number(verdict.seen)}"


def nulls(verdict: Verdict) -> str:
    """Returns the worsening of the base against itself, and of another seed's fine-tuning where there is one."""
    other, failed = verdict.other_seed, verdict.outcome != UNMEASURED and verdict.reason
    beside = f"another seed {number(other)}" if other is not None else failed
    return f"{number(verdict.null)}; {beside}" if beside else number(verdict.null)


def number(value: float) -> str:
    """Returns a figure as the tables show it."""
    return "–" if math.isnan(value) else "∞" if math.isinf(value) else f"{value:+.4g}" if value else "0"


def plain(value: float) -> str:
    """Returns a figure without a sign."""
    return "–" if math.isnan(value) else f"{value:.4g}"


def drawn(verdict: Verdict) -> Markup:
    """Returns a line of the worsening: interval, mean, null and tolerance; nothing where it was not measured."""
    if verdict.outcome == UNMEASURED:
        return Markup("")
    ends = [verdict.low, verdict.high, verdict.worsening, verdict.null, verdict.gate.tolerance, 0.0]
    finite = [each for each in ends if math.isfinite(each)]
    low, high = min(finite), max(finite)
    span = (high - low) or 1.0

    def at(value: float) -> str:
        inside = min(max((value - low) / span, 0.0), 1.0)
        return f"{10 + inside * (WIDTH - 20):.1f}"

    return Markup(
        '<svg width="{w}" height="26" viewBox="0 0 {w} 26" role="img" aria-label="worsening and its interval">'
        '<line class="zero" x1="{zero}" x2="{zero}" y1="3" y2="23"/>'
        '<line class="limit" x1="{limit}" x2="{limit}" y1="1" y2="25"/>'
        '<line class="interval {kind}" x1="{low}" x2="{high}" y1="13" y2="13"/>'
        '<circle class="null" cx="{null}" cy="13" r="3"/>'
        '<circle class="mean {kind}" cx="{mean}" cy="13" r="5"/></svg>'
    ).format(
        w=WIDTH,
        zero=at(0.0),
        limit=at(verdict.gate.tolerance),
        low=at(verdict.low),
        high=at(verdict.high),
        null=at(verdict.null),
        mean=at(verdict.worsening),
        kind=verdict.outcome.split()[0],
    )
