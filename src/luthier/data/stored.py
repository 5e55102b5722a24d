"""Encoded rows on disk: made by several processes, kept under all that they depend on, read row by row."""

from __future__ import annotations

import functools
import hashlib
import json
import multiprocessing
import os
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core import children
from luthier.core.cached import cached
from luthier.core.contracts.example import Example, Examples
from luthier.core.errors import LuthierError
from luthier.core.guard import guarded
from luthier.core.version import __version__
from luthier.data.bad import BadRow
from luthier.data.encode import ALSO
from luthier.data.media import media_digest
from luthier.data.pictures import PICTURES
from luthier.data.sizes import Measured, Sizes, sizes_of
from luthier.data.told import TOLD, counted
from luthier.models.seeing import eyes_of

if TYPE_CHECKING:
    import numpy as np

Feature = dict[str, Any]
Encode = Callable[[Example], Iterator[Feature]]
KIND = "encoded"
GONE = "the encoded rows in {} are gone or damaged (start again: they are made anew)"
FEATURES, SIZES, SAID = "features.arrow", "sizes.npy", "said.json"
WRITTEN = (TOLD, PICTURES)
"""What features hold beside numbers, as JSON."""
CHUNK = 64
"""Rows that a process takes at a time."""
BATCH = 2**16
"""Numbers in a batch of the file: what is read to get one row of it."""
WORKERS = 8
"""Processes at most: the one that reads the rows feeds no more."""
FEW = 20_000
"""Rows up to which starting processes takes longer than it saves."""


class Stored(Measured):
    """Features in an Arrow file, of which memory holds the sizes (24 bytes each) and a batch."""

    def __init__(self, folder: Path, change: Callable[[Feature], Feature] | None = None) -> None:
        import numpy as np

        self.folder, self._change = folder, change
        with guarded(f"the cache {folder} is damaged (clear it: luthier cache clear)"):
            self._sizes = Sizes(*np.load(folder / SIZES))
            said = json.loads((folder / SAID).read_text(encoding="utf-8"))
        self.bad: list[tuple[int, str]] = [(number, why) for number, why in said["bad"]]
        self._turns, self._rows = Counter(said["turns"]), Counter(said["rows"])
        self._ends = np.cumsum(said["batches"])
        self._held: tuple[int, int, Any] = (-1, -1, None)
        self._reader: tuple[int, Any] = (-1, None)

    def sizes(self) -> Sizes:
        return self._sizes

    def notes(self) -> tuple[Counter[str], Counter[str]]:
        return self._turns, self._rows

    def mapped(self, change: Callable[[Feature], Feature]) -> Stored:
        """Returns the same features, each changed when it is read; their sizes stay."""
        before = self._change
        return Stored(self.folder, change if before is None else lambda feature: change(before(feature)))

    def __len__(self) -> int:
        return len(self._sizes.row)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"there are {len(self)} features.")
        number = int(self._ends.searchsorted(place, side="right"))
        batch = self._batch(number)
        found = batch.slice(place - (int(self._ends[number - 1]) if number else 0), 1)
        feature = {name: _value(column) for name, column in zip(found.schema.names, found.columns, strict=True)}
        feature = _filled({name: value for name, value in feature.items() if value is not None})
        return feature if self._change is None else self._change(feature)

    def _batch(self, number: int) -> Any:
        if self._held[:2] != (os.getpid(), number):
            with guarded(GONE.format(self.folder)):
                self._held = os.getpid(), number, self._open().get_batch(number)
        return self._held[2]

    def _open(self) -> Any:
        """The file, read and not mapped, so that what was read does not stay in memory; each process has its own."""
        import pyarrow as pa

        if self._reader[0] != os.getpid():
            with guarded(GONE.format(self.folder)):
                self._reader = os.getpid(), pa.ipc.open_file(pa.OSFile(str(self.folder / FEATURES)))
        return self._reader[1]


def _value(column: Any) -> Any:
    found = column[0]
    values = getattr(found, "values", None)
    return found.as_py() if values is None else values.to_numpy(zero_copy_only=False).tolist()


