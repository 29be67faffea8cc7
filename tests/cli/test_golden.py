"""`dsv3export golden`: recorded, checked at every precision, updated, and what is refused."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import ml_dtypes
import numpy as np
import pytest

from dsv3export.dtypes import NUMPY
from dsv3export.golden import Golden
from dsv3export.golden.document import LayerValue
from dsv3export.golden.profile import find_profile
from dsv3export.golden.results import METRICS
from dsv3export.graphs.build import build_engine
from tests.golden.goldens import small_golden
from tests.support.altered import edit_tensor, linked_copy
from tests.support.command_line import assert_refused, run_here

PROMPTS = """And it came to pass in the morning, that the king of the city sent for
[0, 5, 7, 100, 33, 21, 8]

{"text": "In the beginning God created the heaven and the earth. And the earth was without form"}
{"ids": [4]}
"""
EXPERT = "model.layers.2.mlp.experts.{}.up_proj.weight"


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text(PROMPTS, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def recorded(tiny_bf16: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The float32 executor's golden of the BF16 checkpoint, with a text of which the last chunk is short."""
    folder = tmp_path_factory.mktemp("goldens")
    text = folder / "text.txt"
    text.write_text((tiny_bf16.parent / "goldens" / "heldout.txt").read_text(encoding="utf-8")[:1500], encoding="utf-8")
    path = folder / "tiny.golden"
    outcome = run_here("golden", "record", tiny_bf16, "--prompts", prompts, "--text", text, "-o", path)
    assert (outcome.code, outcome.err) == (0, "")
    assert "4, " in outcome.out
    assert "4 routers" in outcome.out
    return path


