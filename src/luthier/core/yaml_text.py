"""YAML that is read with care: by PyYAML's safe loader, in which no key may stand twice, and of a size to be walked."""

from __future__ import annotations

import functools
import itertools
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

MOST_VALUES, DEEPEST, LARGEST = 100_000, 100, 2**63
"""Values with every alias written out, tables within tables, and the size of a whole number."""
MERGE = "tag:yaml.org,2002:merge"
"""The tag of YAML's key `<<`, which may stand several times."""


def loads(text: str, most: int = MOST_VALUES) -> Any:
    """Returns what YAML text holds; raises PyYAML's errors, and `ValueError` for keys that stand twice."""
    import yaml

    return bounded(yaml.load(text, Loader=_loader()), most)  # a safe one


def bounded(value: Any, most: int = MOST_VALUES) -> Any:
    """Returns a value as it is; raises `ValueError` for what names itself, as YAML's aliases may, and for too much."""
    _refuse_endless(value, itertools.count(1), most)
    return value


def _refuse_endless(value: Any, count: Iterator[int], most: int, depth: int = 0) -> None:
    if next(count) > most or depth > DEEPEST:
        raise ValueError(f"it holds more than {most:,} values, or names itself")
    if isinstance(value, int) and abs(value) > LARGEST:
        raise ValueError("it holds a whole number of more than 64 bits")
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            _refuse_endless(each, count, most, depth + 1)


@functools.cache
def _loader() -> Any:
    """PyYAML's safe loader, for which 1e-4 is a number too, and a key that stands twice is none, as YAML 1.2 has it."""
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_mapping_node(self, anchor: Any) -> Any:  # here, as merged keys are added when it is constructed
            node = super().compose_mapping_node(anchor)
            scalars = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            keys = Counter((key.tag, key.value) for key in scalars if key.tag != MERGE)
            if twice := next((key for (_, key), count in keys.items() if count > 1), None):
                raise ValueError(f"the key {twice!r:.100} stands twice in one table (line {node.start_mark.line + 1})")
            return node

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+"), [*"-+0123456789"]
    )
    return Loader
