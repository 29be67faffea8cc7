"""The router's plugin."""

from __future__ import annotations

from collections.abc import Sequence

from dsv3export.plugins.kernels.plugin import Attributes, Build, Launch, Plugin, Port, TensorType, Tile, arguments
from dsv3export.plugins.kernels.sizes import known, power_of_two


def _routed(inputs: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    shape = (inputs[0].shape[0], int(attributes["k"]))
    return TensorType("I32", shape), TensorType("F32", shape)


def _route(
    inputs: Sequence[TensorType], outputs: Sequence[TensorType], attributes: Attributes, tile: Tile, target: int
) -> Launch:
    logits, bias = inputs
    tokens, experts = logits.shape[0], known(logits.shape[1])
    groups, k = int(attributes["n_group"]), int(attributes["k"])
    members = experts // groups
    build = Build(
        "dsv3export.plugins.moe_route.kernel:moe_route",
        arguments({"logits": logits, "bias": bias}, (), {"ids": outputs[0], "weights": outputs[1]}),
        (
            ("GROUPS", groups),
            ("MEMBERS", members),
            ("GROUPS_PADDED", power_of_two(groups)),
            ("MEMBERS_PADDED", power_of_two(members)),
            ("KEPT", int(attributes["topk_group"])),
            ("GROUP_TOP", int(attributes["group_top"])),
            ("K", k),
            ("K_PADDED", power_of_two(k)),
            ("SCORING", str(attributes["scoring"])),
            ("NORMALIZE", bool(attributes["normalize"])),
            ("SCALING", float(attributes["scaling"])),
        ),
        tile.warps,
        tile.stages,
    )
    return Launch(build, (tokens, 1, 1))


MOE_ROUTE = Plugin(
    name="MoERoute",
    doc="logits [T, E], bias [E] -> ids int32 [T, k], weights [T, k], as `dsv3::moe_route`.",
    inputs=(Port("logits", ("F32",)), Port("bias", ("F32",))),
    attributes=(
        ("k", int),
        ("n_group", int),
        ("topk_group", int),
        ("group_top", int),
        ("scoring", str),
        ("normalize", int),
        ("scaling", float),
    ),
    results=("ids", "weights"),
    outputs=_routed,
    launch=_route,
    tiles=(Tile(1, warps=1, stages=1), Tile(1, warps=2, stages=1)),
)
