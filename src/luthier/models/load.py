"""Loading a model and what prepares its inputs, for a task."""

from __future__ import annotations

import dataclasses
import textwrap
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from luthier.core.device import device_of, fast_products
from luthier.core.errors import LuthierError, near
from luthier.core.notebook import figures, shown
from luthier.core.records import recorded
from luthier.models.beside import WITHOUT, tell_adapter
from luthier.models.half import take_in_its_dtype
from luthier.models.hub import only_local
from luthier.models.labels import SCALAR, label_settings
from luthier.models.pipelines import tokenizer_beside, unet_at
from luthier.models.quantize import quantization, warn_of_odd_widths
from luthier.models.quiet import quiet
from luthier.models.resolve import resolve
from luthier.models.seeing import see
from luthier.models.speech import SPEECH, heard, with_languages
from luthier.models.tokenizer import refuse_empty, refuse_endless, set_pad_token
from luthier.models.trust import config_at, explained, trusted, trusting

DTYPES = ("float32", "bfloat16", "float16", "float64", "auto")


@dataclasses.dataclass(frozen=True)
class Task:
    """The transformers auto classes of a task: of the model and of what prepares its inputs."""

    model: str
    processor: str = "AutoTokenizer"


TASKS: dict[str, Task] = {
    "causal-lm": Task("AutoModelForCausalLM"),
    "classification": Task("AutoModelForSequenceClassification"),
    "regression": Task("AutoModelForSequenceClassification"),
    "reward": Task("AutoModelForSequenceClassification"),
    "multi-label": Task("AutoModelForSequenceClassification"),
    "token-classification": Task("AutoModelForTokenClassification"),
    "question-answering": Task("AutoModelForQuestionAnswering"),
    "seq2seq": Task("AutoModelForSeq2SeqLM"),
    "image-classification": Task("AutoModelForImageClassification", "AutoImageProcessor"),
    "audio-classification": Task("AutoModelForAudioClassification", "AutoFeatureExtractor"),
    "speech-to-text": Task("AutoModelForSpeechSeq2Seq", "AutoProcessor"),
    "embedding": Task("AutoModel", "AutoProcessor"),
}


CLASS_TASKS = {
    "ForSequenceClassification": "classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForConditionalGeneration": "seq2seq",
    "ForImageClassification": "image-classification",
    "ForAudioClassification": "audio-classification",
    "ForCausalLM": "causal-lm",
    "LMHeadModel": "causal-lm",
}
"""The task of a model class, by how transformers ends its name."""


def task_of_class(model: str) -> str:
    """Returns the task (a key of `TASKS`) that a model class serves; a bare one embeds."""
    if model in pictured():
        return "causal-lm"
    if model in heard():
        return SPEECH
    return next((task for ending, task in CLASS_TASKS.items() if model.endswith(ending)), "embedding")


def task_of_model(model: Any) -> str:
    """Returns the task that a model in memory serves, by its class, and by its settings where it classifies."""
    cls = vars(type(model)).get("_luthier_base", type(model))
    found, config = task_of_class(cls.__name__), model.config
    if found != "classification":
        return found
    if config.problem_type == "multi_label_classification":
        return "multi-label"
    return "regression" if config.num_labels == 1 else found


