"""Whether a result of an op is what the float64 reference says: some must be exact, others close."""

from __future__ import annotations

import numpy as np

from tests.plugins.cases import Array, Case
from tests.support.compare import assert_op_close

# They write, round and scale by powers of two or by numbers of few digits: each result is one float32 number.
_EXACT = ("LatentAppend", "LatentAppendHalf", "LatentAppendFp8")


def assert_agrees(case: Case, port: str, actual: Array, expected: Array) -> None:
    """Raises AssertionError that names the case and the port; NaN agrees with NaN where results are exact."""
    if port == "ids" or case.op in _EXACT:
        np.testing.assert_array_equal(np.asarray(actual, np.float64), expected, f"{case}.{port}", strict=False)
    else:
        assert_op_close(actual, expected, f"{case}.{port}")
