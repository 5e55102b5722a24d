"""Do chats about pictures learn from the pictures? Handwritten digits, a model from nothing, and shuffled pictures.

A small LLaVA from its configuration (no weights of such a model are at hand) is trained whole on chats that ask which
of scikit-learn's digits a picture shows, and asked about 297 others. The null is the same run on the same rows whose
pictures were dealt anew, so that they tell nothing.

python -m bench digits_in_chats [--steps 800] [--seeds 3] [--out bench/results/digits_in_chats.json]
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench._registry import results_of

import luthier as lt
from luthier import data
from luthier.training import Run, Training

SIDE, TEST = 16, 297
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def save_model(folder: Path, seed: int) -> None:
    """A LLaVA of four blocks that sees 16 patches of a picture."""
    import torch
    import transformers as tf
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    torch.manual_seed(seed)
    special = ["<pad>", "<|im_start|>", "<|im_end|>", "<image>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({token: i for i, token in enumerate(special + alphabet)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens(special)
    tokenizer = tf.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<|im_end|>")
    tokenizer.chat_template = TEMPLATE
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    seeing = tf.CLIPVisionConfig(**sizes, num_hidden_layers=2, image_size=SIDE, patch_size=4)
    reading = tf.LlamaConfig(**sizes, num_hidden_layers=4, vocab_size=len(tokenizer), max_position_embeddings=128,
                             pad_token_id=0, bos_token_id=1, eos_token_id=2)  # fmt: skip
    config = tf.LlavaConfig(vision_config=seeing, text_config=reading, image_token_id=3, pad_token_id=0,
                            vision_feature_layer=-1)  # fmt: skip
    tf.LlavaForConditionalGeneration(config).save_pretrained(folder)
    pictures = tf.CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    tf.LlavaProcessor(pictures, tokenizer, patch_size=4, vision_feature_select_strategy="default",
                      num_additional_image_tokens=1, chat_template=TEMPLATE).save_pretrained(folder)  # fmt: skip
    tokenizer.save_pretrained(folder)


def write_rows(folder: Path, shuffled: bool, seed: int) -> tuple[Path, Path]:
    """The rows to train on and to test on, with their pictures beside them."""
    from PIL import Image
    from sklearn.datasets import load_digits

    found = load_digits()
    folder.mkdir()
    rows = []
    for index, (pixels, target) in enumerate(zip(found.images, found.target, strict=True)):
        Image.fromarray((pixels * 15.9).astype("uint8")).resize((SIDE, SIDE)).save(folder / f"{index}.png")
        rows.append((f"{index}.png", str(target)))
    parts = {"train": rows[:-TEST], "test": rows[-TEST:]}
    if shuffled:
        names = [name for name, _ in parts["train"]]
        random.Random(seed).shuffle(names)
        parts["train"] = [(name, answer) for name, (_, answer) in zip(names, parts["train"], strict=True)]
    files = {part: folder / f"{part}.jsonl" for part in parts}
    for part, file in files.items():
        lines = [{"image": name, "question": "which digit?", "answer": answer} for name, answer in parts[part]]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return files["train"], files["test"]


def accuracy(work: Path, steps: int, seed: int, shuffled: bool) -> dict[str, Any]:
    """The share of test rows answered rightly after a run, with its interval."""
    model = work / "model"
    save_model(model, seed)
    train, test = write_rows(work / "rows", shuffled, seed)
    settings = Training(steps=steps, batch=16, lr=1e-3, max_length=64, eval_fraction=0.05, eval_every=steps, seed=seed,
                        save_every=steps)  # fmt: skip
    lt.train(Run(str(model), str(train), lt.Full(), out=str(work / "run"),
                 training=settings), progress=False)  # fmt: skip
    loaded = lt.model(str(model))
    lt.load(loaded.model, work / "run")
    found = lt.evaluate(loaded.model, loaded.processor, data.load(test), max_new_tokens=3, batch=64)
    return {"accuracy": round(found.score, 4), "interval": [round(each, 4) for each in found.interval]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the seeds; prints and writes what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=results_of("digits_in_chats"))
    given = parser.parse_args(arguments)
    found: dict[str, Any] = {"steps": given.steps, "test_rows": TEST}
    for name, shuffled in (("pictures", False), ("shuffled", True)):
        for seed in range(given.seeds):
            with tempfile.TemporaryDirectory() as folder:
                found.setdefault(name, []).append(accuracy(Path(folder), given.steps, seed, shuffled))
            print(name, seed, found[name][-1], flush=True)
    given.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
