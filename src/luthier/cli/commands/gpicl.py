"""`luthier gpicl`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from luthier.cli.output import say, say_json, table
from luthier.cli.parse import Command, Flags, Given
from luthier.cli.stopped import sweep_stopped

if TYPE_CHECKING:
    from luthier.training.in_context import InContext

OWN = ("data",)


@dataclass(frozen=True)
class Gpicl(Command):
    """Meta-train small transformers from scratch over random tasks, and see when they learn new tasks in context.

    A task is a random projection of labelled vectors and a permutation of their classes. A model reads (x_t, y_{t-1})
    and says y_t. For each number of tasks and each width one is trained and told to memorise (training tasks alone are
    answered), to generalise (new tasks are, the better the more of them was read) or to fail to train. Stopped, it goes
    on with --resume.
    """

    examples: ClassVar[tuple[str, ...]] = (
        "luthier gpicl digits --out gpicl",
        "luthier gpicl digits --tasks 1 64 4096 --widths 32 --steps 3000 --json",
        "luthier gpicl digits --tasks 4096 --widths 64 --shuffled --out null",
        "luthier gpicl images.npz --classes 10 --dimension 64 --length 64 --out images --resume",
    )

    data: str
    """`digits` (scikit-learn's), or an .npz file with x [rows, …] and y [rows]."""
    resume: bool = field(default=False, kw_only=True)
    """Go on with the sweep in --out."""
    overwrite: bool = field(default=False, kw_only=True)
    """Start again even if --out holds one."""
    json: bool = field(default=False, kw_only=True)
    """Print the result as JSON."""

    @classmethod
    def settings(cls, tokens: Sequence[str]) -> list[Flags]:
        from luthier.training.in_context import InContext

        return [Flags(InContext, "Tasks and models", OWN)]

    def run(self, given: Given) -> None:
        from luthier.training.in_context import learn_in_context
        from luthier.training.in_context.run import PICTURE

        done = learn_in_context(
            self.resolved(given), resume=self.resume, overwrite=self.overwrite, progress=not self.json
        )
        if self.json:
            say_json({"folder": str(done.folder), "chance": done.chance, "cells": done.cells})
            return
        rows = []
        for cell in done.cells:
            told = [f"{cell[name][end]:.3f}" for name in ("seen", "unseen") for end in ("first", "last")]
            rows.append((cell["width"], f"{cell['tasks']:,}", *told, cell["phase"]))
        columns = ("seen tasks, first quarter", "last", "new tasks, first quarter", "last")
        table(("width", "tasks", *columns, "phase"), rows)
        say(f"\nchance is {done.chance:.3f}; {done.folder / PICTURE} shows the sweep.")

    def resolved(self, given: Given) -> InContext:
        """Returns what the flags ask for."""
        from luthier.training.in_context import InContext

        return InContext(self.data, **given.get(InContext, {}))

    def stopped(self, given: Given) -> str:
        from luthier.training.in_context import InContext

        return sweep_stopped(given.get(InContext, {}).get("out", InContext.out))
