"""Published config.json files, as data: they let graphs and sizes be seen without a checkpoint."""

from __future__ import annotations

from pathlib import Path

from dsv3export.config import ModelConfig
from dsv3export.errors import ConfigError

_FOLDER = Path(__file__).parent
NAMES = tuple(sorted(path.stem for path in _FOLDER.glob("*.json")))


def preset(name: str) -> ModelConfig:
    """The config of a published model, e.g. ``preset("deepseek_v3")`` for the one with 671 B parameters.

    Raises:
        ConfigError: No such preset.
    """
    if name not in NAMES:
        raise ConfigError(f"preset {name!r}", expected=f"one of {', '.join(NAMES)}")
    return ModelConfig.from_file(_FOLDER / f"{name}.json")
