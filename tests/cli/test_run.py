"""`dsv3export run`: text, JSON, statistics, prompts, encodings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsv3export import Engine
from dsv3export.cli.capabilities import CPU_KERNELS
from dsv3export.cli.transcript import Transcript
from dsv3export.runtime.generation import Piece
from tests.support.command_line import Outcome, run_here, run_process

PROMPT = "And it came to pass in"


@pytest.fixture(scope="module")
def engine(tiny_engine: Path) -> Engine:
    return Engine.load(tiny_engine)


def answer(outcome: Outcome) -> Any:
    """The one line of JSON on stdout."""
    assert (outcome.code, outcome.err, outcome.out.count("\n")) == (0, "", 1)
    return json.loads(outcome.out)


def test_goldens(tiny_engine: Path, goldens: Callable[[str], Path]) -> None:
    """The command prints the tokens that transformers' own model generates."""
    for prompt in json.loads((goldens("fp8") / "goldens.json").read_text())["prompts"][:3]:
        ids = ",".join(str(token) for token in prompt["ids"])
        count = str(len(prompt["greedy_ids"]))
        facts = answer(
            run_here(
                "run", tiny_engine, "--prompt-ids", ids, "--max-new-tokens", count, "--ignore-eos",
                "--temperature", "0", "--json",
            )
        )  # fmt: skip
        assert facts["token_ids"] == prompt["greedy_ids"]
        assert facts["prompt_token_ids"] == prompt["ids"]
        assert facts["finish_reason"] == "length"


def test_text_and_json_and_library_agree(tiny_engine: Path, engine: Engine) -> None:
    options = ("--prompt", PROMPT, "--max-new-tokens", "24")
    facts = answer(run_here("run", tiny_engine, *options, "--json"))
    expected = engine.generate(PROMPT, 24)
    assert facts["text"] == expected.text
    assert facts["token_ids"] == expected.token_ids
    assert facts["prompt_token_ids"] == expected.prompt_token_ids
    assert facts["finish_reason"] == expected.finish_reason
    streamed = run_here("run", tiny_engine, *options)
    assert (streamed.code, streamed.out, streamed.err) == (0, f"{expected.text}\n", "")


def test_sampling_options_reach_the_engine(tiny_engine: Path, engine: Engine) -> None:
    how = {"temperature": 0.9, "top_k": 40, "top_p": 0.95, "min_p": 0.02, "seed": 7}
    options = [part for key, value in how.items() for part in (f"--{key.replace('_', '-')}", str(value))]
    facts = answer(run_here("run", tiny_engine, "--prompt", PROMPT, "--max-new-tokens", "24", "--json", *options))
    assert facts["token_ids"] == engine.generate(PROMPT, 24, **how).token_ids  # type: ignore[call-overload]
    assert facts["token_ids"] != engine.generate(PROMPT, 24).token_ids


def test_stop_strings_and_end_of_text(tiny_engine: Path) -> None:
    common = ("run", tiny_engine, "--prompt", PROMPT, "--max-new-tokens", "24", "--json")
    whole = answer(run_here(*common))["text"]
    stopped = answer(run_here(*common, "--stop", "nowhere to be found", "--stop", "LORD"))
    assert stopped["finish_reason"] == "stop"
    assert stopped["text"] == whole[: whole.index("LORD")]


def test_statistics(tiny_engine: Path) -> None:
    options = ("--prompt", PROMPT, "--max-new-tokens", "8")
    stats = answer(run_here("run", tiny_engine, *options, "--json"))["stats"]
    assert (stats["prompt_tokens"], stats["new_tokens"]) == (7, 8)
    assert stats.pop("cpu_kernels") in CPU_KERNELS
    assert all(stats[key] > 0 for key in stats if "draft" not in key)
    told = run_here("run", tiny_engine, *options, "--stats")
    assert len(told.err_lines) == 1
    assert "prompt 7 tokens" in told.err
    assert "8 new tokens" in told.err
    one = answer(run_here("run", tiny_engine, "--prompt", PROMPT, "--max-new-tokens", "1", "--json"))["stats"]
    assert one["decode_tokens_per_second"] is None


def test_prompt_from_stdin_loses_one_line_break(tiny_engine: Path) -> None:
    def ids(*prompt: str, stdin: bytes = b"") -> Any:
        outcome = run_here("run", tiny_engine, *prompt, "--max-new-tokens", "1", "--json", stdin=stdin)
        return answer(outcome)["prompt_token_ids"]

    expected = ids("--prompt", "In the beginning\n")
    assert ids("--prompt", "-", stdin=b"In the beginning\n\n") == expected
    assert ids("--prompt", "-", stdin="déjà vu".encode()) == ids("--prompt", "déjà vu")
    assert ids("--prompt-ids", ",".join(map(str, expected))) == expected


@pytest.mark.parametrize(
    "locale", [{"LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"}]
)
def test_output_is_utf8_whatever_the_locale(locale: dict[str, str], tiny_engine: Path) -> None:
    """Hot sampling gives pieces of characters that become U+FFFD, which neither ASCII nor Latin-1 has."""
    options = ("--prompt-ids", "2,2000,1500,900", "--temperature", "3", "--seed", "1", "--max-new-tokens", "40")
    streamed = run_process("run", tiny_engine, *options, env=locale)
    as_json = run_process("run", tiny_engine, *options, "--json", env=locale)
    assert not streamed.out.isascii()
    assert streamed.out == answer(as_json)["text"] + "\n"


def test_threads_do_not_change_the_tokens(tiny_engine: Path) -> None:
    options = ("--prompt", PROMPT, "--max-new-tokens", "8", "--json", "--threads")
    one, two = (answer(run_here("run", tiny_engine, *options, count))["token_ids"] for count in ("1", "2"))
    assert one == two


def test_drafts_change_no_token_and_are_counted(tiny_engine: Path) -> None:
    options = ("--prompt", PROMPT, "--max-new-tokens", "24")
    plain = answer(run_here("run", tiny_engine, *options, "--json"))
    drafted = answer(run_here("run", tiny_engine, *options, "--json", "--speculate", "2"))
    assert drafted["token_ids"] == plain["token_ids"]
    assert plain["stats"]["drafted_tokens"] == 0 < drafted["stats"]["accepted_drafts"]
    said = run_here("run", tiny_engine, *options, "--speculate", "2", "--stats").err
    stats = drafted["stats"]
    assert f"{stats['accepted_drafts']} of {stats['drafted_tokens']} drafts accepted" in said


def test_each_piece_is_shown_as_it_comes(engine: Engine) -> None:
    transcript = Transcript()
    texts = transcript.follow(iter([Piece("a", [1]), Piece("", [2]), Piece("bc", [3], "stop")]))
    assert next(texts) == "a"
    assert (transcript.text, transcript.token_ids, transcript.finish_reason) == ("a", [1], "")
    assert list(texts) == ["", "bc"]
    assert (transcript.text, transcript.token_ids, transcript.finish_reason) == ("abc", [1, 2, 3], "stop")
    stats = transcript.stats(engine, prompt_tokens=5, load_seconds=0.5)
    assert (stats.prompt_tokens, stats.new_tokens, stats.load_seconds) == (5, 3, 0.5)
    assert stats.cache_bytes == 7 * engine.session.cache_layout.bytes_per_token
