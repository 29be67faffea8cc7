"""Kernels compiled with no GPU: what their PTX takes and holds, and the cache."""

from __future__ import annotations

import re
from pathlib import Path
from unittest import mock

import pytest

from dsv3export.errors import InternalError
from dsv3export.plugins.kernels import cache
from dsv3export.plugins.kernels.cache import compile_all, compiled, key_of
from dsv3export.plugins.kernels.catalogue import PLUGINS, USES, builds
from dsv3export.plugins.kernels.compiler import TARGETS
from dsv3export.plugins.kernels.plugin import TensorType, Tile
from dsv3export.plugins.kernels.ptx import entry_with, global_loads, matrix_instructions, parameter_types
from dsv3export.plugins.kernels.quick_plugin import SHARED_LIMIT
from dsv3export.plugins.kernels.sass import step_instructions
from dsv3export.plugins.kernels.sizes import parts_for

pytest.importorskip("triton")

PTX = """.version 8.7
.target sm_90a
.visible .entry scale(
	.param .u64 .ptr .global .align 1 scale_param_0,
	.param .u32 scale_param_1,
	.param .u64 .ptr .global .align 1 scale_param_2
)
.reqntid 128
{
	ld.param.b64 	%rd1, [scale_param_0];
	ld.param.b32 	%r1, [scale_param_1];
}
"""


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cache.DIRECTORY_VARIABLE, str(tmp_path / "kernels"))
    return tmp_path / "kernels"


def test_parameters_that_nothing_reads_are_dropped() -> None:
    cut = entry_with(PTX, 2)
    assert parameter_types(PTX) == ("u64", "u32", "u64")
    assert parameter_types(cut) == ("u64", "u32")
    assert cut.count("{") == 1


def test_a_kernel_that_needs_scratch_memory_is_refused() -> None:
    with pytest.raises(InternalError, match=r"scale needs scratch memory \(scale_param_1\)"):
        entry_with(PTX, 1)


def test_too_few_parameters_and_two_entries_are_refused() -> None:
    with pytest.raises(InternalError, match="has 3 parameters, expected 4"):
        entry_with(PTX, 4)
    with pytest.raises(InternalError, match="expected one entry in the PTX, got 2"):
        entry_with(PTX + PTX, 2)


def test_matrix_instructions_are_counted_by_kind() -> None:
    text = """wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 {%f1};
    mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f1};
    mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f2};"""
    assert matrix_instructions(text) == {"wgmma.mma_async m64n64k32": 1, "mma.sync m16n8k16": 2}


def test_global_loads_are_counted_by_width() -> None:
    text = """ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];
    @%p1 ld.global.L1::evict_last.v2.b64 { %rd1, %rd2 }, [ %rd1 + 0 ];
    ld.global.b32 { %r1 }, [ %rd1 + 0 ];
    ld.shared.v4.b32 {%r1, %r2, %r3, %r4}, [%r1];
    cp.async.cg.shared.global [ %r24 + 0 ], [ %rd15 + 0 ], 0x10, %r25;
    cp.async.ca.shared.global [ %r24 + 0 ], [ %rd15 + 0 ], 0x8, %r25;"""
    assert global_loads(text) == (3, 2)


def test_a_step_is_the_shortest_loop_with_products() -> None:
    code = """
.L_x_0:
        /*0000*/                   LDG.E R1, [R2] ;
.L_x_1:
        /*0010*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], R24 ;
                                                                           /* 0x001 */
        /*0020*/                   FFMA R1, R2, R3, R1 ;
        /*0030*/              @P5 BRA `(.L_x_1) ;
.L_x_2:
        /*0040*/                   FADD R1, R1, R2 ;
        /*0050*/              @P1 BRA `(.L_x_2) ;
        /*0060*/              @P0 BRA `(.L_x_0) ;
        /*0070*/                   BRA `(.L_x_3) ;
.L_x_3:
"""
    assert step_instructions(code) == 3
    assert step_instructions(code.replace("HGMMA", "UTCHMMA")) == 3
    assert step_instructions(code.replace("HGMMA", "FMUL")) == 0


# Each kernel for one target, and what differs most between targets for all; `make kernels` compiles every use of every
# plugin with every tactic.
ONE_OF_EACH = tuple({next(builds(use, 90)).name: use for use in USES}.values())
SOME = {"Fp8BlockGemm", "MlaSplit", "MoEDownFp8"}


