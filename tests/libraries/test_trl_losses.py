"""TRL as the oracle of objectives over preferences: the same loss and gradient on the same logits, in float64."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from luthier.core.contracts.objective import REFERENCE, Objective, labels_of
from luthier.methods.objectives.cpo import CPO
from luthier.methods.objectives.distill import TAUGHT, Distill, answered
from luthier.methods.objectives.dpo import DPO
from luthier.methods.objectives.kto import KTO, WANTED
from luthier.methods.objectives.orpo import ORPO
from luthier.methods.objectives.reward import MARGIN, Reward
from luthier.methods.objectives.simpo import SimPO

trl = pytest.importorskip("trl")
PAIRS, LENGTH, WORDS = 5, 9, 17
CLOSE = {"rtol": 0, "atol": 1e-9}


class Fixed(nn.Module):
    """A model whose logits are given."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, **inputs):
        labels = inputs.get("labels")
        if labels is None:
            return SimpleNamespace(logits=self.logits)
        logps = token_log_probs(self.logits, labels)
        told = {"entropy": logps * 0, "mean_logits": logps * 0, "is_top1": logps > 0}  # for TRL's metrics alone
        return SimpleNamespace(logits=self.logits, log_probs=logps, **told)


def token_log_probs(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """[rows, T - 1], 0 where there is no label."""
    wanted = labels[:, 1:]
    found = logits[:, :-1].log_softmax(-1).gather(-1, wanted.clamp(min=0)[..., None])[..., 0]
    return found * wanted.ne(-100)


@pytest.fixture
def given():
    """Logits [2 pairs, T, V], labels whose answers have different lengths, padded rows among them, and a reference."""
    draw = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2 * PAIRS, LENGTH, WORDS, generator=draw, dtype=torch.float64)
    labels = torch.randint(0, WORDS, (2 * PAIRS, LENGTH), generator=draw)
    for row in range(2 * PAIRS):
        labels[row, : 2 + row % 3] = -100
        labels[row, LENGTH - row % 4 :] = -100
    reference = token_log_probs(logits + torch.randn(logits.shape, generator=draw).double(), labels).sum(1)
    return logits, labels, reference


