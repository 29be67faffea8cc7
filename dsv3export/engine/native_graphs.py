"""The graphs of an engine for the native CPU kernels: each beside its twin in ONNX Runtime's own ops, on one weight table."""

from __future__ import annotations

from dsv3export.engine.manifest import Manifest

_END = ".cpu"


def native_name(graph: str) -> str:
    """The manifest's name of the twin of a graph, or of a rank's segment."""
    return f"{graph}{_END}"


def native_graphs(manifest: Manifest) -> list[str]:
    """The names of all such graphs of an engine; empty where it was built for another provider, or by an old version."""
    return [name for name in manifest.graphs if name.endswith(_END)]
