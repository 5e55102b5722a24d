#!/usr/bin/env bash
# model-signing 1.1.1 (OpenSSF) with sigstore 4.5.1, Python 3.11.
#
# Expected: after `pip install model-signing`, `import model_signing` works.
# What happens: it raises ModuleNotFoundError, because a module of it imports pyOpenSSL, which it does not ask for:
# older versions of sigstore brought it along, 4.5.1 does not.
#
# Output seen:
#   ModuleNotFoundError: No module named 'OpenSSL'
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q model-signing==1.1.1 sigstore==4.5.1
venv/bin/python - <<'PY'
try:
    import model_signing
except ModuleNotFoundError as error:
    print(f"ModuleNotFoundError: {error}")
    assert error.name == "OpenSSL", "it lacks something else now"
else:
    raise SystemExit("it can be imported now")
PY
