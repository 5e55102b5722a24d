"""What peft's files hold, by the method that they are written for."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.contracts.positions import Invocation
from luthier.core.errors import LuthierError
from luthier.core.sites.structure import features
from luthier.interop.formats._layers import Factoring, Layer, trained_whole
from luthier.interop.formats._peft_engines import ENGINES, Held, as_pairs, as_tensors, fitted
from luthier.interop.formats._peft_keys import PREFIX
from luthier.interop.formats._peft_prefix import prefixes
from luthier.interop.formats._peft_tasks import task_type
from luthier.interop.formats._peft_write_parameters import (
    EXPERTS_SINCE,
    by_matrix,
    on_parameters,
    parameters,
    target_names,
)


@dataclass
class Files:
    """The two files: tensors under the base's own names, and the configuration."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)


def common_config(model: nn.Module, saved: Iterable[str]) -> dict[str, Any]:
    """Returns what every method's configuration says; the modules `saved` travel whole."""
    return {
        "task_type": task_type(model, saved),
        "base_model_name_or_path": getattr(model, "name_or_path", ""),
        "inference_mode": True,
    }


def contents(model: nn.Module, layers: Sequence[Layer], factoring: Factoring, engine: str) -> Files:
    """Returns what the files of an adapter hold, under peft's names, as an engine takes them.

    `factoring` with a rank makes all of it LORA.
    """
    files = _for_engine(_methods(model, layers, factoring), engine, model)
    if files.config["peft_type"] != "PREFIX_TUNING":  # whose tensor is of no layer
        files.tensors = {f"{PREFIX}{key}": tensor for key, tensor in files.tensors.items()}
    return files


def held(model: nn.Module, tensors: Iterable[str], config: Mapping[str, Any]) -> Held:
    """Returns what engines ask of the files of an adapter."""
    plain = (name.removeprefix(PREFIX) for name in tensors)
    ends = (re.fullmatch(r"(.+)\.lora_(?:B\.weight|embedding_B)", name) for name in plain)
    return Held(config, frozenset(match[1] for match in ends if match), model)


def _for_engine(files: Files, engine: str, model: nn.Module) -> Files:
    if engine not in ENGINES:
        return files
    pairs = fitted(ENGINES[engine], held(model, files.tensors, files.config), as_pairs(files.tensors))
    if ENGINES[engine].lacks is None:  # it takes what peft takes, experts and ranks of each layer included
        return files
    tables = [path for path in pairs if f"{path}.lora_embedding_B" in files.tensors]
    return Files(as_tensors(pairs, tables), lora_config(model, {path: len(a) for path, (_, a) in pairs.items()}))


def _methods(model: nn.Module, layers: Sequence[Layer], factoring: Factoring) -> Files:
    before = [layer for layer in layers if layer.kinds == {"cache"}]
    if before and len(before) == len(layers):
        return Files(*prefixes(model, [tuner for layer in before for tuner in layer.tuners]))
    whole = [layer for layer in layers if trained_whole(layer) and not by_matrix(layer)]
    rest = [layer for layer in layers if layer not in whole]
    if not rest:
        return _norms(model, whole)
    method = native(rest) if factoring.rank is None else None
    files = method.write(model, rest) if method else low_rank(model, rest, factoring)
    if whole:
        saved = saved_modules(model, whole)
        files.tensors |= saved.tensors
        files.config |= saved.config
    return files


def low_rank(model: nn.Module, layers: list[Layer], factoring: Factoring) -> Files:
    """LORA, the scale inside B: alpha / r is 1 at every layer, also for readers that know one alpha alone."""
    files = Files()
    files.tensors, ranks, owned = parameters(model, [each for each in layers if on_parameters(each)], factoring)
    for layer in layers:
        if on_parameters(layer):
            continue
        b, a = factoring(layer)
        names = (
            ("lora_A.weight", "lora_B.weight") if features(layer.module) else ("lora_embedding_A", "lora_embedding_B")
        )
        files.tensors |= {f"{layer.path}.{n}": t for n, t in zip(names, (a, b), strict=True)}
        ranks[layer.path] = len(a)
    files.config = lora_config(model, ranks, owned)
    return files


def _dora(model: nn.Module, layers: list[Layer]) -> Files:
    files, ranks = Files(), {}
    for layer in layers:
        tuner = layer.tuners[0]
        p = tuner.params(torch.float32)
        files.tensors |= {
            f"{layer.path}.lora_A.weight": p["A"],
            f"{layer.path}.lora_B.weight": tuner.eval_form.scale * p["B"],
            # peft leaves .weight out and reads either; transformers 5.23 reads this one alone
            f"{layer.path}.lora_magnitude_vector.weight": p["m"],
        }
        ranks[layer.path] = len(p["A"])
    files.config = lora_config(model, ranks) | {"use_dora": True}
    return files


