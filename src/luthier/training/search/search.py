"""A search over layers and modules, each node of which is a normal run in a folder of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from luthier.core.errors import LuthierError
from luthier.core.files import free_folder
from luthier.core.records import as_read, recorded, replace_json
from luthier.training.search.picture import draw
from luthier.training.search.tree import Node, explore
from luthier.training.spec import Run

RECORD, PICTURE = "search.json", "search.png"


@dataclass(frozen=True)
class Searched:
    """What a search found."""

    folder: Path
    depth: int
    """The number of layers of the model."""
    nodes: tuple[tuple[Node, float], ...]
    """Each node with its evaluation loss, in the order in which they were trained."""
    wheres: Mapping[str, str]
    """The selection of each node, by its name."""

    @property
    def best(self) -> Node:
        """The node of the lowest evaluation loss."""
        return min(self.nodes, key=lambda each: each[1])[0]

    def to_dict(self) -> dict[str, Any]:
        """Returns the search as JSON holds it."""
        return {
            "folder": str(self.folder),
            "depth": self.depth,
            "best": self.best.name,
            "nodes": [
                {"name": node.name, "where": self.wheres[node.name], "parent": node.parent, "eval_loss": loss}
                for node, loss in self.nodes
            ],
        }


def search(
    run: Run, modules: Mapping[str, str], *, budget: int = 8, least: float = 0.25, progress: bool = True
) -> Searched:
    """Searches the layers and modules at which `run` has the lowest evaluation loss, in `run.out`.

    `modules` names kinds of modules by selections, such as `{"ffn": "params(*mlp*)"}`. Each kind is trained on all
    layers; then the lower, middle and upper half of the best range, and so on, until `budget` runs were made or ranges
    would be shorter than the share `least` of the depth. A node is a run in `run.out/NODE`, that `luthier train` would
    make the same with its `where`. A search that was interrupted goes on, nodes that are done stay, and a larger budget
    takes it further; search.json and search.png are written after each node.

    After CoFiTune's exploration (Zhang et al. 2024, arXiv 2404.10306), which scores by a task's and a general test;
    here it is the loss of the held-out rows. Raises `LuthierError` for selections that match nothing in the layers, a
    run without held-out rows, and a folder that holds another search, before anything is trained.
    """
    from luthier.training.run import train

    if budget < 1:
        raise LuthierError(f"budget is {budget}; expected at least 1 run.")
    if not 0 < least <= 1:
        raise LuthierError(f"least is {least:g}; expected a share of the layers above 0 and at most 1.")
    if run.eval_data is None and run.training.eval_fraction == 0:
        raise LuthierError(
            "a search compares losses of held-out rows, and there are none: give eval_fraction or eval_data."
        )
    depth = _checked(run, modules)
    folder = Path(run.out)
    space = {"run": {**run.to_dict(), "out": None, "where": None}, "modules": dict(modules), "least": least}
    asked = as_read(space)
    known = _known(folder, asked)
    done: list[tuple[Node, float]] = []

    def score(node: Node) -> float:
        if node.name in known:
            return known[node.name]
        result = train(replace(run, where=wheres(node), out=str(folder / node.name)), resume=True, progress=progress)
        if result.eval_loss is None:
            raise LuthierError(
                f"{run.data} is too short for held-out rows, by whose loss a search goes; give eval_data."
            )
        return result.eval_loss

    def wheres(node: Node) -> str:
        return f"({modules[node.modules]}) & layers({node.first}, {node.last})"

    found = Searched(folder, depth, (), {})
    for node, loss in explore(list(modules), depth, max(1, math.ceil(least * depth)), budget, score):
        done.append((node, loss))
        found = Searched(folder, depth, tuple(done), {each.name: wheres(each) for each, _ in done})
        replace_json(folder / RECORD, {"asked": asked, "found": found.to_dict()})
        draw(found.to_dict(), folder / PICTURE)
    return found


def _known(folder: Path, asked: dict[str, Any]) -> dict[str, float]:
    """The losses of the nodes that an earlier call trained; raises where it searched something else."""
    if not (folder / RECORD).is_file():
        free_folder(folder, RECORD, "a search").mkdir(parents=True, exist_ok=True)
        replace_json(
            folder / RECORD, {"asked": asked, "found": {"nodes": []}}
        )  # so that the first node may be cut short
        return {}
    with recorded(folder / RECORD) as held:
        if held["asked"] != asked:
            raise LuthierError(f"{folder} holds a search of another run or space; choose another folder.")
        return {each["name"]: each["eval_loss"] for each in held["found"]["nodes"]}


def _checked(run: Run, modules: Mapping[str, str]) -> int:
    """The number of layers; raises for a space that the model does not have."""
    from luthier.core.sites.select import select
    from luthier.core.sites.structure import block_lists
    from luthier.training.prepare import prepare
    from luthier.training.session import load

    if not modules:
        raise LuthierError("a search needs at least one kind of modules, such as ffn=params(*mlp*).")
    model = load(run, prepare(run)).model
    depth = max((len(blocks) for blocks in block_lists(model).values()), default=0)
    if depth < 2:
        raise LuthierError(f"{run.model} has {depth} layers, of which no ranges can be made; expected at least 2.")
    for name, where in modules.items():
        try:
            sites = select(model, f"({where}) & layers(0, {depth - 1})")
        except LuthierError as error:
            raise LuthierError(f"modules {name!r}: {error}") from None
        wrong = next((site for site in sites if site.kind not in run.form.kinds), None)
        if wrong is not None:
            kinds = ", ".join(run.form.kinds)
            raise LuthierError(
                f"modules {name!r}: {run.form.name()} acts on {kinds}, and {wrong} is of kind {wrong.kind}."
            )
    return depth
