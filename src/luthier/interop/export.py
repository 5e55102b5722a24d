"""A saved adapter in the format of other software."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from luthier.core.adapters.attach import adapter_names, detach, find_state
from luthier.core.adapters.control import acting, set_acting, use
from luthier.core.contracts.component import find
from luthier.core.contracts.format import Format, Outgoing
from luthier.core.files import committed, must_be_free
from luthier.core.sites.probe import eval_mode
from luthier.core.storage.store import load


def export(
    adapter: str | Path, out: str | Path, *, to: str | Format, base: nn.Module, processor: Any = None
) -> dict[str, float]:
    """Writes a saved adapter as the folder `out` in the format `to`, for the base it was fitted on.

    `to` is a name (`luthier list formats`) or a component with settings, such as `lt.formats.PEFT(rank=16,
    tolerance=0.05)`. `processor` is the base's tokenizer, for formats that hold the whole model. Returns `{place:
    relative error}` of what is not exact. The folder must be new and is there whole or not at all; `base` is left as
    it was. Raises `LuthierError` for an adapter that the format cannot express, with the reason.
    """
    form = find("formats", to)() if isinstance(to, str) else to
    assert isinstance(form, Format)
    form.check_use(reading=False)
    target = must_be_free(out)
    form.check_base(base, processor)
    state = find_state(base)
    taken, before = (adapter_names(state), acting(base)) if state else ([], {})
    name = next(n for n in ("export", *(f"export{i}" for i in range(99))) if n not in taken)
    load(base, adapter, name)
    try:
        use(base, name)
        with eval_mode(base), committed(target) as temporary:
            return form.write(Outgoing(base, name, processor), temporary)
    finally:
        detach(base, name)
        if taken:
            set_acting(base, before)
