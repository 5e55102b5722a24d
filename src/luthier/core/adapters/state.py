"""The record of what is attached to a model."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from luthier.core.adapters.container import AdapterContainer
from luthier.core.adapters.pass_ import Pass, Passes
from luthier.core.adapters.tuner import AdapterComponent, TunerLayer


@dataclass(eq=False)
class State:
    """The adapters of one model: their components, their containers, and what attaching and merging changed."""

    passes: Passes = field(default_factory=Passes)
    """The states of the forward passes, one for each thread, which every adapted module shares."""
    components: list[AdapterComponent] = field(default_factory=list)
    containers: list[AdapterContainer] = field(default_factory=list)
    """The containers of all adapted modules, so that switching adapters walks no model."""
    routed: bool = False
    """Whether attentions go through the functions that add prefixes."""
    trained_before: dict[str, bool] = field(default_factory=dict)
    merged: dict[str, nn.Parameter] = field(default_factory=dict)
    """The original parameters before merging, by path."""
    folded: list[TunerLayer] = field(default_factory=list)
    """The tuner layers that were merged."""
    untied: bool = False
    """Whether merging had to untie the output head."""
    rounding: tuple[float, float] | None = None
    """The rounding error of merging on probe inputs: (largest difference, largest output); None if not known."""
    marked: bool = False
    """Whether a quantised model was marked as trainable (`luthier.core.adapters.swap.TRAINS`)."""
    unpacked: list[nn.Module] = field(default_factory=list)
    """Quantised layers that were told not to repack their weights."""
    met: set[tuple[str, str]] = field(default_factory=set)
    """Sites that a probing pass has reached since the last module was adapted."""

    @property
    def current(self) -> Pass:
        """Returns the state of this thread's forward pass; raises while another thread has the model for itself."""
        return self.passes.now
