#!/usr/bin/env bash
# Runs other libraries' clients against the server, and records what they send: tests/serving/clients/record.sh PYTHON
#
# Each client has an environment of its own below WORK, with the version that is named here. A client that is not answered
# as it wants to be fails; what it sent goes to tests/serving/clients/NAME.json, which the suite asks the server anew.
set -euo pipefail
python=$(realpath -s "$1")
root=$(realpath "$(dirname "$0")/../../..")
work=${WORK:-$root/build/clients}
mkdir -p "$work"
cd "$root/tests"

client() { # NAME PACKAGE…
    local name=$1
    shift
    test -d "$work/$name" || { python3 -m venv "$work/$name" && "$work/$name/bin/pip" install -q "$@"; }
    PYTHONPATH=../src:. "$python" -m support.record_clients "$work" "$name" "$work/$name/bin/python"
}

client langchain langchain-openai==1.7.4
export LITELLM_LOCAL_MODEL_COST_MAP=True # or it is fetched
client litellm litellm==1.110.2
client lm_eval 'lm-eval[api]==0.4.13' transformers==5.23.0
