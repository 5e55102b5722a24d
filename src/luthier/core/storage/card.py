"""The card of an adapter: what the model hub reads of it, and how it is used."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from luthier.core.contracts.component import find

REPOSITORY = "USER/NAME"
"""Stands in a card for the repository that it will lie in."""
PIPELINES = {
    "causal-lm": "text-generation",
    "seq2seq": "text2text-generation",
    "classification": "text-classification",
    "multi-label": "text-classification",
    "token-classification": "token-classification",
    "question-answering": "question-answering",
    "embedding": "feature-extraction",
    "image-classification": "image-classification",
    "audio-classification": "audio-classification",
    "speech-to-text": "automatic-speech-recognition",
}
"""What the hub calls a task."""
LICENCES = re.compile(
    r"apache-2\.0|mit|(bigscience-|creativeml-|bigcode-)?openrail(-m|\+\+)?|bigscience-bloom-rail-1\.0|afl-3\.0"
    r"|artistic-2\.0|bsl-1\.0|bsd(-[23]-clause(-clear)?)?|cc0-1\.0|cc-by(-(sa|nc|nd|nc-sa|nc-nd))?-[1-4]\.\d|cc|c-uda"
    r"|cdla-(sharing|permissive)-[12]\.0|ecl-2\.0|epl-[12]\.0|e?upl-1\.[012]|[al]?gpl(-[23]\.[01])?|gfdl|isc|mpl-2\.0"
    r"|ms-pl|ncsa|osl-3\.0|odbl|odc-by|ofl-1\.1|postgresql|unlicense|wtfpl|zlib|lppl-1\.3c|gemma|llama2|llama3(\.[123])?"
    r"|llama4|deepfloyd-if-license|etalab-2\.0|h-research|intel-research|lgpl-lr|open-mdw|apple-(ascl|amlr)|pddl|unknown"
)
"""Identifiers that the hub knows (huggingface.co/docs/hub/repositories-licenses); others go by name."""


def front(
    base: str,
    forms: Sequence[str],
    *,
    licence: str | None = None,
    task: str | None = None,
    data: str | None = None,
    eval_loss: float | None = None,
) -> str:
    """Returns the YAML at the head of a card, as the hub expects it, between its `---`.

    The base is named where its name is one of the hub's; a path of this machine would be refused there.
    """
    from huggingface_hub import EvalResult, ModelCardData

    known: dict[str, Any] = {"library_name": "luthier", "tags": ["luthier", "adapter", *dict.fromkeys(forms)]}
    if is_hub_id(base):
        known |= {"base_model": base, "base_model_relation": "adapter"}
    pipeline = PIPELINES.get(task or "")
    if pipeline:
        known["pipeline_tag"] = pipeline
    if eval_loss is not None:
        shared: dict[str, Any] = {
            "task_type": pipeline or "other",
            "dataset_type": "local",
            "dataset_name": data or "held-out rows",
        }
        result = EvalResult(
            **shared, metric_type="loss", metric_value=round(eval_loss, 6), metric_name="evaluation loss"
        )
        known |= {"metrics": ["loss"], "model_name": " + ".join(dict.fromkeys(forms)), "eval_results": [result]}
    return f"---\n{ModelCardData(**licence_entries(licence), **known).to_yaml()}\n---"


def licence_entries(licence: str | None) -> dict[str, str]:
    """Returns `license`, or `license: other` with its name where the hub has no identifier for it."""
    if licence is None:
        return {}
    if LICENCES.fullmatch(licence.lower()):
        return {"license": licence.lower()}
    slug = re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-")
    return {"license": "other", "license_name": slug or "other"}


def is_hub_id(name: str) -> bool:
    """Whether a name is an owner's and a model's, and no folder here."""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name, re.ASCII)) and not os.path.exists(
        os.path.expanduser(name)
    )


def usage(base: str, task: str | None = None, labels: Sequence[str] | None = None) -> str:
    """How the adapter is loaded, from its folder and from the hub."""
    told = f", task={json.dumps(task)}" if task else ""
    told += f", labels={json.dumps(list(labels))}" if labels else ""
    return "\n".join(
        [
            "```python",
            "import luthier as lt",
            "from huggingface_hub import snapshot_download",
            "",
            f"loaded = lt.model({json.dumps(base)}{told})",
            'lt.load(loaded.model, "adapter")  # the folder of this file; from the hub:',
            f'# lt.load(loaded.model, snapshot_download("{REPOSITORY}"))',
            "```",
        ]
    )


def card_of(spec: Mapping[str, Any]) -> str:
    """Markdown of what a spec says: equation, base, where, settings, what was measured, how it is used."""
    base, measured, parts = spec["base"], spec["measured"], spec["parts"]
    name, forms = base["name"] or base["model"], [part["form"] for part in parts]
    licence = spec["license"] or base["license"]
    told = {key: value for key, value in measured.items() if isinstance(value, str | int | float)}
    loss = measured.get("eval_loss")
    head = front(
        base["name"],
        forms,
        licence=licence,
        task=measured.get("task"),
        eval_loss=float(loss) if isinstance(loss, int | float) else None,
    )
    rows = {"base": f"`{name}` ({base['model']})", "licence": licence or "not known: ask the makers of the base"}
    for part in parts:
        settings = ", ".join(f"{key} {value}" for key, value in part["settings"].items() if value is not None)
        rows[part["form"]] = f"`{part['where']}`, {len(part['sites'])} sites; {settings}"
    rows |= {key: str(value) for key, value in told.items()}
    rows["made with"] = ", ".join(f"{key} {value}" for key, value in spec["versions"].items())
    table = "\n".join(f"| {key} | {cell(value)} |" for key, value in rows.items())
    equations = "\n\n".join(f"**{find('forms', form).equation()}**" for form in dict.fromkeys(forms))
    task, labels = measured.get("task"), measured.get("labels")
    use = usage(name, task if isinstance(task, str) else None, labels if isinstance(labels, list) else None)
    return f"{head}\n# {name} with {', '.join(forms)}\n\n{equations}\n\n| | |\n|---|---|\n{table}\n\n## Use\n\n{use}\n"


def merged_card(spec: Mapping[str, Any], *, base: str, dtype: str, change: float, largest: float) -> str:
    """Returns the card of a model into which the adapter of a spec was merged, with what that changed."""
    from huggingface_hub import ModelCardData

    forms = list(dict.fromkeys(part["form"] for part in spec["parts"]))
    licence = spec["license"] or spec["base"]["license"]
    known: dict[str, Any] = {"library_name": "transformers", "tags": ["luthier", "merged", *forms]}
    known |= {"base_model": base, "base_model_relation": "finetune"} if is_hub_id(base) else {}
    head = f"---\n{ModelCardData(**licence_entries(licence), **known).to_yaml()}\n---"
    rows = {
        "base": f"`{base}` ({spec['base']['model']})",
        "licence": licence or "not known: ask the makers of the base",
        "adapter": f"{spec['name']} ({', '.join(forms)}), SHA-256 `{spec['sha256'][:16]}`",
        "dtype": dtype,
        "largest change of an output by merging, on a small input": f"{change:.2g} (of {largest:.3g})",
    }
    table = "\n".join(f"| {key} | {cell(value)} |" for key, value in rows.items())
    return f"{head}\n# {base} with {', '.join(forms)}, merged\n\n| | |\n|---|---|\n{table}\n"


def cell(value: str) -> str:
    """Returns a text within one cell of a table."""
    return value.replace("|", "\\|").replace("\n", " ")