def pictured() -> set[str]:
    """Returns the classes of decoders that read pictures beside text."""
    from transformers.models.auto import modeling_auto as auto

    seeing = dict(auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    return {name for kind, name in seeing.items() if kind not in auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES}


def class_of(task: str, config: Any) -> Any:
    """Returns the auto class of a task for a configuration; decoders that read pictures have one of their own, and
    text encoders of pipelines that project are that class."""
    import transformers

    found = getattr(transformers, TASKS[task].model)
    apart = transformers.AutoModelForImageTextToText
    kind = type(config)
    if task == "causal-lm" and kind not in found._model_mapping and kind in apart._model_mapping:
        return apart
    projecting = task == "embedding" and config.architectures == ["CLIPTextModelWithProjection"]
    return transformers.CLIPTextModelWithProjection if projecting else found


@dataclasses.dataclass(frozen=True, repr=False)
class Loaded:
    """A model ready for a task."""

    model: Any
    """The transformers model, in evaluation mode."""
    processor: Any
    """Its tokenizer, image processor, feature extractor or processor; a UNet has none."""
    name: str
    """The name as given."""
    path: Path | str
    """The local folder, or the hub id."""
    task: str
    new_modules: list[str]
    """Dotted paths of the modules whose parameters the checkpoint lacks: new, to be trained."""

    def told(self) -> dict[str, Any]:
        """Returns what is shown of it."""
        base = vars(type(self.model)).get("_luthier_base", type(self.model))
        count = sum(each.numel() for each in self.model.parameters())
        return {"class": base.__name__, "task": self.task, "parameters": count}

    def __repr__(self) -> str:
        return f"Loaded({self.name!r}: {', '.join(f'{name} {shown(value)}' for name, value in self.told().items())})"

    def _repr_html_(self) -> str:
        return figures({"model": self.name} | self.told())


def load(
    name: str,
    *,
    task: str = "causal-lm",
    dtype: str = "float32",
    labels: list[str] | None = None,
    num_labels: int | None = None,
    quantize: str | None = None,
    attn: str | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> Loaded:
    """Returns the model `name` (a folder, a .gguf file, a catalogue name or a hub id) for a task.

    Only safetensors weights are read, and code that comes with a model runs only with
    `trust_remote_code`. An adapter of peft's that lies in the folder is told and not
    applied. `labels` name the classes; a checkpoint that already has these very labels
    keeps its own order (see `model.config.label2id`). `dtype` is one of `DTYPES`, `quantize` is `nf4`
    or `int8`; `attn` is how attention is computed (eager, sdpa, …; None: transformers' choice).
    The weights are read straight onto the `device` (cpu, cuda, cuda:1, mps; None: see `luthier.core.device.device_of`);
    on a CUDA device float32 products are switched to TF32 for this process.
    Raises `LuthierError` on anything that does not fit.
    """

    from luthier.core.sites.fresh import mark_fresh

    _choice("task", task, TASKS)
    _choice("dtype", dtype, DTYPES)
    place = device_of(device)
    path = resolve(name)
    revision = revision or "main"
    source: dict[str, Any] = {"revision": revision, "local_files_only": only_local(path, revision)}
    if isinstance(path, Path):
        _refuse_without_weights(path)
        with _told(name, path, task), quiet(bars=True):
            if (unet := unet_at(path, dtype)) is not None:
                _refuse_of_unet(quantize=quantize, attn=attn, labels=labels, num_labels=num_labels)
                return Loaded(unet.to(place), None, name, path, task, [])
    with _told(name, path, task), quiet(bars=True), trusting(trust_remote_code):
        config = config_at(path, **source)
        config = label_settings(config, task, labels, num_labels)
        processor = processor_at(path, task, config, **source)
        refuse_empty(processor, name)
        model_class = class_of(task, config)
        model, report = model_class.from_pretrained(
            path,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            ignore_mismatched_sizes=labels is not None or num_labels is not None or task in SCALAR,
            quantization_config=quantization(quantize, model_class, config),
            output_loading_info=True,
            adapter_kwargs=WITHOUT,
            attn_implementation=attn,
            device_map=None if place.type == "cpu" else {"": place},
            trust_remote_code=trusted(),
            **source,
        )
    vars(model).pop("hf_device_map", None)  # it lies on one device, and the Trainer may move it
    fast_products(place)
    tell_adapter(path, name)
    new = _new_modules(model, report, name)
    mark_fresh(model, new)
    set_pad_token(model, processor)
    take_in_its_dtype(model)
    if quantize is not None:
        warn_of_odd_widths(model)
    return Loaded(model.eval(), processor, name, path, task, new)


def processor_at(path: Path | str, task: str, config: Any = None, **source: Any) -> Any:
    """Returns what prepares the inputs of the model at a path for a task; `config` is the model's, if it is read."""
    import transformers

    kind = getattr(transformers, TASKS[task].processor)
    if (beside := tokenizer_beside(path)) is not None:
        kind, path = transformers.AutoTokenizer, beside
    made = kind.from_pretrained(path, trust_remote_code=trusted(), **source)
    refuse_endless(getattr(made, "tokenizer", made), str(path))
    if task == "causal-lm":
        see(made, path, config, **source)
    return with_languages(made, path, **source) if task == SPEECH else made


def _refuse_of_unet(**given: Any) -> None:
    """Raises for what is only said of models of transformers."""
    if told := next((key for key, value in given.items() if value is not None), None):
        raise LuthierError(f"{told} is for models of transformers, and here is diffusers' UNet; leave it out.")


def _refuse_without_weights(folder: Path) -> None:
    """Raises for a folder without safetensors, and for one that lacks some of those that its index lists."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        with recorded(index) as told:
            wanted = set(told.get("weight_map", {}).values())
            lacking = sorted(each for each in wanted if not (folder / each).is_file())
        if lacking:
            raise LuthierError(
                f"{folder} lacks {len(lacking)} of the {len(wanted)} files of weights that its index lists, the first "
                f"of them {lacking[0]}: it was not copied or downloaded whole."
            )
        return
    if any(folder.glob("*.safetensors")):
        return
    pickled = sorted(each.name for each in (*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")))
    if pickled:
        raise LuthierError(
            f"{folder} holds its weights as {pickled[0]}, a pickle, which can run code when read; only safetensors "
            "are read. Take a copy of the model in safetensors, or convert a file that you trust with transformers: "
            "model.save_pretrained(FOLDER)."
        )
    raise LuthierError(f"{folder} holds a config.json and no weights (*.safetensors): it was not copied whole.")


def _choice(what: str, value: str, known: Any) -> None:
    if value not in known:
        raise LuthierError(f"no {what} {value!r}{near(value, known) or '.'} There are: {', '.join(known)}.")


def _told(name: str, path: Path | str, task: str) -> AbstractContextManager[None]:
    """Makes a `LuthierError` of what transformers raises for a model that does not load or fit."""
    if isinstance(path, str):
        hint = f"{name} was taken for a hub id, as no such folder exists: check it there."
    else:
        hint = f"Check that {path} is whole and that its model serves the task {task}."

    def why(error: Exception) -> str:
        reason = textwrap.shorten(str(error), 300, placeholder=" …").rstrip(".")
        return f"{reason}. {hint}"

    return explained(f"could not load {name!r} for {task}", why)


def _new_modules(model: Any, report: dict[str, Any], name: str) -> list[str]:
    """The owners of parameters that the checkpoint did not fill; a tied one is filled by the one it is tied to."""
    odd = {key for key, *_ in report["mismatched_keys"]}
    body = sorted(key for key in odd if key.startswith(f"{model.base_model_prefix}."))
    if body:
        raise LuthierError(f"weights of {name!r} do not have the sizes its config.json says: {body[0]}.")
    absent = set(report["missing_keys"]) | odd
    parameters = list(model.named_parameters(remove_duplicate=False))
    filled = {id(parameter) for key, parameter in parameters if key not in absent}
    if not filled:
        raise LuthierError(f"none of the weights of {name!r} fit {type(model).__name__}.")
    new = [key for key, parameter in parameters if id(parameter) not in filled]
    return list(dict.fromkeys(key.rpartition(".")[0] for key in new))
