"""What the plugin rows tell TensorRT to compute is what each op is defined as: their networks, replayed."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from dsv3export.errors import BackendError
from dsv3export.graphs.lower.tensorrt.flavour import FULL, RTX
from dsv3export.graphs.lower.tensorrt.rows import NATIVE_ROWS, plugins, rows_for
from dsv3export.plugins.kernels.catalogue import PLUGINS
from dsv3export.plugins.linear_fp8_block.tensorrt import FP8_BLOCK_GEMM
from tests.support.compare import OP

pytestmark = pytest.mark.slow

# Of the largest result. Rounded activations: a number that bfloat16 has moved may round to another one of 8 bits.
ROUNDED_ACTIVATIONS = 2**-4
TOLERANCES = {"F32": OP, "BF16": 2**-6}


@pytest.fixture(scope="module")
def outcomes() -> list[dict[str, Any]]:
    pytest.importorskip("triton")
    pytest.importorskip("tensorrt_rtx_bindings")
    command = [sys.executable, "-m", "tests.graphs.tensorrt.rows.plugin_worker"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("compute", ["F32", "BF16"])
@pytest.mark.parametrize("op", sorted({op for _, op in plugins.ROWS}))
def test_a_network_with_plugins_is_the_op(op: str, compute: str, outcomes: list[dict[str, Any]]) -> None:
    rows = [row for row in outcomes if row["case"].split("-")[0] == op and row["compute"] == compute]
    assert len(rows) > 2
    for row in rows:
        is_rounded = row["case"].endswith("1x128") and compute != "F32"
        assert max(row["distances"]) <= (ROUNDED_ACTIVATIONS if is_rounded else TOLERANCES[compute]), row


# TensorRT's prefill is native, its cache has one precision, its linears have K in one part, its norms are its own.
ELSEWHERE = {
    *("MlaPrefill", "MlaSplitFp8", "SumParts", "NormQuantise", "SwigluQuantise"),
    *("LatentAppendFp8", "LatentAppendNormed", "LatentAppendNormedFp8"),
}


def test_every_plugin_is_in_some_network(outcomes: list[dict[str, Any]]) -> None:
    assert {name for row in outcomes for name in row["plugins"]} == set(PLUGINS) - ELSEWHERE


def test_attention_is_native_in_float32_and_in_a_prefill(outcomes: list[dict[str, Any]]) -> None:
    rows = [row for row in outcomes if row["case"].startswith("MlaAttention")]
    by_plugin = {(row["compute"], row["phase"]) for row in rows if row["plugins"]}
    assert by_plugin == {("BF16", "decode")}


def test_rtx_has_no_plugins() -> None:
    assert rows_for(RTX) is NATIVE_ROWS
    assert plugins.ROWS.items() <= rows_for(FULL).items()


def test_a_plugin_that_the_device_cannot_run_is_refused() -> None:
    emitter: Any = SimpleNamespace(scope="moe_layer.q_proj")
    with (
        mock.patch.object(plugins, "device_target", return_value=80),
        pytest.raises(
            BackendError, match=r"q_proj: plugin Fp8BlockGemm: expected a device of sm_89 or later, got sm_80"
        ),
    ):
        plugins.add_plugin(emitter, FP8_BLOCK_GEMM, (), {})


def test_attributes_come_in_the_order_that_tensorrt_compares() -> None:
    told: list[Any] = []

    def definition(*tensors: Any, **attributes: Any) -> str:
        told.append((tensors, list(attributes)))
        return "creator"

    network = SimpleNamespace(add_plugin=lambda creator, aot: (creator, aot))
    emitter: Any = SimpleNamespace(scope="layer", network=network, trt="module")
    op = SimpleNamespace(dsv3=SimpleNamespace(MlaSplit=definition))
    with (
        mock.patch.object(plugins, "device_target", return_value=90),
        mock.patch.object(plugins, "plugin_module", return_value=SimpleNamespace(op=op)),
        mock.patch.object(plugins, "_register") as register,
    ):
        attributes: dict[str, Any] = {"parts": 4, "dtype": "BF16", "scale": 0.1}
        layer = plugins.add_plugin(emitter, PLUGINS["MlaSplit"], ("q", "q_pe"), attributes)
    assert layer == ("creator", True)
    assert told == [(("q", "q_pe"), ["scale", "parts", "dtype"])]
    register.assert_called_once_with("module", PLUGINS["MlaSplit"])
