"""The public face: load an engine, compute logits, generate."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast, overload

from dsv3export.engine.reader import EngineFiles
from dsv3export.engine.tokenizer_files import TOKENIZER_FOLDER
from dsv3export.engine.typed_json import read_json
from dsv3export.errors import BackendError, EngineError, RequestError
from dsv3export.runtime.batching.batcher import Batcher
from dsv3export.runtime.batching.prefix_cache import prefix_cache_for
from dsv3export.runtime.batching.run import longest, run_requests
from dsv3export.runtime.batching.speculation import SpeculationStats, checked_drafts
from dsv3export.runtime.drafting import draft_logits, drafter
from dsv3export.runtime.generation import (
    PREFILL_CHUNK,
    GenerationResult,
    Piece,
    Request,
    joined,
    prompt_logits,
)
from dsv3export.runtime.kernel_choice import KernelChoice, check_kernels
from dsv3export.runtime.providers import Choice, check_choice, open_provider
from dsv3export.runtime.request_maker import Prompt, RequestMaker, TokenIds
from dsv3export.runtime.requests import Limits
from dsv3export.runtime.session import BoundedSession, CpuSession, Logits, RankedSession, Session
from dsv3export.runtime.tensorrt_module import FLAVOURS
from dsv3export.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from dsv3export.config import ModelConfig
    from dsv3export.engine.manifest import Manifest
    from dsv3export.progress import Progress
    from dsv3export.runtime.distributed.watch import Watch
    from dsv3export.runtime.distributed.worker import RankFigures
    from dsv3export.runtime.kernel_choice import CpuKernels
    from dsv3export.runtime.request_maker import GenerationOptions

Batch = list[str] | Sequence[TokenIds]

_MAX_SETTINGS_BYTES = 1 << 20


class Engine:
    """A loaded engine. Make one with `Engine.load`.

    Args:
        files: The engine directory.
        session: The backend that runs it.
        max_batch: How many prompts are generated for at the same time; more wait for a free slot.
        capacity: Upper limit on prompt + new tokens; None takes the model's max_position_embeddings.
        prefill_chunk: How many tokens of a prompt are computed at once; bounds the memory of long prompts.
        prefix_cache: Bytes for the latents of finished sequences: a prompt that begins as one of them computes only
            what is new. 0 keeps none; None takes 256 MiB on the CPU and none on a device.
        speculate: Tokens that the MTP layer drafts for each step, which verifies them all; 0 to 8. What is generated
            stays the same for greedy decoding, and as likely otherwise.

    Attributes:
        session: The backend, for callers that run steps of their own.
        limits: What it can take.
        prefixes: The prefix cache; None if there is none.
        speculation: How many tokens were drafted and accepted so far.
    """

    def __init__(
        self,
        files: EngineFiles,
        session: Session,
        max_batch: int = 16,
        capacity: int | None = None,
        prefill_chunk: int = PREFILL_CHUNK,
        prefix_cache: int | None = 0,
        speculate: int = 0,
    ) -> None:
        _require_positive(max_batch=max_batch, capacity=capacity, prefill_chunk=prefill_chunk)
        self._files, self.session = files, session
        self.max_batch, self.prefill_chunk = max_batch, prefill_chunk
        self.speculate = checked_drafts(session, speculate)
        self.prefixes = prefix_cache_for(session, prefix_cache, speculate > 0)
        self.speculation = SpeculationStats()
        contexts = [(files.config.max_position_embeddings, "the model's max_position_embeddings")]
        if isinstance(session, BoundedSession):
            # A step writes its drafts behind the last token.
            less = f", less {speculate} for drafts" if speculate else ""
            contexts.append((session.capacity - speculate, f"what the engine was built for{less}"))
        if capacity is not None:
            contexts.append((capacity, "the capacity asked for"))
        self.limits = Limits(session.vocab_size, *min(contexts, key=lambda context: context[0]))

    @classmethod
    def load(
        cls,
        path: str | PathLike[str],
        threads: int | None = None,
        *,
        provider: Choice = "auto",
        cpu_kernels: KernelChoice = "auto",
        invariant: bool = False,
        verify: Literal["auto", "full"] = "auto",
        max_batch: int = 16,
        capacity: int | None = None,
        prefill_chunk: int = PREFILL_CHUNK,
        prefix_cache: int | None = 0,
        speculate: int = 0,
        progress: Progress | None = None,
        fault_timeout: float = 30.0,
        step_timeout: float = 600.0,
    ) -> Engine:
        """Opens and checks an engine directory and loads it into its backend.

        Args:
            path: The directory that `dsv3export build` wrote.
            threads: Compute threads of ONNX Runtime; None takes the physical cores that this process may use.
            provider: ONNX Runtime's execution provider: one that the engine was built for, or "auto" for the first of
                them that this machine has. Where that is not the preferred one, a `UserWarning` says so.
            cpu_kernels: On the CPU: "native" kernels, which the installation must have compiled and the engine have
                graphs for, "onnxruntime" for ONNX Runtime's own, or "auto" for native ones where they can be had.
            invariant: A token's logits are the same bits however its prompt is cut, whatever is drafted, kept or
                computed beside it, and on any number of threads. It takes native kernels; long prompts take longer.
            verify: "full" hashes every weights file, "auto" only those whose modification time has changed.
            max_batch, capacity, prefill_chunk, prefix_cache, speculate: See `Engine`.
            progress: Told of the bytes of weights that go to a GPU's memory.
            fault_timeout: Of an engine for several ranks, of which this process is the first: seconds within which a
                rank that is gone ends the job.
            step_timeout: Seconds that this process may compute between two exchanges with the others.

        Raises:
            EngineError: The engine is missing, damaged, altered or of another format version.
            BackendError: Its backend is not installed or refuses it, or the provider or the kernels cannot be had;
                another rank is gone.
            RequestError: There is no provider, or are no kernels, of that name; `invariant` where native kernels do not
                compute all.
        """
        _require_positive(threads=threads)
        check_choice(provider)
        check_kernels(cpu_kernels)
        files = EngineFiles.open(Path(path), verify)
        if files.manifest.parallel is None:
            session = _open_session(files, threads, provider, cpu_kernels, invariant, progress, drafts=speculate > 0)
        elif invariant:
            raise RequestError("invariant", expected="an engine for a single process", got="one for several ranks")
        else:
            session = _open_ranks(files, threads, cpu_kernels, verify, fault_timeout, step_timeout)
        return cls(files, session, max_batch, capacity, prefill_chunk, prefix_cache, speculate)

    def close(self) -> None:
        """Ends the other ranks of an engine of several; nothing is to be done for others."""
        if isinstance(self.session, RankedSession):
            self.session.close()

    def rank_figures(self) -> list[RankFigures]:
        """What each rank has done so far; empty for an engine that runs in this process alone."""
        return self.session.figures() if isinstance(self.session, RankedSession) else []

    @property
    def watch(self) -> Watch | None:
        """What notices that another rank is gone; None where there are no others."""
        return self.session.watch if isinstance(self.session, RankedSession) else None

    @property
    def cpu_kernels(self) -> CpuKernels | None:
        """The kernels that compute on the CPU; None where something else computes."""
        return self.session.cpu_kernels if isinstance(self.session, CpuSession) else None

    @property
    def config(self) -> ModelConfig:
        return self._files.config

    @property
    def manifest(self) -> Manifest:
        """What engine.json says."""
        return self._files.manifest

    @property
    def tokenizer_folder(self) -> Path:
        """Where the engine's tokenizer files are, if it has any."""
        return self._files.path / TOKENIZER_FOLDER

    @cached_property
    def requests(self) -> RequestMaker:
        """Makes checked requests for this engine. Raises TokenizerError for a damaged tokenizer."""
        return RequestMaker(self.limits, self.tokenizer, self.eos_ids, f"engine {self._files.path}")

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The engine's tokenizer; None if it was built from a checkpoint without one. Raises TokenizerError."""
        carried = f"{TOKENIZER_FOLDER}/tokenizer.json" in self._files.manifest.files
        return Tokenizer.from_directory(self.tokenizer_folder) if carried else None

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        """The tokens that end a sequence, by config.json and generation_config.json."""
        path = self.tokenizer_folder / "generation_config.json"
        ids = set(self.config.eos_token_ids)
        if path.exists():
            setting = read_json(path, _MAX_SETTINGS_BYTES).mapping().get("eos_token_id")
            if setting is not None and setting.value is not None:
                values = setting.array() if isinstance(setting.value, list) else [setting]
                ids.update(value.integer() for value in values)
        return frozenset(ids)

    def logits(self, token_ids: TokenIds) -> Logits:
        """Logits after every token of a sequence, float32[len(token_ids), vocab]. Raises RequestError."""
        ids = self.limits.check_ids(token_ids)
        self.limits.check_length(len(ids), 0)
        return prompt_logits(self.session, ids, self.prefill_chunk)

    def draft_logits(self, token_ids: TokenIds) -> Logits:
        """The MTP layer's drafts: row i is a guess for token i+2, float32[len(token_ids) - 1, vocab].

        Raises RequestError, also where the engine has no MTP layer.
        """
        ids = self.limits.check_ids(token_ids)
        self.limits.check_length(len(ids), 0)
        return draft_logits(drafter(self.session, f"engine {self._files.path}"), ids, self.prefill_chunk)

    @overload
    def generate(
        self, prompt: str | TokenIds, max_new_tokens: int | None = None, **how: Unpack[GenerationOptions]
    ) -> GenerationResult: ...

    @overload
    def generate(
        self, prompt: Batch, max_new_tokens: int | None = None, **how: Unpack[GenerationOptions]
    ) -> list[GenerationResult]: ...

    def generate(
        self, prompt: Prompt | Batch, max_new_tokens: int | None = None, **how: Unpack[GenerationOptions]
    ) -> GenerationResult | list[GenerationResult]:
        """Continues a prompt, or each prompt of a list (of any lengths) as if it were alone.

        Args:
            prompt: Text, token ids, or a list of either.
            max_new_tokens: Tokens to generate at most; None takes 128, or fewer where the context ends before.
            how: See `GenerationOptions`. With a seed the result depends on the seed, the prompt and its place in the
                list only.

        Raises:
            RequestError: Something asked for is out of range.
            TokenizerError: The prompt is text and the engine has no tokenizer.
        """
        batch, prompts = _prompts(prompt)
        requests = [self.requests.make(one, index, max_new_tokens, **how) for index, one in enumerate(prompts)]
        pieces: list[list[Piece]] = [[] for _ in requests]
        for index, piece in self.run(requests):
            pieces[index].append(piece)
        results = [joined(request, parts) for request, parts in zip(requests, pieces, strict=True)]
        return results if batch else results[0]

    def stream(
        self, prompt: Prompt, max_new_tokens: int | None = None, **how: Unpack[GenerationOptions]
    ) -> Iterator[Piece]:
        """As `generate` for one prompt, but hands out each token and its text as it comes.

        The request is checked at once, not at the first piece. The last piece has a `finish_reason`.
        """
        request = self.requests.make(prompt, 0, max_new_tokens, **how)
        return (piece for _, piece in self.run([request]))

    def run(self, requests: Sequence[Request]) -> Iterator[tuple[int, Piece]]:
        """(index of the request, piece) of requests that `Engine.requests` made, as they come."""
        slots, capacity = min(self.max_batch, len(requests)), longest(requests)
        return run_requests(self.batcher(slots, capacity), requests)

    def batcher(self, slots: int, capacity: int, speculate: int | None = None) -> Batcher:
        """A batch over this engine, as it is set up, or with so many drafts a step. See `Batcher`."""
        drafts = self.speculate if speculate is None else checked_drafts(self.session, speculate)
        # Of a prefix either both caches are kept or only the trunk's.
        prefixes = self.prefixes if (drafts > 0) == (self.speculate > 0) else None
        return Batcher(self.session, slots, capacity, self.prefill_chunk, prefixes, drafts, self.speculation)


