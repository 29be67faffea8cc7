"""The pass that cuts layer kinds for one rank, with their weights, and puts collectives where ranks must speak.

Given -> Result, for a rank of two with two heads of four::

    q = dsv3::Linear(a, q_b_proj.weight: f32[384, 128])     q = dsv3::Linear(a, q_b_proj.weight: f32[192, 128])
    r = Reshape(q, [0, 0, 4, 96])                           r = Reshape(q, [0, 0, 2, 96])
    ..                                                      ..
    y = dsv3::Linear(o, o_proj.weight: f32[256, 256])       y = dsv3::Linear(o, o_proj.weight: f32[256, 128])
                                                            z = dsv3::AllReduce(y) {group="tensor"}
    add = Add(hidden, y)                                    add = Add(hidden, z)

Projections are cut as in Megatron-LM (Shoeybi et al. 2019): those into heads or a width by their rows, those out of it
by their columns, so that a rank computes a part of a sum. How values lie on the ranks is followed from node to node:

    whole     the same on each rank of the stage
    columns   a rank has its share of one axis
    sum       a rank has an addend of the sum over a group

Sums are added up as they are, so that routed and shared experts take one reduction; where something else wants the
value, it is reduced. A result of a kind is whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from dsv3export.engine.parallel import Coordinates, Group, Layout
from dsv3export.errors import InternalError
from dsv3export.graphs.rewrite import GraphWithWeights, KindRewriter, RewrittenKind, rebuild
from dsv3export.graphs.shard.slices import Axis, Share, cut_weights
from dsv3export.graphs.spec import dims_of, verify
from dsv3export.graphs.values import like
from dsv3export.plugins import DOMAIN


@dataclass(frozen=True)
class Columns:
    """A rank has one of `ways` equal parts of an axis (counted from 0)."""

    axis: int
    ways: int


@dataclass(frozen=True)
class Sum:
    """A rank has an addend of the sum over a group."""

    group: Group


# None: whole.
State = Columns | Sum | None
# Projections by the end of their module's path: along which axis, over which group.
_PROJECTIONS: Mapping[str, tuple[Axis, Group]] = {
    "self_attn.q_proj": ("rows", "tensor"),
    "self_attn.q_b_proj": ("rows", "tensor"),
    "self_attn.o_proj": ("columns", "tensor"),
    "mlp.gate_proj": ("rows", "stage"),
    "mlp.up_proj": ("rows", "stage"),
    "mlp.down_proj": ("columns", "stage"),
    "mlp.shared_experts.gate_proj": ("rows", "stage"),
    "mlp.shared_experts.up_proj": ("rows", "stage"),
    "mlp.shared_experts.down_proj": ("columns", "stage"),
    "lm_head": ("rows", "stage"),
    "shared_head.head": ("rows", "stage"),
}


def shard(before: GraphWithWeights, layout: Layout, rank: int) -> GraphWithWeights:
    """Cut the graph of the rank's stage for the rank; the given one stays as it is.

    The layout must divide the model (`dsv3export.sizing.parallel.check_layout`).
    """
    kinds: dict[str, RewrittenKind] = {}
    functions = []
    for function in before.model.functions.values():
        clone = function.clone()
        rewriter = KindRewriter(clone)
        if layout.stage > 1:
            _Sharding(rewriter, layout, layout.coordinates(rank)).run()
        kinds[clone.name] = rewriter.finish()
        functions.append(clone)
    after = rebuild(before, kinds, functions)
    verify(after.model)
    return after


class _Sharding:
    """Walks a kind and keeps the state of each value."""

    def __init__(self, rewriter: KindRewriter, layout: Layout, place: Coordinates) -> None:
        self._rewriter, self._function = rewriter, rewriter.function
        self._layout, self._place = layout, place
        self._states: dict[ir.Value, State] = {}
        self._wholes: dict[ir.Value, ir.Value] = {}

    def run(self) -> None:
        for node in list(self._function):
            if node.domain == DOMAIN:
                self._dsv3(node)
            else:
                self._standard(node)
        for place, value in enumerate(self._function.outputs):
            if self._states.get(value) is not None:
                self._function.outputs[place] = self._whole(value, None)

    def _share(self, group: Group) -> Share:
        _, e, t = self._place
        if group == "tensor":
            return Share(t, self._layout.tp)
        return Share(e * self._layout.tp + t, self._layout.stage)

    def _dsv3(self, node: ir.Node) -> None:
        path = node.metadata_props["dsv3.module"]
        if node.op_type.startswith("MlaAttention"):
            self._attention(node)
        elif node.op_type.startswith("MoEExperts"):
            self._experts(node)
        elif path in _PROJECTIONS:
            self._projection(node, *_PROJECTIONS[path])
        else:
            self._take_whole(node)

    def _projection(self, node: ir.Node, axis: Axis, group: Group) -> None:
        share = self._share(group)
        if share.ways == 1:
            self._take_whole(node)
            return
        x, y = _given(node.inputs[0]), node.outputs[0]
        if axis == "rows":
            self._take_whole(node)
            cut_weights(self._rewriter, node, "rows", share)
            self._set(y, Columns(len(dims_of(y)) - 1, share.ways))
            return
        if self._states.get(x) != Columns(len(dims_of(x)) - 1, share.ways):
            raise InternalError(f"{node.name}: its input is not cut as its weight is to be")
        cut_weights(self._rewriter, node, "columns", share)
        self._states[y] = Sum(group)

    def _attention(self, node: ir.Node) -> None:
        share = self._share("tensor")
        if share.ways == 1:
            self._take_whole(node)
            return
        if any(self._states.get(_given(value)) != Columns(2, share.ways) for value in node.inputs[:2]):
            raise InternalError(f"{node.name}: its queries are not cut by heads")
        cut_weights(self._rewriter, node, "heads", share)
        self._set(node.outputs[0], Columns(2, share.ways))

    def _experts(self, node: ir.Node) -> None:
        self._take_whole(node)
        layout, (_, e, t) = self._layout, self._place
        out = node.outputs[0]
        if layout.ep > 1:
            out = self._dispatched(node, Share(e, layout.ep))
            cut_weights(self._rewriter, node, "experts", Share(e, layout.ep))
        if layout.tp > 1:
            cut_weights(self._rewriter, node, "width", Share(t, layout.tp))
        self._states[out] = Sum("stage")

    def _dispatched(self, node: ir.Node, share: Share) -> ir.Value:
        """Give the experts' node the rows for this rank's experts only; returns what is in its result's place."""
        x, ids, weights = (_given(value) for value in node.inputs[:3])
        rows = node.outputs[0]
        first, end = share.of(int(dims_of(_given(node.inputs[3]))[0]))
        name = str(rows.name)
        width = dims_of(x)[1]
        parts: dict[str, tuple[ir.Value, list[int | str]]] = {
            "rows": (x, ["P", width]),
            "row_ids": (ids, ["P", 1]),
            "row_weights": (weights, ["P", 1]),
            "tokens": (ids, ["P"]),
        }
        sent = []
        for part, (source, dims) in parts.items():
            value = like(source, f"{name}.dispatch.{part}")
            value.shape = ir.Shape(dims)
            sent.append(value)
        attributes = {"first": first, "count": end - first}
        dispatch = self._node("ExpertDispatch", [x, ids, weights], attributes, sent, node, f"{name}.dispatch")
        self._function.insert_before(node, [dispatch])
        for port, value in enumerate(sent[:3]):
            node.replace_input_with(port, value)
        combined = like(rows)
        ir.convenience.replace_all_uses_with(rows, combined)
        rows.name, rows.shape = f"{name}.rows", ir.Shape(["P", width])
        combine = self._node("ExpertCombine", [rows, sent[3], x], {}, [combined], node, f"{name}.combine")
        self._function.insert_after(node, [combine])
        return combined

    def _standard(self, node: ir.Node) -> None:
        states = [self._states.get(value) if value is not None else None for value in node.inputs]
        if all(state is None for state in states):
            return
        added = node.op_type == "Add" and states[0] == states[1]
        if added or (isinstance(states[0], Sum) and node.op_type == "Reshape"):
            self._pass_on(node, states[0])
        elif isinstance(states[0], Columns) and node.op_type in _COLUMN_RULES:
            _COLUMN_RULES[node.op_type](node, states[0], states[1:])
            self._pass_on(node, states[0])
        else:
            self._take_whole(node)

    def _pass_on(self, node: ir.Node, state: State) -> None:
        for value in node.outputs:
            self._set(value, state)

    def _set(self, value: ir.Value, state: State) -> None:
        """Note a value's state; of one that is cut, the shape changes."""
        self._states[value] = state
        if isinstance(state, Columns):
            dims = dims_of(value)
            size = dims[state.axis]
            if not isinstance(size, int) or size % state.ways:
                raise InternalError(f"{value.name}: {size} is to be cut in {state.ways}")
            dims[state.axis] = size // state.ways
            value.shape = ir.Shape(dims)

    def _take_whole(self, node: ir.Node) -> None:
        """Give a node whole values where it has others."""
        for port, value in enumerate(node.inputs):
            if value is not None and self._states.get(value) is not None:
                node.replace_input_with(port, self._whole(value, node))

    def _whole(self, value: ir.Value, user: ir.Node | None) -> ir.Value:
        """The whole of a value, by a collective before `user` (None: at the end)."""
        if value in self._wholes:
            return self._wholes[value]
        state, group = self._states[value], "stage"
        if isinstance(state, Sum):
            op, name, group = "AllReduce", f"{value.name}.all_reduce", state.group
        elif isinstance(state, Columns) and state == Columns(len(dims_of(value)) - 1, self._layout.stage):
            op, name = "GatherColumns", f"{value.name}.gather"
        else:
            raise InternalError(f"{value.name} is wanted whole, and is {state}")
        whole = like(value, name)
        if isinstance(state, Columns):
            dims = dims_of(value)
            whole.shape = ir.Shape([*dims[:-1], int(dims[-1]) * state.ways])
        producer = value.producer()
        if producer is None:
            raise InternalError(f"{value.name} is an argument of its kind and not whole")
        node = self._node(op, [value], {"group": group}, [whole], producer, name)
        if user is None:
            self._function.append(node)
        else:
            self._function.insert_before(user, [node])
        self._wholes[value] = whole
        return whole

    def _node(
        self, op: str, inputs: list[ir.Value], attributes: Mapping[str, int | str], outputs: list[ir.Value],
        origin: ir.Node, name: str,
    ) -> ir.Node:  # fmt: skip
        node = ir.node(op, inputs, attributes, domain=DOMAIN, outputs=outputs, name=name)
        node.metadata_props.update(origin.metadata_props)
        return node


