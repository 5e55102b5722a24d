"""The personalised regimes: what each trains, on three architectures, and what their steps cost."""

from __future__ import annotations

import pytest

import luthier as lt
from luthier.core.adapters.flops import backward_costs, probing_loss
from luthier.core.adapters.training_plan import training_plan
from luthier.methods.recipe import read_recipe
from support.architectures import ARCHITECTURES

EMBEDDINGS = {
    "llama": {"model.embed_tokens.weight", "lm_head.weight"},
    "gpt2": {"transformer.wte.weight"},  # the head is the same tensor
    "t5": {"shared.weight"},
}
LAST = {"llama": ("model.layers.2.",), "gpt2": ("transformer.h.2.",), "t5": ("encoder.block.1.", "decoder.block.1.")}


def cost(name: str, where: str) -> tuple[set[str], int]:
    """The parameters that a regime trains, and the operations of its step."""
    model = ARCHITECTURES[name].build()
    held = {id(p): path for path, p in reversed(list(model.named_parameters(remove_duplicate=False)))}
    paths = set(held.values())
    lt.attach(model, lt.Full(), where, check=False)
    plan = training_plan(model, 1)
    trained = {group.site.path for group in plan.groups}
    assert trained <= paths
    costs = backward_costs(lambda: probing_loss(model), plan.groups)
    return trained, costs.of([group.name for group in plan.groups])


@pytest.mark.parametrize("name", list(EMBEDDINGS))
def test_regimes_train_their_sets_and_cost_less_in_this_order(name):
    recipes = {part: read_recipe(f"personal-{part}").where for part in ("full", "embeddings", "last-block")}
    every = {path for path, _ in ARCHITECTURES[name].build().named_parameters()}
    whole, all_of_it = cost(name, recipes["full"])
    tables, with_tables = cost(name, recipes["embeddings"])
    block, last = cost(name, recipes["last-block"])
    assert whole == every and tables == EMBEDDINGS[name]
    assert block == {path for path in every if path.startswith(LAST[name])}
    assert all_of_it > with_tables and all_of_it > last
    if name == "llama":
        _, head = cost(name, "params(lm_head.*)")
        assert last > head and with_tables > last, "embeddings take the backward pass to the bottom"


def test_the_prefix_regime_trains_keys_and_values_alone():
    recipe = read_recipe("personal-prefix")
    assert recipe.method == "prefix"
    model = lt.attach(ARCHITECTURES["llama"].build(), lt.Prefix())
    assert lt.trainable(model) and not any(".theta" in key for key in lt.trainable(model))