def _prompts(prompt: Prompt | Batch) -> tuple[bool, list[Prompt]]:
    """Whether this is a list of prompts, and the prompts. A list of numbers, or an empty one, is a single prompt."""
    if isinstance(prompt, str) or len(prompt) == 0 or not hasattr(prompt[0], "__len__"):
        return False, [cast("Prompt", prompt)]
    for index, one in enumerate(prompt):
        if not hasattr(one, "__len__"):
            raise RequestError(f"prompt {index}", expected="text or token ids", got=repr(one))
    return True, cast("list[Prompt]", list(prompt))


def _open_session(
    files: EngineFiles, threads: int | None, provider: Choice, kernels: KernelChoice, invariant: bool,
    progress: Progress | None, drafts: bool,
) -> Session:  # fmt: skip
    """Raises BackendError for a backend, a provider or kernels that this runtime cannot run."""
    record = files.manifest.backend
    # imported here so that a missing backend package is reported only when it is needed
    if record.name in FLAVOURS:
        from dsv3export.runtime.tensorrt.session import TensorRTSession

        if kernels == "native" or invariant:
            expected, fix = "an engine for onnxruntime on the CPU", "Leave --cpu-kernels to auto."
            raise BackendError(f"engine {files.path}: native CPU kernels", expected=expected, got=record.name, fix=fix)
        if provider != "auto":
            expected, fix = "an engine for onnxruntime", "Leave the provider to auto."
            raise BackendError(f"engine {files.path}: provider {provider}", expected=expected, got=record.name, fix=fix)
        return TensorRTSession(files, progress=progress, drafts=drafts)
    if record.name != "onnxruntime":
        expected = f"onnxruntime, {' or '.join(FLAVOURS)}"
        raise BackendError(f"engine {files.path}: backend", expected=expected, got=repr(record.name))
    from dsv3export.runtime.onnxruntime_device import open_device
    from dsv3export.runtime.onnxruntime_session import OnnxRuntimeSession

    where = f"engine {files.path}"
    device, given_up = open_provider(record, where, provider, lambda one: open_device(files, one, kernels, invariant))
    if given_up:
        warnings.warn(given_up, UserWarning, stacklevel=3)
    return OnnxRuntimeSession(files, threads, device)


def _open_ranks(
    files: EngineFiles, threads: int | None, kernels: KernelChoice, verify: Literal["auto", "full"],
    fault_timeout: float,
    step_timeout: float,
) -> Session:  # fmt: skip
    """Raises EngineError where no launcher started this process as the first rank."""
    from dsv3export.runtime.distributed.environment import in_job
    from dsv3export.runtime.distributed.load import parallel_of

    layout = parallel_of(files).layout
    if not in_job():
        fix = f"Run it with --nproc {layout.world}, or by torchrun on several machines."
        raise EngineError(f"engine {files.path}", expected=f"{layout.world} ranks", got="a single process", fix=fix)
    from dsv3export.runtime.distributed.join import lead

    return lead(files.path, threads, verify, fault_timeout, step_timeout, kernels)


def _require_positive(**values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < 1:
            raise RequestError(name, expected="at least 1", got=str(value))
