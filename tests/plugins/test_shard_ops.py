"""The ops of cut graphs: dispatch and combine by definition and as ONNX functions; collectives want a communicator."""

from __future__ import annotations

import numpy as np
import onnx.helper
import onnx.parser
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsv3export.errors import InternalError
from dsv3export.graphs.opset import IR_VERSION, OPSET
from dsv3export.plugins import SHARD_OPS
from dsv3export.plugins.all_reduce.op import all_reduce
from dsv3export.plugins.collectives import speaking_to
from dsv3export.plugins.expert_combine.op import expert_combine
from dsv3export.plugins.expert_dispatch.op import expert_dispatch
from dsv3export.plugins.gather_columns.op import gather_columns

EXPERTS, CHOSEN, WIDTH = 8, 3, 4


def routing(tokens: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(seed)
    ids = np.array([random.permutation(EXPERTS)[:CHOSEN] for _ in range(tokens)])
    x, weights = random.standard_normal((tokens, WIDTH)), random.uniform(0.1, 1, ids.shape)
    return torch.tensor(x, dtype=torch.float32), torch.tensor(ids), torch.tensor(weights, dtype=torch.float32)


@given(tokens=st.integers(1, 6), ways=st.sampled_from([1, 2, 4, 8]), seed=st.integers(0, 1000))
def test_ranks_together_compute_every_pair_once(tokens: int, ways: int, seed: int) -> None:
    """An expert that multiplies by its number plus one: the sum over the ranks is that over all chosen experts."""
    x, ids, weights = routing(tokens, seed)
    count, total = EXPERTS // ways, torch.zeros_like(x)
    for rank in range(ways):
        rows, row_ids, row_weights, token = expert_dispatch(x, ids, weights, rank * count, count)
        assert len(rows) >= 1 and bool(((row_ids >= 0) & (row_ids < count)).all())
        assert torch.equal(rows, x[token])
        total += expert_combine(rows * (row_ids + rank * count + 1) * row_weights, token, x)
    expected = x * ((ids + 1) * weights).sum(1, keepdim=True)
    torch.testing.assert_close(total, expected)


@given(tokens=st.integers(1, 6), first=st.integers(0, 7), seed=st.integers(0, 1000))
def test_onnx_functions(tokens: int, first: int, seed: int) -> None:
    """Also where no token has chosen the only expert of the rank."""
    x, ids, weights = routing(tokens, seed)
    expected = expert_dispatch(x, ids, weights, first, 1)
    given_values = {"x": x.numpy(), "ids": ids.numpy(), "weights": weights.numpy()}
    text = SHARD_OPS["ExpertDispatch"].function({"k": CHOSEN}, {"first": first, "count": 1})
    results = run(text, given_values, ("rows", "row_ids", "row_weights", "tokens"))
    for ours, theirs in zip(expected, results, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs)
    rows, _, _, token = (value.numpy() for value in expected)
    text = SHARD_OPS["ExpertCombine"].function({}, {})
    (combined,) = run(text, {"rows": rows, "tokens": token, "x": x.numpy()}, ("y",))
    np.testing.assert_allclose(combined, expert_combine(expected[0], expected[3], x).numpy(), rtol=1e-6)


def run(text: str, values: dict[str, np.ndarray], outputs: tuple[str, ...]) -> list[np.ndarray]:
    """A function's results in ONNX Runtime."""
    function = onnx.parser.parse_function(f'<domain: "test", opset_import: ["": {OPSET}]>{text}')
    types = {np.dtype(np.float32): onnx.TensorProto.FLOAT, np.dtype(np.int64): onnx.TensorProto.INT64}
    inputs = [onnx.helper.make_tensor_value_info(n, types[a.dtype], [None] * a.ndim) for n, a in values.items()]
    node = onnx.helper.make_node(function.name, list(values), list(outputs), domain="test")
    results = [onnx.helper.make_tensor_value_info(name, 0, None) for name in outputs]
    for result in results:
        result.ClearField("type")
    imports = [onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid("test", 1)]
    graph = onnx.helper.make_graph([node], "one", inputs, results)
    model = onnx.helper.make_model(graph, functions=[function], opset_imports=imports, ir_version=IR_VERSION)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, values))


class Twice:
    """Two ranks that have the same."""

    def all_reduce(self, x: torch.Tensor, group: str) -> torch.Tensor:
        return 2 * x

    def gather(self, x: torch.Tensor, group: str) -> torch.Tensor:
        return torch.cat([x, x], dim=-1)


def test_collectives() -> None:
    x = torch.ones(2, 3)
    with speaking_to(Twice()):
        assert torch.equal(all_reduce(x, "tensor"), 2 * x)
        assert gather_columns(x, "stage").shape == (2, 6)
    for collective in (all_reduce, gather_columns):
        with pytest.raises(InternalError, match="without a communicator"):
            collective(x, "tensor")
