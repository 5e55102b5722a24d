"""Speech to text: a sound, and what is said in it as the decoder learns it."""

from __future__ import annotations

from collections import Counter
from typing import Any

from luthier.core.contracts.example import Example
from luthier.core.errors import LuthierError
from luthier.data.bad import BadRow
from luthier.data.bounds import refuse_long_text
from luthier.data.columns import empty
from luthier.data.folder import MEDIA
from luthier.data.media import audio_features
from luthier.data.options import Feature, Options
from luthier.data.table import Table
from luthier.data.told import noted

UNSPOKEN = "'language' is not used: the model's tokenizer has no tokens of languages"

FILES_OF_SOUND = ("file_name", "path", "file", "audio_path")
"""Where data sets of speech name the file of a sound."""
TRANSCRIPTS = ("transcription", "sentence", "transcript")
"""What they call the text beside it."""


def columns_of(table: Table, names: set[str]) -> dict[str, str]:
    """Returns {audio, text: the column} of sounds and, beside a sound, of transcripts, where a source calls them
    otherwise; `names` are those that are there or told."""
    sound = next((each for each in FILES_OF_SOUND if each in names and _names_sounds(table, each)), None)
    found = {"audio": sound} if sound and "audio" not in names else {}
    if not (found or "audio" in names) or "text" in names:
        return found
    said = next((each for each in TRANSCRIPTS if each in names), None)
    return found | ({"text": said} if said else {})


def _names_sounds(table: Table, column: str) -> bool:
    first = next((value for _, row in table.rows if not empty(value := row.get(column))), None)
    return isinstance(first, str) and first.lower().endswith(MEDIA["audio"])


def spoken(example: Example, processor: Any, options: Options) -> Feature:
    """The sound's features, with labels: the prefix behind the start token, the text, EOS; a row without a text (to
    predict on) has the prefix alone.

    The model itself puts its start token before the labels, so they do not begin with it, as in the usual recipe of
    fine-tuning Whisper.
    """
    extractor, tokenizer = parts(processor)
    sound = audio_features(example, extractor, whole=True)
    before = prefix(example, tokenizer)
    labels = [*before] if example.answer is None else _labels(example.answer, tokenizer, before, options)
    foreign = example.language is not None and not _prefixes(tokenizer)
    return {**sound, "labels": labels, "row": example.row, **noted(Counter({UNSPOKEN: 1} if foreign else {}))}


def parts(processor: Any) -> tuple[Any, Any]:
    """Returns (what prepares sounds, the tokenizer) of a processor; raises `LuthierError` for one without either."""
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

    found = vars(processor) if isinstance(processor, ProcessorMixin) else {}
    extractor, tokenizer = found.get("feature_extractor"), found.get("tokenizer")
    if extractor is None or not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise LuthierError(
            "speech-to-text needs what prepares sounds and a tokenizer, and the model brings "
            f"{type(processor).__name__} alone; put the missing files beside its weights (processor.save_pretrained)."
        )
    return extractor, tokenizer


def prefix(example: Example, tokenizer: Any) -> list[int]:
    """Returns what stands between the start token and the text: of Whisper, its tokens of language, task and of no
    time stamps; of others nothing. Raises `BadRow` where it is not known which language is spoken."""
    if not _prefixes(tokenizer):
        return []
    many, language = tokenizer.init_kwargs.get("is_multilingual"), example.language or tokenizer.language
    if many and language is None:
        raise BadRow(
            "nothing says which language is spoken, and the model knows many: give rows a column 'language' (en, "
            "german, …), or set it in the model's generation_config.json"
        )
    if many is False and (language or "en").lower() not in ("en", "english"):
        raise BadRow(f"the language is {language}, and the model knows English alone")
    if many is False or language is None:
        return list(tokenizer.prefix_tokens[1:])
    return _in_language(language, tokenizer)


def _in_language(language: str, tokenizer: Any) -> list[int]:
    """The prefix of a language; the tokenizer itself stays as it is."""
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    name = language.strip().lower()
    code = TO_LANGUAGE_CODE.get(name, name)
    if code not in TO_LANGUAGE_CODE.values() or f"<|{code}|>" not in tokenizer.get_vocab():
        raise BadRow(
            f"the language is {language!r}, which the model does not know; expected a name or code (en, german)"
        )
    names = [code, tokenizer.task or "transcribe", *([] if tokenizer.predict_timestamps else ["notimestamps"])]
    return [tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in names]


def _prefixes(tokenizer: Any) -> bool:
    from transformers import WhisperTokenizer

    return isinstance(tokenizer, WhisperTokenizer)


def _labels(text: str, tokenizer: Any, before: list[int], options: Options) -> list[int]:
    """The tokens of a text behind `before` and up to EOS, without the one that starts them."""
    refuse_long_text(text, tokenizer, options.most, "a transcript")
    ids = [*before, *tokenizer(text, add_special_tokens=not _prefixes(tokenizer))["input_ids"]]
    ids = ids[1:] if ids[:1] in ([tokenizer.bos_token_id], [tokenizer.cls_token_id]) else ids
    ends = [each for each in (tokenizer.eos_token_id, tokenizer.sep_token_id) if each is not None]
    ids = ids if not ends or ids[-1:] in [[end] for end in ends] else [*ids, ends[0]]
    if options.most is not None and len(ids) > options.most:
        raise BadRow(f"a transcript of {len(ids)} tokens, {options.bound('divide the sound, with its text')}")
    return ids
