"""The graphs of an engine for the native CPU kernels, each the twin of one in ONNX Runtime's own ops."""

from __future__ import annotations

from dsv3export.engine.manifest import Manifest
from dsv3export.engine.program import PROGRAM

_END = ".cpu"
_MTP = "mtp"


def native_name(graph: str) -> str:
    """The manifest's name of the twin of a graph, of a rank's segment, or of the program that runs those."""
    return f"{graph}{_END}"


def native_graphs(manifest: Manifest) -> list[str]:
    """Names of all of an engine; none where it was built for another provider, or by an old version."""
    return [name for name in manifest.graphs if name.endswith(_END) and name != native_name(PROGRAM)]


def of_trunk(graph: str) -> bool:
    """Whether a graph or a segment is one of the trunk: the MTP layer's are opened by the first draft."""
    return not graph.startswith(_MTP)
