"""The rewrite: dsv3 nodes call ONNX Runtime's functions, and packed weights take the place of the checkpoint's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from dsv3export.errors import InternalError
from dsv3export.graphs.lower.onnxruntime.functions import FUNCTION_DOMAIN, ORT_DOMAIN, OpFunctions
from dsv3export.graphs.lower.onnxruntime.ops import Packing, Row, row
from dsv3export.graphs.packing import AS_STORED, PackedWeight
from dsv3export.graphs.spec import dims_of
from dsv3export.graphs.values import is_weight, like
from dsv3export.plugins import DOMAIN, OPS
from dsv3export.plugins.dims import bind_dims, static_dims

# safetensors dtype names of the tensor types that a lowered graph's weights may have.
_STORED_TYPES = {"F32": ir.DataType.FLOAT, "BF16": ir.DataType.BFLOAT16, "F16": ir.DataType.FLOAT16}
_DTYPE_NAMES = {ir_type: name for name, ir_type in _STORED_TYPES.items()}


@dataclass(frozen=True)
class _Formal:
    """A weight input of a lowered layer kind.

    Args:
        value: The function's input.
        packing: How it comes about.
        inputs: Names of the traced kind's weight inputs that it is packed from.
    """

    value: ir.Value
    packing: str
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class _LoweredKind:
    """A layer kind's weight inputs, as traced and as lowered."""

    traced_weights: list[str]
    formals: list[_Formal]


def lower(
    model: ir.Model, embedding_dtype: str, row_of: Callable[[str], Row] = row
) -> tuple[ir.Model, list[PackedWeight]]:
    """Lower a traced graph for float32 arithmetic on ONNX Runtime; the traced model is used up.

    Given -> Result::

        y = dsv3::Linear(x, w)              y = dsv3.lowered::Linear(x, w), a function of com.microsoft::FusedMatMul
        e = dsv3::MoEExperts(x, ids, weights, gate, up, down)
                                            e = dsv3.lowered::MoEExperts(x, ids, weights, gate_up, down)
        h = Gather(embed_tokens.weight, i)  h = Cast(Gather(embed_tokens.weight, i)), the table as stored

    Args:
        embedding_dtype: safetensors dtype of the embedding table in the checkpoint.
        row_of: How an op is run; the default suits ONNX Runtime on a CPU.

    Returns:
        The lowered model, which carries every function that it calls, and the packed weights, each an input of its
        main graph under its name.
    """
    op_functions = OpFunctions()
    kinds: dict[str, _LoweredKind] = {}
    for function in model.functions.values():
        traced_weights = [str(value.name) for value in function.inputs if is_weight(value)]
        packed = _replace_dsv3_nodes(function, op_functions, row_of)
        formals = _new_formals(function, packed)
        if function.name == "embed":
            formals = _store_embedding(function, formals, embedding_dtype)
        arguments = [value for value in function.inputs if not is_weight(value)]
        function.opset_imports[FUNCTION_DOMAIN] = 1
        function.inputs.clear()
        function.inputs.extend([*arguments, *(formal.value for formal in formals)])
        kinds[function.name] = _LoweredKind(traced_weights, formals)
    graph, weights = _rebuild_main(model.graph, kinds)
    functions = [*model.functions.values(), *op_functions.all()]
    return ir.Model(graph, ir_version=model.ir_version, producer_name="dsv3export", functions=functions), weights


def _replace_dsv3_nodes(
    function: ir.Function, op_functions: OpFunctions, row_of: Callable[[str], Row]
) -> dict[str, _Formal]:
    """Make each dsv3 node a call of ONNX Runtime's function; returns the packed weights by the first they replace."""
    packed: dict[str, _Formal] = {}
    for node in [node for node in function if node.domain == DOMAIN]:
        op, how = OPS[node.op_type], row_of(node.op_type)
        inputs = {port.name: value for port, value in zip(op.inputs, node.inputs, strict=True) if value is not None}
        dims = static_dims(bind_dims(op, [dims_of(value) for value in inputs.values()]))
        attributes = {attribute.name: attribute.value for attribute in node.attributes.values()}
        name = op_functions.name_for(op.name, how.function(dims, attributes))
        for packing in how.packings:
            formal = _packed_formal(packing, inputs, dims)
            packed[formal.inputs[0]] = formal
            inputs[packing.inputs[0]] = formal.value
            for port_name in packing.inputs[1:]:
                del inputs[port_name]
        _replace(function, node, name, list(inputs.values()))
    return packed


