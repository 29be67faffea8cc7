"""Opens what `golden` commands are given: an engine, or a checkpoint for its executor."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsv3export.checkpoint import Checkpoint
from dsv3export.cli.launch import Timeouts
from dsv3export.cli.loading import load_engine
from dsv3export.cli.subject import Subject, find_subject
from dsv3export.config import ModelConfig
from dsv3export.engine.manifest import Manifest
from dsv3export.engine.reader import EngineFiles
from dsv3export.engine.tokenizer_files import TOKENIZER_FOLDER
from dsv3export.errors import BackendError, RequestError, TokenizerError
from dsv3export.golden.document import Identity
from dsv3export.golden.model import GoldenModel, Opener
from dsv3export.golden.profile import arithmetic
from dsv3export.recipe import Recipe
from dsv3export.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from dsv3export.compare.stages import StagedModel
    from dsv3export.graphs.triton_kernels import TritonKernels
    from dsv3export.runtime.engine import Engine
    from dsv3export.runtime.kernel_choice import KernelChoice
    from dsv3export.runtime.providers import Choice

_TOKENIZER = "tokenizer.json"


def open_model(
    path: str,
    *,
    recipe: Recipe | None = None,
    calibration: Path | None = None,
    threads: int | None = None,
    provider: Choice = "auto",
    cpu_kernels: KernelChoice = "auto",
    layers: bool = True,
    kernels: TritonKernels | None = None,
    timeouts: Timeouts | None = None,
) -> GoldenModel:
    """An engine or a checkpoint.

    Args:
        recipe: What a checkpoint is computed in; float32 by default.
        calibration: The text of a recipe with calibrated components.
        layers: Whether it will be looked into; if not, an engine needs no torch.
        kernels: What computes a checkpoint, in place of the ops' definitions.
        timeouts: Of an engine for several ranks, see `RankOptions`.

    Raises UserError.
    """
    subject = find_subject(path)
    if subject.manifest is not None:
        engine = load_engine(path, threads, provider, cpu_kernels=cpu_kernels, **(timeouts or {}))
        return _engine(subject, subject.manifest, engine, threads, cpu_kernels, layers)
    if subject.checkpoint is None:
        raise RequestError(path, expected="an engine or a checkpoint", got=f"a {subject.kind}, which has no weights")
    return _checkpoint(subject.checkpoint, recipe or Recipe.for_precision("fp32"), calibration, kernels)


def _engine(
    subject: Subject, manifest: Manifest, engine: Engine, threads: int | None, cpu_kernels: KernelChoice, layers: bool
) -> GoldenModel:  # fmt: skip
    stages = None
    if layers:
        stages = _engine_stages(Path(subject.path), threads, cpu_kernels)
    record = manifest.checkpoint
    tokenizer = manifest.files.get(f"{TOKENIZER_FOLDER}/{_TOKENIZER}")
    kept = range(subject.config.num_hidden_layers) if manifest.layers is None else manifest.layers
    identity = _identity(
        subject.config, "engine", manifest.recipe, kept, record.config_sha256,
        {name: [shard.size, shard.header_sha256] for name, shard in record.files.items()},
        None if tokenizer is None else tokenizer.sha256, (manifest.backend.name,), threads,
    )  # fmt: skip
    label = f"{subject.path} ({manifest.backend.name}, {identity.arithmetic})"
    return GoldenModel(label, subject.config, identity, engine.session, engine, stages, engine.tokenizer)


def _engine_stages(path: Path, threads: int | None, cpu_kernels: KernelChoice) -> Opener:
    def opened(prompts: Sequence[Sequence[int]]) -> StagedModel:
        try:
            # torch and onnx come with this import.
            from dsv3export.graphs.capture import engine_stages
        except ModuleNotFoundError as missing:
            raise BackendError(
                f"the Python package {missing.name!r} is not installed, which looking into an engine takes",
                fix="Install dsv3export[build], or leave the layers out (--without-layers, --digest none).",
            ) from missing
        return engine_stages(EngineFiles.open(path), prompts, threads, cpu_kernels=cpu_kernels)

    return opened


def _checkpoint(
    checkpoint: Checkpoint, recipe: Recipe, calibration: Path | None, kernels: TritonKernels | None
) -> GoldenModel:
    from dsv3export.graphs import Executor
    from dsv3export.graphs.calibration_text import calibration_sequences
    from dsv3export.graphs.capture import ExecutorStages

    sequences = None if calibration is None else calibration_sequences(calibration, checkpoint)
    executor = Executor(checkpoint, recipe=recipe, calibration_ids=sequences, kernels=kernels)
    folder = checkpoint.path
    fingerprint = checkpoint.fingerprint()
    files = {name: [file["size"], file["header_sha256"]] for name, file in fingerprint["files"].items()}
    has_tokenizer = (folder / _TOKENIZER).exists()
    identity = _identity(
        checkpoint.config, "checkpoint", recipe, range(checkpoint.config.num_hidden_layers),
        fingerprint["config_sha256"], files,
        hashlib.sha256((folder / _TOKENIZER).read_bytes()).hexdigest() if has_tokenizer else None,
        ("torch", "triton") if kernels else ("torch",), None,
    )  # fmt: skip
    return GoldenModel(
        f"{folder} (executor, {identity.arithmetic}{f', {kernels.label}' if kernels else ''})",
        checkpoint.config,
        identity,
        executor,
        executor,
        lambda prompts: ExecutorStages(checkpoint, prompts, recipe, sequences, kernels),
        Tokenizer.from_directory(folder) if has_tokenizer else None,
    )


def _identity(
    config: ModelConfig,
    kind: str,
    recipe: Recipe,
    layers: Sequence[int],
    config_sha256: str,
    files: dict[str, list[Any]],
    tokenizer_sha256: str | None,
    packages: Sequence[str],
    threads: int | None,
) -> Identity:
    programs = [f"{name} {version(name)}" for name in ("numpy", *packages)]
    return Identity(
        kind=kind,
        arithmetic=arithmetic(recipe),
        recipe=recipe.to_json(),
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        layers=tuple(layers),
        n_routed_experts=config.n_routed_experts,
        num_experts_per_tok=config.num_experts_per_tok,
        config_sha256=config_sha256,
        checkpoint_sha256=hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest(),
        tokenizer_sha256=tokenizer_sha256,
        programs=(f"python {platform.python_version()}", *programs),
        threads=threads,
    )


def encode(model: GoldenModel, text: str, add_special_tokens: bool = True) -> list[int]:
    """Token ids of a text. Raises TokenizerError where the model has no tokenizer."""
    if model.tokenizer is None:
        raise TokenizerError(
            model.label, expected="a tokenizer, as there is text", got="none", fix="Give token ids instead."
        )
    return model.tokenizer.encode(text, add_special_tokens=add_special_tokens)
