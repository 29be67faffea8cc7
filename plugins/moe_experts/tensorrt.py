"""The plugins of routed experts: order, gate and up with SwiGLU, down, and the weighted sum; in every format."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from dsv3export.plugins.kernels.plugin import (
    ACTIVATIONS,
    Attributes,
    Build,
    Call,
    Launch,
    Plugin,
    Port,
    T,
    TensorType,
    Tile,
    arguments,
    matrix,
)
from dsv3export.plugins.kernels.sizes import at_most, ceil_div, known, power_of_two
from dsv3export.plugins.kernels.stored import NATIVE_E4M3, Stored, absent, as_bytes, swapped, weight_ports
from dsv3export.plugins.linear_fp8_block.tensorrt import QUANTISE_ACTIVATIONS

_KERNELS = "dsv3export.plugins.moe_experts.kernel"
FEW, MANY = 16, 64
"""Rows of a block of one expert's slots: for a few tokens of each expert, and for many."""
# Bins that a warp's histogram has at least.
_LEAST_BINS = 32
_IDS_AT_A_TIME = 1024
# Sums that a thread keeps at most; the products and the scales of a step take as many registers again.
_WARP, _SUMS = 32, 32
_TILES = (Tile(1, 64, stages=3), Tile(1, 64, 64), Tile(1, 128, 64, warps=8))


def _preferred(format_: str, _: Sequence[TensorType], attributes: Attributes, __: int) -> int:
    """Half the depth where three stages of plain numbers would not fit everywhere."""
    return int(format_ == "plain" and int(attributes["block"]) > FEW)


