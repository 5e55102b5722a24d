"""Which threads are autograd's own: they work for the one that called backward, and have no state of their own."""

from __future__ import annotations

import threading

import torch


class Thread(threading.local):
    """Each thread sees its own `of_autograd`, found when it first asks.

    A GPU's backward pass, and the recomputations in it, run in a thread of autograd's; a CPU's in the caller's, which
    has run a forward pass before.
    """

    def __init__(self) -> None:
        self.of_autograd = torch._C._current_graph_task_id() != -1  # pyright: ignore[reportAttributeAccessIssue]
