"""The matrix of docs/interop.md: every recorded folder, from the library that wrote it into every format.

    python -m support.matrix measure FORMAT…      # from tests/; some minutes each, kept in tests/interop/matrix/
    python -m support.matrix measure FORMAT… to FORMAT…   # some columns alone
    python -m support.matrix print                # writes the table between the markers of docs/interop.md

A folder is read, written in the other format and read again, and the answer is compared with what the library that
wrote it answered (`logits.safetensors`; of GGUF, what it answers here, which test_import_gguf.py compares with
llama.cpp). A merged model is loaded with transformers. What is not of low rank is tried again at rank 4.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import luthier as lt
from luthier.core.contracts.format import Format
from support import pyreft_recorded, recorded

ROOT = Path(__file__).parents[2]
PAGE, KEPT = ROOT / "docs" / "interop.md", ROOT / "tests" / "interop" / "matrix"
BEGIN, END = "<!-- matrix: python -m support.matrix print -->", "<!-- end of the matrix -->"
RANK = 4
ROUNDED = 1e-4
"""Errors of a layer below this are of rounding, and not of a truncation."""
FORMATS = [lt.find("formats", name, Format) for name in lt.names("formats")]
FROM = [each.name() for each in FORMATS if each.reads()]
TO = [each.name() for each in FORMATS if each.writes() and (each.reads() or each.name() == "merged")]
"""What is read here again, and a merged model. Other whole models have tests of their own: a GGUF rounds or not as its
dtype says, and sentence-transformers runs its own folders."""


@dataclass(frozen=True)
class Source:
    """A folder, and how to ask a model that has it."""

    name: str
    folder: Path
    reader: Format
    base: Callable[[], Any]
    answer: Callable[[Any], Tensor]
    wanted: Tensor | None


def sources(form: str) -> Iterator[Source]:
    """The recorded folders of a format."""
    for case in recorded.cases():
        if case.format == form:
            reader = lt.find("formats", form, Format)(**case.settings)
            made = lambda name=case.base: recorded.base(name)  # noqa: E731
            yield Source(case.name, case.folder, reader, made, recorded.logits, case.logits)
    if form == "pyreft":
        answers = lt_load(pyreft_recorded.FOLDER / "logits.safetensors")
        for name, case in pyreft_recorded.CASES.items():
            reader = lt.formats.PyReFT(positions=case.positions)
            made = lambda kind=case.model: pyreft_recorded.base(kind)  # noqa: E731
            yield Source(name, pyreft_recorded.FOLDER / name, reader, made, states_of_pyreft, answers[name])
    if form == "gguf_lora":
        from interop.test_gguf import made as gguf_base
        from support.shipped import logits

        for folder in sorted((ROOT / "tests" / "interop" / "llamacpp_adapters").iterdir()):
            kind = folder.name.partition("-")[0]
            made = lambda kind=kind: gguf_base(kind)  # noqa: E731
            yield Source(folder.name, folder, lt.find("formats", form, Format)(), made, logits, None)


def lt_load(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def states_of_pyreft(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=pyreft_recorded.IDS).logits


def measured(source: Source, work: Path, to: Sequence[str] = TO) -> dict[str, dict[str, Any]]:
    """`{format: {"error": relative to the largest logit} or {"refused": why} or {"lost": …, "error": …}}`."""
    ours = lt.import_adapter(source.folder, work / "ours", base=source.base(), source=source.reader)
    wanted = source.wanted if source.wanted is not None else source.answer(lt.load(source.base(), ours))
    return {each: cell(source, ours, wanted, each, work) for each in to}


def cell(source: Source, ours: Path, wanted: Tensor, to: str, work: Path) -> dict[str, Any]:
    cls: Any = lt.find("formats", to, Format)
    try:
        return written(source, ours, wanted, cls(), work / to)
    except lt.LuthierError as error:
        why = str(error)
    if "not of low rank" in why and "rank" in cls.settings():
        try:
            return written(source, ours, wanted, cls(rank=RANK, tolerance=1.0), work / f"{to}-rank")
        except lt.LuthierError as error:
            why = str(error)
    return {"refused": why}


def written(source: Source, ours: Path, wanted: Tensor, form: Format, out: Path) -> dict[str, Any]:
    from support.shipped import byte_level

    lost = lt.export(ours, out, to=form, base=source.base(), processor=byte_level())
    if form.name() == "merged":
        model = type(source.base()).from_pretrained(out, dtype=torch.float32).eval()
    else:
        back = lt.import_adapter(out, out.parent / f"{out.name}-back", base=source.base(), source=form.name())
        model = lt.load(source.base(), back)
    error = float((source.answer(model) - wanted).abs().max()) / max(1.0, float(wanted.abs().max()))
    return {"error": error} | ({"lost": max(lost.values())} if lost else {})


def held() -> dict[str, dict[str, dict[str, Any]]]:
    """What was measured: {format: {folder: {format: cell}}}."""
    return {form: json.loads(file.read_text()) for form in FROM if (file := KEPT / f"{form}.json").is_file()}


def measure(form: str, to: Sequence[str] = TO) -> None:
    """Writes what was measured from one format; columns that are not in `to` stay as they were."""
    found = {}
    before = held().get(form, {})
    for source in sources(form):
        with tempfile.TemporaryDirectory() as work, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found[source.name] = before.get(source.name, {}) | measured(source, Path(work), to)
    KEPT.mkdir(exist_ok=True)
    (KEPT / f"{form}.json").write_text(json.dumps(found, indent=1) + "\n")


def table() -> str:
    """The matrix and its reasons, from what was measured."""
    measured = held()
    cells = [each for cases in measured.values() for folder in cases.values() for each in folder.values()]
    exact = sum("refused" not in each and each.get("lost", 0) < ROUNDED for each in cells)
    lines = [
        f"{sum(map(len, measured.values()))} folders of {len(measured)} formats are read, {exact} of their "
        f"{len(cells)} cells are exact.",
        "",
    ]
    lines += [f"| from (folders) | {' | '.join(TO)} |", f"|---|{'---|' * len(TO)}"]
    for form, cases in measured.items():
        lines.append(
            f"| {form} ({len(cases)}) | {' | '.join(told([each[to] for each in cases.values()]) for to in TO)} |"
        )
    lines += ["", "Why what is refused is refused, and how many of the folders above that are:", ""]
    for to in TO:
        refused = [c[to]["refused"] for cases in measured.values() for c in cases.values() if "refused" in c[to]]
        lines += [f"- {to}: {'; '.join(reasons(refused))}."] if refused else []
    return "\n".join(lines)


def told(cells: list[dict[str, Any]]) -> str:
    """One cell of the table."""
    exact = [each["error"] for each in cells if "error" in each and each.get("lost", 0) < ROUNDED]
    rough = [each["lost"] for each in cells if each.get("lost", 0) >= ROUNDED]
    parts = [f"{len(exact)} exact ({max(exact):.0e})"] if exact else []
    parts += [f"{len(rough)} truncated ({max(rough):.0%})"] if rough else []
    refused = sum("refused" in each for each in cells)
    return ", ".join([*parts, *([f"{refused} refused"] if refused else [])])


FORMS = frozenset(lt.names("forms"))


def reasons(texts: Sequence[str]) -> list[str]:
    """Reasons without the names of one folder, most frequent first; forms of which the same is true stand together."""
    counts: Counter[str] = Counter()
    forms: dict[str, Counter[str]] = {}
    for text in texts:
        first, _, rest = reason(text).partition(" ")
        shared = rest if first in FORMS else f"{first} {rest}"
        counts[shared] += 1
        if first in FORMS:
            forms.setdefault(shared, Counter())[first] += 1
    return [
        f"{', '.join(name for name, _ in forms.get(why, Counter()).most_common())} {why} ({count})".lstrip()
        for why, count in counts.most_common()
    ]


def reason(text: str) -> str:
    """A reason without the names of one folder: the same words for the same fault."""
    text = re.sub(r"\b[A-Z]\w+(?:For|LM|Model|Text)\w*( \(\w+\))?", "the base", text.partition(";")[0])
    text = re.sub(r"\b(?!llama\.cpp\b)[A-Za-z_]\w*(\.\w+)+\b", "a layer", text)
    text = re.sub(r"^(?:a layer|peft's prefixes): ", "", text)
    text = text.replace("this base (the base)", "the base").replace(" a the base", " a base")
    return re.split(r"(?<=[a-z)])[.:] ", text)[0].rstrip(".")


def main(words: list[str]) -> None:
    if words[:1] == ["measure"]:
        forms, _, to = " ".join(words[1:]).partition("to ")
        for form in forms.split() or FROM:
            measure(form, to.split() or TO)
        return
    page = PAGE.read_text()
    start, end = page.index(BEGIN) + len(BEGIN), page.index(END)
    PAGE.write_text(f"{page[:start]}\n\n{table()}\n\n{page[end:]}")


if __name__ == "__main__":
    main(sys.argv[1:])
