"""`python -m bench NAME …` runs a benchmark; without a name it lists them."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

from bench._registry import benchmarks


def main(words: Sequence[str]) -> int:
    """Runs the benchmark of that name with the rest of the words; 2 for an unknown one."""
    known = benchmarks()
    if not words or words[0] in ("-h", "--help"):
        print(f"{__doc__}\n", *(f"{name:20s} {each.line()}" for name, each in known.items()), sep="\n")
        return 0
    name, *rest = words
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        print(f"no benchmark {name!r}.{hint} There are: {', '.join(known)}.", file=sys.stderr)
        return 2
    sys.argv[0] = f"python -m bench {name}"
    importlib.import_module(known[name].module).main(rest)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