def _ordered(inputs: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    """Each expert that is chosen fills up at most block - 1 rows; no more are chosen than there are choices."""
    tokens, choices = inputs[0].shape
    experts, block = int(attributes["experts"]), int(attributes["block"])
    slots = tokens * choices
    blocks = ceil_div(slots + at_most(slots, experts) * (block - 1), block)
    return TensorType("I32", (blocks * block,)), TensorType("I32", (blocks,))


def _order(
    inputs: Sequence[TensorType], outputs: Sequence[TensorType], attributes: Attributes, tile: Tile, target: int
) -> Launch:
    (ids,) = inputs
    slots, owners = outputs
    experts = int(attributes["experts"])
    build = Build(
        f"{_KERNELS}:moe_order",
        arguments({"ids": ids}, ("count", "blocks"), {"slots": slots, "owners": owners}),
        (
            ("E", experts),
            ("E_PADDED", power_of_two(experts + 1, _LEAST_BINS)),
            ("BLOCK", int(attributes["block"])),
            ("CHUNK", _IDS_AT_A_TIME),
        ),
        tile.warps,
        tile.stages,
    )
    return Launch(build, (experts, 1, 1), (ids.shape[0] * ids.shape[1], owners.shape[0]))


MOE_ORDER = Plugin(
    name="MoEOrder",
    doc="ids [T, k] -> slots (t * k + j) in expert order, each expert's filled up to blocks with -1; each block's "
    "expert, or -1.",
    inputs=(Port("ids", ("I32", "I64")),),
    attributes=(("experts", int), ("block", int)),
    results=("slots", "owners"),
    outputs=_ordered,
    launch=_order,
    tiles=(Tile(1, stages=1),),
)


def _stored(format_: str, attributes: Attributes) -> Stored:
    return Stored.of_integers(attributes) if format_ == "int" else Stored(format_)


def _hidden(format_: str, inputs: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    x, gate = inputs[0], inputs[4 if format_ == "rounded" else 3]
    dtype = str(attributes["dtype"]) if format_ == "rounded" else x.dtype
    return (TensorType(dtype, (x.shape[0] * int(attributes["k"]), gate.shape[1])),)


def _each(format_: str, inputs: Sequence[TensorType], attributes: Attributes) -> tuple[TensorType, ...]:
    hidden, down = inputs[0], inputs[4 if format_ == "rounded" else 3]
    dtype = str(attributes["dtype"]) if format_ == "rounded" else hidden.dtype
    return (TensorType(dtype, (hidden.shape[0], down.shape[1])),)


def _product(
    format_: str,
    kernel: str,
    banks: Sequence[str],
    names: Sequence[str],
    inputs: Sequence[TensorType],
    outputs: Sequence[TensorType],
    attributes: Attributes,
    tile: Tile,
    target: int,
) -> Launch:
    """The launch of `moe_gate_up` or `moe_down`; "rounded" is e4m3 on both sides."""
    stored = Stored("fp8") if format_ == "rounded" else _stored(format_, attributes)
    tensors = dict(zip(names, inputs, strict=True))
    if format_ == "int":
        tensors = as_bytes(tensors, [*banks, *(f"{bank}_zero" for bank in banks)])
    _, inner = matrix(inputs[0])
    columns = known(tensors[banks[0]].shape[1])
    numbers, scales, zeros = stored.steps(columns, inner)
    optional = (f"{names[0]}_scale", *(f"{bank}_{part}" for bank in banks for part in ("scale", "zero")))
    (output,) = outputs
    rows = int(attributes["block"])
    choices = (("CHOICES", int(attributes["k"])),) if "up" in banks else ()
    build = Build(
        f"{_KERNELS}:{kernel}",
        arguments(tensors, (), {"hidden" if "up" in banks else "each": output}, stored.raw(banks, target)),
        (
            *absent(optional, names),
            *choices,
            *(
                (name, swapped(rows) if name == "SWAPPED" and format_ == "rounded" else value)
                for name, value in stored.constants(tile, rows, columns, inner)
            ),
            ("NUMBERS", numbers),
            ("SCALES", scales),
            ("ZEROS", zeros),
        ),
        max(tile.warps, rows * tile.columns * len(banks) // (_WARP * _SUMS)),
        tile.stages,
    )
    return Launch(build, (ceil_div(columns, tile.columns), tensors["owners"].shape[0], 1))


def _ports(format_: str, first: str, banks: Sequence[str], zero: bool) -> tuple[Port, ...]:
    stored = {"int": "int8", "rounded": "fp8"}.get(format_, format_)
    rows = (Port(first, ("F8_E4M3",)), Port(f"{first}_scale", ("F32",))) if format_ == "rounded" else None
    return (
        *(rows or (Port(first, ACTIVATIONS),)),
        Port("slots", ("I32",)),
        Port("owners", ("I32",)),
        *(port for bank in banks for port in weight_ports(bank, stored, zero)),
    )


def _attributes(format_: str, *names: str) -> tuple[tuple[str, type[int] | type[float] | type[str]], ...]:
    more: dict[str, tuple[tuple[str, type[int] | type[float] | type[str]], ...]] = {
        "int": (("bits", int), ("group", int), ("activations", str)),
        "rounded": (("dtype", str),),
    }
    return (*((name, int) for name in names), *more.get(format_, ()))


def _plugins(suffix: str, format_: str, zero: bool = False) -> tuple[Plugin, Plugin]:
    least = NATIVE_E4M3 if format_ == "rounded" else 80
    gate_up, down = ("gate", "up"), ("down",)
    first_ports, second_ports = _ports(format_, "x", gate_up, zero), _ports(format_, "hidden", down, zero)
    # Unpacking takes the registers that wider tiles would.
    tiles = _TILES[:2] if format_ == "int" else _TILES
    first_names, second_names = [port.name for port in first_ports], [port.name for port in second_ports]
    return (
        Plugin(
            name=f"MoEGateUp{suffix}",
            doc="hidden[slot] = silu(gate_e @ x[t]) * (up_e @ x[t]) for x [T, D]: [T * k, I].",
            inputs=first_ports,
            attributes=_attributes(format_, "k", "block"),
            results=("hidden",),
            outputs=partial(_hidden, format_),
            launch=partial(_product, format_, "moe_gate_up", gate_up, first_names),
            tiles=tiles,
            prefer=partial(_preferred, format_),
            least=least,
        ),
        Plugin(
            name=f"MoEDown{suffix}",
            doc="each[slot] = down_e @ hidden[slot]: [T * k, D].",
            inputs=second_ports,
            attributes=_attributes(format_, "block"),
            results=("each",),
            outputs=partial(_each, format_),
            launch=partial(_product, format_, "moe_down", down, second_names),
            tiles=tiles,
            prefer=partial(_preferred, format_),
            least=least,
        ),
    )


PRODUCTS = {
    "plain": _plugins("", "plain"),
    "fp8": _plugins("Fp8", "fp8"),
    "rounded": _plugins("Fp8Rounded", "rounded"),
    "int": _plugins("Int", "int"),
    "int with zero points": _plugins("IntZero", "int", zero=True),
}
"""Format -> the plugins for gate and up, and for down."""


def _combined(inputs: Sequence[TensorType], _: Attributes) -> tuple[TensorType, ...]:
    each, weights = inputs
    return (TensorType(each.dtype, (weights.shape[0], each.shape[1])),)


def _combine(
    inputs: Sequence[TensorType], outputs: Sequence[TensorType], _: Attributes, tile: Tile, target: int
) -> Launch:
    each, weights = inputs
    width = known(each.shape[1])
    columns = min(tile.columns, power_of_two(width))
    build = Build(
        f"{_KERNELS}:moe_combine",
        arguments({"each": each, "weights": weights}, (), {"y": outputs[0]}),
        (("CHOICES", known(weights.shape[1])), ("N", width), ("COLUMNS", columns)),
        tile.warps,
        tile.stages,
    )
    return Launch(build, (weights.shape[0], ceil_div(width, columns), 1))


MOE_COMBINE = Plugin(
    name="MoECombine",
    doc="y[t] = sum over j of weights[t, j] * each[t * k + j]: [T, D], j ascending.",
    inputs=(Port("each", ACTIVATIONS), Port("weights", ("F32",))),
    results=("y",),
    outputs=_combined,
    launch=_combine,
    tiles=(Tile(1, 1024, stages=1), Tile(1, 256, stages=1)),
)

PLUGINS = (MOE_ORDER, *(plugin for pair in PRODUCTS.values() for plugin in pair), MOE_COMBINE)


def through_experts(
    call: Call[T],
    x: T,
    ids: T,
    weights: T,
    banks: tuple[Sequence[T], Sequence[T], Sequence[T]],
    format_: str,
    experts: int,
    k: int,
    block: int,
    dtype: str,
    **attributes: int | str,
) -> T:
    """The weighted sum of the experts' SwiGLU MLPs, as `dsv3::moe_experts` and its kin define it: [T, D].

    Args:
        banks: gate, up and down: each the numbers, and its scales and zero points if it has any.
        format_: A key of `PRODUCTS`.
        block: Rows that go through an expert together: `FEW` or `MANY`.
        dtype: Of x.
        attributes: bits, group and activations of integer weights.
    """
    gate_up, down = PRODUCTS[format_]
    rounded = format_ == "rounded"
    more = {**attributes, **({"dtype": dtype} if rounded else {})}
    slots, owners = call(MOE_ORDER, (ids,), experts=experts, block=block)
    rows = call(QUANTISE_ACTIVATIONS, (x,)) if rounded else (x,)
    (hidden,) = call(gate_up, (*rows, slots, owners, *banks[0], *banks[1]), k=k, block=block, **more)
    rows = call(QUANTISE_ACTIVATIONS, (hidden,)) if rounded else (hidden,)
    (each,) = call(down, (*rows, slots, owners, *banks[2]), block=block, **more)
    (y,) = call(MOE_COMBINE, (each, weights))
    return y