@pytest.fixture(scope="module")
def fp32_engine(tiny_bf16: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("engines") / "fp32.engine"
    build_engine(tiny_bf16, path)
    return path


@pytest.fixture(scope="module")
def int4_engine(tiny_bf16: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("engines") / "int4.engine"
    build_engine(tiny_bf16, path, precision="int4")
    return path


@pytest.mark.parametrize(
    ("precision", "cache"),
    [
        ("fp32", "fp32"), ("bf16", "fp32"), ("fp8", "fp32"), ("int8", "fp32"), ("int4", "fp32"),
        ("fp32", "bf16"), ("fp32", "f16"), ("fp32", "fp8"), ("int8", "fp8"),
    ],
)  # fmt: skip
def test_a_right_engine_passes_at_every_precision(
    precision: str, cache: str, recorded: Path, tiny_bf16: Path, tmp_path: Path
) -> None:
    """By prompts and a text that the profiles were not measured on."""
    engine, result = tmp_path / "tiny.engine", tmp_path / "result.json"
    build_engine(tiny_bf16, engine, precision=precision, cache_dtype=cache)
    outcome = run_here("golden", "check", engine, recorded, "--json", result, "--quiet", "--threads", "1")
    assert (outcome.code, outcome.err) == (0, ""), outcome.out
    assert "Passed" in outcome.out
    found = json.loads(result.read_text(encoding="utf-8"))
    same = (precision, cache) == ("fp32", "fp32")
    name = precision if cache == "fp32" else f"{precision}+cache-{cache}"
    assert found["profile"] == ("same-fp32" if same else name)
    assert (found["passed"], found["first_failure"], found["skipped"], found["notes"]) == (True, None, [], [])
    metrics = {case["measured"]["metric"] for case in found["cases"]}
    assert len(metrics) == 14
    # Another arithmetic is another computation: it is seen, and is within the bound.
    assert max(case["measured"]["value"] for case in found["cases"] if case["measured"]["layer"] == "layers.3") > 0


@pytest.fixture(scope="module")
def wrong_engine(tiny_bf16: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rows of all experts of layer 2 upside down in one matrix."""
    folder = tmp_path_factory.mktemp("wrong")
    altered = linked_copy(tiny_bf16, folder / "altered")
    for shard in altered.glob("*.safetensors"):
        header = shard.read_bytes()[:200_000]
        for expert in range(16):
            if EXPERT.format(expert).encode() in header:
                edit_tensor(shard, EXPERT.format(expert), _upside_down)
    build_engine(altered, folder / "wrong.engine")
    return folder / "wrong.engine"


def _upside_down(data: bytes) -> bytes:
    return np.frombuffer(data, ml_dtypes.bfloat16).reshape(128, -1)[::-1].tobytes()


def test_a_wrong_engine_fails_in_every_report(wrong_engine: Path, recorded: Path, tmp_path: Path) -> None:
    junit, result, page = (tmp_path / f"golden.{suffix}" for suffix in ("xml", "json", "html"))
    reports = ("--junit", junit, "--json", result, "--html", page, "--github")
    outcome = run_here("golden", "check", wrong_engine, recorded, *reports, "--quiet")
    assert (outcome.code, outcome.err) == (1, "")
    first = json.loads(result.read_text(encoding="utf-8"))["first_failure"]
    assert (first["measured"]["layer"], first["measured"]["metric"]) == ("layers.2", "layers.error")
    assert first["measured"]["value"] > first["bound"]
    assert first["measured"]["place"]["expected"] != first["measured"]["place"]["got"]
    assert "FAILED" in outcome.out
    assert "first  layers.2: layers.error" in outcome.out
    assert "layers.2: layers.error is beyond its bound" in page.read_text(encoding="utf-8")
    (suite,) = ElementTree.parse(junit).getroot()
    failed = [case.get("name") for case in suite.findall("testcase") if case.find("failure") is not None]
    assert failed[0] == "layers.2"
    assert {"logits", "greedy", "text"} <= set(failed)
    assert not {"layers.0", "layers.1", "tokens"} & set(failed)
    annotations = [line for line in outcome.out.splitlines() if line.startswith("::error ")]
    assert len(annotations) == 10
    assert "layers.2: layers.error" in annotations[0]


def test_what_comes_out_is_enough_to_see_it(wrong_engine: Path, recorded: Path) -> None:
    """Without torch, as on the machine that serves."""
    outcome = run_here("golden", "check", wrong_engine, recorded, "--without-layers", "--quiet")
    assert outcome.code == 1
    assert "layers and routers: the model was not looked into" in outcome.out
    assert "first  logits.error" in outcome.out


def test_outputs_need_no_package_of_the_build(recorded: Path, tiny_engine: Path, prompts: Path, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnx_ir'): sys.modules[name] = None\n"
        "from dsv3export.cli.main import call\n"
        "sys.exit(call(sys.argv[1:]))"
    )
    for arguments in (
        ("record", tiny_engine, "--prompts", prompts, "--digest", "none", "-o", tmp_path / "thin.golden"),
        ("check", tiny_engine, tmp_path / "thin.golden"),
        ("check", tiny_engine, recorded, "--without-layers", "--profile", "fp8"),
    ):
        command = [sys.executable, "-c", program, "golden", *map(str, arguments), "-q"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
    done = subprocess.run(
        [sys.executable, "-c", program, "golden", "check", str(tiny_engine), str(recorded)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "--without-layers" in done.stderr


def test_equal_runs_give_equal_bytes(tiny_bf16: Path, recorded: Path, prompts: Path, tmp_path: Path) -> None:
    digests = set()
    for name in ("one", "two"):
        path = tmp_path / name
        outcome = run_here("golden", "record", tiny_bf16, "--prompts", prompts, "-o", path, "-q")
        assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(digests) == 1
    shown = json.loads(run_here("golden", "show", path).out)
    assert shown["prompts"][1] == {"text": None, "ids": [0, 5, 7, 100, 33, 21, 8]} | {
        key: shown["prompts"][1][key] for key in ("greedy", "nll")
    }
    assert shown["arrays"]["logits.values"] == f"F32 [{sum(len(p['ids']) for p in shown['prompts'])}, 8]"
    assert len(shown["values"]) == 11


def test_an_update_keeps_what_was_there_and_adds_the_rest(
    tiny_engine: Path, prompts: Path, tmp_path: Path
) -> None:  # fmt: skip
    path = tmp_path / "tiny.golden"
    options = ("--digest", "none", "--logits", "top-3", "--new-tokens", "4", "-q")
    assert run_here("golden", "record", tiny_engine, "--prompts", prompts, "-o", path, *options).code == 0
    before = path.read_bytes()
    assert_refused(run_here("golden", "record", tiny_engine, "--prompts", prompts, "-o", path), ("--update",), tmp_path)
    assert path.read_bytes() == before
    assert run_here("golden", "record", tiny_engine, "-o", path, "--update", "-q").code == 0
    assert path.read_bytes() == before
    more = tmp_path / "more.txt"
    more.write_text("[1, 2, 3]\n[4]\n", encoding="utf-8")
    assert run_here("golden", "record", tiny_engine, "-o", path, "--prompts", more, "--update", "-q").code == 0
    document = Golden.read(path).document
    assert [len(prompt.ids) for prompt in document.prompts][1:] == [7, len(document.prompts[2].ids), 1, 3]
    assert (document.settings.top, document.settings.new_tokens, document.settings.digest) == (3, 4, "none")
    assert run_here("golden", "check", tiny_engine, path, "-q").code == 0


def test_a_tie_is_no_fault(tiny_engine: Path, prompts: Path, tmp_path: Path) -> None:
    """The golden says another token where it was not sure: within the bound a tie, beyond it a fault."""
    path = tmp_path / "tiny.golden"
    run_here("golden", "record", tiny_engine, "--prompts", prompts, "-o", path, "--digest", "none", "-q")
    golden = Golden.read(path)
    values = golden.arrays["greedy.values"]
    # A last step: what follows another token would be another computation.
    steps = golden.document.settings.new_tokens
    prompt, step = int(np.argmin((values[:, 0] - values[:, 1])[steps - 1 :: steps])), steps - 1
    row = prompt * steps + step
    margin = float(values[row, 0] - values[row, 1])
    other = int(golden.arrays["greedy.ids"][row, 1])
    changed = list(golden.document.prompts)
    greedy = list(changed[prompt].greedy)
    greedy[step] = other
    changed[prompt] = replace(changed[prompt], greedy=tuple(greedy))
    swapped = {name: array.copy() for name, array in golden.arrays.items()}
    swapped["greedy.ids"][row, :2] = swapped["greedy.ids"][row, 1::-1]
    for bound, code in ((margin * 1.5, 0), (margin / 2, 1)):
        shipped, _ = find_profile("same-fp32", ())
        bounds = [replace(each, bound=bound if each.metric == "greedy.margin" else 1e3) for each in shipped.bounds]
        profile = replace(shipped, bounds=tuple(bounds))
        document = replace(golden.document, prompts=tuple(changed))
        path.write_bytes(Golden(document, swapped).with_profile(profile).to_bytes())
        outcome = run_here("golden", "check", tiny_engine, path, "-q")
        assert outcome.code == code, outcome.out
        assert (" tie " in outcome.out) == (code == 0)


def test_batching_does_not_matter(recorded: Path, fp32_engine: Path) -> None:
    for batch, chunk in (("1", "256"), ("2", "3"), ("3", "1")):
        outcome = run_here(
            "golden", "check", fp32_engine, recorded, "--without-layers", "--batch", batch, "--chunk", chunk, "-q"
        )
        assert (outcome.code, outcome.err) == (0, ""), outcome.out


def test_noise_becomes_a_profile_of_the_golden(
    recorded: Path, tiny_bf16: Path, fp32_engine: Path, int4_engine: Path, tmp_path: Path
) -> None:
    """Measured on the golden's own prompts, so what was measured passes, and the bounds say where they come from."""
    golden = tmp_path / "tiny.golden"
    golden.write_bytes(recorded.read_bytes())
    options = ("--threads", "1", "--batches", "4", "--chunks", "256,5", "--margin", "2", "-q")
    outcome = run_here("golden", "calibrate", fp32_engine, golden, "--against", int4_engine, *options, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    assert golden.read_bytes() == recorded.read_bytes()
    profiles = json.loads(outcome.out)
    assert [profile["name"] for profile in profiles] == ["same-fp32", "int4"]
    for profile in profiles:
        assert len(profile["runs"]) == 2
        assert {bound["metric"] for bound in profile["bounds"]} == METRICS.keys() - {"tokens"}
        for bound in profile["bounds"]:
            power = 2 if ".kl" in bound["metric"] else 1
            assert bound["bound"] == pytest.approx(max(2**power * bound["largest"], 2**-20), rel=0.1)
            assert bound["median"] <= bound["p99"] <= bound["largest"]
    close, far = ({bound["metric"]: bound["bound"] for bound in profile["bounds"]} for profile in profiles)
    assert all(far[metric] > 20 * close[metric] for metric in ("layers.median", "logits.error", "text.nll"))
    outcome = run_here(
        "golden",
        "calibrate",
        fp32_engine,
        golden,
        "--against",
        int4_engine,
        "--against",
        tiny_bf16,
        *options,
        "--write",
    )
    assert (outcome.code, outcome.err) == (0, "")
    document = Golden.read(golden).document
    assert [profile.name for profile in document.profiles] == ["int4", "same-fp32"]
    assert any(run.startswith("checkpoint fp32") for run in document.profiles[1].runs)
    for engine in (fp32_engine, int4_engine):
        outcome = run_here("golden", "check", engine, golden, "-q", "--threads", "1")
        assert outcome.code == 0, outcome.out
        assert "measured for this golden" in outcome.out


BAD_RECORDS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    ((), ("--prompts",)),
    (("--prompts", "no.txt"), ("no.txt",)),
    (("--prompts", "PROMPTS", "--logits", "top-0"), ("--logits", "top-0")),
    (("--prompts", "PROMPTS", "--logits", "8"), ("--logits", "top-K")),
    (("--prompts", "PROMPTS", "--logits", "top-9999"), ("top", "2048", "9999")),
    (("--prompts", "PROMPTS", "--new-tokens", "0"), ("--new-tokens",)),
    (("--prompts", "PROMPTS", "--new-tokens", "1020"), ("1024",)),
    (("--prompts", "PROMPTS", "--digest", "sum"), ("--digest", "sum")),
    (("--prompts", "PROMPTS", "--text", "no.txt"), ("no.txt",)),
    (("--prompts", "PROMPTS", "--update"), ("out.golden",)),
    (("--prompts", "BROKEN"), ("broken.txt:2", "JSON")),
    (("--prompts", "WRONG"), ("wrong.txt:1", '{"text": "..."}')),
)


@pytest.mark.parametrize(("options", "says"), BAD_RECORDS, ids=lambda part: " ".join(part)[:40])
def test_bad_recordings(
    options: tuple[str, ...], says: tuple[str, ...], tiny_engine: Path, prompts: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.txt").write_text("[1]\n[1,\n", encoding="utf-8")
    (tmp_path / "wrong.txt").write_text('{"texts": "x"}\n', encoding="utf-8")
    places = {"PROMPTS": prompts, "BROKEN": tmp_path / "broken.txt", "WRONG": tmp_path / "wrong.txt"}
    arguments = [str(places.get(option, option)) for option in options]
    outcome = run_here("golden", "record", tiny_engine, "-o", tmp_path / "out.golden", *arguments)
    assert_refused(outcome, says, tmp_path)
    assert not (tmp_path / "out.golden").exists()


def test_bad_checks(recorded: Path, tiny_engine: Path, tiny_fp8: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.golden"
    damaged.write_bytes(recorded.read_bytes()[:-1])
    foreign = tmp_path / "foreign.golden"
    foreign.write_bytes(small_golden().to_bytes())
    for arguments, says in (
        ((tiny_engine, tmp_path / "none.golden"), ("none.golden",)),
        ((tiny_engine, damaged), ("damaged.golden",)),
        ((tiny_engine, tiny_fp8 / "model.safetensors"), ("model.safetensors",)),
        ((tiny_engine, recorded, "--profile", "int3"), ("int3", "one of", "golden calibrate")),
        (("deepseek-v3", recorded), ("deepseek-v3", "no weights")),
        ((tmp_path / "nothing", recorded), ("nothing",)),
        ((tiny_engine, recorded, "--batch", "0"), ("--batch",)),
        ((tiny_engine, foreign, "--profile", "int4"), ("2 layers, hidden size 16", "4 layers, hidden size 256")),
        ((tiny_engine, foreign), ("profile", "int4", "fp32")),
    ):
        assert_refused(run_here("golden", "check", *arguments, "-q"), says, tmp_path)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--threads", "1,x"), ("--threads", "1,x")),
        (("--batches", "0"), ("--batches", "from 1 on")),
        (("--chunks", ""), ("--chunks",)),
        (("--margin", "0.5"), ("--margin", "0.5")),
        (("--against", "nothing"), ("nothing",)),
    ],
)
def test_bad_calibrations(
    options: tuple[str, ...], says: tuple[str, ...], recorded: Path, tiny_engine: Path, tmp_path: Path
) -> None:
    """Refused before anything is run, or with nothing written."""
    golden = tmp_path / "tiny.golden"
    golden.write_bytes(recorded.read_bytes())
    quick = ("--without-layers", "--write", "-q", *([] if "--threads" in options else ["--threads", "1"]))
    assert_refused(run_here("golden", "calibrate", tiny_engine, golden, *quick, *options), says, tmp_path)
    assert golden.read_bytes() == recorded.read_bytes()


def test_a_layer_that_an_engine_lacks_is_said_once(recorded: Path, tiny_bf16: Path, tmp_path: Path) -> None:
    """The golden has the MTP layer; an engine may be built without."""
    golden = Golden.read(recorded)
    extra = LayerValue("layers.9.mlp.experts", "layers.9", 4)
    more = replace(golden.document, values=(*golden.document.values, extra, replace(extra, name="layers.9")))
    arrays = {
        name: golden.arrays.get(name, np.zeros(shape, NUMPY[dtype])) for name, (dtype, shape) in more.arrays().items()
    }
    (tmp_path / "more.golden").write_bytes(Golden(more, arrays).to_bytes())
    outcome = run_here("golden", "check", tiny_bf16, tmp_path / "more.golden", "-q")
    assert outcome.code == 0
    assert outcome.out.count("layers.9: the model does not have this layer") == 1
    assert "layers.9.mlp" not in outcome.out
