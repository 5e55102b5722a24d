"""`luthier show`."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from luthier.cli.output import console, say, table, tell_unread
from luthier.cli.parse import Given, Reading, Telling
from luthier.core.errors import LuthierError

if TYPE_CHECKING:
    from luthier.data.show import Meaning


@dataclass(frozen=True)
class Show(Telling, Reading):
    """Show the tokens in the loss of a row, the sites of a model, or the spec of an adapter.

    With DATA: the tokens of one row, those in the loss marked. With a model alone: its layers by type, and
    with --where the sites of that selection. With an adapter or a run folder: what it is and was fitted on.
    """

    group: ClassVar[str] = "Look"
    examples: ClassVar[tuple[str, ...]] = (
        "luthier show smollm2-135m train.jsonl --row 3",
        'luthier show smollm2-135m --where "all-linear & layers(0, 7)"',
        "luthier show run",
    )

    target: str
    """A model (a folder, a hub id, a .gguf file or a name of the catalogue), or an adapter or run folder."""
    data: str | None = None
    """A file, a folder, a hub id or gym:<task>."""
    row: int | None = field(default=None, kw_only=True)
    """The row's number in the data, from 1. Default: the first."""
    where: str | None = field(default=None, kw_only=True)
    """The selector of the sites to show."""
    task: str | None = field(default=None, kw_only=True)
    """What the rows are for. Default: what their columns tell."""
    columns: str | None = field(default=None, kw_only=True)
    """The names of columns in the data, by their meaning: text=body,label=category."""
    max_length: int | None = field(default=None, kw_only=True)
    """The most tokens of a row; a longer one is an error."""

    def do(self, given: Given) -> dict[str, Any]:
        from luthier.core.storage.folder import adapter_at

        if adapter_at(self.target):
            if self.data or self.where:
                raise LuthierError(f"{self.target} is an adapter; DATA and --where go with a model.")
            return show_adapter(self.target)
        found = self._tokens(self.data) if self.data is not None else {}
        if self.where is not None or self.data is None:
            found |= show_sites(self.target, self.where)
        return found

    def _tokens(self, source: str) -> dict[str, Any]:
        from luthier import data
        from luthier.data.show import Meaning
        from luthier.models import processor_of

        examples = data.load(source, skip_bad_rows=True, task=self.task, named=self.columns, preferences=True)
        tell_unread(examples.unread, source)
        chosen = [e for e in examples.rows if self.row in (None, e.row)][:1]
        if not chosen:
            raise LuthierError(f"no row {self.row} in {source}: {self._reason(examples)}")
        processor = processor_of(self.target, examples.task)
        features = data.encode_all(examples.keep(chosen), processor, task=examples.task, max_length=self.max_length)
        show_feature(features[0], processor, Meaning(examples.task, examples.labels or ()))
        return {"row": chosen[0].row, "features": _written(features[0])}

    def _reason(self, examples: Any) -> str:
        bad = dict(examples.skipped)
        last = max(e.row for e in examples.rows)
        return f"it cannot be used: {bad[self.row]}" if self.row in bad else f"the last one is {last}."


def show_feature(feature: dict[str, Any], processor: Any, meaning: Meaning) -> None:
    """The tokens of an encoded row, those in the loss marked; of a sound with a text, those of the text, of other
    pictures and sounds the shapes."""
    from luthier import data
    from luthier.data.show import heard, parts_of

    if heard(feature):
        feature, processor = feature | {"input_ids": feature["labels"]}, processor.tokenizer
    if "input_ids" not in feature:
        for name, value in feature.items():
            say(f"{name}: {tuple(getattr(value, 'shape', ())) or value}")
        return
    screen = console()
    for row, beside in parts_of(feature):
        if screen.is_terminal:
            screen.print(data.show_example(row, processor, beside, meaning))
        else:
            say(data.show_plain(row, processor, beside, meaning))


def _written(feature: dict[str, Any]) -> dict[str, Any]:
    """An encoded row as JSON: numbers as they are, of pictures and sounds the shapes."""
    return {
        name: list(shape) if (shape := getattr(value, "shape", None)) is not None else value
        for name, value in feature.items()
    }


def show_sites(model: str, where: str | None) -> dict[str, Any]:
    """Shows the sites of a selection, or every layer that a name can mean, by type; weights are not read."""
    from luthier.core.contracts.site import Sites
    from luthier.core.sites.pictures import sites_by_part
    from luthier.core.sites.select import Scope, select
    from luthier.models import config_of, meta_model

    empty = meta_model(config_of(model))
    sites = Scope(empty).named if where is None else select(empty, where)
    rows: dict[tuple, list] = {}
    for site in Sites(sites):
        rows.setdefault((site.type, site.kind, site.d_in, site.d_out), []).append(site.layer)
    cells = [(*key, len(layers), _span(layers)) for key, layers in rows.items()]
    table(("type", "kind", "d_in", "d_out", "sites", "blocks"), cells, f"{type(empty).__name__}: {len(sites)} sites")
    if told := sites_by_part(empty, [site.path for site in sites]):
        say(f"Parts: {told}.")
    return {"class": type(empty).__name__, "sites": [asdict(site) for site in sites]}


def _span(layers: list[int | None]) -> str | None:
    """`0-7`, `3, 9`, or None outside the blocks."""
    known = sorted({layer for layer in layers if layer is not None})
    if not known:
        return None
    whole = known == list(range(known[0], known[-1] + 1)) and len(known) > 1
    return f"{known[0]}-{known[-1]}" if whole else ", ".join(map(str, known))


def show_adapter(path: str) -> dict[str, Any]:
    """Shows the spec of an adapter, and returns it."""
    from luthier.core.storage.folder import read_adapter
    from luthier.models import Chat

    folder, spec = read_adapter(path)
    base = spec["base"]
    lines = {"adapter": folder, "name": spec["name"], "base": f"{base['name'] or 'unnamed'} ({base['model']})"}
    for index, part in enumerate(spec["parts"]):
        number = f" {index + 1}" if len(spec["parts"]) > 1 else ""
        settings = ", ".join(f"{k}={v}" for k, v in part["settings"].items())
        lines[f"form{number}"] = f"{part['form']}({settings})"
        lines[f"where{number}"] = f"{part['where']}: {len(part['sites'])} sites"
    measured = {key: value for key, value in spec["measured"].items() if key != "chat"}
    lines |= {key: value if isinstance(value, str) else json.dumps(value) for key, value in measured.items()}
    if chat := Chat.of(spec):
        own = hashlib.sha256(json.dumps(chat.template).encode()).hexdigest()[:16]
        lines["chat template"] = f"SHA-256 {own}, variables {json.dumps(chat.variables)}"
    lines |= {"made": f"{spec['created']} by luthier {spec['versions']['luthier']}", "sha256": spec["sha256"]}
    for name, value in lines.items():
        say(f"{name:<{max(map(len, lines))}}  {value}")
    return spec
