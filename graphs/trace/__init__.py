"""From the PyTorch reference to the intermediate graph.

Each layer kind is exported once on meta tensors and becomes an ONNX function; the main graph calls them, layer by
layer, with the weights as arguments. The cost does not depend on the model's depth, and no weight is read.
"""

from dsv3export.graphs.trace.model_graph import PARTS, Part, graph_for

__all__ = ["PARTS", "Part", "graph_for"]