def ours(objective: Objective, logits: torch.Tensor, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
    logits = logits.clone().requires_grad_()
    means = objective.loss(Fixed(logits), batch)
    counts = objective.token_counts(batch, labels_of(batch, True)) if "labels" in batch else torch.ones(1)
    loss = (means * objective.part_weights(counts, {}).to(means.dtype)).sum()
    return loss.detach(), torch.autograd.grad(loss, logits)[0]


def theirs(logits: torch.Tensor, loss_of) -> tuple[torch.Tensor, torch.Tensor]:
    logits = logits.clone().requires_grad_()
    loss = loss_of(logits)
    return loss.detach(), torch.autograd.grad(loss, logits)[0]


def equal(left: tuple[torch.Tensor, torch.Tensor], right: tuple[torch.Tensor, torch.Tensor]) -> None:
    assert left[1].abs().sum() > 0
    for ours_, theirs_ in zip(left, right, strict=True):
        torch.testing.assert_close(ours_, theirs_, **CLOSE)


def trainer(**settings):
    """What stands for TRL's trainer: its methods read nothing else."""
    accelerator = SimpleNamespace(device=torch.device("cpu"), gather_for_metrics=lambda x: x, gather=lambda x: x)
    usual = {
        "accelerator": accelerator, "model": SimpleNamespace(training=True), "aux_loss_enabled": False,
        "ld_alpha": None, "precompute_ref_logps": True, "use_weighting": False, "f_divergence_type": "reverse_kl",
        "_tp_size": 1, "_total_train_tokens": 0, "_metrics": {"train": defaultdict(list)},
    }  # fmt: skip
    return SimpleNamespace(**{**usual, **settings})


def sides(values: torch.Tensor) -> torch.Tensor:
    """All chosen, then all rejected."""
    return torch.cat([values[0::2], values[1::2]])


@pytest.mark.parametrize("beta", [0.1, 0.7])
@pytest.mark.parametrize("variant", ["sigmoid", "hinge", "ipo"])
def test_dpo(given, variant, beta):
    logits, labels, reference = given

    def loss_of(logits):
        mask = labels.ne(-100)
        inputs = {"input_ids": labels.clamp(min=0), "attention_mask": torch.ones_like(labels), "completion_mask": mask}
        inputs = {key: sides(value) for key, value in inputs.items()}
        chosen, rejected = reference[0::2], reference[1::2]
        inputs |= {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
        it = trainer(loss_types=[variant], loss_weights=[1.0], beta=beta)
        return trl.DPOTrainer._compute_loss(it, Fixed(sides(logits)), inputs, False)

    batch = {"labels": labels, REFERENCE: reference}
    equal(ours(DPO(beta=beta, variant=variant), logits, batch), theirs(logits, loss_of))


@pytest.mark.parametrize(("alpha", "smoothing"), [(0.0, 0.0), (1.0, 0.2)])
def test_cpo(given, alpha, smoothing):
    logits, labels, _ = given
    equal(ours(CPO(0.3, alpha, smoothing), logits, {"labels": labels}),
          theirs(logits, cpo("sigmoid", labels, alpha, beta=0.3, label_smoothing=smoothing)))  # fmt: skip


def test_simpo(given):
    logits, labels, _ = given
    equal(ours(SimPO(2.0, 0.9), logits, {"labels": labels}),
          theirs(logits, cpo("simpo", labels, 0.0, beta=2.0, simpo_gamma=0.9, label_smoothing=0.0)))  # fmt: skip


def cpo(kind: str, labels: torch.Tensor, alpha: float, **settings):
    from trl.experimental.cpo import CPOTrainer

    def loss_of(logits):
        logps = CPOTrainer.get_batch_logps(logits, labels.clone(), average_log_prob=kind == "simpo")
        losses, *_ = CPOTrainer.cpo_loss(trainer(loss_type=kind, alpha=0.0, **settings), logps[0::2], logps[1::2])
        return losses.mean() + alpha * fine_tuning(logits, labels)

    return loss_of


def fine_tuning(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """torch's cross-entropy of the chosen answers, as TRL takes it."""
    return nn.functional.cross_entropy(logits[0::2, :-1].flatten(0, 1), labels[0::2, 1:].flatten())


def test_orpo(given, monkeypatch):
    """TRL rounds the log-probabilities to float32 first, which is taken back here; its prompts are no part of it.

    Weights of parts are held in float32, where a half is a half.
    """
    from trl.experimental.orpo import ORPOTrainer

    logits, labels, _ = given
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)

    def loss_of(logits):
        logps = ORPOTrainer.get_batch_logps(logits, labels, average_log_prob=True)
        losses, *_ = ORPOTrainer.odds_ratio_loss(trainer(beta=0.5), logps[0::2], logps[1::2])
        return fine_tuning(logits, labels) - losses.mean()

    equal(ours(ORPO(lam=0.5), logits, {"labels": labels}), theirs(logits, loss_of))


@pytest.mark.parametrize("shift", [-3.0, 3.0])
def test_kto(given, shift):
    """With an estimate of the KL divergence that is positive, and with one that is cut to 0."""
    logits, labels, reference = given
    reference[1::2] = token_log_probs(logits, labels).sum(1)[1::2] - shift
    wanted = torch.tensor([1, 0, 0, 1, 1])

    def loss_of(logits):
        crossed = token_log_probs(logits, labels)[1::2].sum(1).detach()
        inputs = {"input_ids": labels.clamp(min=0), "attention_mask": torch.ones_like(labels)}
        inputs |= {"completion_mask": labels.ne(-100), "ref_logps": reference, "ref_KL_logps": reference[1::2]}
        own = {key: value[0::2] if len(value) > PAIRS else value for key, value in inputs.items()} | {"label": wanted}
        it = trainer(beta=0.2, loss_type="kto", calculate_KL=True, desirable_weight=1.3, undesirable_weight=0.8)
        it._compute_kl_logps = lambda model, batch: crossed
        return trl.KTOTrainer._compute_loss(it, Fixed(logits[0::2]), own, False)

    class Halves(Fixed):
        """The rows, then those with other answers."""

        def forward(self, **inputs):
            rows = slice(0, None, 2) if torch.equal(inputs["labels"], labels[0::2]) else slice(1, None, 2)
            return Fixed(self.logits[rows])(**inputs)

    batch = {"labels": labels, REFERENCE: reference, WANTED: wanted.repeat_interleave(2)}
    mine = logits.clone().requires_grad_()
    loss = KTO(beta=0.2, wanted=1.3, unwanted=0.8).loss(Halves(mine), batch)
    equal((loss.detach(), torch.autograd.grad(loss, mine)[0]), theirs(logits, loss_of))


@pytest.mark.parametrize("center", [0.0, 0.05])
@pytest.mark.parametrize("margins", [False, True])
def test_reward(margins, center):
    draw = torch.Generator().manual_seed(1)
    scores = torch.randn(2 * PAIRS, 1, generator=draw, dtype=torch.float64)
    margin = torch.rand(PAIRS, generator=draw, dtype=torch.float64)

    def loss_of(scores):
        inputs = {"attention_mask": torch.ones(2 * PAIRS, 3), **({"margin": margin} if margins else {})}
        it = trainer(args=SimpleNamespace(center_rewards_coefficient=center or None))
        return trl.RewardTrainer.compute_loss(it, Fixed(sides(scores)), inputs)

    batch = {MARGIN: margin.repeat_interleave(2)} if margins else {}
    equal(ours(Reward(center=center), scores, batch), theirs(scores, loss_of))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize(("divergence", "beta"), [("forward", 0.0), ("reverse", 1.0), ("jsd", 0.5), ("jsd", 0.2)])
def test_distill(given, divergence, beta, temperature):
    """TRL's β of 0 and 1 are the forward and the reverse divergence."""
    from trl.experimental.gkd import GKDTrainer

    logits, labels, _ = given
    teacher = logits.flip(0) + 0.3
    settings = {"beta": beta} if divergence == "jsd" else {}
    chosen = Distill(teacher="some", divergence=divergence, temperature=temperature, **settings)

    def loss_of(logits):
        return GKDTrainer.generalized_jsd_loss(
            logits[:, :-1], teacher[:, :-1], labels[:, 1:], beta=beta, temperature=temperature
        )

    batch = {"labels": labels, TAUGHT: answered(teacher, labels)}
    equal(ours(chosen, logits, batch), theirs(logits, loss_of))
