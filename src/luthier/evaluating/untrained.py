"""Refusing models with new modules that no training has filled."""

from __future__ import annotations

from luthier.core.errors import LuthierError
from luthier.models.load import Loaded


def refuse_untrained(loaded: Loaded) -> None:
    """Raises where a module that the checkpoint lacks was filled by no adapter: it holds random numbers."""
    from luthier.core.adapters.attach import find_state
    from luthier.methods.forms.full import Full

    state = find_state(loaded.model)
    components = [] if state is None else state.components
    filled = {site.path for component in components if isinstance(component.form, Full) for site in component.sites}
    for module in loaded.new_modules:
        if not any(path.startswith(f"{module}.") for path in filled):
            raise LuthierError(
                f"{loaded.name!r} has no weights for {module}, which {loaded.task} needs, and no adapter has: it was "
                "never trained. Give an adapter that trained it (--adapter), or a model that was fitted for this task "
                "and these classes."
            )
