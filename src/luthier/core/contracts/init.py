"""The contract of an initialiser: how the factors of a form are initialised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from luthier.core.contracts.component import Component
from luthier.core.contracts.form import Form, Stats
from luthier.core.contracts.site import Site
from luthier.core.contracts.statistic import Statistic


@dataclass(frozen=True)
class Init(Component):
    """An initialisation for forms with low-rank factors, such as PiSSA for LoRA."""

    family: ClassVar[str] = "reparameterisation"
    identity: ClassVar[bool] = True
    """Whether the model's output is unchanged before training."""
    renamed: ClassVar = {"relative": "subtract_start"}

    subtract_start: ClassVar[bool] = False
    """Whether the factors have an effect at the start, which is then subtracted: the base that remains is
    W_res = W - s B₀ A₀ of the paper, while W itself stays. The start is stored beside what is trained."""

    def statistics(self, form: Form) -> tuple[Statistic, ...]:
        """Returns the statistics that the calibration pass has to measure at the sites of `form`."""
        return ()

    def factors(self, form: Form, site: Site, stats: Stats) -> dict[str, Tensor]:
        """Returns the parameters that differ from the form's own initialisation, by name, in its shapes.

        `form` has the rank of this site. Raises `LuthierError` for a form or a site that it cannot start.
        """
        raise NotImplementedError(f"{type(self).__name__} must define factors")
