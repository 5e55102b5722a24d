"""A model built around given weights, without initialising any first."""

from __future__ import annotations

from typing import Any


def filled(model_class: Any, config: Any, state: dict[str, Any]) -> Any:
    """Returns `model_class(config)` holding exactly the tensors of `state`, tied where it ties."""
    import torch

    with torch.device("meta"):
        model = model_class(config)
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    return model
