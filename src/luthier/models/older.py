"""What transformers 5 has moved in its files, also where readers of before look for it.

transformers 5 keeps the base of the rotary angles in `rope_parameters`. Readers that know `rope_theta` alone
(transformers 4, mlx-lm, converters) find none there and take 10000 in silence, so that a model of another base reads
every position wrongly.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luthier.core.records import read_json, write_json

NEOX = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
OWN = {"gpt_neox": NEOX, "gpt_neox_japanese": NEOX}
"""Names of the flat settings in the configurations of single model types; elsewhere they keep theirs."""
NESTED = {
    "gemma3_text": ("rope_theta", "rope_local_base_freq"),
    "gemma3n_text": ("rope_theta", "rope_local_base_freq"),
    "modernbert": ("global_rope_theta", "local_rope_theta"),
    "modernbert-decoder": ("global_rope_theta", "local_rope_theta"),
}
"""Of the types whose layers turn at two rates, the names of the far one and of the near one."""


def for_older_readers(folder: Path) -> None:
    """Adds to `config.json` and `tokenizer_config.json` of a saved model the names that older readers look for."""
    for name, change in (("config.json", older_config), ("tokenizer_config.json", older_tokenizer)):
        if (path := folder / name).is_file():
            write_json(path, change(read_json(path)))


def older_config(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the configuration with `rope_theta`, `rope_scaling` and `torch_dtype`, those of its parts included."""
    made = {key: older_config(value) if isinstance(value, dict) else value for key, value in config.items()}
    if "dtype" in config:
        made.setdefault("torch_dtype", config["dtype"])
    rope = config.get("rope_parameters")
    return {**_rotary(rope, str(config.get("model_type"))), **made} if isinstance(rope, dict) else made


def _rotary(rope: dict[str, Any], kind: str) -> dict[str, Any]:
    if "rope_theta" not in rope:
        rates = [(rope.get(layer) or {}).get("rope_theta") for layer in ("full_attention", "sliding_attention")]
        names = NESTED.get(kind, ())
        found = {name: rate for name, rate in zip(names, rates, strict=False) if rate is not None}
        return {**found, **_scaling(rope.get("full_attention") or {})} if names else {}
    own = OWN.get(kind, {})
    flat = {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
    made: dict[str, Any] = {own.get(key, key): value for key, value in flat.items()}
    return {**made, **_scaling(rope)}


def _scaling(rope: dict[str, Any]) -> dict[str, Any]:
    """`rope_scaling`, where positions are scaled; of layers of two rates, it is that of the far one."""
    if rope.get("rope_type", "default") == "default":
        return {}
    left_out = ("rope_theta", "partial_rotary_factor")
    return {"rope_scaling": {key: value for key, value in rope.items() if key not in left_out}}


def older_tokenizer(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of a tokenizer with the class and the list of special tokens as transformers 4 calls them."""
    made = dict(config)
    if made.get("tokenizer_class") == "TokenizersBackend":
        made["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(made.get("extra_special_tokens"), list):
        made["additional_special_tokens"] = made.pop("extra_special_tokens")
    return made
