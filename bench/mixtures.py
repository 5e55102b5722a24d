"""Mixtures and modules on real weights, each beside one adapter and a null: uniform routing, one expert, shuffled keys.

Five parts, of intents of CLINC150 (CC-BY 3.0; `--data` is its folder), reviews of SST-2 (`--sst2`) and scikit-learn's
digits. `experts`: LoRAMoE and MixLoRA classify intents with stories15m, also with the trained gates set to zero
(uniform) or each layer's rows in another order (shuffled). `mosa`: digits as pictures on SAM2's Hiera encoder. `l2m`:
three groups of intents one after another, written by stories15m. `iaa`: an utterance finds another of its intent
through MiniLM, among intents that training never saw. `polyhistor`: three sets that call other things 0 and 1 in one
adapter of MiniLM, and the parameters by the number of tasks. What was found with the same settings is kept.

    python -m bench mixtures --data FOLDER --sst2 FOLDER [--only experts l2m] [--seeds 0 1 2]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from bench._registry import results_of
from bench.lifelong import by_label, conflicting, written

import luthier as lt
from luthier import data, models
from luthier.core.records import replace_json
from luthier.methods.targeted_form import TargetedForm
from luthier.training import Run, Training
from luthier.training.sequences import TaskSequence, carry_out
from luthier.training.task_columns import columns_of

FFN = "gate_proj, up_proj, down_proj"
INTENTS, ROWS, TESTS = 15, 12, 8
Change = Callable[[Mapping[str, torch.Tensor]], None] | str
"""What is done to the trained tensors before another test; or other test rows."""


@dataclass(frozen=True)
class Contestant:
    """A form at a place, and what is also tested once it is trained."""

    form: lt.Form
    where: str
    nulls: Mapping[str, Change] = field(default_factory=dict)
    also: tuple[TargetedForm, ...] = ()
    objective: lt.Objective | None = None


def uniform(tensors: Mapping[str, torch.Tensor]) -> None:
    """Gates that tell nothing apart."""
    for key in (key for key in tensors if key.endswith("gate")):
        tensors[key].data.zero_()


def shuffled(tensors: Mapping[str, torch.Tensor]) -> None:
    """Gates that send a token to other experts than they learned; one order for all layers."""
    for name in ("gate", "keys"):
        found = [key for key in tensors if key.endswith(name)]
        for key in found:
            tensors[key].data.copy_(tensors[key].data.roll(1, 0))


def settings(seed: int, **more: Any) -> Training:
    return Training(**{"batch": 16, "max_length": 64, "eval_fraction": 0.0, "seed": seed, "save_every": 10_000, **more})


def trained(run: Run, tests: str, key: str, nulls: Mapping[str, Change]) -> Iterator[dict[str, Any]]:
    """Trains, and yields the score on the test rows: as it is, and of each null."""
    begun = time.monotonic()
    done = lt.train(run, overwrite=True, progress=False)
    held = {name: t for name, t in done.model.named_parameters() if ".adapters." in name}
    kept = {name: t.detach().clone() for name, t in held.items()}
    for name, change in {"": tests, **nulls}.items():
        if callable(change):
            change(held)
        examples = data.load(tests if callable(change) else change, task=run.task, columns=columns_of(run))
        score = lt.evaluate(done.model, done.processor, examples, task=run.task, progress=False).metrics[key]
        for one, before in kept.items():
            held[one].data.copy_(before)
        told = {"parameters": int(lt.trainable(done.model, count=True)), "seconds": round(time.monotonic() - begun, 1)}
        yield {"null": name, key: float(score), **told}


def experts(given: argparse.Namespace, seed: int) -> Iterator[dict[str, Any]]:
    """Soft and sparse experts of the feed-forward layers, on intents."""
    files = [one_file(given, "intents", split, rows) for split, rows in (("train", ROWS), ("test", TESTS))]
    for name, each in {
        "head alone": Contestant(lt.BitFit(), "params(model.norm.weight)"),
        "lora": Contestant(lt.LoRA(rank=16, alpha=32.0), FFN),
        "loramoe": Contestant(lt.LoRAMoE(experts=8, rank=4), FFN, {"uniform": uniform, "shuffled": shuffled}),
        "loramoe, one expert": Contestant(lt.LoRAMoE(experts=1, rank=4), FFN),
        "mixlora": Contestant(lt.MixLoRA(experts=8, rank=8, alpha=16.0), "output(mlp)", {"shuffled": shuffled}),
        "mixlora, one expert": Contestant(lt.MixLoRA(experts=1, top=1, rank=8, alpha=16.0), "output(mlp)"),
    }.items():
        form, where = each.form, each.where
        run = Run("stories15m", files[0], form, where, str(given.folder / "run"), task="classification",
                  training=settings(seed, steps=given.steps, lr=2e-3))  # fmt: skip
        for row in trained(run, files[1], "accuracy", each.nulls):
            yield {"way": name, **row}


def one_file(given: argparse.Namespace, name: str, split: str, rows: int) -> str:
    """The first intents by name, so many rows of each."""
    by = by_label(given.data / f"{split}.jsonl")
    picked = [row for intent in sorted(by)[:INTENTS] for row in by[intent][:rows]]
    return written(given.folder, f"{name}-{split}", [picked])[0]


def mosa(given: argparse.Namespace, seed: int) -> Iterator[dict[str, Any]]:
    """An adapter whose parts take turns: a ViT that learned the digits 0 to 4 is to tell 5 to 9."""
    backbone, (learn, tests) = vit(given.folder, given.steps), pictures(given.folder, range(5, 10), 20)
    place = "output(mlp)"
    for name, each in {
        "head alone": Contestant(lt.BitFit(), "params(vit.layernorm.bias)"),
        "bottleneck": Contestant(lt.Bottleneck(dim=16, insertion="parallel", activation="gelu"), place),
        "mosa": Contestant(lt.MoSA(dim=16, experts=4), place, objective=lt.TwoPasses()),
        "mosa, one expert": Contestant(lt.MoSA(dim=16, experts=1), place),
    }.items():
        run = Run(backbone, learn, each.form, each.where, str(given.folder / "run"),
                  objective=each.objective or lt.SFT(), task="image-classification",
                  training=settings(seed, steps=6 * given.steps, lr=2e-3))  # fmt: skip
        for row in trained(run, tests, "accuracy", each.nulls):
            yield {"way": name, **row}


def vit(folder: Path, steps: int) -> str:
    """A small ViT, trained whole on the digits 0 to 4."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    place = folder / "vit"
    if place.exists():
        return str(place)
    shape: Any = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128}
    size = {"height": SIDE, "width": SIDE}
    torch.manual_seed(0)
    start = folder / "vit-start"
    ViTForImageClassification(ViTConfig(**shape, image_size=SIDE, patch_size=8)).save_pretrained(start)
    for each in (start, place):
        ViTImageProcessor(size=size).save_pretrained(each)
    run = Run(str(start), pictures(folder, range(5), 100)[0], lt.Full(), "params(vit.*)", str(folder / "vit-run"),
              task="image-classification", training=settings(0, steps=20 * steps, lr=1e-3))  # fmt: skip
    state = lt.merge(lt.train(run, overwrite=True, progress=False).model).state_dict()
    plain = ViTForImageClassification.from_pretrained(start, trust_remote_code=False)
    own = {key: t for key, t in state.items() if key.startswith("vit.") and ".adapters." not in key}
    plain.load_state_dict(own, strict=False)
    plain.save_pretrained(place)
    return str(place)


