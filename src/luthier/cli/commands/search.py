"""`luthier search`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from luthier.cli.output import say, say_json, table
from luthier.cli.parse import Fitted, Given


@dataclass(frozen=True)
class Search(Fitted):
    """Search the layers and modules that a run should train.

    Takes a run file and trains it on ranges of layers: all layers by each kind of modules, then halves of the best
    range, as long as the budget lasts. Each node is a normal run in a folder below --out. An interrupted search goes on
    when it is started again, and a larger --budget takes a finished one further.
    """

    examples: ClassVar[tuple[str, ...]] = (
        'luthier search run.toml --modules "ffn=params(*mlp*)" --out searched',
        'luthier search run.toml --modules "ffn=params(*mlp*);attention=params(*self_attn*)" --budget 10 --out found',
        "luthier search run.toml --modules ffn=up_proj,down_proj --least 0.5 --json",
    )

    run_file: str
    """A run file, as `luthier train` takes it; its `where` is what is searched."""
    modules: str = field(default="layers=all-linear", kw_only=True)
    """Kinds of modules: name=selection, several joined by a semicolon."""
    budget: int = field(default=8, kw_only=True)
    """The most runs that are made."""
    least: float = field(default=0.25, kw_only=True)
    """The shortest range, as a share of the layers."""
    out: str | None = field(default=None, kw_only=True)
    """The folder of the search. Default: the run file's `out`."""
    json: bool = field(default=False, kw_only=True)
    """Print the result as JSON."""

    def run(self, given: Given) -> None:
        from dataclasses import replace

        from luthier.training.runfile import read_run_file
        from luthier.training.search import search

        file = read_run_file(self.run_file)
        file.check_trust(self.trust_remote_code)
        run = file.run()
        run = replace(run, out=self.out or run.out, trust_remote_code=self.trust_remote_code)
        found = search(run, kinds(self.modules), budget=self.budget, least=self.least, progress=not self.json)
        if self.json:
            say_json(found.to_dict())
            return
        rows = [
            (node.name, node.parent or "-", f"{loss:.4f}") for node, loss in sorted(found.nodes, key=lambda n: n[1])
        ]
        table(("node", "half of", "eval loss"), rows, f"{run.model} on {run.data}: {len(rows)} runs, best first")
        say(f"\nThe best: --where {found.wheres[found.best.name]!r}. {found.folder} holds search.json and search.png.")


def kinds(text: str) -> dict[str, str]:
    """Returns the selections by name; raises for what is not name=selection."""
    from luthier.core.adapters.attach import NAME
    from luthier.core.errors import LuthierError

    found: dict[str, str] = {}
    for each in filter(str.strip, text.split(";")):
        name, equals, where = (part.strip() for part in each.partition("="))
        if not (equals and where and NAME.fullmatch(name)) or name in found:
            raise LuthierError(
                f"--modules: {each.strip()!r} is not understood; write name=selection, each name once, as in "
                "'ffn=params(*mlp*);attention=params(*self_attn*)'."
            )
        found[name] = where
    return found
