"""Figures of written answers beside right ones: ROUGE, BLEU and chrF as their own libraries compute them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec

from luthier.core.errors import LuthierError, near

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


def of_texts(names: Sequence[str], said: Sequence[str], right: Sequence[str | None]) -> dict[str, float]:
    """Returns the metrics of these names; rows without a right answer count as an empty one."""
    pairs = [(a, b or "") for a, b in zip(said, right, strict=True)]
    return {name: TEXT_METRICS[name](pairs) for name in names}
