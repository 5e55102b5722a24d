"""What peft keeps for parameters themselves (`target_parameters`)."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from luthier.core.errors import LuthierError
from luthier.core.records import read_json
from luthier.core.sites.renaming import renamed
from luthier.core.sites.structure import base_parameters
from luthier.interop.formats._factors import Pair

Groups = dict[str, dict[str, Tensor]]
INNER = ".base_layer"


def targets_of(folder: Path, config: Mapping[str, Any], model: nn.Module) -> dict[str, list[str]]:
    """`{module: its parameters that are adapted}` in the model's order, the innermost of peft's wrappers first."""
    wanted = config.get("target_parameters") or []
    if not isinstance(wanted, list) or not all(isinstance(each, str) for each in wanted):
        raise LuthierError(f"{folder}: target_parameters is {wanted!r}; expected a list of names.")
    found: dict[str, list[str]] = {}
    for path, _ in base_parameters(model):
        if path in wanted or any(path.endswith(f".{each}") for each in wanted):
            module, _, name = path.rpartition(".")
            found.setdefault(module, []).append(name)
    return found


def parameters_apart(
    folder: Path,
    config: Mapping[str, Any],
    groups: Groups,
    scale: Callable[[str, int], float],
    model: nn.Module,
) -> dict[str, Pair]:
    """Returns `{parameter or layer: its change}`; takes what it reads out of `groups`, {path in the file: factors}.

    Several of one module are nested, the first in the model innermost. Of experts, A [E r, d_in] holds those of each
    behind one another, and the columns of B [d_out, r E] go round: e, e + E, … are those of expert e. peft before
    0.19.1 took [experts, out, in] for [experts, in, out], so its A is [E r, d_out] and its B [d_in, r E].
    """
    older = _before_0_19_1(folder, config)
    found: dict[str, Pair] = {}
    plain = {path: path.replace(INNER, "") for path in groups}
    own, _ = renamed(set(plain.values()), model)
    for module, names in targets_of(folder, config, model).items():
        mine = [path for path in groups if own.get(plain[path]) == module]
        depths = {path.count(INNER): path for path in mine}
        if sorted(depths) != list(range(len(names))):
            raise LuthierError(
                f"{folder} holds {len(mine)} changes of the parameters of {module}, and its configuration names "
                f"{len(names)} ({', '.join(names)}); it is incomplete, or was fitted on another base."
            )
        for turn, name in enumerate(names):
            path = f"{module}.{name}"
            factors = groups.pop(depths[len(names) - 1 - turn])
            whole = name != "weight" or dict(base_parameters(model))[path].dim() == 3
            found[path if whole else module] = _pair(folder, path, factors, scale, model, older=older)
    return found


def _pair(
    folder: Path,
    path: str,
    found: Mapping[str, Tensor],
    scale: Callable[[str, int], float],
    model: nn.Module,
    *,
    older: bool,
) -> Pair:
    owner = model.get_submodule(path.rpartition(".")[0])
    shape = tuple(dict(base_parameters(model))[path].shape)
    if set(found) != {"A", "B"} or any(tensor.dim() != 2 for tensor in found.values()):
        raise LuthierError(f"{folder}: the change of {path} has {', '.join(sorted(found))}; expected A and B.")
    flipped = len(shape) == 3 and bool(vars(owner).get("is_transposed"))  # [experts, in, out], as GPT-OSS has them
    a, b = found["A"], found["B"]
    experts = shape[0] if len(shape) == 3 else 1
    rank, more = divmod(len(a), experts)
    have, now = (len(b), a.shape[1]), shape[-2:][:: -1 if flipped else 1]
    turned = len(shape) == 3 and not flipped and have == now[::-1] and (older or have != now)
    if more or not rank or b.shape[1] != rank * experts or not (turned or have == now):
        raise LuthierError(
            f"{folder}: the change of {path} is {tuple(b.shape)} times {tuple(a.shape)}; this base has {shape} there."
        )
    if len(shape) == 2:
        return Pair(b, a, scale(path, rank))
    stacked_b, stacked_a = b.view(len(b), rank, experts).permute(2, 0, 1), a.view(experts, rank, -1)
    if not turned:
        return Pair(stacked_b, stacked_a, scale(path, rank))
    warnings.warn(
        f"{folder} was written by peft before 0.19.1, which took the experts' weights for transposed. It is read as it "
        f"was trained; a newer peft {'loads it transposed' if have == now else 'refuses it'}.",
        stacklevel=2,
    )
    return Pair(stacked_a.mT, stacked_b.mT, scale(path, rank))


def _before_0_19_1(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether the peft that wrote a folder is older than 0.19.1, for what shapes do not tell: [experts, n, n].

    peft names itself since 0.18, and adapts parameters since 0.17. NeMo AutoModel says the layout in a file beside.
    """
    beside = folder / "automodel_peft_config.json"
    told = read_json(beside) if beside.is_file() else {}
    if isinstance(told, dict) and isinstance(layout := told.get("paramwrapper_layout"), str):
        return layout == "peft-0.18"
    numbers = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", str(config.get("peft_version")))
    return not numbers or tuple(int(each or 0) for each in numbers.groups()) < (0, 19, 1)
