"""Which provider an engine gets."""

from __future__ import annotations

import pytest

from dsv3export.engine.manifest import PROVIDERS, BackendRecord, Provider
from dsv3export.errors import BackendError, RequestError
from dsv3export.runtime.providers import CHOICES, ENTRIES, Choice, check_choice, open_provider


def record(*providers: Provider) -> BackendRecord:
    return BackendRecord("onnxruntime", "1.31.1", 24, providers, "f16")


class Machine:
    """Stands for a machine that has some providers; remembers which were tried."""

    def __init__(self, *has: Provider) -> None:
        self.has = has
        self.tried: list[Provider] = []

    def open(self, provider: Provider) -> str:
        self.tried.append(provider)
        if provider not in self.has:
            raise BackendError(f"no {provider} here", fix="Install it.")
        return f"opened {provider}"


@pytest.mark.parametrize(
    ("built_for", "asked", "has", "opened"),
    [
        (("cpu",), "auto", ("cpu", "cuda"), "cpu"),
        (("cpu",), "cpu", ("cpu",), "cpu"),
        (("cuda", "cpu"), "auto", ("cpu", "cuda"), "cuda"),
        (("cuda", "cpu"), "cuda", ("cpu", "cuda"), "cuda"),
        (("cuda", "cpu"), "cpu", ("cpu", "cuda"), "cpu"),
    ],
)
def test_what_is_there_is_taken_without_a_word(
    built_for: tuple[Provider, ...], asked: Choice, has: tuple[Provider, ...], opened: Provider
) -> None:
    machine = Machine(*has)
    assert open_provider(record(*built_for), "engine e", asked, machine.open) == (f"opened {opened}", "")
    assert machine.tried == [opened]


def test_auto_falls_back_and_says_so() -> None:
    opened, said = open_provider(record("cuda", "cpu"), "engine e", "auto", Machine("cpu").open)
    assert opened == "opened cpu"
    assert said == "engine e was built for cuda and runs on cpu, slower: no cuda here. Install it."


@pytest.mark.parametrize(
    ("built_for", "asked", "says"),
    [
        (("cuda", "cpu"), "cuda", "no cuda here. Install it."),
        (("cuda",), "auto", "no cuda here. Install it."),
        (("cpu",), "cuda", "engine e: provider: expected cpu, got cuda. Rebuild it with --provider cuda, or"),
        (("cuda",), "cpu", "engine e: provider: expected cuda, got cpu. Rebuild it with --provider cpu, or"),
        (("cuda", "cpu"), "migraphx", "expected cuda or cpu, got migraphx"),
    ],
)
def test_nothing_falls_back_unasked(built_for: tuple[Provider, ...], asked: Choice, says: str) -> None:
    with pytest.raises(BackendError) as caught:
        open_provider(record(*built_for), "engine e", asked, Machine("cpu").open)
    assert says in str(caught.value)


def test_names() -> None:
    assert tuple(ENTRIES) == PROVIDERS
    for choice in CHOICES:
        check_choice(choice)
    with pytest.raises(RequestError, match="provider: expected one of auto, cpu, cuda, migraphx, cann, got 'tpu'"):
        check_choice("tpu")
