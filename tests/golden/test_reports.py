"""JUnit XML that parsers take, and annotations that cannot be forged."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from dsv3export.golden.github import github_annotations
from dsv3export.golden.junit import junit_xml
from dsv3export.golden.results import Case, Measurement
from dsv3export.golden.texts import case_text, groups
from tests.golden.results import HOSTILE, result

# Element -> its attributes (those that must be there in capitals) and its children, by Jenkins' junit-10.xsd.
SCHEMA = {
    "testsuites": ("name time tests failures disabled errors", "testsuite"),
    "testsuite": (
        "NAME TESTS failures errors time disabled skipped timestamp hostname id package",
        "properties testcase system-out system-err",
    ),
    "properties": ("", "property"),
    "property": ("NAME VALUE", ""),
    "testcase": ("NAME CLASSNAME time status", "skipped error failure system-out system-err"),
    "failure": ("message type", ""),
    "skipped": ("message", ""),
    "system-out": ("", ""),
}


def assert_valid(element: ElementTree.Element) -> None:
    attributes, children = (text.split() for text in SCHEMA[element.tag])
    assert set(element.keys()) <= {name.lower() for name in attributes}
    assert {name.lower() for name in attributes if name.isupper()} <= set(element.keys())
    for child in element:
        assert child.tag in children
        assert_valid(child)


@pytest.mark.parametrize("failing", [0, 1, 3])
def test_junit_says_what_failed(failing: int) -> None:
    checked = result(failing)
    root = ElementTree.fromstring(junit_xml(checked))
    assert_valid(root)
    (suite,) = root
    cases = suite.findall("testcase")
    failed = [case for case in cases if case.find("failure") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    counts = {key: int(suite.attrib[key]) for key in ("tests", "failures", "skipped", "errors")}
    assert counts == {"tests": len(cases), "failures": len(failed), "skipped": len(skipped), "errors": 0}
    assert [(case.get("classname"), case.get("name")) for case in failed] == [
        ("golden.prompt 1", f"layers.{layer}") for layer in range(failing)
    ]
    assert len(cases) == len(groups(checked)) + 1
    assert ("golden.all prompts", "text") in [(case.get("classname"), case.get("name")) for case in cases]
    for case in failed:
        message = case.find("failure").get("message")  # type: ignore[union-attr]
        assert message == (
            f"{case.get('name')}: layers.error 0.5, bound 0.1; prompt 1, position 7, index 3: expected 1.25, got 2.5"
        )


def test_junit_holds_any_text() -> None:
    root = ElementTree.fromstring(junit_xml(result(1, model=HOSTILE, golden=HOSTILE)))
    assert_valid(root)
    (value,) = [each.get("value") for each in root.iter("property") if each.get("name") == "model"]
    assert value is not None
    assert "<img src=x" in value
    assert "\x00" not in value


def test_annotations_are_one_line_each() -> None:
    (line,) = github_annotations(result(1)).splitlines()
    assert line == (
        "::error file=a%2Cb%3Ac%25.golden,title=golden check%3A layers.0::layers.0: layers.error 0.5, bound 0.1; "
        "prompt 1, position 7, index 3: expected 1.25, got 2.5"
    )
    lines = github_annotations(result(30)).splitlines()
    assert len(lines) == 10
    assert lines[-1].startswith("::error file=a%2Cb%3Ac%25.golden,title=golden check failed::30 of")
    (passed,) = github_annotations(result(0)).splitlines()
    assert passed.startswith("::notice ")


def test_annotations_cannot_be_forged() -> None:
    text = github_annotations(result(1, golden=HOSTILE)) + "\n" + github_annotations(result(0, model=HOSTILE))
    lines = text.split("\n")
    assert len(lines) == 2
    assert [line.split(" ")[0] for line in lines] == ["::error", "::notice"]
    assert "%250A" in text


def test_the_first_failure_is_the_first_in_the_order_of_computation() -> None:
    first = result(3).first_failure
    assert first is not None
    assert first.name == "layers.0: layers.error"
    assert result(0).passed
    assert not Case(Measurement("logits.kl", 0, None, float("nan"), 0.0), 1.0).measured.value <= 1
    assert Case(Measurement("logits.kl", 0, None, float("nan"), 0.0), 1.0).failed
    assert case_text(first).startswith("layers.0: layers.error 0.5")


def test_the_worst_of_each_metric() -> None:
    worst = {case.measured.metric: case for case in result(2).worst()}
    assert list(worst) == ["tokens", "layers.error", "layers.median", "router.margin", "greedy.margin", "text.nll"]
    assert worst["layers.error"].failed
    assert not worst["layers.median"].failed
