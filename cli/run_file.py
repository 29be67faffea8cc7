"""`run --input-file`: all prompts of a file in one batch, results in the file's order, resumed where it was ended."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from dsv3export.cli.progress_bar import progress_on_stderr
from dsv3export.cli.prompt_file import FilePrompt
from dsv3export.errors import ResourceError

if TYPE_CHECKING:
    from dsv3export.runtime.engine import Engine
    from dsv3export.runtime.generation import GenerationResult, Piece


def run_file(engine: Engine, prompts: Sequence[FilePrompt], output: Path | None) -> None:
    """Writes a line of JSON for each prompt to `output`, or to stdout.

    A file that is there is gone on with: its whole lines must be results of the first prompts. Raises ResourceError
    where they are not.
    """
    done = _results_in(output, prompts) if output else 0
    with _open(output) as file, progress_on_stderr(quiet=output is None) as progress:
        if done:
            progress.note(f"{output} has {done} of {len(prompts)} results already")
        progress.start("generating", sum(prompt.request.max_new_tokens for prompt in prompts[done:]), "tokens")
        for place, result in _in_order(engine, prompts[done:], progress.advance):
            file.write(json.dumps(_record(prompts[done + place], done + place, result), ensure_ascii=False) + "\n")
            file.flush()
        progress.finish()


def _in_order(engine: Engine, prompts: Sequence[FilePrompt], advance: Any) -> Iterator[tuple[int, GenerationResult]]:
    """Results in the order of the prompts, each as soon as those before it are there."""
    from dsv3export.runtime.generation import joined

    pieces: dict[int, list[Piece]] = {}
    finished: dict[int, GenerationResult] = {}
    wanted = 0
    if not prompts:
        return
    for place, piece in engine.run([prompt.request for prompt in prompts]):
        pieces.setdefault(place, []).append(piece)
        advance(len(piece.token_ids))
        if piece.finish_reason is None:
            continue
        parts, request = pieces.pop(place), prompts[place].request
        finished[place] = joined(request, parts)
        advance(request.max_new_tokens - len(finished[place].token_ids))
        while wanted in finished:
            yield wanted, finished.pop(wanted)
            wanted += 1


def _record(prompt: FilePrompt, place: int, result: GenerationResult) -> dict[str, Any]:
    record: dict[str, Any] = {"index": place, "request": prompt.digest}
    if prompt.id is not None:
        record["id"] = prompt.id
    record |= {
        "text": result.text,
        "token_ids": result.token_ids,
        "prompt_tokens": len(result.prompt_token_ids),
        "completion_tokens": len(result.token_ids),
        "finish_reason": result.finish_reason,
    }
    if result.logprobs is not None:
        record["logprobs"] = [asdict(each) for each in result.logprobs]
    return record


def _results_in(output: Path, prompts: Sequence[FilePrompt]) -> int:
    """How many prompts a file has results of; a last line that was cut off is removed."""
    if not output.exists():
        return 0
    data = output.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    lines = whole.splitlines()
    for place, line in enumerate(lines):
        if place >= len(prompts) or not _is_result(line, place, prompts[place]):
            raise ResourceError(
                f"{output}, line {place + 1}", expected=f"the result of prompt {place}, asked for as now",
                got="another", fix="Choose another --output, or remove it to begin anew.",
            )  # fmt: skip
    if whole != data:
        with output.open("r+b") as file:
            file.truncate(len(whole))
    return len(lines)


def _is_result(line: bytes, place: int, prompt: FilePrompt) -> bool:
    try:
        record = json.loads(line)
    except ValueError:
        return False
    return isinstance(record, dict) and (record.get("index"), record.get("request")) == (place, prompt.digest)


@contextmanager
def _open(output: Path | None) -> Iterator[IO[str]]:
    if output is None:
        yield sys.stdout
        return
    try:
        file = output.open("a", encoding="utf-8")
    except OSError as error:
        raise ResourceError(str(output), expected="a file that can be written", got=error.strerror or "") from None
    with file:
        yield file
