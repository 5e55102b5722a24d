#!/usr/bin/env bash
# The suite with other releases than those of constraints.txt: tests/edges.sh oldest|newest [what pytest is given]
#
# oldest: the lowest version of each dependency that pyproject.toml declares; newest: the newest of the index. Either has an
# environment of its own below WORK (default build/edges), made by uv, which resolves to the lowest. The extras are those
# below: onnx wants a newer transformers than the core does, and the packages of the others want each other's versions.
# UV_TORCH_BACKEND=cpu takes torch's builds without CUDA, where its own index is reached.
set -euo pipefail
edge=$1
shift
root=$(realpath "$(dirname "$0")/..")
work=${WORK:-$root/build/edges}
extras=bm25,grammar,gguf,serve,text-metrics,train-api,tune,vision
case $edge in
oldest) resolution=lowest-direct ;;
newest) resolution=highest ;;
*)
    echo "expected oldest or newest, not $edge" >&2
    exit 2
    ;;
esac
mkdir -p "$work"
test -x "$work/uv/bin/uv" || { python3 -m venv "$work/uv" && "$work/uv/bin/pip" install -q uv; }
uv() { "$work/uv/bin/uv" "$@"; }
if ! test -f "$work/$edge/made"; then
    uv venv -q --clear "$work/$edge"
    uv pip install -q --python "$work/$edge" --resolution "$resolution" --editable "$root[$extras]"
    uv pip install -q --python "$work/$edge" pytest pytest-xdist openai peft==0.21.2 scipy scikit-learn sentencepiece protobuf
    touch "$work/$edge/made"
fi
uv pip list -q --python "$work/$edge" | grep -E "^(torch|transformers|accelerate|datasets|safetensors|numpy|peft) "
cd "$root"
OMP_NUM_THREADS=1 "$work/$edge/bin/python" -m pytest "$@"
