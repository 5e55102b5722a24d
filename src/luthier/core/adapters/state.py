"""What is attached to a model."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from luthier.core.adapters.container import AdapterContainer
from luthier.core.adapters.pass_ import Pass
from luthier.core.adapters.tuner import AdapterComponent, TunerLayer


@dataclass(eq=False)
class State:
    """The adapters of one model: their parts, where they hang, and what attaching and merging changed."""

    current: Pass = field(default_factory=Pass)
    """What a pass knows; every adapted module holds it too."""
    components: list[AdapterComponent] = field(default_factory=list)
    containers: list[AdapterContainer] = field(default_factory=list)
    """The containers of all adapted modules, so that switching adapters walks no model."""
    routed: bool = False
    """Attentions go through the functions that know prefixes."""
    trained_before: dict[str, bool] = field(default_factory=dict)
    merged: dict[str, nn.Parameter] = field(default_factory=dict)
    """Parameters as they were before merging, by path."""
    folded: list[TunerLayer] = field(default_factory=list)
    """The slots that were merged."""
    untied: bool = False
    """Merging had to untie the output head."""
    rounding: tuple[float, float] | None = None
    """What merging changed on probe inputs: (largest difference of an output, largest output); None if not known."""
    marked: bool = False
    """A quantised model was marked as one with something to train (`luthier.core.adapters.swap.TRAINS`)."""
    unpacked: list[nn.Module] = field(default_factory=list)
    """Quantised layers that were told not to repack themselves."""
    met: set[tuple[str, str]] = field(default_factory=set)
    """Sites that a probing pass has seen since the last module was adapted."""
