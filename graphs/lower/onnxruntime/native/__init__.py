"""The native CPU kernels (plugins/cpu): each op that they have is one node, with the weights that the other rows pack.

So an engine has one weight table and two graphs: this one, and that of ONNX Runtime's own ops, which runs everywhere.
"""

from dsv3export.graphs.lower.onnxruntime.native.lowering import lower_native, with_native
from dsv3export.graphs.lower.onnxruntime.native.rows import has_kernel, native_row

__all__ = ["has_kernel", "lower_native", "native_row", "with_native"]
