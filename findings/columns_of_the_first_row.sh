#!/usr/bin/env bash
# datasets 5.2.0, pyarrow 26.0.1 (Python 3.10 or later).
#
# Expected: a set made of a list of rows has every column that a row has; where a row lacks one it is null, as it is when
# the same rows are read from a JSON Lines file.
# What happens: `Dataset.from_list` and `pyarrow.Table.from_pylist` take the columns of the first row alone. What only
# later rows have (tools of the rows that call some, a system prompt, a weight) is dropped without a word, so a Parquet
# file or save_to_disk folder made this way lacks it, and no reader can tell.
#
# Output seen:
#   Dataset.from_list: ['text']
#   Table.from_pylist: ['text']
#   load_dataset(json): ['text', 'tools']
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q datasets==5.2.0 pyarrow==26.0.1
cd "$work"
HF_HOME="$work/hf" HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PY'
import json

import datasets
import pyarrow

rows = [{"text": "a"}, {"text": "b", "tools": [{"name": "f"}]}]
with open("rows.jsonl", "w") as file:
    file.writelines(json.dumps(row) + "\n" for row in rows)
found = {
    "Dataset.from_list": datasets.Dataset.from_list(rows).column_names,
    "Table.from_pylist": pyarrow.Table.from_pylist(rows).column_names,
    "load_dataset(json)": datasets.load_dataset("json", data_files="rows.jsonl", split="train").column_names,
}
for name, columns in found.items():
    print(f"{name}: {columns}")
assert list(found.values()) == [["text"], ["text"], ["text", "tools"]], "it behaves otherwise now"
PY
