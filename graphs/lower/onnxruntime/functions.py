"""The functions that dsv3 nodes call in a lowered model, parsed from ONNX text, one per distinct text."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import onnx.parser
import onnx_ir as ir

from dsv3export.graphs.opset import OPSET

ORT_DOMAIN = "com.microsoft"
# Apart from the ops' own domain: there a node has the op's attributes, here they are part of the function.
FUNCTION_DOMAIN = "dsv3.lowered"


class OpFunctions:
    """Hands out function names for function texts; an op with two texts gets two functions.

    Args:
        opset: The version of the ONNX standard that all of them are written in.
        domains: Version by domain of further ops that they are written in.
    """

    def __init__(self, opset: int = OPSET, domains: Mapping[str, int] = MappingProxyType({})) -> None:
        imports = ", ".join(f'"{name}": {version}' for name, version in {"": opset, ORT_DOMAIN: 1, **domains}.items())
        self._header = f'<domain: "{FUNCTION_DOMAIN}", opset_import: [{imports}]>'
        self._by_text: dict[str, ir.Function] = {}
        self._names: set[str] = set()

    def name_for(self, op_name: str, text: str) -> str:
        """The name of the function with this text, whose own name in the text is `op_name`."""
        if text not in self._by_text:
            name = op_name if op_name not in self._names else f"{op_name}_{len(self._by_text)}"
            parsed = onnx.parser.parse_function(self._header + text)
            parsed.name = name
            self._by_text[text] = ir.serde.deserialize_function(parsed)
            self._names.add(name)
        return self._by_text[text].name

    def all(self) -> list[ir.Function]:
        return list(self._by_text.values())
