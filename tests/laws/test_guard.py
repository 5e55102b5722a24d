"""Foreign code is called behind a guard: calls that read what others wrote stand where any exception is caught."""

from __future__ import annotations

import ast
from collections.abc import Collection
from pathlib import Path

import luthier

ROOT = Path(luthier.__file__).parent
FOREIGN = {
    "json.loads", "tomllib.loads", "csv.reader", "yaml.safe_load", "safetensors.safe_open", "torch.load", "GGUFReader",
    "load_file", "datasets.load_dataset", "datasets.load_from_disk", "reasoning_gym.create_dataset",
    "loads", "loads_marked", "yaml.load", "pyarrow.parquet.ParquetFile", "np.load", "pa.ipc.open_file",
    "AutoTokenizer.from_pretrained", "zipfile.ZipFile", "tarfile.open",
}  # fmt: skip
"""Calls whose exceptions nobody can list."""
OWN = {
    "comparing/methods.py", "core/storage/format.py", "federating/folder.py", "comparing/folder.py",  # own values again
    "comparing/tune.py", "comparing/measures/forgetting.py", "measuring/cache.py",  # our own, whole or not there
    "interop/formats/_gguf/tokenizers.py", "models/convert/whisper.py", "combining/guards.py",  # packages' own files
    "data/sandbox/inside.py", "data/sandbox/worker.py",  # what its parent wrote
    "serving/training_api/service.py", "serving/training_api/checkpoints.py", "serving/training_api/store.py",  # rows
    "serving/training_api/trainer.py", "serving/training_api/shelf.py",  # of our own tables
    "serving/http/formats.py",  # a schema that json.dumps wrote
    "data/records.py",  # its errors are counted, row by row
    "core/json_text.py", "core/yaml_text.py",  # their functions are foreign calls themselves
}  # fmt: skip
"""Where what is read is our own."""
GUARDS = {"guarded", "written", "recorded", "_told"}
WIDE = {"Exception", "BaseException"}


def spelled(call: ast.Call) -> str:
    return ast.unparse(call.func)


def guards(node: ast.AST) -> bool:
    """Whether a statement turns whatever is raised inside it into something of ours."""
    if isinstance(node, ast.With):
        return any(isinstance(i.context_expr, ast.Call) and spelled(i.context_expr) in GUARDS for i in node.items)
    if isinstance(node, ast.Try):
        caught = {ast.unparse(each) for h in node.handlers if h.type for each in getattr(h.type, "elts", [h.type])}
        return bool(caught & WIDE) or {"ValueError", "RecursionError"} <= caught
    return False


def naked(tree: ast.AST, inside: bool = False, foreign: Collection[str] = FOREIGN) -> list[ast.Call]:
    """Foreign calls that stand behind no guard."""
    found = []
    if isinstance(tree, ast.Call) and spelled(tree) in foreign and not inside:
        found.append(tree)
    inside = inside or guards(tree)
    return found + [call for child in ast.iter_child_nodes(tree) for call in naked(child, inside, foreign)]


def test_foreign_code_is_behind_a_guard():
    files = {str(path.relative_to(ROOT)): path for path in ROOT.rglob("*.py")}
    assert set(files) >= OWN
    bare = {
        f"{name}:{call.lineno} {spelled(call)}"
        for name, path in files.items()
        if name not in OWN
        for call in naked(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert not bare


OWN_TEXTS = {
    "comparing/report/page.py", "core/palette.py", "serving/http/listening.py", "serving/studio/chat.py",
    "training/card.py", "cli/source.py",  # of the package
    "core/cached.py", "kernels/backend.py", "core/mapped.py",  # of the system, or an error of which is expected
}  # fmt: skip


def test_texts_of_others_are_read_behind_a_guard():
    """A file may be no UTF-8, whatever wrote it; one that is read with `errors=` says what becomes of that."""
    bare = {
        f"{name}:{call.lineno}"
        for name, path in {str(path.relative_to(ROOT)): path for path in ROOT.rglob("*.py")}.items()
        if name not in OWN_TEXTS
        for call in naked(ast.parse(path.read_text(encoding="utf-8")), foreign=Texts())
        if not any(keyword.arg == "errors" for keyword in call.keywords)
    }
    assert not bare


class Texts(frozenset[str]):
    """Calls of a path's method."""

    def __contains__(self, call: object) -> bool:
        return str(call).endswith(".read_text")


def test_the_law_sees_a_naked_call():
    assert naked(ast.parse("x = json.loads(text)"))
    assert not naked(ast.parse("with guarded('x'):\n    y = json.loads(text)"))
    assert naked(ast.parse("try:\n    json.loads(text)\nexcept OSError:\n    pass"))


TAKEN_APART = {
    "cli/commands/compare.py", "cli/commands/continue_.py", "cli/commands/metatune.py", "training/unlearning/run.py",
    "models/older.py",  # what was just written
    "interop/formats/pyreft.py",  # behind `expected` in each format
    "training/together/kept.py",  # compared as a whole
    "core/storage/activations.py",  # the same
    "training/adam_state.py",  # behind a check that its caller brings
    "core/storage/format.py",  # checked key by key
}  # fmt: skip
"""Where what a JSON file holds is known."""
MISSES = {"KeyError", "TypeError"}


def asks(tree: ast.AST) -> bool:
    """Whether a function looks at what kind of thing it was given, or expects to be wrong about that."""
    caught = [h.type for h in ast.walk(tree) if isinstance(h, ast.ExceptHandler) and h.type]
    named = [{ast.unparse(each) for each in getattr(kind, "elts", [kind])} for kind in caught]
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return any(names >= MISSES for names in named) or any(spelled(call) == "isinstance" for call in calls)


def test_what_a_json_file_holds_is_taken_apart_behind_a_guard():
    """`{}` and `[]` are JSON too: a record whose entries are missing is told as damage."""
    bare = {
        f"{name}:{call.lineno}"
        for name, path in {str(path.relative_to(ROOT)): path for path in ROOT.rglob("*.py")}.items()
        if name not in TAKEN_APART
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(function, ast.FunctionDef) and not asks(function)
        for call in naked(function, foreign={"read_json"})
    }
    assert not bare