def _ia3(model: nn.Module, layers: list[Layer]) -> Files:
    files, entering = Files(), []
    for layer in layers:
        vector = layer.tuners[0].params(torch.float32)["l"]
        if layer.kinds == {"input"}:
            entering.append(layer.path)
        files.tensors[f"{layer.path}.ia3_l"] = vector[None] if layer.kinds == {"input"} else vector[:, None]
    paths = [layer.path for layer in layers]
    files.config = {
        "peft_type": "IA3",
        "target_modules": targets(model, paths),
        "feedforward_modules": targets(model, entering) if entering else [],
        "fan_in_fan_out": _transposed(model, paths),
    }
    return files


def _poly(model: nn.Module, layers: list[Layer]) -> Files:
    """POLY, the tasks in their order: peft divides by the rank, and what its sigmoids sum to hides an eps of 1e-12."""
    files = Files()
    for layer in layers:
        tuner = layer.tuners[0]
        p, form = tuner.params(torch.float32), tuner.eval_form
        files.tensors |= {
            f"{layer.path}.poly_lora_A": p["A"].transpose(0, 1),
            f"{layer.path}.poly_lora_B": form.scale * p["B"].shape[1] * p["B"].permute(2, 0, 1, 3),
            f"{layer.path}.poly_router.module_logits": p["Z"].flatten(1),
        }
    tasks, heads, skills = layers[0].tuners[0].own()["Z"].shape
    files.config = {
        "peft_type": "POLY",
        "r": layers[0].tuners[0].own()["B"].shape[1],
        "n_tasks": tasks,
        "n_skills": skills,
        "n_splits": heads,
        "target_modules": targets(model, [layer.path for layer in layers]),
    }
    return files


def _fits_poly(layers: list[Layer]) -> bool:
    """Whether the same tasks choose as many skills of one rank in plain linear layers; of one task it is LoRA."""
    own = [layer.tuners[0] for layer in layers]
    alike = {(each.own()["B"].shape[1], each.own()["Z"].shape, tuple(each.form.known())) for each in own}  # type: ignore[attr-defined]
    linear = all(isinstance(layer.module, nn.Linear) for layer in layers)
    return linear and len(alike) == 1 and len(next(iter(alike))[2]) > 1


@dataclass(frozen=True)
class Native:
    """A form that peft has as a method of its own."""

    write: Callable[[nn.Module, list[Layer]], Files]
    kinds: tuple[str, ...]
    """Kinds of site, on linear layers, where its equation is ours."""
    fits: Callable[[list[Layer]], bool] = lambda layers: True
    """Whether what acts on the layers can be said in it."""


def _activated(model: nn.Module, layers: list[Layer]) -> Files:
    """aLoRA: LoRA from the last invocation on, its scale inside B."""
    files, ranks = Files(), {}
    for layer in layers:
        tuner = layer.tuners[0]
        p = tuner.params(torch.float32)
        b, a = tuner.eval_form.scale * p["B"], p["A"]
        files.tensors |= {f"{layer.path}.lora_A.weight": a, f"{layer.path}.lora_B.weight": b}
        ranks[layer.path] = len(a)
    at = layers[0].tuners[0].positions
    assert isinstance(at, Invocation)
    files.config = lora_config(model, ranks) | {"alora_invocation_tokens": list(at.tokens)}
    return files


NATIVE: Mapping[str, Native] = {
    "dora": Native(_dora, ("affine",)),
    "ia3": Native(_ia3, ("affine", "input")),
    "mhr": Native(_poly, ("affine",), _fits_poly),
}
"""By the name of our form."""
ACTIVATED = Native(_activated, ("affine",))


def native(layers: list[Layer]) -> Native | None:
    """The method of peft that is all of what acts on `layers`, if there is one."""
    tuners = [tuner for layer in layers for tuner in layer.tuners]
    names, places = {tuner.form.name() for tuner in tuners}, {tuner.form.positions for tuner in tuners}
    invoked = names == {"lora"} and isinstance(tuners[0].positions, Invocation)
    found = ACTIVATED if invoked else NATIVE.get(names.pop()) if len(names) == 1 else None
    if (
        found is None
        or len(places) > 1
        or any(len(layer.tuners) != 1 or not features(layer.module) for layer in layers)
    ):
        return None
    alike = all(s.site.kind in found.kinds and not s.component.subtract_start for s in tuners)
    return found if alike and (invoked or places == {"all"}) and found.fits(layers) else None


