"""What `luthier doctor` looks at: versions, devices, the cache, variables of the environment, extras."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from typing import Any

from packaging.requirements import Requirement

BRINGS = {
    "bm25": "selection and examples by BM25",
    "code": "HumanEval's problems",
    "dev": "what the tests need",
    "dimension": "other estimators of intrinsic dimension, to compare with",
    "docs": "the documentation site",
    "federated": "federated fine-tuning by Flower",
    "ray": "runs of a study on a Ray cluster",
    "gguf": "GGUF files, read and written",
    "grammar": "answers of the server in a given form",
    "gym": "tasks of reasoning-gym as data",
    "diffusion": "small diffusion models (diffusers)",
    "lm-eval": "benchmarks of lm-evaluation-harness",
    "monitor": "drift of a served model",
    "onnx": "models as ONNX graphs",
    "ot": "selection by optimal transport",
    "quant": "quantised bases (bitsandbytes, torchao)",
    "serve": "the server",
    "sign": "signed adapters",
    "text-metrics": "ROUGE, BLEU and chrF of written answers",
    "train-api": "compressed bodies of clients that train through the server",
    "postgres": "sessions and requests of the training API in a Postgres database",
    "tune": "searches over settings",
    "vision": "pictures",
}
VARIABLES = {
    "LUTHIER_CACHE": "the cache folder",
    "LUTHIER_PATH": "folders with methods and commands of your own",
    "LUTHIER_WORKERS": "processes that encode rows",
    "LUTHIER_DEVICE": "where models are computed, unless --device says so: cpu, cuda, cuda:1, mps",
    "LUTHIER_API_KEY": "the key that clients of the server send, and `luthier rewrite`",
    "LUTHIER_KEY_PASSWORD": "the password of an encrypted signing key",
    "LUTHIER_DEBUG": "tracebacks of bad input, and of gates that fail",
}
"""Every variable of the environment that Luthier reads."""
SHOWN = ("luthier", "torch", "transformers", "tokenizers", "safetensors", "datasets", "peft", "trl")


def looked_at() -> dict[str, Any]:
    """Returns all of it, as JSON."""
    wanted = [Requirement(text) for text in requires("luthier") or []]
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in SHOWN}},
        "platform": platform.platform(),
        "devices": devices(),
        "cache": cache(),
        "variables": {name: {"what": what, "set": name in os.environ} for name, what in VARIABLES.items()},
        "extras": extras(wanted),
        "problems": problems(wanted),
    }


def devices() -> list[dict[str, Any]]:
    """Returns the CPU and every accelerator, with its memory and the dtypes in which it computes fast."""
    import torch

    half = ["bfloat16"] * _fast_bfloat16()
    what = f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
    found = [_device("cpu", what, _memory(), ["float32", *half])]
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        half = ["float32", "float16"] + ["bfloat16"] * torch.cuda.is_bf16_supported(including_emulation=False)
        found.append(_device(f"cuda:{index}", about.name, about.total_memory, half))
    if torch.backends.mps.is_available():
        found.append(_device("mps", "Apple GPU (no float64)", None, ["float32", "float16"]))
    return found


def _device(name: str, what: str, memory: int | None, dtypes: list[str]) -> dict[str, Any]:
    return {"name": name, "what": what, "memory_bytes": memory, "fast_dtypes": dtypes}


def _fast_bfloat16() -> bool:
    import torch

    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) if torch.backends.mkldnn.is_available() else False


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return None


def cache() -> dict[str, Any]:
    """Returns the cache's folder and its size."""
    from luthier.core.files import cache_root

    root = cache_root()
    files = (path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    return {"folder": str(root), "bytes": sum(path.stat().st_size for path in files)}


def extras(wanted: list[Requirement]) -> dict[str, dict[str, Any]]:
    """Returns what each extra brings, whether all of it is installed, and its packages with the versions found."""
    found = {}
    for name in sorted(metadata("luthier").get_all("Provides-Extra") or []):
        own = [each for each in wanted if each.marker and each.marker.evaluate({"extra": name}) and _of_extra(each)]
        packages = {each.name: _version(each.name) for each in own if each.name != "luthier"}
        installed = all(have and each.specifier.contains(have, prereleases=True) for each in own
                        if each.name != "luthier" for have in [packages[each.name]])  # fmt: skip
        found[name] = {"brings": BRINGS.get(name, ""), "installed": installed, "packages": packages}
    return found


def _of_extra(wanted: Requirement) -> bool:
    assert wanted.marker is not None
    return not wanted.marker.evaluate({"extra": ""})


def problems(wanted: list[Requirement]) -> list[str]:
    """Returns a sentence for each installed package of another version than Luthier declares, and each missing one."""
    found = []
    needed = {each.name for each in wanted if each.marker is None}
    for each in wanted:
        optional = each.marker is not None and not each.marker.evaluate({"extra": ""})
        if optional and each.name in needed:
            continue  # newer for an extra alone, which is then not installed
        have = _version(each.name)
        if have is None and not optional:
            found.append(f"{each.name} is missing; Luthier needs {each.name}{each.specifier}.")
        elif have is not None and not each.specifier.contains(have, prereleases=True):
            found.append(f"{each.name} is {have}; Luthier wants {each.name}{each.specifier}.")
    return list(dict.fromkeys(found))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
