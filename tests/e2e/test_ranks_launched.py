"""Ranks as processes, over gloo: what a user starts, and how a job ends when a rank is gone."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from dsv3export.engine.parallel import Layout
from dsv3export.runtime.engine import Engine
from tests.support.job import Job, job

pytestmark = pytest.mark.slow

PROMPT = [5, 17, 99, 200]
BOUND = 6
SLACK = 3  # of a machine that does other work too
RankEngine = Callable[[Layout], Path]
RUN = ("--prompt-ids", "5,17,99,200", "--max-new-tokens", "12", "--json")


@pytest.fixture(scope="module")
def right(tiny_engine: Path) -> list[int]:
    return Engine.load(tiny_engine, threads=1).generate(PROMPT, 12).token_ids


def prompts(path: Path, count: int = 400) -> Path:
    """A file of prompts that take a while."""
    request = {"prompt_token_ids": PROMPT, "max_new_tokens": 100, "ignore_eos": True}
    path.write_text(f"{json.dumps(request)}\n" * count)
    return path


def copy(source: Path, target: Path) -> None:
    """A file, or a folder with all that is in it, times included."""
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy2(source, target)


def ended(processes: list[psutil.Process]) -> bool:
    """Whether none of them is left, after a moment."""
    return not psutil.wait_procs(processes, timeout=2)[1]


def test_run_starts_its_ranks(rank_engine: RankEngine, right: list[int]) -> None:
    with job("run", rank_engine(Layout(2, 2, 1)), *RUN, "--speculate", "1", "--nproc", "4") as started:
        code, out, err = started.end()
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert result["token_ids"] == right
    assert [rank["rank"] for rank in result["ranks"]] == [0, 1, 2, 3]
    assert all(rank["compute_seconds"] > 0 for rank in result["ranks"])


def test_torchrun_starts_them_too(rank_engine: RankEngine, right: list[int]) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "dsv3export", "run", str(rank_engine(Layout(2, 1, 1))), *RUN]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["token_ids"] == right


def listening(processes: Iterable[psutil.Process]) -> set[str]:
    """The addresses at which any of them waits for connections."""
    found = [each for process in processes for each in process.net_connections()]
    return {each.laddr.ip for each in found if each.status == psutil.CONN_LISTEN}


@pytest.mark.parametrize(("rank", "number"), [(1, signal.SIGKILL), (0, signal.SIGSTOP)])
def test_a_rank_that_is_gone_ends_the_job(
    rank_engine: RankEngine, tmp_path: Path, rank: int, number: signal.Signals
) -> None:
    file = prompts(tmp_path / "prompts.jsonl")
    options = ("--nproc", "2", "--fault-timeout", str(BOUND))
    with job("run", rank_engine(Layout(2, 1, 1)), "--input-file", file, *options) as started:
        assert started.process.stdout is not None
        started.process.stdout.readline()
        ranks = started.ranks()
        assert listening([psutil.Process(started.process.pid), *ranks.values()]) == {"127.0.0.1"}
        ranks[rank].send_signal(number)
        since = time.monotonic()
        code, _, err = started.end(timeout=30)
        seconds = time.monotonic() - since
        assert ended(list(ranks.values()))
    assert code == 2
    assert err.count("\n") == 1, err
    assert f"rank {rank} on {socket.gethostname()}: " in err
    causes = ("has ended", "ended by SIGKILL") if number == signal.SIGKILL else ("not heard of",)
    assert any(cause in err for cause in causes), err
    assert seconds < BOUND + SLACK


def test_another_engine_is_named(rank_engine: RankEngine, tmp_path: Path) -> None:
    """Rank 1 has a part of another build."""
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    own, other = rank_engine(Layout(1, 2, 1)), rank_engine(Layout(1, 1, 2))
    for name, source in (("engine.json", own), ("tokenizer", own), ("rank-000", own), ("rank-001", other)):
        copy(source / name, mixed / name)
    with job("run", mixed, *RUN, "--nproc", "2") as started:
        code, out, err = started.end()
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert f"rank 1 on {socket.gethostname()}: it has another engine" in err


def test_a_part_that_is_missing_is_named(rank_engine: RankEngine, tmp_path: Path) -> None:
    own = rank_engine(Layout(1, 2, 1))
    for name in ("engine.json", "tokenizer", "rank-000"):
        copy(own / name, tmp_path / name)
    with job("run", tmp_path, *RUN, "--nproc", "2") as started:
        code, out, err = started.end()
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert f"rank 1 on {socket.gethostname()}: " in err
    assert "rank-001" in err


def served(started: Job) -> str:
    """The address of a server that has started."""
    return started.wait_for(" on http://").split(" on ")[1].split(",")[0]


def test_a_server_answers_and_says_503_when_a_rank_is_gone(rank_engine: RankEngine, right: list[int]) -> None:
    body: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 12, "temperature": 0, "logprobs": 0}
    options = ("--port", "0", "--quiet", "--nproc", "2", "--fault-timeout", str(BOUND))
    with job("serve", rank_engine(Layout(2, 1, 1)), *options) as started, httpx.Client(timeout=30) as client:
        url = served(started)
        assert client.get(f"{url}/health").json()["status"] == "ok"
        answer = client.post(f"{url}/v1/completions", json=body)
        assert answer.json()["usage"]["completion_tokens"] == len(right)
        ranks = started.ranks()
        ranks[1].send_signal(signal.SIGSTOP)
        since = time.monotonic()
        refused = client.post(f"{url}/v1/completions", json=body)
        assert refused.status_code == 503
        assert "rank 1 on " in refused.json()["error"]["message"]
        health = client.get(f"{url}/health")
        assert (health.status_code, health.json()["status"]) == (503, "failing")
        code, _, err = started.end(timeout=30)
        assert time.monotonic() - since < BOUND + SLACK
        assert ended(list(ranks.values()))
    assert code == 2
    assert err.count("dsv3export: error: rank 1 on ") == 1


def test_torchrun_brings_a_server_back(rank_engine: RankEngine, right: list[int]) -> None:
    body: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 12, "temperature": 0}
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    options = ("--port", "0", "--quiet", "--fault-timeout", str(BOUND))
    with (
        job("serve", rank_engine(Layout(2, 1, 1)), *options, prefix=(*torchrun, "--max-restarts", "1", "--no-python"))
        as started, httpx.Client(timeout=30) as client
    ):  # fmt: skip
        served(started)
        first = started.ranks()
        first[1].kill()
        url = served(started)
        assert ended(list(first.values()))
        assert client.get(f"{url}/health").json()["status"] == "ok"
        answer = client.post(f"{url}/v1/completions", json=body).json()
        assert answer["usage"]["completion_tokens"] == len(right)
        second = started.ranks()
        started.process.terminate()
        started.end(timeout=30)
        assert ended(list(second.values()))


def test_a_server_ends_its_ranks_when_it_is_told_to_end(rank_engine: RankEngine) -> None:
    with job("serve", rank_engine(Layout(2, 1, 1)), "--port", "0", "--quiet", "--nproc", "2") as started:
        served(started)
        ranks = started.ranks()
        started.process.terminate()
        code, _, err = started.end(timeout=30)
        assert ended(list(ranks.values()))
    assert (code, err) == (128 + signal.SIGTERM, "")


def told(*command: str | Path) -> dict[str, Any]:
    """What a command over ranks says as JSON; the other ranks say nothing."""
    with job(*command) as started:
        code, out, err = started.end()
    assert (code, err, out.count("\n")) == (0, "", 1)
    result: dict[str, Any] = json.loads(out)
    return result


def test_eval_over_ranks_gives_the_perplexity_of_one(
    rank_engine: RankEngine, tiny_engine: Path, goldens: Callable[[str], Path], tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text((goldens("bf16").parent / "heldout.txt").read_text(encoding="utf-8")[:3000], encoding="utf-8")
    options = ("--nproc", "2", "--text", text, "--against", tiny_engine, "--quiet", "--json")
    result = told("eval", rank_engine(Layout(1, 2, 1)), *options)
    assert result["perplexity"] == pytest.approx(result["against"]["perplexity"], rel=1e-4)
    assert result["against"]["kl_mean"] < 1e-6
    assert result["tokens"] > 500


def test_a_golden_holds_over_ranks(rank_engine: RankEngine, tiny_engine: Path, tmp_path: Path) -> None:
    golden, report, prompts_file = (tmp_path / name for name in ("one.golden", "check.json", "prompts.txt"))
    prompts_file.write_text("In the beginning\n", encoding="utf-8")
    recorded = ("golden", "record", str(tiny_engine), "-o", str(golden), "--prompts", str(prompts_file), "--quiet")
    subprocess.run([sys.executable, "-m", "dsv3export", *recorded], check=True, timeout=100)
    checked = ("golden", "check", rank_engine(Layout(2, 1, 1)), golden, "--nproc", "2", "--json", report, "--quiet")
    with job(*checked) as started:
        code, out, err = started.end()
    assert (code, err) == (0, ""), out
    result = json.loads(report.read_text())
    assert result["passed"]
    metrics = {case["measured"]["metric"] for case in result["cases"]}
    assert {"tokens", "logits.error", "greedy.margin"} <= metrics
    assert not any(metric.startswith("layers.") for metric in metrics)
    assert result["skipped"] == ["layers and routers: the model was not looked into"]


def test_bench_over_ranks_says_who_waited(rank_engine: RankEngine, tiny_engine: Path) -> None:
    options = ("--nproc", "2", "--prompt-tokens", "16", "--new-tokens", "4", "--repeats", "1", "--json")
    result = told("bench", rank_engine(Layout(2, 1, 1)), "--compare", tiny_engine, *options)
    cut, whole = result["results"]
    assert cut["weight_bytes_per_step"] is None
    assert whole["weight_bytes_per_step"] > 0
    assert cut["decode_tokens_per_second"]["median"] > 0
    assert result["ratios"][0]["decode"] > 0
    assert [each["rank"] for each in result["ranks"]] == [0, 1]
    assert all(0 < each["waiting_share"] < 1 for each in result["ranks"])


@pytest.mark.parametrize(("command", "option"), [("eval", "--against"), ("bench", "--compare")])
def test_the_other_engine_is_one_for_a_single_process(
    rank_engine: RankEngine, tmp_path: Path, command: str, option: str
) -> None:
    cut, text = rank_engine(Layout(2, 1, 1)), tmp_path / "text.txt"
    text.write_text("In the beginning", encoding="utf-8")
    given = ("--text", text) if command == "eval" else ()
    with job(command, cut, *given, option, cut, "--nproc", "2") as started:
        code, out, err = started.end()
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert "expected an engine for a single process" in err


LOOPING = """
import os, sys, time
if os.environ.get("RANK") == "1":
    from dsv3export.runtime.distributed.segment import Segment
    def run(*_):
        while True:
            time.sleep(0.01)
    Segment.run = run
"""


def test_a_rank_that_computes_without_end_is_named(rank_engine: RankEngine, tmp_path: Path) -> None:
    """It goes on beating; the other one waits for it."""
    (tmp_path / "sitecustomize.py").write_text(LOOPING, encoding="utf-8")
    root = Path(__file__).resolve().parents[2]
    options = ("--nproc", "2", "--fault-timeout", str(BOUND), "--step-timeout", "3")
    with job("run", rank_engine(Layout(1, 2, 1)), *RUN, *options, env={"PYTHONPATH": f"{tmp_path}:{root}"}) as started:
        code, out, err = started.end()
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert f"rank 1 on {socket.gethostname()}: it has computed for more than 3 s" in err
