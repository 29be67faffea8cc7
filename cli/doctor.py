"""`dsv3export doctor`: packages, providers, processor, memory, GPUs, and what works with them."""

from __future__ import annotations

import platform
import sys
from dataclasses import asdict, dataclass

import click

from dsv3export import __version__
from dsv3export.cli.capabilities import BACKENDS, Capability, capabilities
from dsv3export.cli.command import Command
from dsv3export.cli.machine import Cpu, Gpu, Memory, read_cpu, read_gpus, read_memory
from dsv3export.cli.options import json_option, quiet_option, verbose_option
from dsv3export.cli.packages import PackageState, ProviderStates, read_packages, read_providers
from dsv3export.cli.tables import bytes_text, print_facts, print_json, print_table
from dsv3export.errors import BackendError
from dsv3export.runtime import cpu_kernels


@dataclass(frozen=True)
class Findings:
    """Everything that doctor found out."""

    packages: dict[str, PackageState]
    providers: ProviderStates
    cpu: Cpu
    memory: Memory
    gpus: tuple[Gpu, ...]
    works: tuple[Capability, ...]
    cpu_kernels: cpu_kernels.Description | None
    cpu_kernels_problem: str


EXAMPLES = (
    "dsv3export doctor",
    "dsv3export doctor --probe",
    "dsv3export doctor --json | jq .works",
    "dsv3export doctor --conformance --backend onnxruntime",
)


@click.command("doctor", cls=Command, examples=EXAMPLES)
@click.option("--probe", is_flag=True, help="Import every package, each in a process of its own (slower).")
@click.option(
    "--conformance",
    is_flag=True,
    help="Build a tiny engine of each op at each precision, run it, and compare with the op's definition.",
)
@click.option("--backend", type=click.Choice(BACKENDS), help="With --conformance: this backend only.")
@quiet_option
@json_option("Print one line of JSON.")
@verbose_option
@click.pass_context
def command(
    ctx: click.Context, probe: bool, conformance: bool, backend: str | None, quiet: bool, as_json: bool
) -> None:
    """Say what works on this machine, and why not.

    With --conformance the exit code is 1 if an op is wrong. Where there is no GPU to run on, engines are built as far
    as that goes, and the table says that they were not run.
    """
    if conformance:
        if probe:
            raise click.UsageError("--probe and --conformance are two different questions: ask one at a time", ctx)
        from dsv3export.cli.conformance import report

        ctx.exit(report(backend, quiet, as_json))
    if backend is not None:
        raise click.UsageError("--backend needs --conformance", ctx)
    findings = examine(probe)
    if as_json:
        print_json(as_data(findings))
    else:
        _print(findings)


def examine(probe: bool) -> Findings:
    """Looks at the machine; with `probe` also tries whether each package imports."""
    packages = read_packages(probe)
    providers = ProviderStates((), {}, "onnxruntime is not installed")
    if packages["onnxruntime"].versions:
        providers = read_providers()
    if providers.failure:
        state = packages["onnxruntime"]
        packages["onnxruntime"] = PackageState(state.entry, state.versions, state.problem or providers.failure)
    gpus = read_gpus()
    works = capabilities(packages, bool(gpus))
    return Findings(packages, providers, read_cpu(), read_memory(), gpus, works, *read_cpu_kernels())


def read_cpu_kernels() -> tuple[cpu_kernels.Description | None, str]:
    """The native CPU kernels, or why there are none."""
    try:
        description = cpu_kernels.describe()
    except BackendError as error:
        return None, str(error)
    return description, "" if description else f"not compiled. {cpu_kernels.HOW_TO_GET}"


def as_data(findings: Findings) -> dict[str, object]:
    """The findings as JSON-able data."""
    return {
        "dsv3export": __version__,
        "python": {"version": platform.python_version(), "executable": sys.executable, "platform": platform.platform()},
        "packages": {
            module: {"versions": list(state.versions), "purpose": state.entry.purpose, "problem": state.problem}
            for module, state in findings.packages.items()
        },
        "onnxruntime_providers": list(findings.providers.names),
        "providers": [
            {"provider": name, "usable": not problem, "why_not": problem}
            for name, problem in findings.providers.problems.items()
        ],
        "cpu": asdict(findings.cpu),
        "memory": asdict(findings.memory),
        "gpus": [asdict(gpu) for gpu in findings.gpus],
        "cpu_kernels": {
            **_kernels_data(findings.cpu_kernels),
            "problem": findings.cpu_kernels_problem,
        },
        "works": [asdict(capability) for capability in findings.works],
    }


def _kernels_data(found: cpu_kernels.Description | None) -> dict[str, object]:
    return {**asdict(found), "path": str(found.path)} if found else {}


def _kernels_text(findings: Findings) -> str:
    found = findings.cpu_kernels
    if found is None:
        return findings.cpu_kernels_problem
    lowered = f" (of {found.machine_isa}: DSV3EXPORT_CPU_ISA)" if found.isa != found.machine_isa else ""
    return f"{found.isa}{lowered}, compiled by {found.compiler}"


def _print(findings: Findings) -> None:
    cpu, memory = findings.cpu, findings.memory
    gpus = [f"{gpu.name}, {gpu.memory}, sm {gpu.compute_capability}, driver {gpu.driver}" for gpu in findings.gpus]
    limit = f", {bytes_text(memory.limit)} allowed to this container" if memory.limit is not None else ""
    machine = [
        ("dsv3export", __version__),
        ("Python", f"{platform.python_version()} ({sys.executable})"),
        ("platform", platform.platform()),
        ("CPU", f"{cpu.model}, {cpu.usable_cores} of {cpu.logical_cores} logical cores usable"),
        ("CPU features", " ".join(cpu.features) or "none known"),
        ("native CPU kernels", _kernels_text(findings)),
        ("memory", f"{bytes_text(memory.total)}, {bytes_text(memory.available)} available{limit}"),
        ("GPUs", "; ".join(gpus) or "none found (nvidia-smi)"),
        ("ONNX Runtime providers", ", ".join(findings.providers.names) or f"none: {findings.providers.failure}"),
    ]
    print_facts("This machine", machine)
    print_table(
        "Packages",
        ("package", "version", "for", "problem"),
        [
            (module, " and ".join(state.versions) or "-", state.entry.purpose, state.problem)
            for module, state in findings.packages.items()
        ],
    )
    print_table(
        "ONNX Runtime providers",
        ("--provider", "usable", "why not"),
        [(name, _yes(not problem), problem) for name, problem in findings.providers.problems.items()],
    )
    print_table(
        "What works",
        ("backend", "precision", "build", "run", "why not"),
        [(row.backend, row.precision, _yes(row.build), _yes(row.run), row.why_not) for row in findings.works],
    )


def _yes(value: bool) -> str:
    return "yes" if value else "no"
