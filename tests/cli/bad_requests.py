"""Command lines that are wrong whatever the files are, and what the error has to name.

``CHECKPOINT``, ``ENGINE`` and ``TARGET`` stand for a good checkpoint, a good engine and an output that does not exist.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BadRequest:
    """A command line, what it finds on stdin, and what the one line on stderr says."""

    arguments: tuple[str, ...]
    says: tuple[str, ...]
    stdin: bytes = b""


def _run(*options: str, says: tuple[str, ...], stdin: bytes = b"") -> BadRequest:
    return BadRequest(("run", "ENGINE", *options), says, stdin)


def _sampled(option: str, value: str, says: str) -> BadRequest:
    return _run("--prompt", "x", option, value, says=(says, value))


BAD_REQUESTS = (
    # prompts
    _run(says=("--prompt", "--prompt-ids", "neither")),
    _run("--prompt", "x", "--prompt-ids", "1", says=("--prompt", "--prompt-ids", "both")),
    _run("--prompt", "x", "--interactive", says=("one of", "--interactive", "several")),
    _run("--input-file", "prompts.txt", "--prompt-ids", "1", says=("one of", "--input-file", "several")),
    _run("--input-file", "missing.txt", says=("missing.txt",)),
    _run("--prompt", "x", "--system", "y", says=("--system", "--interactive")),
    _run("--prompt", "x", "-o", "y", says=("--output", "--input-file")),
    _run("--interactive", "--json", says=("--json", "--interactive")),
    _run("--prompt", "x", "--speculate", "9", says=("speculate", "0 to 8")),
    _run("--prompt", "x", "--logprobs", "101", says=("logprobs", "0 to 100")),
    _run("--prompt", "-", says=("stdin", "nothing")),
    _run("--prompt", "-", stdin=b"\n", says=("stdin", "nothing")),
    _run("--prompt", "-", stdin=b"ab\xffcd", says=("stdin", "UTF-8", "0xff at offset 2")),
    _run("--prompt", "a\udcffb", says=("--prompt", "UTF-8")),
    _run("--prompt", "and " * 2000, says=("1024",)),
    _run("--prompt", "x", "--max-new-tokens", "1025", says=("1024", "1025")),
    _run("--prompt-ids", "", says=("--prompt-ids",)),
    _run("--prompt-ids", "1,,2", says=("--prompt-ids",)),
    _run("--prompt-ids", "1,two", says=("--prompt-ids", "two")),
    _run("--prompt-ids", "-1", says=("--prompt-ids", "-1")),
    _run("--prompt-ids", "9" * 5000, says=("--prompt-ids",)),
    _run("--prompt-ids", "0,2048", says=("2047", "2048")),
    # how to generate
    _sampled("--max-new-tokens", "0", "max_new_tokens"),
    _sampled("--max-new-tokens", "many", "--max-new-tokens"),
    _sampled("--temperature", "-0.5", "temperature"),
    _sampled("--temperature", "nan", "temperature"),
    _sampled("--temperature", "inf", "temperature"),
    _sampled("--temperature", "warm", "--temperature"),
    _sampled("--top-k", "-1", "top_k"),
    _sampled("--top-k", "1.5", "--top-k"),
    _sampled("--top-p", "0.0", "top_p"),
    _sampled("--top-p", "1.5", "top_p"),
    _sampled("--min-p", "2.0", "min_p"),
    _sampled("--min-p", "nan", "min_p"),
    _sampled("--seed", "-1", "seed"),
    _sampled("--threads", "0", "threads"),
    _sampled("--stop", "", "stop"),
    # providers that the engine was not built for, and none at all
    _run("--prompt", "x", "--provider", "cuda", says=("provider", "expected cpu, got cuda", "--provider cuda")),
    _run("--prompt", "x", "--provider", "tpu", says=("--provider", "tpu", "migraphx")),
    # layers
    *(
        BadRequest(("build", "CHECKPOINT", "-o", "TARGET", "--layers", text), ("layers", text))
        for text in ("1", "4:", "3:1", "a:b", "::-1")
    ),
    # paths that are something else
    BadRequest(("run", "TARGET", "--prompt", "x"), ("TARGET", "nothing there")),
    BadRequest(("run", "CHECKPOINT", "--prompt", "x"), ("CHECKPOINT", "a checkpoint", "dsv3export build")),
    BadRequest(("run", "CHECKPOINT/config.json", "--prompt", "x"), ("config.json", "a file")),
    BadRequest(("build", "CHECKPOINT/nothing", "-o", "TARGET"), ("nothing", "checkpoint folder")),
    BadRequest(("build", "CHECKPOINT/config.json", "-o", "TARGET"), ("config.json", "a file")),
    BadRequest(("build", "ENGINE", "-o", "TARGET"), ("config.json",)),
    BadRequest(("build", "", "-o", "TARGET"), ("CHECKPOINT", "empty")),
    BadRequest(("inspect", ""), ("PATH", "empty")),
    BadRequest(("inspect", "TARGET"), ("TARGET", "nothing there", "deepseek_v3")),
    BadRequest(("inspect", "CHECKPOINT/tokenizer.json"), ("tokenizer.json", "model_type")),
    BadRequest(("inspect", "CHECKPOINT/model-00001-of-000002.safetensors"), ("model-00001-of-000002.safetensors",)),
    BadRequest(("graph", "deepseek-v9"), ("deepseek-v9", "deepseek_v3")),
    BadRequest(("graph", "deepseek-v2-lite", "--part", "mtp"), ("--part mtp", "deepseek-v2-lite")),
    BadRequest(("graph", "CHECKPOINT", "--onnx", "CHECKPOINT"), ("CHECKPOINT", "a folder")),
    BadRequest(("graph", "CHECKPOINT", "--onnx", "TARGET/model.onnx"), ("TARGET/model.onnx", "No such file")),
    # flags
    BadRequest(("build", "CHECKPOINT"), ("--output",)),
    BadRequest(("build", "-o", "TARGET"), ("CHECKPOINT",)),
    BadRequest(("build", "CHECKPOINT", "-o", "TARGET", "--backend", "cuda"), ("--backend", "cuda", "onnxruntime")),
    BadRequest(("build", "CHECKPOINT", "-o", "TARGET", "--precision", "fp7"), ("--precision", "fp7", "fp32")),
    BadRequest(("build", "CHECKPOINT", "-o", "TARGET", "--cache-dtype", "fp4"), ("--cache-dtype", "fp4", "bf16")),
    BadRequest(("build", "CHECKPOINT", "-o", "TARGET", "--backend", "tensorrt"), ("backend tensorrt",)),
    BadRequest(
        ("build", "CHECKPOINT", "-o", "TARGET", "--backend", "tensorrt-rtx", "--provider", "cuda"),
        ("provider", "backend onnxruntime", "tensorrt-rtx"),
    ),
    BadRequest(("build", "CHECKPOINT", "-o", "TARGET", "--max-slots", "4"), ("max_slots", "tensorrt-rtx")),
    BadRequest(("build", "CHECKPOINT", "-o", "TARGET", "--bake-weights"), ("bake_weights", "tensorrt-rtx")),
    BadRequest(("build", "CHECKPOINT", "-o", "TARGET", "--recipe", "mix.json"), ("mix.json",)),
    BadRequest(("build", "CHECKPOINT", "-o", "TARGET", "--colour", "red"), ("--colour",)),
    BadRequest(("build", "CHECKPOINT", "-o", "TARGET", "more"), ("more",)),
    BadRequest(("build", "CHECKPOINT", "-o", "TARGET", "--threads", "0"), ("--threads", "1")),
    BadRequest(
        ("build", "CHECKPOINT", "-o", "TARGET", "--max-memory", "4 bananas"), ("--max-memory", "4GB", "bananas")
    ),
    BadRequest(("build", "CHECKPOINT", "-o", "TARGET", "--max-memory", "0GB"), ("--max-memory", "one byte")),
    BadRequest(("build", "CHECKPOINT", "-o", "TARGET", "--max-memory", "-1GB"), ("--max-memory", "-1GB")),
    BadRequest(("build", "CHECKPOINT", "-o", "TARGET", "--max-memory", "50MB"), ("max_memory", "at least", "0.05 GB")),
    BadRequest(("bild", "CHECKPOINT"), ("bild",)),
    BadRequest(("--loud",), ("--loud",)),
    BadRequest(("completion", "tcsh"), ("tcsh", "bash")),
    # providers
    BadRequest(("build", "CHECKPOINT", "-o", "TARGET", "--provider", "rocm"), ("--provider", "rocm", "migraphx")),
    BadRequest(("build", "CHECKPOINT", "-o", "TARGET", "--provider", "cann"), ("provider cann", "--provider cuda")),
    BadRequest(("build", "CHECKPOINT", "-o", "TARGET", "--compute", "f16"), ("compute", "--compute")),
    # targets
    BadRequest(("build", "CHECKPOINT", "-o", "CHECKPOINT"), ("CHECKPOINT",)),
    BadRequest(("build", "CHECKPOINT", "-o", "CHECKPOINT/engine"), ("CHECKPOINT/engine",)),
    BadRequest(("build", "CHECKPOINT", "-o", "CHECKPOINT/config.json"), ("config.json",)),
    BadRequest(("build", "CHECKPOINT", "-o", "FILE/engine"), ("FILE/engine",)),
    BadRequest(("build", "CHECKPOINT", "-o", "/proc/engine"), ("/proc/engine",)),
    BadRequest(("build", "CHECKPOINT", "-o", "FILE", "--force"), ("FILE", "a file")),
    BadRequest(("build", "CHECKPOINT", "-o", ""), ("--output", "empty")),
)
