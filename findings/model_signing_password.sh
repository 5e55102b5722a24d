#!/usr/bin/env bash
# model-signing 1.1.1 (OpenSSF), cryptography 50.0.2, pyOpenSSL 26.4.0, Python 3.11.
#
# Expected: `signing.Config().use_elliptic_key_signer(private_key=…, password=…)` takes the password of an encrypted key
# as it says, `Optional[str]`.
# What happens: a string raises TypeError, for it is handed on to cryptography's `load_pem_private_key`, which takes
# bytes. So does `model_signing sign key --password …`. Bytes, against the annotation, sign.
#
# Output seen:
#   str: TypeError: Cannot convert "<class 'str'>" instance to a buffer.
#   Did you mean to pass a bytestring instead?
#   bytes: signed
#   failed with error: Cannot convert "<class 'str'>" instance to a buffer.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q model-signing==1.1.1 cryptography==50.0.2 pyOpenSSL==26.4.0
mkdir model
echo '{}' > model/config.json
openssl ecparam -name prime256v1 -genkey -noout | openssl ec -aes256 -passout pass:secret -out key.pem 2> /dev/null
venv/bin/python - <<'PY'
from model_signing import signing

try:
    signing.Config().use_elliptic_key_signer(private_key="key.pem", password="secret")
except TypeError as error:
    print(f"str: TypeError: {error}")
else:
    raise SystemExit("a string is taken now")
config = signing.Config().use_elliptic_key_signer(private_key="key.pem", password=b"secret")
config.sign("model", "model.sig")
print("bytes: signed")
PY
if venv/bin/model_signing sign key --private_key key.pem --password secret --signature other.sig model > out.txt 2>&1; then
  echo "the command line takes a password now"
  exit 1
fi
grep -o "TypeError.*\|[Ff]ailed.*" out.txt | head -1
