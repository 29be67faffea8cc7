"""Plugins as the real ``tensorrt.plugin`` sees them, from signature to kernel, without TensorRT's libraries."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from dsv3export.plugins.kernels.catalogue import PLUGINS
from dsv3export.plugins.kernels.ptx import parameter_types
from dsv3export.plugins.kernels.quick_plugin import SHARED_LIMIT
from dsv3export.plugins.kernels.sizes import known
from tests.plugins.kernels.plugin_uses import USES, PluginUse
from tests.plugins.kernels.tensorrt_stub import stub_environment

TARGET = 90


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What TensorRT was told of each use, by the use's text."""
    pytest.importorskip("triton")
    environment = stub_environment(tmp_path_factory.mktemp("stub"))
    environment["DSV3EXPORT_KERNEL_CACHE"] = str(tmp_path_factory.mktemp("kernels"))
    command = [sys.executable, "-m", "tests.plugins.kernels.quick_plugin_worker"]
    cases = json.dumps([use.as_json() for use in USES])
    done = subprocess.run(command, input=cases, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return {str(use): answer for use, answer in zip(USES, json.loads(done.stdout.splitlines()[-1]), strict=True)}


def test_each_plugin_is_used() -> None:
    assert {use.plugin for use in USES} == set(PLUGINS)
    assert len({str(use) for use in USES}) == len(USES)


@pytest.mark.parametrize("use", USES, ids=str)
def test_outputs_have_the_types_that_the_plugin_says(use: PluginUse, told: dict[str, Any]) -> None:
    plugin, answer = PLUGINS[use.plugin], told[str(use)]
    for run, shapes in zip(use.runs, answer["shapes"], strict=True):
        results = plugin.outputs(use.types(run), use.attributes)
        assert [result.dtype for result in results] == answer["dtypes"]
        assert [list(result.shape) for result in results] == shapes
    aliases = dict(plugin.aliases)
    assert answer["aliases"] == [aliases.get(place, -1) for place in range(len(plugin.results))]
    assert answer["combination"] == [dtype for dtype, _ in use.inputs] + answer["dtypes"]


@pytest.mark.parametrize("use", USES, ids=str)
def test_kernels_are_launched_as_the_plugin_says(use: PluginUse, told: dict[str, Any]) -> None:
    """Grids and integers are expressions to TensorRT and numbers to the interpreter: here they meet."""
    plugin, tactics = PLUGINS[use.plugin], told[str(use)]["tactics"]
    assert tactics
    for tactic in tactics:
        tile = plugin.tiles[tactic["tactic"] - 1]
        for place, run in enumerate(use.runs):
            types = use.types(run)
            launch = plugin.launch(types, plugin.outputs(types, use.attributes), use.attributes, tile, TARGET)
            *grid, block_x, block_y, block_z, shared = tactic["launches"][place]
            assert grid == [known(size) for size in launch.grid]
            assert (block_x, block_y, block_z) == (32 * launch.build.warps, 1, 1)
            assert shared <= SHARED_LIMIT
            assert tactic["integers"][place] == [known(size) for size in launch.integers]


@pytest.mark.parametrize("use", USES, ids=str)
def test_the_kernel_takes_what_tensorrt_passes(use: PluginUse, told: dict[str, Any]) -> None:
    """Pointers of the inputs, int32 numbers, pointers of the outputs; no scratch memory."""
    plugin = PLUGINS[use.plugin]
    for tactic in told[str(use)]["tactics"]:
        integers = len(tactic["integers"][0])
        expected = ("u64",) * len(use.inputs) + ("u32",) * integers + ("u64",) * len(plugin.results)
        assert parameter_types(tactic["ptx"]) == expected
        assert f".visible .entry {tactic['name']}(" in tactic["ptx"]
        assert f".target sm_{TARGET}a" in tactic["ptx"]
        assert "/" + "tmp" not in tactic["ptx"]
        assert __file__.rsplit("/tests/", 1)[0] not in tactic["ptx"]


@pytest.mark.parametrize("use", USES, ids=str)
def test_the_variant_for_debugging_launches_the_same(use: PluginUse, told: dict[str, Any]) -> None:
    """From Python, with the kernel, grid, integers and order of pointers that an engine keeps."""
    kept = told[str(use)]["tactics"][0]
    for place, launch in enumerate(told[str(use)]["from_python"]):
        assert (launch["name"], launch["ptx"]) == (kept["name"], kept["ptx"])
        assert launch["sizes"] == kept["launches"][place]
        assert launch["values"] == [*launch["inputs"], *kept["integers"][place], *launch["outputs"]]
