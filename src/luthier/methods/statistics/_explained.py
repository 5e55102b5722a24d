"""What EVA's ranks and starting factors ask of a form and of a site: that it reads an input which PCA has seen."""

from __future__ import annotations

from luthier.core.contracts.component import find, names
from luthier.core.contracts.form import Form, Stats
from luthier.core.contracts.site import Site
from luthier.core.errors import LuthierError


def check_form(form: Form) -> None:
    """Raises for a form without a factor that reads the input, and for one whose sites share theirs."""
    if not form.down_projection:
        serving = [name for name in names("forms") if find("forms", name, Form).down_projection]
        raise LuthierError(
            f"eva chooses the factor that reads a layer's input, and {form.name()} has none; "
            f"these forms have one: {', '.join(serving)}."
        )
    if form.share is not None:
        raise LuthierError(
            f"eva gives each site directions of its own, so share={form.share!r} cannot hold; leave share out."
        )


def explained(site: Site, stats: Stats, wanted: int) -> Stats:
    """Returns the statistics of a site; raises unless `wanted` components of its own input were measured."""
    if site.kind != "affine":
        raise LuthierError(
            f"eva serves linear layers; the input of {site} (kind {site.kind}) is not what its module is called with. "
            "Leave it out (where)."
        )
    if "pca" not in stats:
        raise LuthierError(f"eva needs the principal components of {site}; measure them and pass stats=….")
    if len(stats["pca"]) < wanted:
        raise LuthierError(
            f"eva needs {wanted} principal components of {site} (its input is {site.d_in} wide), and "
            f"{len(stats['pca'])} were measured; measure as many, or lower the rank."
        )
    return stats
