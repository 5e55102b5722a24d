"""Sites: the modules and parameters of a model that a form can be attached to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, overload

from luthier.core.errors import LuthierError

Kind = Literal["affine", "stream", "input", "embedding", "cache", "param"]


@dataclass(frozen=True)
class Site:
    """One place in a model that a form can be attached to: a layer, an activation or a parameter.

    kind      what a form meets there                               path names
    affine    a linear map: x, W, y                                 the layer
    stream    an activation: the output of a module, [..., d_out]   the module
    input     an activation: the input of a module, [..., d_in]     the module
    embedding a table of `d_in` rows, looked up                     the table
    cache     keys and values: d_out key heads of width d_in        the attention module
    param     a tensor itself, of any shape                         the parameter
    """

    path: str
    kind: Kind
    d_in: int
    d_out: int
    layer: int | None = None
    """The index of its block in its own stack; None outside the blocks."""
    bias: bool = False
    experts: int | None = None
    """The length of the leading axis of a 3-D parameter (usually experts), which holds one matrix for each."""
    maps: int = 1
    """The number of [d_out, d_in] matrices in the tensor, the product of its leading axes."""
    transposed: bool = False
    """Whether the stored tensor is [d_in, d_out], as in GPT-2's Conv1D and some experts."""
    unfolded: bool = False
    """Whether the parameter is a convolution's, met as the matrix [out, in · kernel] that maps its unfolded input."""
    inside: tuple[tuple[str, int, int], ...] = ()
    """The linear layers that a module holds directly, (name, d_in, d_out) each, where an activation is meant."""

    @property
    def type(self) -> str:
        """The path without indices, which is equal for the same layer of every block."""
        return ".".join(part for part in self.path.split(".") if not part.isdigit())

    @property
    def entries(self) -> int:
        """The number of entries of the whole tensor."""
        return self.maps * self.d_in * self.d_out

    @property
    def module(self) -> str:
        """The path of the module to adapt; for a parameter, of the module that owns it."""
        return self.path.rpartition(".")[0] if self.kind == "param" else self.path

    @property
    def key(self) -> tuple[str, str]:
        """The key that identifies a site."""
        return self.path, self.kind

    def __str__(self) -> str:
        wrapped = {"stream": "output({})", "input": "input({})", "param": "params({})"}
        wrapped["cache"] = "attention({})"
        return wrapped.get(self.kind, "{}").format(self.path)


class Sites(Sequence[Site]):
    """An ordered set of sites: a value that prints and combines with `&`, `|` and `-`."""

    def __init__(self, sites: Iterable[Site]) -> None:
        self._sites = {site.key: site for site in sites}

    @overload
    def __getitem__(self, index: int) -> Site: ...
    @overload
    def __getitem__(self, index: slice) -> list[Site]: ...
    def __getitem__(self, index: int | slice) -> Site | list[Site]:
        return list(self._sites.values())[index]

    def __len__(self) -> int:
        return len(self._sites)

    def __iter__(self) -> Iterator[Site]:
        return iter(self._sites.values())

    def __contains__(self, site: object) -> bool:
        return isinstance(site, Site) and site.key in self._sites

    def __and__(self, other: Iterable[Site]) -> Sites:
        keys = {site.key for site in other}
        return Sites(site for site in self if site.key in keys)

    def __or__(self, other: Iterable[Site]) -> Sites:
        return Sites([*self, *other])

    def __sub__(self, other: Iterable[Site]) -> Sites:
        keys = {site.key for site in other}
        return Sites(site for site in self if site.key not in keys)

    def __repr__(self) -> str:
        groups: dict[tuple, int] = {}
        for site in self:
            kind = (site.type, site.kind, site.d_in, site.d_out)
            groups[kind] = groups.get(kind, 0) + 1
        rows = [f"  {n:4d} x {t} ({k}, {a} -> {b})" for (t, k, a, b), n in groups.items()]
        return "\n".join([f"{len(self)} sites", *rows])


def check_rank(who: str, site: Site, rank: int) -> None:
    """Raises where a layer has fewer than `rank` directions."""
    most = min(site.d_in, site.d_out)
    if rank > most:
        raise LuthierError(
            f"{who} needs {rank} directions of {site}, which is {site.d_out} x {site.d_in} and has {most}; "
            "lower the rank, or leave the layer out (where)."
        )
