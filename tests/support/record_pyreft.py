"""Writes pyreft_folders/: folders that pyreft 0.1.0 saved, what its models answer, and how fast its rotations turn.

Run in an environment of its own; what is written is committed, so that the tests need none of it:
    pip install pyreft==0.1.0 pyvene==0.1.8 transformers==4.45.1 torch==2.13.0
    PYTHONPATH=tests python tests/support/record_pyreft.py
    PYTHONPATH=tests python tests/support/record_pyreft.py BASES tests/interop/pyreft_written    # answers with ours
"""
# pyright: reportMissingImports=false

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pyreft
import torch
import transformers
from safetensors.torch import save_file

from support.pyreft_recorded import CASES, DIM, FOLDER, IDS, LR, PLACES, RANK, SIZE, STEPS, Case, base, states


def build(case: Case) -> Any:
    model = base(case.model)
    places = PLACES[case.positions]
    cls = getattr(pyreft, f"{case.kind}Intervention")
    listed = []
    for layer in [layer for _ in places for layer in case.layers]:
        path = "%" in case.component
        listed.append(
            ({} if path else {"layer": layer})
            | {
                "component": case.component % layer if path else case.component,
                "low_rank_dimension": RANK,
                "intervention": cls(
                    embed_dim=SIZE["hidden_size"],
                    low_rank_dimension=RANK,
                    dtype=torch.float32,
                    add_bias=case.bias,
                    dropout=0.05,
                ),
            }
        )
    reft = pyreft.get_reft_model(model, pyreft.ReftConfig(representations=listed))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(bool(case.trained) and name.startswith(case.trained))
    return reft


def logits(reft: Any, case: Case) -> torch.Tensor:
    places = [columns for columns in PLACES[case.positions] for _ in case.layers]
    located = {"sources->base": (None, [[columns] * len(IDS) for columns in places])}
    return reft({"input_ids": IDS}, unit_locations=located)[1].logits


def train(reft: Any, case: Case) -> None:
    """A few steps towards other logits, so that nothing stands at its start."""
    reft.train()
    wanted = logits(reft, case).detach().flip(0) * 3
    own = [p for each in reft.interventions.values() for p in each.parameters()]
    optimizer = torch.optim.Adam([*own, *(p for p in reft.model.parameters() if p.requires_grad)], lr=3e-2)
    for _ in range(4):
        optimizer.zero_grad()
        (logits(reft, case) - wanted).pow(2).mean().backward()
        optimizer.step()
    reft.eval()
    for each in reft.interventions.values():
        each.eval()  # pyvene's eval leaves their dropout on


def record() -> None:
    answers = {}
    for name, case in CASES.items():
        torch.manual_seed(0)
        reft = build(case)
        train(reft, case)
        shutil.rmtree(FOLDER / name, ignore_errors=True)
        reft.save(str(FOLDER / name), include_model=bool(case.trained))
        with torch.no_grad():
            answers[name] = logits(reft, case).contiguous()
            answers[f"base.{case.model}"] = base(case.model)(input_ids=IDS).logits.contiguous()
    save_file(answers, FOLDER / "logits.safetensors")
    save_file(turning(), FOLDER / "turning.safetensors")


def turning() -> dict[str, torch.Tensor]:
    """LoReFT's start, the length of each step of R and the loss over steps of Adam, and what a dropout of .5 gives."""
    torch.manual_seed(0)
    edit = pyreft.LoreftIntervention(embed_dim=DIM, low_rank_dimension=4, dtype=torch.float32)
    start = edit.rotate_layer.weight.detach().clone()
    source = {key: each.detach().clone() for key, each in edit.learned_source.named_parameters()}
    optimizer, (h, wanted) = torch.optim.Adam(edit.parameters(), lr=LR), states()
    moves, far, losses, old = [], [], [], start
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = (edit(h) - wanted).pow(2).mean()
        loss.backward()
        optimizer.step()
        new = edit.rotate_layer.weight.detach().clone()
        moves.append((new - old).norm())
        far.append((new - start).norm())
        losses.append(loss.detach())
        old = new
    dropping = pyreft.LoreftIntervention(embed_dim=DIM, low_rank_dimension=4, dtype=torch.float32, dropout=0.5)
    dropping.load_state_dict({"rotate_layer": start, **source})
    told = {"moves": torch.stack(moves), "far": torch.stack(far), "losses": torch.stack(losses)}
    told |= {"dropped": dropping(h[:4]).detach(), "kept": dropping.eval()(h[:4]).detach()}
    return {"R": start.mT.contiguous(), "W": source["weight"], "b": source["bias"], **told}


def columns(positions: str) -> list[int]:
    """The columns that one group of positions edits, of rows without padding."""
    every = list(range(IDS.shape[1]))
    ends = {each[0]: int(each[1:]) for each in positions.split("+") if each != "all"}
    return every if not ends else [*every[: ends.get("f", 0)], *every[len(every) - ends.get("l", 0) :]]


def read(bases: Path, out: Path) -> None:
    """Answers with the folders that we wrote, and with ReftModel.load where it gives the same interventions."""
    answers = {}
    for folder in sorted(each for each in out.iterdir() if each.is_dir()):
        told = json.loads((folder / "config.json").read_text())
        name = folder.name.partition("-")[0]
        cls = getattr(transformers, json.loads((bases / name / "config.json").read_text())["architectures"][0])
        listed, located = [], []
        for place, kind, key in zip(
            told["representations"], told["intervention_types"], told["sorted_keys"], strict=True
        ):
            made = getattr(pyreft, kind.split(".")[-1].removesuffix("'>"))(
                embed_dim=16, low_rank_dimension=place[4], dtype=torch.float32, add_bias=False
            )
            made.load_state_dict(torch.load(folder / f"intkey_{key}.bin"))
            number = {"layer": place[0]} if place[1].startswith("block_") else {}
            listed.append(number | {"component": place[1], "low_rank_dimension": place[4], "intervention": made})
            located.append([columns(told["luthier_positions"][int(key.rpartition("#")[2])])] * len(IDS))
        reft = pyreft.get_reft_model(
            cls.from_pretrained(bases / name).eval(), pyreft.ReftConfig(representations=listed)
        )
        assert list(reft.interventions) == told["sorted_keys"], folder
        if (beside := folder / "pytorch_model.bin").exists():
            reft.model.load_state_dict(torch.load(beside), strict=False)
        reft.eval()
        where = {"sources->base": (None, located)}
        with torch.no_grad():
            answers[folder.name] = reft({"input_ids": IDS}, unit_locations=where)[1].logits.contiguous()
            if "Consreft" in told["intervention_types"][0]:
                loaded = pyreft.ReftModel.load(str(folder), cls.from_pretrained(bases / name).eval())
                assert torch.equal(loaded({"input_ids": IDS}, unit_locations=where)[1].logits, answers[folder.name])
    save_file(answers, out / "logits.safetensors")


if __name__ == "__main__":
    record() if len(sys.argv) == 1 else read(Path(sys.argv[1]), Path(sys.argv[2]))
