"""`luthier sign`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from luthier.cli.output import say
from luthier.cli.parse import Given, Telling


@dataclass(frozen=True)
class Sign(Telling):
    """Sign an adapter with your private key, so that others can tell it from a changed one.

    The signature lies in the adapter's folder as adapter.sig; `luthier verify` checks it with the public key. A key is
    made by: openssl ecparam -name prime256v1 -genkey -noout -out KEY && openssl ec -in KEY -pubout -out KEY.pub
    """

    group: ClassVar[str] = "Ship"
    examples: ClassVar[tuple[str, ...]] = ("luthier sign run --key author.pem",)

    adapter: str
    """A run folder, or an adapter's."""
    key: Path = field(kw_only=True)
    """Private key of an elliptic curve, in PEM (a password: $LUTHIER_KEY_PASSWORD)."""

    def do(self, given: Given) -> dict[str, Any]:
        from luthier.interop.sign import sign

        signature = sign(self.adapter, self.key)
        say(f"{signature} signs the files beside it.")
        return {"signature": str(signature)}
