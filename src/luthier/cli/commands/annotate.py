"""`luthier annotate`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from luthier.cli.commands.serve import api_key, need_extra
from luthier.cli.output import console, say, say_json, tell, tell_unread
from luthier.cli.parse import Fitted, Flags, Given, option
from luthier.core.errors import LuthierError
from luthier.core.paths import path_of

if TYPE_CHECKING:
    from luthier.data.annotate import Annotation

BY = "mapo"
"""What chooses by default."""
PAGE = ("host", "port", "api_key")
"""Flags that act with --serve alone."""
SKIP, STOP = "-", "."
"""Instead of a label."""


@dataclass(frozen=True)
class Annotate(Fitted):
    """Label rows by hand, those first that a selection asks for.

    Shows one row after another and reads its label from the terminal (or a pipe): - skips a row, . stops. What is not a
    label is asked again, and ends a pipe. Every label is in --out before the next row is chosen; the same command goes
    on where it was stopped. Then `luthier train MODEL labels.jsonl`.
    """

    group: ClassVar[str] = "Data"
    data_family: ClassVar[str] = "expert"
    examples: ClassVar[tuple[str, ...]] = (
        "luthier annotate pool.jsonl --budget 50 --classes refund,delivery,other",
        "luthier annotate pool.jsonl --budget 50 --by margin --embedding states --model minilm --out labels.jsonl",
        "luthier annotate pool.jsonl --budget 50 --by random --seed 1",
        "luthier annotate pool.jsonl --budget 50 --serve --port 8100",
    )

    data: str
    """A file (.jsonl, .csv, .parquet, …), a folder or a hub id with a text in each row."""
    budget: int = field(default=50, kw_only=True)
    """The number of labels, those in --out included."""
    by: str = field(default=BY, kw_only=True)
    """What says which row is next: mapo, margin or random."""
    classes: str | None = field(default=None, kw_only=True)
    """The labels that there may be, joined by commas. Default: any."""
    out: str = field(default="labels.jsonl", kw_only=True)
    """The .jsonl file of labels; one that is there is gone on with."""
    model: str | None = field(default=None, kw_only=True)
    """The model whose hidden states rows are compared by, where the selection reads them."""
    serve: bool = field(default=False, kw_only=True)
    """Label on a page in the browser instead."""
    host: str = field(default="127.0.0.1", kw_only=True)
    """Address of the page. The default takes calls from this machine only."""
    port: int = field(default=8100, kw_only=True)
    """Port of the page (0: a free one)."""
    api_key: str | None = field(default=None, kw_only=True)
    """Key that the page asks for. Default: $LUTHIER_API_KEY; without either, no key."""
    columns: str | None = field(default=None, kw_only=True)
    """The names of columns in the data, by their meaning: text=body."""
    limit: int | None = field(default=None, kw_only=True)
    """Read this many rows of DATA, drawn by the seed."""
    skip_bad_rows: bool = field(default=False, kw_only=True)
    """Skip the rows that cannot be used, instead of refusing the data."""
    seed: int = field(default=0, kw_only=True)
    """The seed of what is drawn."""
    json: bool = field(default=False, kw_only=True)
    """Print the result as JSON."""

    @classmethod
    def settings(cls, tokens: Sequence[str]) -> list[Flags]:
        from luthier.core.contracts.component import find

        chosen = find("selections", option(tokens, "--by") or BY)
        return [Flags(chosen, f"Settings of {chosen.name()}")]

    def stopped(self, given: Given) -> str:
        return "the same command goes on where it was stopped"

    def run(self, given: Given) -> None:
        idle = [name for name in PAGE if getattr(self, name) != getattr(Annotate, name)]
        if idle and not self.serve:
            flags = ", ".join("--" + name.replace("_", "-") for name in idle)
            raise LuthierError(f"{flags} is of the page; add --serve, or leave that out.")
        session = self.session(given)
        if self.serve:
            self._serve(session)
        else:
            self._ask(session)
        if self.json:
            say_json(session.told() | {"by": session.selection.name(), "out": self.out})
        else:
            say(f"{self.out} holds {len(session.known):,} labels; left: {session.left:,}.")

    def session(self, given: Given) -> Annotation:
        """The rows, what is known of them, and what asks."""
        from luthier import data
        from luthier.core.contracts.component import find
        from luthier.core.contracts.selection import Pool, Selection
        from luthier.data.annotate import Annotation

        cls = find("selections", self.by, Selection)
        by: Any = cls.from_dict(dict(given.get(cls, {})))
        if cls.query is Selection.query:
            raise LuthierError(f"{by.name()} does not say which row to label next; take mapo, margin or random (by).")
        if bool(self.model) != by.reads_states:
            what = (
                "reads the hidden states of a model; give --model"
                if by.reads_states
                else "reads no model; leave it out"
            )
            raise LuthierError(f"{by.name()} as it is set up here {what}.")
        out = path_of(self.out)
        if not out.parent.is_dir():
            raise LuthierError(f"there is no folder {out.parent} to write to; choose another --out.")
        examples = data.load(
            self.data, skip_bad_rows=self.skip_bad_rows, limit=self.limit, seed=self.seed, named=self.columns
        )
        tell_unread(examples.unread, self.data)
        pool = Pool(examples, seed=self.seed, states=data.states_by(self.model) if self.model else None)
        classes = tuple(word for each in (self.classes or "").split(",") if (word := each.strip()))
        return Annotation(pool, by, self.budget, out, classes)

    def _ask(self, session: Annotation) -> None:
        screen = console(stderr=True)
        while session.left:
            with screen.status("choosing the next row"):
                place = session.next()
            assert place is not None
            said = self._answer(session, place)
            if said == STOP:
                return
            if said == SKIP:
                session.skip(place)

    def _answer(self, session: Annotation, place: int) -> str:
        """What was said of a row: kept if it is a label, else `SKIP` or `STOP`."""
        screen = console(stderr=True)
        row = session.pool.examples.rows[place].row
        screen.print(f"\n[{len(session.known) + 1}/{session.budget}] row {row}", markup=False, highlight=False)
        screen.print(session.text(place), markup=False, highlight=False)
        while True:
            screen.print(f"label ({', '.join(session.classes) or 'any'}; {SKIP} skips, {STOP} stops): ", end="")
            line = sys.stdin.readline()
            said = line.strip() or (STOP if not line else "")
            if said in (SKIP, STOP):
                return said
            try:
                session.label(place, said)
            except LuthierError as error:
                if not sys.stdin.isatty():  # the next line is of the next row
                    raise LuthierError(f"row {row} has no label, and nothing behind it was read: {error}") from None
                screen.print(str(error), markup=False, highlight=False)
                continue
            return said

    def _serve(self, session: Annotation) -> None:
        need_extra()

        from luthier.serving.http.annotate import serve
        from luthier.serving.http.guard import LOOPBACK, Guard
        from luthier.serving.http.listening import address, bind

        key, local = api_key(self.api_key), self.host in LOOPBACK
        if not local and key is None:
            tell("warning", f"everyone who reaches {self.host} may label: no API key is set (--api-key).")
        with bind(self.host, self.port) as bound:
            where = address(self.host, bound)
            guard = Guard(key, LOOPBACK if local else ())
            serve(session, guard, bound, lambda: say(f"Label at {where}; Ctrl-C ends it. Labels go to {self.out}."))
