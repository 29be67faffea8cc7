"""DeepSeek-V3 in PyTorch, written to be read; the source that the graph is traced from.

Modules and parameters carry the checkpoint's names, so that a module path is the provenance of a graph node.
"""

from dsv3export.reference.load import load_reference
from dsv3export.reference.model import DecoderLayer, Embedding, Head, MtpLayer, ReferenceModel

__all__ = ["DecoderLayer", "Embedding", "Head", "MtpLayer", "ReferenceModel", "load_reference"]
