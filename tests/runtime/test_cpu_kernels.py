"""Finding, describing and registering the library of native CPU kernels; sessions that share it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from dsv3export.errors import BackendError
from dsv3export.runtime import cpu_kernels
from tests.plugins.cpu.one_node import OneNode

compiled = pytest.mark.skipif(cpu_kernels.library() is None, reason="the native CPU kernels were not compiled")
ISAS = ("generic", "avx2", "avx512", "amx")


@compiled
def test_description() -> None:
    found = cpu_kernels.describe()
    assert found is not None
    assert found.path == cpu_kernels.library()
    assert found.compiler.split()[0] in ("gcc", "clang")
    assert ISAS.index(found.isa) <= ISAS.index(found.machine_isa)
    assert len(set(found.ops)) == len(found.ops) > 0


@compiled
@pytest.mark.parametrize("isa", ISAS)
def test_the_environment_lowers_the_instruction_set(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSV3EXPORT_CPU_ISA", isa)
    found = cpu_kernels.describe()
    assert found is not None
    assert found.isa == min(isa, found.machine_isa, key=ISAS.index)


def test_without_a_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cpu_kernels, "_FILE", tmp_path / "none.so")
    assert cpu_kernels.library() is None
    assert cpu_kernels.describe() is None
    with pytest.raises(BackendError, match="native CPU kernels: got none: they were not compiled"):
        cpu_kernels.register(ort.SessionOptions(), 1)


@pytest.mark.parametrize("content", [b"", b"no library"])
def test_with_a_damaged_library(content: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "damaged.so"
    file.write_bytes(content)
    monkeypatch.setattr(cpu_kernels, "_FILE", file)
    with pytest.raises(BackendError, match=r"native CPU kernels: got .*damaged\.so"):
        cpu_kernels.register(ort.SessionOptions(), 1)


@compiled
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_sessions_end_in_any_order(order: tuple[int, int], tmp_path: Path) -> None:
    x, weight = np.ones((1, 8), np.float32), np.ones((4, 8), np.float32)
    sessions = {key: OneNode("Linear", {"x": x}, {"weight": weight}, {}, folder=tmp_path) for key in (0, 1)}
    assert all(session(x=x)[0].tolist() == [[8.0] * 4] for session in sessions.values())
    first, last = order
    del sessions[first]
    assert sessions[last](x=x)[0].tolist() == [[8.0] * 4]


FORK = """
import os, sys
from pathlib import Path
import numpy as np
from tests.plugins.cpu.one_node import OneNode
x, weight = np.ones((1, 8), np.float32), np.ones((300, 8), np.float32)
def value(folder):
    return OneNode("Linear", {"x": x}, {"weight": weight}, {}, folder=Path(folder), threads=2)(x=x)[0][0, 0]
before = value(sys.argv[1])
child = os.fork()
if child == 0:
    os._exit(0 if value(sys.argv[1]) == before == 8.0 else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@compiled
def test_a_forked_process_makes_sessions_of_its_own(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", FORK, tmp_path]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


# Linux refuses a process its tile registers while a stack for signals is too small to save them.
SMALL_SIGNAL_STACK = """
import ctypes
class Stack(ctypes.Structure):
    _fields_ = [("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]
memory = ctypes.create_string_buffer(4096)
assert ctypes.CDLL(None).sigaltstack(ctypes.byref(Stack(ctypes.addressof(memory), 0, 4096)), None) == 0
from dsv3export.runtime.cpu_kernels import describe
print(describe().isa)
"""


@compiled
def test_without_the_permission_for_tiles_avx512_is_used(root: Path) -> None:
    found = cpu_kernels.describe()
    if found is None or found.machine_isa != "amx":
        pytest.skip("no AMX here")
    command = [sys.executable, "-c", SMALL_SIGNAL_STACK]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "avx512"), done.stderr
