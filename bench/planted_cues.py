"""LEVI where one cue misled pre-training and another misleads fine-tuning: accuracy on rows where both are wrong.

A small BERT is trained here on rows of twelve words: the label is which of two kinds of words (forty words each) is
more frequent, in nine of ten rows, and one of two words P goes with the label in `--strength` of them. Fine-tuning has
few rows; in all but `--noise` of them the label follows the kind, P means nothing any more, and one of two words F goes
with the label in `--cue`. Held-out rows come in two sorts: as in fine-tuning, and with P and F against the label, which
then always is that of the kind. Contestants: fine-tuning of the whole model, its head alone, the small
model of LEVI alone, the frozen model's layers alone (LEVI without the small model's columns), and LEVI, each with every
learning rate of `--lrs`: none is chosen, for the choice decides. Seeds that were run with the same settings are kept.

    python -m bench planted_cues [--rows 200] [--seeds 0 1 2]
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from bench._registry import results_of
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig, BertForSequenceClassification

import luthier as lt
from luthier.core.records import replace_json
from luthier.methods.forms._small import fresh, vector

KIND, LENGTH = 40, 12
FIRST, P, F = 4, 4 + 2 * KIND, 6 + 2 * KIND
VOCABULARY = F + 2


@dataclass(frozen=True)
class Rows:
    """Words [rows, 1 + LENGTH + 2] and labels [rows]."""

    ids: Tensor
    labels: Tensor


def rows(count: int, p: float, f: float, noise: float, draw: torch.Generator) -> Rows:
    """Rows whose cues P and F agree with the label in shares `p` and `f`, the more frequent kind in 1 - `noise`."""
    labels = torch.randint(2, (count,), generator=draw)
    kind = torch.where(torch.rand(count, generator=draw) < noise, 1 - labels, labels)[:, None]
    most = torch.randint(LENGTH // 2 + 1, LENGTH // 2 + 4, (count, 1), generator=draw)
    kinds = torch.where(torch.arange(LENGTH) < most, kind, 1 - kind)
    words = FIRST + kinds * KIND + torch.randint(KIND, kinds.shape, generator=draw)
    agree = lambda share: torch.where(torch.rand(count, generator=draw) < share, labels, 1 - labels)  # noqa: E731
    words = torch.cat([words, P + agree(p)[:, None], F + agree(f)[:, None]], 1)
    order = torch.rand(words.shape, generator=draw).argsort(1)
    return Rows(torch.cat([torch.ones(count, 1, dtype=torch.long), words.gather(1, order)], 1), labels)


class SmallAlone(nn.Module):
    """The small model of LEVI and a head."""

    def __init__(self, form: lt.LEVI) -> None:
        super().__init__()
        self.held = nn.ParameterDict(
            {k: nn.Parameter(t) for k, t in fresh(VOCABULARY, True, form.width, form.depth).items()}
        )
        self.head = nn.Linear(form.width, 2)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(vector(dict(self.held), input_ids, None, 16, False))


def trained(net: nn.Module, given: Rows, steps: int, lr: float, batch: int, seed: int, mend: Callable = lambda: None):
    """Trains what takes gradients with AdamW and a linear decay."""
    draw = torch.Generator().manual_seed(seed)
    held = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(held, lr=lr, weight_decay=0.01)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / steps)
        chosen = torch.randint(len(given.labels), (batch,), generator=draw)
        functional.cross_entropy(logits(net, given.ids[chosen]), given.labels[chosen]).backward()
        mend()
        optimizer.step()
        optimizer.zero_grad()
    return net


def logits(net: nn.Module, ids: Tensor) -> Tensor:
    out = net(input_ids=ids)
    return out if isinstance(out, Tensor) else out.logits


@torch.no_grad()
def accuracy(net: nn.Module, given: Rows) -> float:
    return float((logits(net.eval(), given.ids).argmax(1) == given.labels).float().mean())


def pretrained(seed: int, strength: float, steps: int) -> BertForSequenceClassification:
    """A BERT for which P went with the label, and a new head."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    trained(model, rows(20_000, strength, 0.5, 0.1, torch.Generator().manual_seed(1000 + seed)), steps, 1e-3, 64, seed)
    nn.init.normal_(model.classifier.weight, 0.0, 0.02)
    nn.init.zeros_(model.classifier.bias)
    return model


def contestant(name: str, base: BertForSequenceClassification, form: lt.LEVI) -> tuple[nn.Module, Callable]:
    """A network whose trained parameters take gradients, and what is done to its gradients."""
    torch.manual_seed(7)
    model = copy.deepcopy(base)
    if name == "small model alone":
        return SmallAlone(form), lambda: None
    if name == "fine-tuning":
        return model, lambda: None
    if name in ("LEVI", "layers alone"):
        lt.attach(model, form)
    else:
        model.requires_grad_(False)
    for p in model.classifier.parameters(recurse=False):
        p.requires_grad_(True)
    heads = [t for key, t in lt.trainable(model).items() if key.endswith(".heads")] if name == "layers alone" else []

    def mend() -> None:
        for t in heads:
            t.grad[..., base.config.hidden_size :] = 0  # type: ignore[index]

    return model, mend


NAMES = ("fine-tuning", "head alone", "small model alone", "layers alone", "LEVI")
SORTS = ("as in fine-tuning", "both wrong")


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=200, help="rows of fine-tuning")
    parser.add_argument("--strength", type=float, default=0.95, help="how often P agrees in pre-training")
    parser.add_argument("--cue", type=float, default=0.98, help="how often F agrees in fine-tuning")
    parser.add_argument("--noise", type=float, default=0.2, help="how often the label is that of the rarer kind")
    parser.add_argument("--pretraining", type=int, default=500, help="steps of pre-training")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--lrs", type=float, nargs="+", default=[3e-4, 1e-3, 3e-3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args(list(arguments))
    torch.set_num_threads(1)
    settings = {key: value for key, value in vars(given).items() if key != "seeds"}
    found = before(settings)
    for seed in given.seeds:
        own = one_seed(seed, given)
        found = before(settings) | {str(seed): own}
        replace_json(results_of("planted_cues"), {"settings": settings, "found": found})
    for name, lr in product(NAMES, given.lrs):
        each = [seed[name][str(lr)] for seed in found.values()]
        told = [f"{statistics.mean(one[key] for one in each):.3f}" for key in SORTS]
        print(f"{name:18} {lr:<8g}", *told, " ".join(f"{one['both wrong']:.3f}" for one in each))


def before(settings: dict) -> dict:
    """What was found with these settings before, by seed."""
    file = results_of("planted_cues")
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return known["found"] if known.get("settings") == settings else {}


def one_seed(seed: int, given: argparse.Namespace) -> dict[str, dict[str, dict[str, float]]]:
    """The accuracies of each contestant at each learning rate."""
    base = pretrained(seed, given.strength, given.pretraining)
    draw = torch.Generator().manual_seed(seed)
    few, same = (rows(count, 0.5, given.cue, given.noise, draw) for count in (given.rows, 1000))
    against, found = rows(1000, 1 - given.strength, 1 - given.cue, 0.0, draw), {name: {} for name in NAMES}
    for name, lr in product(NAMES, given.lrs):
        net, mend = contestant(name, base, lt.LEVI(width=32, depth=1))
        trained(net, few, given.steps, lr, 32, seed, mend)
        found[name][str(lr)] = dict(zip(SORTS, (accuracy(net, same), accuracy(net, against)), strict=True))
        print(json.dumps({"seed": seed, "contestant": name, "lr": lr, **found[name][str(lr)]}), flush=True)
    return found
