"""The ops' ONNX schemas, so that checkers and other tools know the domain ``dsv3``."""

from __future__ import annotations

import onnx.defs

from dsv3export.plugins import DOMAIN, DOMAIN_VERSION, OPS
from dsv3export.plugins.registry import Op, Port

_ATTRIBUTE_TYPES = {
    "int": onnx.defs.OpSchema.AttrType.INT,
    "float": onnx.defs.OpSchema.AttrType.FLOAT,
    "string": onnx.defs.OpSchema.AttrType.STRING,
}


def register_schemas() -> None:
    """Register every dsv3 op with onnx; those that are registered already are left as they are."""
    for op in OPS.values():
        if not onnx.defs.has(op.name, domain=DOMAIN):
            onnx.defs.register_schema(schema(op))


def schema(op: Op) -> onnx.defs.OpSchema:
    """The ONNX schema of an op; each port is a type variable of its own, its dims stand in its description."""
    return onnx.defs.OpSchema(
        op.name,
        DOMAIN,
        DOMAIN_VERSION,
        doc=op.doc,
        inputs=[_parameter(port) for port in op.inputs],
        outputs=[_parameter(port) for port in op.outputs],
        type_constraints=[
            (_type_variable(port), [f"tensor({dtype})" for dtype in port.dtypes], "")
            for port in (*op.inputs, *op.outputs)
        ],
        attributes=[
            onnx.defs.OpSchema.Attribute(attribute.name, _ATTRIBUTE_TYPES[attribute.type], attribute.doc)
            for attribute in op.attributes
        ],
    )


def _parameter(port: Port) -> onnx.defs.OpSchema.FormalParameter:
    options = onnx.defs.OpSchema.FormalParameterOption
    option = options.Optional if port.optional else options.Single
    shape = f"[{', '.join(port.dims)}]"
    return onnx.defs.OpSchema.FormalParameter(port.name, _type_variable(port), shape, param_option=option)


def _type_variable(port: Port) -> str:
    return f"T_{port.name}"
