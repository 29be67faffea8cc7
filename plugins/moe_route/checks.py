"""Checks of the router: DeepSeek-V3's and V2's ways, ties, negative biased scores, sizes that are no powers of two."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv3export.plugins.kernels.checks import Check, Pairs
from dsv3export.plugins.kernels.plugin import Attribute, Call
from dsv3export.plugins.kernels.samples import Samples
from dsv3export.plugins.moe_route.op import moe_route
from dsv3export.plugins.moe_route.tensorrt import MOE_ROUTE


def _route(
    name: str,
    tokens: int,
    experts: int,
    k: int,
    groups: tuple[int, int, int] = (1, 1, 1),
    scoring: str = "sigmoid",
    normalize: int = 1,
    offset: float = 0.0,
    copies_of: int | None = None,
) -> tuple[Check, Check]:
    """`groups`: n_group, topk_group, group_top. With `copies_of` n expert e scores exactly as expert e % n does."""
    n_group, topk_group, group_top = groups
    attributes: dict[str, Attribute] = {
        "k": k,
        "n_group": n_group,
        "topk_group": topk_group,
        "group_top": group_top,
        "scoring": scoring,
        "normalize": normalize,
        "scaling": 2.5,
    }

    def outputs(call: Call[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        random = Samples(name)
        source = torch.arange(experts) % (copies_of or experts)
        logits = torch.zeros(tokens, experts) if copies_of else random.normal(tokens, experts, scale=2.0)
        bias = (random.normal(experts, scale=0.3) + offset)[source]
        return call(MOE_ROUTE, (logits, bias), **attributes), moe_route(logits, bias, **attributes)

    def compare_ids(call: Call[Tensor], _: str) -> Pairs:
        results, expected = outputs(call)
        return [(results[0], expected[0])]

    def compare_weights(call: Call[Tensor], _: str) -> Pairs:
        results, expected = outputs(call)
        return [(results[1], expected[1])]

    return (
        Check("MoERoute", f"{name}: experts", compare_ids, dtypes=("F32",), exact=True),
        Check("MoERoute", f"{name}: weights", compare_weights, dtypes=("F32",)),
    )


CHECKS = (
    *_route("DeepSeek-V3", 5, 256, 8, (8, 4, 2)),
    *_route("one token, negative biased scores", 1, 64, 6, (4, 2, 2), offset=-2.0),
    *_route("barely negative", 9, 16, 7, (4, 2, 2), offset=-0.6),
    *_route("DeepSeek-V2", 7, 160, 6, (8, 3, 1), "softmax", normalize=0),
    *_route("V2-Lite, one group", 3, 64, 6, (1, 1, 1), "softmax", normalize=0),
    *_route("three groups of five", 6, 15, 4, (3, 2, 2)),
    *_route("ties between groups", 4, 16, 4, (4, 2, 2), copies_of=4),
    *_route("ties within groups", 4, 16, 4, (2, 1, 2), copies_of=3),
    *_route("one expert", 2, 1, 1),
)
