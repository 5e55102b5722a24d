"""The model hub: whether to ask it, decided before a library spends its retries."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

from luthier.core.errors import LuthierError
from luthier.core.guard import guarded


def only_local(name: Path | str, revision: str = "main") -> bool:
    """Returns whether `name` must come from this machine: a folder, or a hub id that the local hub cache holds.

    Raises `LuthierError` when the hub cannot be reached and the model is not in that cache.
    """
    if isinstance(name, Path):
        return True
    from huggingface_hub import constants, try_to_load_from_cache

    if not constants.HF_HUB_OFFLINE and _reachable(constants.ENDPOINT):
        return False
    with guarded(f"no model {name[:80]!r}"):  # of names that no hub takes
        kept = try_to_load_from_cache(name, "config.json", revision=revision)
    if isinstance(kept, str):
        return True
    raise LuthierError(
        f"no folder {name} exists here, and the hub ({constants.ENDPOINT}) cannot be reached for a "
        "model of that id: check the name and the network, or give a local folder, a .gguf file or a "
        "name that `luthier models` lists."
    )


def _reachable(endpoint: str) -> bool:
    """Whether the host answers within five seconds; a proxy is taken at its word."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    url = urlsplit(endpoint)
    try:
        socket.create_connection((url.hostname, url.port or 443), timeout=5).close()
    except OSError:
        return False
    return True
