"""What an sdist and the wheel built from it hold, and that the wheel works where the source tree is out of reach."""

from __future__ import annotations

import shutil
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

LINKED = ("graphs", "plugins", "cli")
FOLDERS = ("dsv3export", *LINKED)
LIBRARY = "_cpu_kernels.ort.so"
COMPILER = shutil.which("c++")

IMPORT_EVERYTHING = """
import importlib, pkgutil, sys, dsv3export
names = [m.name for m in pkgutil.walk_packages(dsv3export.__path__, "dsv3export.") if m.name != "dsv3export.__main__"]
for name in names:
    importlib.import_module(name)
files = [getattr(sys.modules[name], "__file__", None) for name in names]
foreign = [file for file in files if file is None or not file.startswith(sys.prefix)]
assert not foreign, f"not imported from the clean environment: {foreign}"
print("\\n".join(names))
"""


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command and return its output; a failure shows all that it wrote."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def source_files(root: Path) -> set[str]:
    """Every file of the four source folders under the name that it has in the package."""
    found = set()
    for folder in FOLDERS:
        for path in (root / folder).rglob("*"):
            inside = path.relative_to(root)
            through_link = folder == "dsv3export" and inside.parts[1] in LINKED
            if path.is_file() and not through_link and "__pycache__" not in inside.parts and path.name != LIBRARY:
                found.add(str(inside) if folder == "dsv3export" else f"dsv3export/{inside}")
    return found


@pytest.fixture(scope="module")
def source(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources: setuptools writes into the tree, and takes up what an earlier build has left there."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(root / name, source)
    for folder in FOLDERS:
        shutil.copytree(
            root / folder, source / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", LIBRARY)
        )
    return source


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel built from the sdist alone, with the setuptools that is installed here (nothing is downloaded)."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source, cwd=out)
    assert list(out.glob("*.tar.gz")), "build makes the sdist first and the wheel from it"
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def clean_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new virtual environment with the wheel; its dependencies are those of the running one."""
    place = tmp_path_factory.mktemp("clean")
    venv.create(place, with_pip=False)
    python = place / "bin" / "python"
    purelib = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=place).strip())
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=place)
    # A plain path line: .pth files inside that folder, the editable install's among them, are not read from there.
    (purelib / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n", encoding="utf-8")
    return python


def test_wheel_holds_the_source_files_and_nothing_else(root: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    package = {name for name in names if name.startswith("dsv3export/")}
    compiled = {f"dsv3export/runtime/{LIBRARY}"} if COMPILER else set()
    assert package == source_files(root) | compiled
    (info,) = {name.split("/")[0] for name in names - package}
    assert info.endswith(".dist-info")


def test_wheel_carries_the_licence(root: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("licenses/LICENSE")]
        assert archive.read(name) == (root / "LICENSE").read_bytes()


def test_every_module_imports_under_its_one_name(root: Path, clean_python: Path, tmp_path: Path) -> None:
    imported = run(clean_python, "-I", "-c", IMPORT_EVERYTHING, cwd=tmp_path).split()
    modules = {
        name.removesuffix(".py").removesuffix("/__init__") for name in source_files(root) if name.endswith(".py")
    }
    expected = {name.replace("/", ".") for name in modules} - {"dsv3export", "dsv3export.__main__"}
    assert set(imported) == expected


def test_the_console_script_works(clean_python: Path, tmp_path: Path) -> None:
    from dsv3export import __version__

    assert __version__ in run(clean_python.with_name("dsv3export"), "--version", cwd=tmp_path)
    assert __version__ in run(clean_python, "-I", "-m", "dsv3export", "--version", cwd=tmp_path)


LOAD = """
import onnxruntime
from dsv3export.runtime import cpu_kernels
found = cpu_kernels.describe()
cpu_kernels.register(onnxruntime.SessionOptions(), 1)
print(found.path, *found.ops)
"""


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
def test_the_wheel_has_kernels_for_its_platform_and_any_python(wheel: Path, clean_python: Path, tmp_path: Path) -> None:
    assert "-py3-none-linux_" in wheel.name
    path, *ops = run(clean_python, "-I", "-c", LOAD, cwd=tmp_path).split()
    assert Path(path).is_relative_to(clean_python.parents[1])
    assert "Linear" in ops


def test_without_a_compiler_the_package_is_installed_without_kernels(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "false")
    copied = tmp_path / "source"
    shutil.copytree(source, copied, symlinks=True, ignore=shutil.ignore_patterns("build"))
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, copied, cwd=tmp_path)
    (built,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(tmp_path / "installed")
    code = "from dsv3export.runtime import cpu_kernels; print(cpu_kernels.describe())"
    assert run(sys.executable, "-c", code, cwd=tmp_path / "installed").strip() == "None"
