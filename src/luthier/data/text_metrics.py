"""Figures of written answers beside right ones: ROUGE, BLEU and chrF as their own libraries compute them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec

from luthier.core.contracts.example import Example
from luthier.core.errors import LuthierError, near
from luthier.core.guard import guarded, reason

Pairs = Sequence[tuple[str, str]]
"""Rows as (what was said, the right answer)."""


def rouge(kind: str) -> Callable[[Pairs], float]:
    """Returns the mean F1 of a kind of ROUGE over the rows, with Porter's stemmer (rouge-score; Lin 2004)."""

    def score(pairs: Pairs) -> float:
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer([kind], use_stemmer=True)
        return sum(scorer.score(right, said)[kind].fmeasure for said, right in pairs) / len(pairs)

    return score


def bleu(pairs: Pairs) -> float:
    """Returns the BLEU of all rows together, from 0 to 100 (sacrebleu's own settings; Post 2018, arXiv 1804.08771)."""
    import sacrebleu

    return float(sacrebleu.corpus_bleu([said for said, _ in pairs], [[right for _, right in pairs]]).score)


def chrf(pairs: Pairs) -> float:
    """Returns the chrF of all rows together, from 0 to 100 (sacrebleu's own settings; Popović 2015)."""
    import sacrebleu

    return float(sacrebleu.corpus_chrf([said for said, _ in pairs], [[right for _, right in pairs]]).score)


def exact_match(pairs: Pairs) -> float:
    """Returns the share of rows that agree up to white space."""
    return sum(said.split() == right.split() for said, right in pairs) / len(pairs)


TEXT_METRICS: dict[str, Callable[[Pairs], float]] = {
    "rouge1": rouge("rouge1"),
    "rouge2": rouge("rouge2"),
    "rougeL": rouge("rougeL"),
    "rougeLsum": rouge("rougeLsum"),
    "bleu": bleu,
    "chrf": chrf,
    "exact_match": exact_match,
}
"""The metrics by name."""
NEEDS = {"rouge": "rouge_score", "bleu": "sacrebleu", "chrf": "sacrebleu"}
"""The library of a metric, by how its name begins."""


def check_metrics(names: Sequence[str]) -> None:
    """Raises for unknown metrics, and for those whose library is not there."""
    for name in names:
        if name not in TEXT_METRICS:
            raise LuthierError(f"no metric {name!r}{near(name, TEXT_METRICS)} There are: {', '.join(TEXT_METRICS)}.")
        library = next((each for start, each in NEEDS.items() if name.startswith(start)), None)
        if library is not None and find_spec(library) is None:
            raise LuthierError(f"{name} needs {library}: pip install 'luthier[text-metrics]'")


def refuse_references(names: Sequence[str], rows: Sequence[Example]) -> None:
    """Raises for rows whose right answer a metric cannot read, before anything is written."""
    pairs = [("", row.answer or "") for row in rows]
    for name in names:
        with guarded(f"{name} cannot read the right answers"):
            TEXT_METRICS[name](pairs)


def of_texts(
    names: Sequence[str], said: Sequence[str], right: Sequence[str | None]
) -> tuple[dict[str, float], dict[int, str]]:
    """Returns the metrics of these names, and {place of a row: why} for those that a metric fails on, which count as
    an empty answer. Rows without a right answer count as an empty one."""
    pairs = [(a, b or "") for a, b in zip(said, right, strict=True)]
    found = {name: _judged(TEXT_METRICS[name], pairs) for name in names}
    failed = {row: f"{name}: {why}" for name in reversed(names) for row, why in found[name][1].items()}
    return {name: value for name, (value, _) in found.items()}, failed


def _judged(metric: Callable[[Pairs], float], pairs: Pairs) -> tuple[float, dict[int, str]]:
    """(The metric, why it fails on which rows); where it fails on them together alone, it is 0 and each is named."""
    value, why = _tried(metric, pairs)
    if not why:
        return value, {}
    failed = {row: each for row, pair in enumerate(pairs) if (each := _tried(metric, [pair])[1])}
    value, together = _tried(
        metric, [("" if row in failed else said, right) for row, (said, right) in enumerate(pairs)]
    )
    return (0.0, dict.fromkeys(range(len(pairs)), why)) if together else (value, failed)


def _tried(metric: Callable[[Pairs], float], pairs: Pairs) -> tuple[float, str]:
    """(The metric, why there is none)."""
    try:
        return metric(pairs), ""
    except Exception as error:  # of other packages, on whatever a model wrote
        return 0.0, reason(error)