def _given(value: ir.Value | None) -> ir.Value:
    if value is None:
        raise InternalError("a dsv3 node lacks an input")
    return value


def _reshape(node: ir.Node, state: Columns, _: list[State]) -> None:
    """Dims up to the cut one stay where they are; that one, or what it is split into, is cut."""
    target = _given(node.inputs[1])
    constant = target.producer()
    if constant is None or constant.op_type != "Constant":
        raise InternalError(f"{node.name}: a value that is cut is reshaped to a size that only a run knows")
    sizes = list(constant.attributes["value_ints"].as_ints())
    if len(sizes) <= state.axis or sizes[state.axis] % state.ways or sizes[state.axis] < state.ways:
        raise InternalError(f"{node.name}: {sizes} is to be cut in {state.ways} along axis {state.axis}")
    sizes[state.axis] //= state.ways
    constant.attributes["value_ints"] = ir.AttrInt64s("value_ints", sizes)


def _split(node: ir.Node, state: Columns, _: list[State]) -> None:
    rank = len(dims_of(_given(node.inputs[0])))
    if node.attributes["axis"].as_int() % rank == state.axis:
        raise InternalError(f"{node.name} splits the axis that is cut")


def _rotary(node: ir.Node, state: Columns, _: list[State]) -> None:
    heads = node.attributes["num_heads"].as_int()
    if heads % state.ways:
        raise InternalError(f"{node.name}: {heads} heads are to be cut in {state.ways}")
    node.attributes["num_heads"] = ir.AttrInt64("num_heads", heads // state.ways)


def _alike(node: ir.Node, state: Columns, others: list[State]) -> None:
    if any(other != state for other in others):
        raise InternalError(f"{node.name}: its factors are cut differently")


# How standard ops treat a first input that is cut; their results are cut in the same way.
_COLUMN_RULES: Mapping[str, Callable[[ir.Node, Columns, list[State]], None]] = {
    "Mul": _alike,
    "Reshape": _reshape,
    "RotaryEmbedding": _rotary,
    "Split": _split,
    "Swish": _alike,
}