def lora_config(
    model: nn.Module, ranks: Mapping[str, int], parameters: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Returns settings for these ranks of layers, and of parameters by their own paths."""
    owned = parameters or {}
    every = {**ranks, **owned}
    common = Counter(every.values()).most_common(1)[0][0]
    other = {f"^{re.escape(path)}": r for path, r in every.items() if r != common}  # peft reads them as expressions
    return {
        "peft_type": "LORA",
        "r": common,
        "lora_alpha": common,
        "rank_pattern": other,
        "alpha_pattern": other,
        "target_modules": targets(model, list(ranks)),
        "fan_in_fan_out": _transposed(model, ranks),
        "lora_dropout": 0.0,
        "bias": "none",
        **({"target_parameters": target_names(model, list(owned)), "peft_version": EXPERTS_SINCE} if owned else {}),
    }


def targets(model: nn.Module, paths: list[str]) -> list[str] | str:
    """How peft finds exactly `paths`: a list is matched by the ends of names, so an expression where that is more."""
    wanted = set(paths)
    more = [name for name, _ in model.named_modules() if name not in wanted and _ends_with(name, wanted)]
    return sorted(paths) if not more else "|".join(re.escape(path) for path in sorted(paths))


def _ends_with(name: str, wanted: set[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[start:]) in wanted for start in range(1, len(parts)))


def _transposed(model: nn.Module, paths: Iterable[str]) -> bool:
    return any(type(model.get_submodule(path)).__name__ == "Conv1D" for path in paths)


def _norms(model: nn.Module, layers: list[Layer]) -> Files:
    """LN_TUNING, which keeps leaf modules whole: what an adapter is that trains parameters and nothing else."""
    files, paths = Files(), [layer.path for layer in layers]
    for layer in layers:
        _refuse_unsaveable(model, layer, paths, by_end=False)
        if not _served_whole(model, layer):
            raise LuthierError(
                "this adapter trains parameters themselves and nothing else, and peft's format wants a method beside "
                "them; export it merged instead (--to merged)."
            )
        files.tensors |= {f"{layer.path}.ln_tuning_layers.{key}": tensor for key, tensor in _state(layer).items()}
    files.config = {"peft_type": "LN_TUNING", "target_modules": targets(model, paths)}
    return files


def _served_whole(model: nn.Module, layer: Layer) -> bool:
    """Whether peft's LN_TUNING runs the copy of a module: where it is called with its input as it stands there. A
    parent that reads its tensors (Mamba's of `conv1d` and `dt_proj`) gets those of the base."""
    kind = getattr(type(layer.module), "_luthier_base", type(layer.module))
    known = kind in (nn.Linear, nn.Embedding) or kind.__name__ == "Conv1D" or kind.__name__.endswith("Norm")
    if not known or any(name != "adapters" for name, _ in layer.module.named_children()):
        return False
    owner, _, name = layer.path.rpartition(".")
    parent = model.get_submodule(owner)
    reads = re.compile(rf"\bself\.{re.escape(name)}\.(?:weight|bias)\b(?!\.(?:dtype|device|shape)\b)")
    return not any(reads.search(_source(each)) for each in type(parent).__mro__ if each not in (nn.Module, object))


def _source(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        return ""


def saved_modules(model: nn.Module, layers: list[Layer]) -> Files:
    """Modules whose parameters were trained themselves (a new head, norms, biases), whole, as `modules_to_save`."""
    files, paths = Files(), [layer.path for layer in layers]
    for layer in layers:
        _refuse_unsaveable(model, layer, paths, by_end=True)
        files.tensors |= {f"{layer.path}.{key}": tensor for key, tensor in _state(layer).items()}
    files.config = {"modules_to_save": sorted(paths)}
    return files


def _state(layer: Layer) -> dict[str, Tensor]:
    """All tensors of a module, as its adapter has trained them, in float32 at least."""
    held = {k: t for k, t in layer.module.state_dict().items() if not k.startswith("adapters.")}
    state = {
        k: t.to(torch.promote_types(t.dtype, torch.float32)) if t.is_floating_point() else t for k, t in held.items()
    }
    for tuner in layer.tuners:
        key = tuner.site.path.removeprefix(f"{layer.path}.")
        state[key] = tuner.weight(state[key])
    return state


def _refuse_unsaveable(model: nn.Module, layer: Layer, paths: list[str], *, by_end: bool) -> None:
    """Raises for a module that peft cannot keep whole; `by_end` says that it is found by the end of its name alone."""
    why = None
    owner, form = layer.path, layer.tuners[0].form.name()
    if layer.kinds != {"param"}:
        why = "a form acts on it as well, and peft takes a module either adapted or whole"
    elif any(tuner.form.maps(tuner.site) is not None for tuner in layer.tuners):
        why = "its experts would have to travel whole"
    elif not owner or any(other.startswith(f"{owner}.") for other in paths):
        why = "modules inside it are trained as well"
    elif by_end and [name for name, _ in model.named_modules() if name != owner and name.endswith(owner)]:
        why = "peft matches it by the end of its name, which others share"
    if why:
        raise LuthierError(
            f"{owner or 'the model'}: {form} acts on its parameters, and peft's format has no place for them: {why}. "
            "Export it merged instead (--to merged)."
        )