def _replace(function: ir.Function, node: ir.Node, name: str, inputs: list[ir.Value]) -> None:
    outputs = [like(value) for value in node.outputs]
    call = ir.node(name, inputs, domain=FUNCTION_DOMAIN, outputs=outputs, name=node.name)
    call.metadata_props.update(node.metadata_props)
    ir.convenience.replace_nodes_and_values(function, node, [node], [call], node.outputs, outputs)


def _packed_formal(packing: Packing, inputs: Mapping[str, ir.Value], dims: Mapping[str, int]) -> _Formal:
    names = tuple(str(inputs[port].name) for port in packing.inputs)
    shape = [prod(int(f) if f.isdecimal() else dims[f] for f in dim.split("*")) for dim in packing.shape]
    value = like(inputs[packing.inputs[0]], f"{names[0].rpartition('.')[0]}.{packing.name}")
    value.shape = ir.Shape(shape)
    return _Formal(value, packing.packing, names)


def _new_formals(function: ir.Function, packed: Mapping[str, _Formal]) -> list[_Formal]:
    """The weight inputs in their new order: a packed one where the first it replaces stood, unused ones gone."""
    formals = []
    for value in function.inputs:
        name = str(value.name)
        if name in packed:
            formals.append(packed[name])
        elif is_weight(value) and value.uses():
            formals.append(_Formal(value, "float32", (name,)))
    return formals


def _store_embedding(embed: ir.Function, formals: list[_Formal], dtype: str) -> list[_Formal]:
    """Keep the embedding table in the checkpoint's dtype and cast the rows that a step looks up."""
    table = next(formal for formal in formals if formal.inputs == ("embed_tokens.weight",)).value
    lookup = next(node for node in embed if table in node.inputs)
    old_rows = lookup.outputs[0]
    stored = like(table)
    rows = like(old_rows, f"{old_rows.name}.stored")
    stored.dtype = rows.dtype = _STORED_TYPES[dtype]
    gather = ir.node("Gather", [stored, lookup.inputs[1]], {"axis": 0}, outputs=[rows], name=rows.name)
    new_rows = like(old_rows)
    cast = ir.node("Cast", [rows], {"to": ir.DataType.FLOAT.value}, outputs=[new_rows], name=lookup.name)
    ir.convenience.replace_nodes_and_values(embed, lookup, [lookup], [gather, cast], [old_rows], [new_rows])
    return [_Formal(stored, AS_STORED, f.inputs) if f.value is table else f for f in formals]


def _rebuild_main(graph: ir.Graph, kinds: Mapping[str, _LoweredKind]) -> tuple[ir.Graph, list[PackedWeight]]:
    """The main graph again, its calls passing the packed weights."""
    values = {value: like(value) for value in graph.inputs if not is_weight(value)}
    inputs = list(values.values())
    packed: dict[str, PackedWeight] = {}
    weight_values: dict[str, ir.Value] = {}
    nodes = []
    for node in graph:
        kind = kinds[node.op_type]
        arguments = [values[value] for value in node.inputs if value is not None and not is_weight(value)]
        names = dict(zip(kind.traced_weights, [str(v.name) for v in node.inputs if v and is_weight(v)], strict=True))
        for formal in kind.formals:
            weight = _packed_weight(formal, names)
            packed[weight.name] = weight
            arguments.append(weight_values.setdefault(weight.name, like(formal.value, weight.name)))
        values.update({value: like(value) for value in node.outputs})
        outputs = [values[value] for value in node.outputs]
        call = ir.node(node.op_type, arguments, domain=node.domain, outputs=outputs, name=node.name)
        call.metadata_props.update(node.metadata_props)
        nodes.append(call)
    imports = {**graph.opset_imports, FUNCTION_DOMAIN: 1, ORT_DOMAIN: 1}
    results = [values[value] for value in graph.outputs]
    all_inputs = [*inputs, *weight_values.values()]
    return ir.Graph(all_inputs, results, nodes=nodes, opset_imports=imports, name=graph.name), list(packed.values())


def _packed_weight(formal: _Formal, names: Mapping[str, str]) -> PackedWeight:
    """A formal weight of a kind at one call: `names` maps the traced formal names to the model's weights."""
    inputs = tuple(names[name] for name in formal.inputs)
    if len(inputs) == 1:
        name = inputs[0]
    else:
        name = f"{inputs[0].rpartition('.')[0]}.{str(formal.value.name).rpartition('.')[2]}"
    if formal.value.dtype is None:
        raise InternalError(f"weight {name} has no dtype")
    shape = tuple(int(dim) for dim in dims_of(formal.value))
    return PackedWeight(name, formal.packing, inputs, _DTYPE_NAMES[formal.value.dtype], shape)
