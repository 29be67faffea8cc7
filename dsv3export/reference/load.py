"""Fills the reference model with a checkpoint's weights."""

from __future__ import annotations

import torch

from dsv3export.checkpoint import Checkpoint
from dsv3export.checkpoint.model_weights import load_float32
from dsv3export.reference.model import ReferenceModel


def load_reference(checkpoint: Checkpoint) -> ReferenceModel:
    """The reference model in float32, with every parameter read from the checkpoint (FP8 times its scales)."""
    with torch.device("meta"):
        model = ReferenceModel(checkpoint.config)
    state = {
        name: torch.tensor(load_float32(_weight_name(name, checkpoint.config.num_hidden_layers), checkpoint))
        for name in model.state_dict()
    }
    model.load_state_dict(state, assign=True)
    return model.eval()


def _weight_name(parameter: str, layers: int) -> str:
    """The parameter's name in the checkpoint: the layer kinds are modules of their own here, flat there."""
    owner, _, rest = parameter.partition(".")
    if owner == "mtp":
        index, _, rest = rest.partition(".")
        return f"model.layers.{layers + int(index)}.{rest}"
    if owner == "layers":
        return f"model.{parameter}"
    return rest if rest.startswith(("lm_head.", "rotary.")) else f"model.{rest}"
