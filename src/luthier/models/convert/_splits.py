"""How byte-level vocabularies split text before they merge, by llama.cpp's names for it (`tokenizer.ggml.pre`).

A GGUF file holds a vocabulary and its merges, but only the name of the split: the expressions are in llama.cpp
(`llm_tokenizer_bpe` of src/llama-vocab.cpp), mostly after the tokenizer.json of the models. Where llama.cpp had to
simplify one, for want of Unicode properties in std::regex, the model's own stands here. A wrong split raises nothing:
it gives other tokens than the model was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_CASES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|"
_MARKS = r"| ?[^\s\p{L}\p{N}]+"
_SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_ASCII = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d"
    "\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb"
    "\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128"
    "\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4"
    "\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf"
    "\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_HAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""The split that the `ByteLevel` step of tokenizers makes by itself."""
DIGIT = r"\p{N}"
"""What the `Digits` step of tokenizers splits off one by one."""

_QWEN2 = _CASES + _WORDS + r"\p{N}" + _MARKS + r"[\r\n]*" + _SPACES
_LLAMA3 = _CASES + _WORDS + r"\p{N}{1,3}" + _MARKS + r"[\r\n]*" + _SPACES
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
_DEEPSEEK3 = _ASCII + r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _cased(ending: str, digits: str) -> str:
    """Words that begin anew at a capital: `camelCase` is two."""
    opening = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}"
    return f"{opening}*{_LOWER}+{ending}|{opening}+{_LOWER}*{ending}|{digits}" + _MARKS + r"[\r\n/]*" + _SPACES


@dataclass(frozen=True)
class Split:
    """One way to split, under the names that files give it."""

    names: tuple[str, ...]
    """Values of `tokenizer.ggml.pre`, the first one to be written."""
    steps: tuple[str, ...]
    """Expressions whose matches are split off, each in what those before it have left."""
    whole: bool = False
    """A word that the vocabulary holds is one token, whatever the merges say."""
    begins: bool = False
    """The beginning-of-text token is put before a text where the file does not say."""


SPLITS: tuple[Split, ...] = (
    Split(
        (
            "gpt-2",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "phi-2",
            "jina-es",
            "jina-de",
            "gigachat",
            "jina-v2-es",
            "jina-v2-de",
            "jina-v2-code",
            "jina-v1-en",
            "roberta-bpe",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "exaone4",
        ),
        (GPT2,),
    ),
    Split(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"),
        (DIGIT, GPT2),
    ),
    Split(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
        (_LLAMA3,),
        whole=True,
        begins=True,
    ),
    Split(("smaug-bpe", "dbrx", "chatglm-bpe"), (_LLAMA3,)),
    Split(("glm4", "glm5"), (_LLAMA3,), whole=True),
    Split(
        ("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2"),
        (_QWEN2,),
    ),
    Split(
        ("qwen35",),
        (_CASES + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + _SPACES,),
    ),
    Split(("laguna",), (r"[^\n]+|[\n]+", _QWEN2)),
    Split(
        ("seed-coder",),
        (_CASES + _WORDS + r"\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+" + _SPACES,),
    ),
    Split(("ufakzeka",), (_WORDS[1:] + r"\p{N}" + _MARKS + r"[\r\n]*" + _SPACES,)),
    Split(
        ("bailingmoe", "bailingmoe2", "llada-moe"),
        (r"'(?i:[sdmt]|ll|ve|re)" + _WORDS + r"\p{N}" + _MARKS + r"[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",),
    ),
    Split(
        ("exaone-moe",),
        (
            _CASES
            + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}"
            + _MARKS
            + r"[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
        ),
    ),
    Split(
        ("minicpm5",),
        (r"\p{N}{1,3}", _CASES + _WORDS + r"\p{N}+" + _MARKS + r"[\r\n]*" + _SPACES),
        whole=True,
    ),
    Split(
        ("jais-2",),
        (
            _CASES
            + _WORDS
            + r"\p{N}{1,3}"
            + _MARKS
            + r"[\r\n]*|\s*[\r\n]+"
            + "".join(rf"|\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4))
            + r"|\s{1,2}(?!\S)|\s{1}",
        ),
    ),
    Split(
        ("k2-horizon",),
        (
            _CASES
            + "|[^\\r\\n\\p{L}\\p{N}]?(?:\\p{L}|\\p{M}|\u200c|\u200d)+|\\p{N}{1,3}"
            + _MARKS
            + r"[\r\n]*"
            + _SPACES,
        ),
    ),
    Split(("tekken",), (_cased("", r"\p{N}"),), whole=True, begins=True),
    Split(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), (_cased(_CASES + "?", r"\p{N}{1,3}"),)),
    Split(("granite-embed-multi-97m",), (_cased(_CASES + "?", r"\p{N}{1,3}"),), whole=True),
    Split(
        ("deepseek-llm",),
        ("[\r\n]", rf"\s?[{_LETTERS}]+", "\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+", r"\s+$", _HAN, r"\p{N}+"),
    ),
    Split(("deepseek-coder",), ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN, r"\p{N}")),
    Split(("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"), (r"\p{N}{1,3}", _KANA, _DEEPSEEK3)),
    Split(
        ("spark2_5",),
        (
            r"\p{N}{1,3}",
            _KANA,
            _ASCII + r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+",
            r"\p{N}",
        ),
    ),
    Split(("falcon",), (r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]")),
    Split(("bloom", "poro-chat", "gpt3-finnish"), (_BLOOM,)),
    Split(("viking",), (_BLOOM, r"\p{N}")),
    Split(
        ("chameleon",),
        (
            r"<sentinel:[0-9]+>",
            r"(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
            r"([\t\n]|    |  )",
            r"\p{N}",
            r"[\p{P}!-/:-@\[-`{-~]",
            GPT2,
        ),
        begins=True,
    ),
    Split(("superbpe",), (r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
    Split(
        ("default",),
        (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
    ),
)

_CAPITALS = "llama.cpp splits words at no capital there, and the model's own tokenizer does"
_PIECES = "its vocabulary is spelled as SentencePiece spells, and not in bytes"

UNREAD: Mapping[str, str] = {
    "kimi-k2": _CAPITALS,
    "youtu": _CAPITALS,
    "tiny_aya": _CAPITALS,
    "cohere2moe": _CAPITALS,
    "afmoe": "llama.cpp joins a number with what stands before it there, and the model's own tokenizer does not",
    "gemma4": _PIECES,
    "granite-embed-multi-311m": _PIECES,
    "mmbert": _PIECES,
    "sarvam-moe": _PIECES,
    "whitespace": "its vocabulary is spelled in characters, and not in bytes",
}
"""Names that llama.cpp knows and that are read by no split above, each with the reason."""

BY_NAME: Mapping[str, Split] = {name: split for split in SPLITS for name in split.names}
