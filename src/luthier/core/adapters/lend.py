"""Lending an adapter: two copies of one base hold the very same tensors of it."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from luthier.core.adapters.attach import check_name, place, state_of
from luthier.core.adapters.tuner import AdapterComponent, TunerLayer
from luthier.core.contracts.site import Site


def lend(owner: nn.Module, name: str, model: nn.Module, called: str) -> None:
    """Attaches the adapter `name` of `owner` to `model` too, as `called`; both are copies of one base.

    The parameters are the same objects, so a gradient that one model gives is there in the other. `detach` takes the
    adapter from `model` again and leaves the owner's alone. Raises `LuthierError` for an adapter that is not there.
    """
    check_name(state_of(owner), name)
    held = [component for component in state_of(owner).components if component.name == name]
    lent = [replace(component, name=called, tuners={}, groups={}) for component in held]

    def start(module: nn.Module, site: Site, component: AdapterComponent) -> dict[str, Tensor]:
        whole = held[lent.index(component)]
        return {key: p.detach() for key, p in _params(whole.tuners[whole.group(site)]).items()}

    place(model, lent, start, check=False)
    own = {
        id(p): _params(whole.tuners[group])[key]
        for component, whole in zip(lent, held, strict=True)
        for group, tuner in component.tuners.items()
        for key, p in _params(tuner).items()
    }
    for container in state_of(model).containers:
        for tuner in container.named(called):
            for key, p in _params(tuner).items():
                tuner._parameters[key] = own[id(p)]


def _params(tuner: TunerLayer) -> dict[str, nn.Parameter]:
    return {key: p for key, p in tuner._parameters.items() if p is not None}
