"""One row for each layer that is replayed: a network of that layer, inputs, and what numpy or torch makes of them."""

from tests.graphs.tensorrt.layer_cases.arithmetic import ARITHMETIC
from tests.graphs.tensorrt.layer_cases.attention import ATTENTION
from tests.graphs.tensorrt.layer_cases.case import Case
from tests.graphs.tensorrt.layer_cases.indexing import INDEXING
from tests.graphs.tensorrt.layer_cases.pointwise import POINTWISE
from tests.graphs.tensorrt.layer_cases.quantisation import QUANTISATION
from tests.graphs.tensorrt.layer_cases.shapes import SHAPES

CASES = [*POINTWISE, *SHAPES, *INDEXING, *ARITHMETIC, *ATTENTION, *QUANTISATION]

__all__ = ["CASES", "Case"]
