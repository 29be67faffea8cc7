"""The two sides of `dsv3export diff`: what they are, what they are given, and how they are run layer by layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dsv3export.checkpoint import Checkpoint
    from dsv3export.cli.subject import Subject
    from dsv3export.compare.causes import ErrorSplit
    from dsv3export.compare.layers import LayerDiff
    from dsv3export.compare.stages import StagedModel
    from dsv3export.engine.manifest import Manifest
    from dsv3export.graphs.triton_kernels import TritonKernels
    from dsv3export.progress import Progress
    from dsv3export.recipe import Recipe
    from dsv3export.runtime.kernel_choice import KernelChoice
    from dsv3export.runtime.tokenizer import Tokenizer

# The largest error of a token's row that two right programs of the same arithmetic were seen to make is 2e-6; where
# activations or the cache are rounded, a number at the edge between two steps may go either way: 6e-3. An engine that
# computes in 16 bits rounds between all its layers: 1.2e-2.
SAME_ARITHMETIC = 1e-4
ROUNDED = 2e-2
NARROW = 5e-2


@dataclass(frozen=True)
class Running:
    """How models are run.

    Attributes:
        recipe: What a checkpoint is computed in.
        calibration: The text that calibrated weights are fitted to.
        threads: CPU threads of an ONNX Runtime engine.
        replay: Whether TensorRT engines are replayed on the CPU.
        chunk: Tokens of a prompt that a TensorRT engine takes at once.
        kernels: What computes a checkpoint in place of the ops' definitions; of two checkpoints the second.
        cpu_kernels: What computes an ONNX Runtime engine.
    """

    recipe: Recipe
    calibration: Path | None = None
    threads: int | None = None
    replay: bool = False
    chunk: int | None = None
    kernels: TritonKernels | None = None
    cpu_kernels: KernelChoice = "auto"


def read_prompts(path: Path, sides: Sequence[Subject]) -> list[list[int]]:
    """Token ids of each line. Raises UserError."""
    from dsv3export.runtime.prompt_file import read_prompt_file
    from dsv3export.runtime.requests import Limits

    config = sides[0].config
    limits = Limits(config.vocab_size, config.max_position_embeddings, "the model's max_position_embeddings")
    tokenizer = cache(lambda: _tokenizer(sides))
    found = read_prompt_file(path, limits, lambda text: tokenizer().encode(text))
    return [prompt.ids for prompt in found]


def _tokenizer(sides: Sequence[Subject]) -> Tokenizer:
    from dsv3export.errors import TokenizerError

    found = find_tokenizer(sides)
    if found is None:
        raise TokenizerError("prompts", expected="a tokenizer in A or B", got="none", fix="Give token ids instead.")
    return found


def find_tokenizer(sides: Sequence[Subject]) -> Tokenizer | None:
    """That of the first side that has one. Raises TokenizerError."""
    from dsv3export.engine.tokenizer_files import TOKENIZER_FOLDER
    from dsv3export.runtime.tokenizer import Tokenizer

    for side in sides:
        folder = Path(side.path) / TOKENIZER_FOLDER if side.kind == "engine" else Path(side.path)
        if (folder / "tokenizer.json").exists():
            return Tokenizer.from_directory(folder)
    return None


def name_tokens(diff: LayerDiff, prompts: Sequence[Sequence[int]], sides: Sequence[Subject]) -> LayerDiff:
    """The same with the texts of the worst tokens, where a side has a tokenizer."""
    from dsv3export.compare.distributions import with_texts

    tokenizer = find_tokenizer(sides)
    if tokenizer is None:
        return diff

    def decode(ids: Sequence[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=False)

    drafts = None if diff.drafts is None else with_texts(diff.drafts, prompts, decode, ahead=1)
    return replace(diff, logits=with_texts(diff.logits, prompts, decode), drafts=drafts)


def checkpoint_recipe(sides: Sequence[Subject], precision: str | None, calibrated: bool) -> Recipe:
    """What a checkpoint among the two is computed in: as the engine beside it, unless told otherwise."""
    from dsv3export.recipe import Recipe

    if precision is not None:
        return Recipe.for_precision(precision, calibrated)
    manifests = [side.manifest for side in sides if side.manifest is not None]
    return manifests[0].recipe if len(manifests) == 1 else Recipe.for_precision("fp32")


def staged_pair(sides: Sequence[Subject], ids: list[list[int]], running: Running) -> list[StagedModel]:
    """Both sides. Raises UserError."""
    plain = replace(running, kernels=None)
    both_computed = all(side.checkpoint is not None for side in sides)
    return [staged(sides[0], ids, plain if both_computed else running), staged(sides[1], ids, running)]


def staged(side: Subject, ids: list[list[int]], running: Running) -> StagedModel:
    """A side, ready to run layer by layer. Raises UserError."""
    from dsv3export.engine.reader import EngineFiles
    from dsv3export.errors import RequestError

    # torch comes with this import.
    from dsv3export.graphs.capture import ExecutorStages, engine_stages

    if side.manifest is not None:
        files = EngineFiles.open(side.path)
        return engine_stages(files, ids, running.threads, running.replay, running.chunk, running.cpu_kernels)
    if side.checkpoint is None:
        raise RequestError(side.path, expected="an engine or a checkpoint", got=f"a {side.kind}, which has no weights")
    fitted = _calibration_ids(side.checkpoint, running.calibration)
    return ExecutorStages(side.checkpoint, ids, running.recipe, fitted, running.kernels)


def error_split(sides: Sequence[Subject], ids: list[list[int]], running: Running, progress: Progress) -> ErrorSplit:
    """The error of an engine by cause. Raises UserError."""
    from dsv3export.compare import split_causes
    from dsv3export.graphs.capture import cause_chain

    checkpoint, engine = check_causes(sides)
    fitted = _calibration_ids(checkpoint, running.calibration)
    exact, chain = cause_chain(checkpoint, staged(engine, ids, running), _manifest(engine).recipe, ids, fitted)
    return split_causes(exact, chain, len(ids), progress)


def check_causes(sides: Sequence[Subject]) -> tuple[Checkpoint, Subject]:
    """Raises RequestError unless A is a checkpoint and B an engine."""
    from dsv3export.errors import RequestError

    checkpoint, engine = sides[0].checkpoint, sides[1]
    if checkpoint is None or engine.manifest is None:
        raise RequestError(
            "--causes", expected="a checkpoint as A and an engine as B", got=f"{sides[0].kind} and {engine.kind}"
        )
    return checkpoint, engine


def _manifest(engine: Subject) -> Manifest:
    if engine.manifest is None:
        raise ValueError(engine.path)
    return engine.manifest


def _calibration_ids(checkpoint: Checkpoint, calibration: Path | None) -> Any:
    from dsv3export.graphs.calibration_text import calibration_sequences

    return None if calibration is None else calibration_sequences(calibration, checkpoint)


def default_tolerance(sides: Sequence[Subject], recipe: Recipe, rounded: bool = False) -> float:
    """By the arithmetic of both sides; infinite where their recipes differ, as then no error is a fault by itself.

    Args:
        rounded: Whether a checkpoint's kernels round activations.
    """
    recipes = [side.manifest.recipe if side.manifest is not None else recipe for side in sides]
    if recipes[0].to_json() != recipes[1].to_json():
        return math.inf
    if any(side.manifest is not None and _computes_narrow(side.manifest) for side in sides):
        return NARROW
    activations = {scheme.activations for scheme in recipes[0].components.values()}
    exact = activations == {"none"} and recipes[0].cache == "fp32" and not rounded
    return SAME_ARITHMETIC if exact else ROUNDED


def _computes_narrow(manifest: Manifest) -> bool:
    """Whether all activations are 16 bits wide; the executor's are float32."""
    return manifest.backend.name != "onnxruntime" and manifest.backend.compute != "fp32"


def refuse_for_others(sides: Sequence[Subject], running: Running) -> None:
    """Raises RequestError for an option of TensorRT engines where there is none."""
    from dsv3export.errors import RequestError

    given = [name for name, value in (("--replay", running.replay or None), ("--chunk", running.chunk)) if value]
    backends = [side.manifest.backend.name for side in sides if side.manifest is not None]
    if given and not any(name.startswith("tensorrt") for name in backends):
        raise RequestError(given[0], expected="a TensorRT engine as A or B", got=", ".join(backends) or "none")
