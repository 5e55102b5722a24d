"""What updates that go by layers have in common."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.core.contracts.form import Form
from luthier.core.contracts.site import Site
from luthier.core.contracts.update import Update
from luthier.core.errors import LuthierError


def check_layered(update: Update, form: Form, sites: Sequence[Site]) -> None:
    """Raises where parameters belong to no single layer, and where no site lies in a block."""
    if form.share is not None:
        raise LuthierError(
            f"{update.name()} goes by layers, and with share={form.share!r} parameters belong to several; "
            "leave share out."
        )
    if all(site.layer is None for site in sites):
        raise LuthierError(f"{update.name()} goes by layers, and none of the {len(sites)} sites lies in a block.")
