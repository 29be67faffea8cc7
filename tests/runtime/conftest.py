"""A built engine of the toy model, shared by the tests of the runtime."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsv3export.runtime.engine import Engine
from dsv3export.runtime.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def toy_engine(toy_engine_path: Path) -> Engine:
    return Engine.load(toy_engine_path, threads=1)


@pytest.fixture(scope="session")
def tokenizer(tiny_fp8: Path) -> Tokenizer:
    return Tokenizer.from_directory(tiny_fp8)