def _filled(feature: Feature) -> Feature:
    """A feature as it was encoded: a mask of ones is not stored; notes and the rows behind it are JSON."""
    if "input_ids" in feature and "attention_mask" not in feature:
        feature["attention_mask"] = [1] * len(feature["input_ids"])
    behind = {ALSO: [_filled(each) for each in _told_in(feature[ALSO])]} if ALSO in feature else {}
    return feature | {name: _told_in(feature[name]) for name in WRITTEN if name in feature} | behind


def _told_in(text: str) -> Any:
    with guarded("an entry of the cache is damaged (clear it: luthier cache clear)"):
        return json.loads(text)


def stored(examples: Examples, encode: Encode, key: str, about: dict[str, Any]) -> Stored:
    """Returns the features of all rows, from the cache where it holds them; `key` names all that they depend on."""
    return Stored(cached(KIND, key, lambda folder: _write(folder, examples, encode) | about))


def key_of(examples: Examples, processor: Any, settings: dict[str, Any]) -> str:
    """Returns a name for encoded rows: of the rows, the tokenizer, the settings, and the code that encodes."""
    import tokenizers
    import transformers

    parts = {
        "rows": examples.fingerprint,
        "tokenizer": tokenizer_key(processor),
        "settings": settings,
        "versions": [__version__, transformers.__version__, tokenizers.__version__],
        "code": _code(),
    }
    if (eyes := eyes_of(processor)) is not None:
        parts["pictures"] = [eyes.processor.to_json_string(), media_digest(examples.rows)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()[:40]


def tokenizer_key(tokenizer: Any) -> str:
    """SHA-256 of what a tokenizer makes tokens by: its vocabulary and rules, special tokens and templates."""
    rules = tokenizer.backend_tokenizer.to_str()
    rest = [type(tokenizer).__name__, tokenizer.chat_template, tokenizer.special_tokens_map, tokenizer.init_kwargs]
    text = json.dumps([rules, rest], sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@functools.cache
def _code() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


# --- writing ---------------------------------------------------------------------------------------


Made = tuple[list[bytes], list[int], "np.ndarray", Counter[str], Counter[str], list[tuple[int, str]]]
"""Arrow batches, how many features each holds, their sizes [6, features], notes by turns and by rows, bad rows."""


def _write(folder: Path, examples: Examples, encode: Encode) -> dict[str, Any]:
    import numpy as np
    import pyarrow as pa

    writer, batches, sizes, bar = None, [], [], _bar(len(examples))
    turns: Counter[str] = Counter()
    rows: Counter[str] = Counter()
    bad: list[tuple[int, str]] = []
    for packed, counts, figures, some_turns, some_rows, wrong in _made(examples, encode):
        for each in packed:
            batch = pa.ipc.open_stream(each).read_next_batch()
            if writer is None:
                options = pa.ipc.IpcWriteOptions(compression="lz4")
                writer = pa.ipc.new_file(str(folder / FEATURES), batch.schema, options=options)
            writer.write_batch(batch)
        batches += counts
        sizes.append(figures)
        turns += some_turns
        rows += some_rows
        bad += wrong
        bar.update(bar.task_ids[0], advance=len(set(figures[0].tolist())) + len(wrong))
        bar.refresh()
    bar.stop()
    if writer is not None:
        writer.close()
    np.save(folder / SIZES, np.concatenate(sizes, 1) if sizes else np.zeros((6, 0), dtype=np.int32))
    said = {"bad": bad, "turns": turns, "rows": rows, "batches": batches}
    (folder / SAID).write_text(json.dumps(said), encoding="utf-8")
    return {"features": sum(batches), "rows": len(examples)}


def _bar(rows: int) -> Any:
    """A bar that is drawn by this thread alone: processes are forked beside it."""
    from rich.console import Console
    from rich.progress import Progress

    bar = Progress(console=Console(stderr=True), auto_refresh=False, transient=True, disable=not sys.stderr.isatty())
    bar.add_task("Encoding", total=rows)
    bar.start()
    return bar


def _made(examples: Examples, encode: Encode) -> Iterator[Made]:
    """The rows, chunk by chunk in their order, from as many processes as there are cores."""
    starts = range(0, len(examples), CHUNK)
    count = workers(len(examples))
    task = _Task(examples.rows, encode)
    if count == 1:
        for start in starts:
            yield from task.parts(start)
        return
    _Task.ours = task
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks: nothing but this thread runs
        forks = multiprocessing.get_context("fork")
        pool = ProcessPoolExecutor(count, mp_context=forks, initializer=children.begin, initargs=(os.getpid(),))
        try:
            yield from _in_order(pool, starts, 2 * count)
        except BrokenProcessPool:
            raise LuthierError(
                "a process that encoded rows was killed, as happens where memory ends; set LUTHIER_WORKERS=1 and start "
                "again."
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)
            _Task.ours = None


def _in_order(pool: ProcessPoolExecutor, starts: Sequence[int], ahead: int) -> Iterator[Made]:
    waiting: list[Future[list[Made]]] = []
    for start in starts:
        waiting.append(pool.submit(_of_chunk, start))
        if len(waiting) >= ahead:
            yield from waiting.pop(0).result()
    for each in waiting:
        yield from each.result()


def workers(rows: int) -> int:
    """Processes that encode: `$LUTHIER_WORKERS`, or one a core where there are rows enough and forks are safe."""
    told = os.environ.get("LUTHIER_WORKERS", "")
    if told:
        if not told.isdecimal() or int(told) < 1:
            raise LuthierError(f"LUTHIER_WORKERS is {told!r}; expected how many processes encode rows, 1 or more.")
        return int(told)
    safe = sys.platform == "linux" and threading.active_count() == 1
    return min(WORKERS, len(os.sched_getaffinity(0))) if safe and rows > FEW else 1


class _Task:
    """What a process has to do; those that encode are forked and find it in `ours`."""

    ours: _Task | None = None

    def __init__(self, rows: Sequence[Example], encode: Encode) -> None:
        self.rows, self.encode = rows, encode

    def parts(self, start: int) -> Iterator[Made]:
        """Yields the features of a chunk of rows, in parts of a batch or a little more."""
        features: list[Feature] = []
        bad: list[tuple[int, str]] = []
        size = 0
        for place in range(start, min(start + CHUNK, len(self.rows))):
            try:
                for feature in self.encode(self.rows[place]):
                    features.append(feature)
                    size += sum(len(each["input_ids"]) for each in (feature, *feature.get(ALSO, ())))
                    if size >= BATCH:
                        yield _packed(features, bad)
                        features, bad, size = [], [], 0
            except BadRow as reason:
                bad.append((self.rows[place].row, str(reason)))
        if features or bad:
            yield _packed(features, bad)


def _of_chunk(start: int) -> list[Made]:
    assert _Task.ours is not None
    return list(_Task.ours.parts(start))


def _packed(features: list[Feature], bad: list[tuple[int, str]]) -> Made:
    import numpy as np
    import pyarrow as pa

    turns, rows = counted(features)
    found = sizes_of(features)
    figures = np.stack([found.row, found.length, found.work, found.width, found.learned, found.cut]).astype(np.int32)
    if not features:
        return [], [], figures, turns, rows, bad
    schema = _schema(features[0])
    plain = [_plain(feature) for feature in features]
    batch = pa.RecordBatch.from_pylist(plain, schema=schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        writer.write_batch(batch)
    return [sink.getvalue().to_pybytes()], [len(features)], figures, turns, rows, bad


def _plain(feature: Feature) -> Feature:
    mask = feature.get("attention_mask")
    rest = {name: value for name, value in feature.items() if name != "attention_mask" or not all(mask or ())}
    behind = {ALSO: json.dumps([_plain(each) for each in feature[ALSO]])} if ALSO in feature else {}
    return rest | {name: json.dumps(feature[name]) for name in WRITTEN if name in feature} | behind


def _schema(feature: Feature) -> Any:
    """Of the features of one encoder, whose names and kinds are those of the first; notes come in some rows alone.

    The rejected answer of a pair is text.
    """
    import pyarrow as pa

    kinds = {int: pa.int64(), float: pa.float64(), list: pa.list_(pa.int32())}
    fields = {name: kinds[type(value)] for name, value in feature.items() if name not in (*WRITTEN, ALSO)}
    return pa.schema([*fields.items(), *((name, pa.string()) for name in (*WRITTEN, ALSO))])