@pytest.mark.parametrize("target", TARGETS)
def test_each_plugin_has_a_kernel_that_tensorrt_can_launch(target: int) -> None:
    chosen = ONE_OF_EACH if target == 90 else [use for use in USES if use.plugin in SOME]
    for use in chosen:
        if target < PLUGINS[use.plugin].least:
            continue
        kernels = (compiled(build, target) for build in builds(use, target))
        kernel = next((kernel for kernel in kernels if kernel.shared <= SHARED_LIMIT), None)
        assert kernel is not None, f"no tactic of {use.plugin} fits into shared memory"
        suffix = "a" if target >= 90 else ""
        assert f".target sm_{target}{suffix}" in kernel.ptx
        assert kernel.spilled == 0, use.plugin
        assert "/" not in kernel.ptx.replace("//", ""), "a path of this machine"


# What Hopper's wide units multiply: many rows; few, if the weights need no conversion and take the long side.
WIDE = (
    ("Fp8BlockGemm", 0),
    ("Fp8BlockGemm", -1),
    ("MoEGateUpFp8Rounded", 0),
    ("MoEDown", 0),
    ("MlaSplit", -2),
    ("MlaSplit", -1),
    ("MlaSplitFp8", -1),
    ("MlaPrefill", -1),
)


@pytest.mark.parametrize(("plugin", "tile"), WIDE)
def test_products_run_on_the_wide_matrix_units(plugin: str, tile: int) -> None:
    use = next(use for use in USES if use.plugin == plugin)
    kernel = compiled(list(builds(use, 90))[tile], 90)
    assert kernel.matrix
    assert all(kind.startswith("wgmma") for kind in kernel.matrix)
    assert kernel.spilled == 0


@pytest.mark.parametrize("bits", [4, 8])
def test_narrow_weights_become_floats_without_conversions(bits: int) -> None:
    """By the magic of `numbers`; and they come in 16 bytes at a time."""
    use = next(use for use in USES if use.plugin == "LinearInt" and use.attributes["bits"] == bits)
    kernel = compiled(next(builds(use, 90)), 90)
    assert not re.findall(r"cvt\.rn\.(?:bf16|f32)\.[su]\d+", kernel.ptx)
    assert re.search(r"cp\.async\.cg\.shared\.global.* 0x10,", kernel.ptx)


def test_preferred_tiles_follow_the_rows_and_the_device() -> None:
    def prefers(plugin: str, target: int, *shape: int, dtype: str = "BF16") -> Tile:
        use = next(use for use in USES if use.plugin == plugin)
        inputs = [TensorType(dtype, shape), *use.inputs[1:]]
        return PLUGINS[plugin].tiles[PLUGINS[plugin].prefer(inputs, use.attributes, target)]

    by_rows = [prefers("Fp8BlockGemm", 90, rows, 7168, dtype="F8_E4M3").rows for rows in (1, 17, 64, 65)]
    assert by_rows == [16, 32, 64, 64]
    assert [prefers("LinearInt", 90, rows, 7168).rows for rows in (1, 4096)] == [16, 64]
    assert [prefers("MlaSplit", 90, 8, 1, heads, 512).rows for heads in (16, 128)] == [16, 64]
    assert prefers("MlaSplit", 120, 8, 1, 128, 512).columns == 16
    assert prefers("MlaSplit", 90, 8, 1, 128, 512, dtype="F32").columns == 16


def test_few_programs_share_out_k() -> None:
    """DeepSeek-V3's projections on an H100's 132 processors."""
    shapes = ((2112, 7168), (24576, 1536), (7168, 16384), (4096, 7168))
    assert [parts_for(8, *shape, 132) for shape in shapes] == [4, 1, 4, 4]
    assert parts_for(65, 2112, 7168, 132) == parts_for(1, 128, 512, 132) == 1


def test_each_plugin_has_a_use() -> None:
    assert {use.plugin for use in USES} == set(PLUGINS)


def test_what_was_compiled_is_kept(empty_cache: Path) -> None:
    build = next(builds(USES[0], 90))
    first = compiled(build, 90)
    with mock.patch.object(cache, "compile_build", side_effect=AssertionError("compiled again")):
        assert compiled(build, 90) == first
    (file,) = empty_cache.iterdir()
    assert file.name == f"{key_of(build, 90)}.json"
    file.write_text('{"name": "torn', encoding="utf-8")
    assert compiled(build, 90) == first


def test_the_key_has_all_that_decides_a_kernel() -> None:
    use = USES[0]
    first, second = list(builds(use, 90))[:2]
    assert len({key_of(first, 90), key_of(first, 100), key_of(second, 90)}) == 3
    with mock.patch("triton.__version__", "0"):
        assert key_of(first, 90) != key_of(first, 100)


def test_many_kernels_are_compiled_in_processes() -> None:
    wanted = [(build, 89) for use in USES for build in builds(use, 89)][: cache._WORTH_PROCESSES]
    kernels = compile_all(wanted, jobs=2)
    assert [kernel.name for kernel in kernels] == [build.name for build, _ in wanted]
