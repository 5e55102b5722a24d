#!/usr/bin/env bash
# model-signing 1.1.1 (OpenSSF), pyOpenSSL 26.4.0, Python 3.11.
#
# Expected: `hashing.Config().use_file_serialization(hashing_algorithm="sha256", allow_symlinks=True)` follows symbolic
# links, as its documentation says, so that a snapshot of a hub cache, which consists of links, can be signed and verified.
# What happens: the argument is overwritten when the folder is hashed, and the first link raises ValueError, with the
# advice to use `allow_symlinks`. `set_allow_symlinks(True)` beside it is what has an effect.
#
# Output seen:
#   allow_symlinks=True: ValueError: Cannot use 'model/config.json' because it is a symlink. This behavior can be changed with `allow_symlinks`.
#   set_allow_symlinks(True): 1 file
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q model-signing==1.1.1 pyOpenSSL==26.4.0
mkdir model
echo '{}' > blob
ln -s ../blob model/config.json
venv/bin/python - <<'PY'
from model_signing import hashing

config = hashing.Config().use_file_serialization(hashing_algorithm="sha256", allow_symlinks=True)
try:
    config.hash("model")
except ValueError as error:
    print(f"allow_symlinks=True: ValueError: {error}")
else:
    raise SystemExit("the argument has an effect now")
found = list(config.set_allow_symlinks(True).hash("model").resource_descriptors())
print(f"set_allow_symlinks(True): {len(found)} file")
PY
