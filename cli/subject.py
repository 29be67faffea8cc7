"""What PATH means on the command line: a checkpoint folder, an engine, a config.json, or the name of a preset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dsv3export.checkpoint import Checkpoint
from dsv3export.config import ModelConfig
from dsv3export.engine.manifest import MANIFEST_NAME, Manifest
from dsv3export.errors import ConfigError
from dsv3export.presets import NAMES, preset

Kind = Literal["checkpoint", "engine", "config", "preset"]


@dataclass(frozen=True)
class Subject:
    """A model as it was found; `checkpoint` and `manifest` are set for their kind."""

    kind: Kind
    path: str
    config: ModelConfig
    checkpoint: Checkpoint | None = None
    manifest: Manifest | None = None


def find_subject(text: str) -> Subject:
    """Opens what `text` names, a checkpoint with all its checks. Raises UserError."""
    path = Path(text)
    if path.is_dir():
        if (path / MANIFEST_NAME).exists():
            manifest = Manifest.read(path)
            return Subject("engine", text, ModelConfig.from_dict(manifest.model, MANIFEST_NAME), manifest=manifest)
        checkpoint = Checkpoint.open(path)
        return Subject("checkpoint", text, checkpoint.config, checkpoint=checkpoint)
    if path.exists():
        return Subject("config", text, ModelConfig.from_file(path))
    return Subject("preset", text, _preset(text))


def find_config(text: str) -> ModelConfig:
    """Only the config of what `text` names; a checkpoint's weights need not be there. Raises UserError."""
    path = Path(text)
    if path.is_dir() and not (path / MANIFEST_NAME).exists():
        return ModelConfig.from_file(path / "config.json")
    return find_subject(text).config


def _preset(text: str) -> ModelConfig:
    name = text.lower().replace("-", "_")
    if name not in NAMES:
        known = ", ".join(NAMES)
        raise ConfigError(text, expected=f"a folder, a config.json or a preset ({known})", got="nothing there")
    return preset(name)