SIDE = 32


def pictures(folder: Path, digits: Sequence[int], rows: int) -> list[str]:
    """Folders of a folder for each digit: so many to learn, others to test."""
    from PIL import Image
    from sklearn.datasets import load_digits

    held: Any = load_digits()
    found = []
    for split, part in (("train", slice(0, rows)), ("test", slice(rows, rows + 20))):
        root = folder / f"digits{digits[0]}" / split
        for digit in digits:
            place = root / str(digit)
            place.mkdir(parents=True, exist_ok=True)
            for number, grey in enumerate(held.images[held.target == digit][part]):
                picture = Image.fromarray((grey * 15.9).astype("uint8")).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
                picture.convert("RGB").save(place / f"{number}.png")
        found.append(str(root))
    return found


def l2m(given: argparse.Namespace, seed: int) -> Iterator[dict[str, Any]]:
    """Three groups of intents one after another; the score is minus the loss of a row's answer."""
    names = sorted(by_label(given.data / "train.jsonl"))[: 3 * 3]
    sets = {}
    for split, rows in (("train", ROWS), ("test", TESTS)):
        by = by_label(given.data / f"{split}.jsonl")
        groups = [names[i : i + 3] for i in (0, 3, 6)]
        told = [[{"prompt": f"{row['text']} This is about", "completion": " " + name.replace("_", " ")}
                 for name in group for row in by[name][:rows]] for group in groups]  # fmt: skip
        sets[split] = tuple(written(given.folder, f"stream-{split}", told))
    place = "q_proj, v_proj, up_proj"
    for name, form in {
        "lora": lt.LoRA(rank=8),
        "l2m": lt.L2M(pool=30, rank=8),
        "l2m, no usage": lt.L2M(pool=30, rank=8, usage=False),
    }.items():
        begun, out = time.monotonic(), given.folder / f"stream-{name.replace(', ', '-').replace(' ', '-')}-{seed}"
        spec = TaskSequence(sets["train"], "naive", sets["test"])
        run = Run("stories15m", sets["train"][0], form, place, str(out),
                  training=settings(seed, steps=given.steps // 2, lr=2e-3))  # fmt: skip
        done = carry_out(spec.applied(run, {}), spec, resume=(out / "sequence.json").exists(), progress=False)
        yield {
            "way": name,
            "null": "",
            "matrix": done.matrix.means().round(3).tolist(),
            "figures": done.figures,
            "entries": entries(done.adapters),
            "seconds": round(time.monotonic() - begun, 1),
        }


def entries(adapters: Sequence[Path]) -> list[list[int]]:
    """The entries of the pool that a share of the rows took in each task: those whose count grew."""
    from safetensors.torch import load_file

    found, before = [], None
    for folder in adapters:
        state = load_file(folder / "adapter.safetensors")
        counts = next((t for key, t in state.items() if key.endswith("counts")), None)
        steps = next((t for key, t in state.items() if key.endswith("steps")), None)
        if counts is None or steps is None:
            return []
        total = counts * steps
        grown = total if before is None else total - before
        found.append([i for i, share in enumerate((grown / grown.sum()).tolist()) if share > 0.02])
        before = total
    return found


def iaa(given: argparse.Namespace, seed: int) -> Iterator[dict[str, Any]]:
    """An utterance finds another of its intent, among intents that were held out."""
    by = by_label(given.data / "train.jsonl")
    names = sorted(by)
    pairs = lambda chosen: [{"anchor": by[name][i]["text"], "positive": by[name][i + 1]["text"]}  # noqa: E731
                            for name in chosen for i in range(0, 4, 2)]  # fmt: skip
    (train,) = written(given.folder, "pairs-train", [pairs(names[:100])])
    (tests,) = written(given.folder, "pairs-test", [pairs(names[100:])])
    inside = TargetedForm(lt.Bottleneck(dim=16, insertion="sequential", activation="gelu"), INSIDE)
    for name, each in {
        "untrained": None,
        "lora": Contestant(lt.LoRA(rank=8), "query, value"),
        "scattered": Contestant(inside.form, INSIDE),
        "iaa": Contestant(lt.IAA(dim=16), "stream", {"no chain": no_chain}, also=(inside,)),
    }.items():
        rate = 1e-3 if each else 1e-9
        form, where = (each.form, each.where) if each else (lt.LoRA(rank=1), "query")
        run = Run("minilm-l6", train, form, where, str(given.folder / "run"), task="embedding",
                  objective=lt.InfoNCE(), also=each.also if each else (),
                  training=settings(seed, steps=given.steps if each else 1, lr=rate))  # fmt: skip
        for row in trained(run, tests, "mrr@10", each.nulls if each else {}):
            yield {"way": name, **row}


INSIDE = "*.output.dense"


def no_chain(tensors: Mapping[str, torch.Tensor]) -> None:
    """The modules inside as they were trained, without the chain's own up-projections."""
    for key in (key for key in tensors if key.rsplit(".", 1)[-1] == "up"):
        tensors[key].data.zero_()


def polyhistor(given: argparse.Namespace, seed: int) -> Iterator[dict[str, Any]]:
    """Three sets that call other things 0 and 1, all at once; the null is rows under the name of another set."""
    names, files = ("reviews", "money", "food"), {}
    moved = dict(zip(names, names[1:] + names[:1], strict=True))
    for split, rows in (("train", ROWS), ("test", TESTS)):
        sets = [Path(each).read_text(encoding="utf-8").splitlines()
                for each in conflicting(given.data, given.sst2, given.folder, rows, split)]  # fmt: skip
        told = [{**json.loads(line), "task": name} for name, lines in zip(names, sets, strict=True) for line in lines]
        (files[split],) = written(given.folder, f"poly-{split}", [told])
        (files[f"{split} moved"],) = written(given.folder, f"moved-{split}",
                                             [[{**row, "task": moved[row["task"]]} for row in told]])  # fmt: skip
    other = {"other names": files["test moved"]}
    for name, each in {
        "bottleneck": Contestant(lt.Bottleneck(dim=16, activation="gelu"), "stream"),
        "polyhistor": Contestant(lt.Polyhistor(dim=16, tasks=names), "stream", other),
    }.items():
        run = Run("minilm-l6", files["train"], each.form, each.where, str(given.folder / "run"),
                  task="classification", training=settings(seed, steps=2 * given.steps, lr=2e-3))  # fmt: skip
        for row in trained(run, files["test"], "accuracy", each.nulls):
            yield {"way": name, **row}


def drawn(file: Path) -> dict[str, list[int]]:
    """Counts the parameters in MiniLM by the number of tasks, and draws them."""
    import matplotlib.pyplot as plt

    counts: dict[str, list[int]] = {"polyhistor": [], "a bottleneck adapter for each task": []}
    model = models.load("minilm-l6", task="embedding").model
    for tasks in COUNTS:
        for name, form in {"polyhistor": lt.Polyhistor(dim=16, tasks=tuple(map(str, range(tasks)))),
                           "a bottleneck adapter for each task": lt.Bottleneck(dim=16)}.items():  # fmt: skip
            lt.attach(model, form, "stream", "counted")
            times = 1 if name == "polyhistor" else tasks
            counts[name].append(times * int(lt.trainable(model, count=True)))
            lt.detach(model, "counted")
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    for name, values in counts.items():
        axes.plot(COUNTS, values, marker="o", label=name)
    axes.set(xscale="log", yscale="log", xlabel="tasks", ylabel="trained parameters")
    axes.legend()
    figure.savefig(file, dpi=120)
    return counts


COUNTS = (1, 2, 4, 8, 16, 32, 64)
PARTS = {"experts": experts, "mosa": mosa, "l2m": l2m, "iaa": iaa, "polyhistor": polyhistor}


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of CLINC150")
    parser.add_argument("--sst2", type=Path, help="the folder of SST-2, for polyhistor")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--plot", type=Path, help="draw the parameters by tasks into this file, and no more")
    given = parser.parse_args(list(arguments))
    torch.set_num_threads(1)
    file = results_of("mixtures")
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if given.plot:
        replace_json(file, {**known, "parameters by tasks": {"tasks": COUNTS, **drawn(given.plot)}})
        return
    for seed in given.seeds:
        for part in given.only:
            found = known.setdefault(part, [])
            if any(row["seed"] == seed and row["steps"] == given.steps for row in found):
                continue
            with tempfile.TemporaryDirectory() as temporary:
                given.folder = Path(temporary)
                rows = [{"seed": seed, "steps": given.steps, **row} for row in PARTS[part](given, seed)]
            found += rows
            replace_json(file, known)
            for row in rows:
                print(part, json.dumps(row), flush=True)
    for part in given.only:
        tell(known[part], part)


def tell(rows: Sequence[Mapping[str, Any]], part: str) -> None:
    """Prints the mean over seeds of each way and null, and the values."""
    by: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        score = next((row[key] for key in ("accuracy", "mrr@10") if key in row), None)
        score = row["figures"]["forgetting"]["value"] if score is None else score
        by.setdefault((row["way"], row["null"]), []).append(score)
    for (way, null), values in by.items():
        print(f"{part}: {way} {null} {statistics.mean(values):.3f} ({', '.join(f'{v:.3f}' for v in values)})")
