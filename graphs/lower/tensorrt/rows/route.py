"""dsv3::MoERoute as TensorRT layers, in float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from dsv3export.graphs.lower.tensorrt.emit import Emitter
from dsv3export.graphs.lower.tensorrt.objects import ITensor
from dsv3export.graphs.lower.tensorrt.row import Key, Row
from dsv3export.plugins.registry import DOMAIN


def _moe_route(emitter: Emitter, node: ir.Node, inputs: Sequence[ITensor]) -> Sequence[ITensor]:
    """Group-limited top-k routing (DeepSeek-V3, section 2.1.2): ids int32 [T, k], best first, and weights [T, k]."""
    said = {attribute.name: attribute.value for attribute in node.attributes.values()}
    logits, bias = (emitter.cast(each, emitter.float32) for each in inputs)
    scores = emitter.activation("SIGMOID", logits) if said["scoring"] == "sigmoid" else emitter.softmax(logits, 1)
    choice = emitter.add(scores, bias)
    if said["n_group"] > 1:
        choice = _in_best_groups(emitter, choice, said["n_group"], said["topk_group"], said["group_top"])
    _, ids = emitter.topk(choice, said["k"], 1)
    weights = emitter.gather_elements(scores, ids, 1)
    if said["normalize"]:
        tiny = emitter.constant(np.full((1, 1), 1e-20, np.float32))
        weights = emitter.div(weights, emitter.add(emitter.reduce("SUM", weights, [1]), tiny))
    return [ids, emitter.mul(weights, emitter.constant(np.full((1, 1), said["scaling"], np.float32)))]


def _in_best_groups(emitter: Emitter, choice: ITensor, n_group: int, topk_group: int, group_top: int) -> ITensor:
    """choice [T, E] with the experts outside the best groups at -inf; a group's score is the sum of its best."""
    experts = int(choice.shape[1])
    grouped = emitter.reshape(choice, [-1, n_group, experts // n_group])
    best, _ = emitter.topk(grouped, group_top, 2)
    _, kept = emitter.topk(emitter.reduce("SUM", best, [2], keep=False), topk_group, 1)
    groups = emitter.constant(np.arange(n_group, dtype=np.int32).reshape(1, n_group, 1))
    is_kept = emitter.binary("EQUAL", groups, emitter.unsqueeze(kept, [1]))
    marks = emitter.reduce("MAX", emitter.cast(is_kept, emitter.float32), [2])
    eligible = emitter.binary("GREATER", marks, emitter.constant(np.zeros((1, 1, 1), np.float32)))
    nothing = emitter.constant(np.full((1, 1, 1), -np.inf, np.float32))
    return emitter.reshape(emitter.select(eligible, grouped, nothing), [-1, experts])


ROWS: Mapping[Key, Row] = {(DOMAIN, "MoERoute"): Row(_moe_route)}
