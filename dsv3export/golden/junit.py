"""A check as JUnit XML, which CI servers show: a test case for each prompt and layer or family of metrics.

The elements and attributes are those of Jenkins' schema (junit-10.xsd).
"""

from __future__ import annotations

import re
from xml.etree import ElementTree

from dsv3export.golden.results import CheckResult
from dsv3export.golden.texts import Group, case_text, case_texts, groups

# What XML 1.0 cannot hold, even escaped.
_NO_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(result: CheckResult) -> bytes:
    """The document, in UTF-8. Times are left out: cases are measured together."""
    found = groups(result)
    counts = {
        "tests": str(len(found) + len(result.skipped)),
        "failures": str(sum(bool(group.failures) for group in found)),
        "errors": "0",
    }
    name = _text(f"golden check {result.model}")
    root = ElementTree.Element("testsuites", {"name": name, **counts})
    suite = ElementTree.SubElement(root, "testsuite", {"name": name, "skipped": str(len(result.skipped)), **counts})
    properties = ElementTree.SubElement(suite, "properties")
    for key, value in (("golden", result.golden), ("model", result.model), ("profile", result.profile)):
        ElementTree.SubElement(properties, "property", name=key, value=_text(value))
    for group in found:
        _add_group(suite, group)
    for reason in result.skipped:
        what, _, why = reason.partition(": ")
        case = ElementTree.SubElement(suite, "testcase", classname="golden.not compared", name=_text(what))
        ElementTree.SubElement(case, "skipped", message=_text(why))
    if result.notes:
        ElementTree.SubElement(suite, "system-out").text = _text("\n".join(result.notes))
    ElementTree.indent(root)
    data: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return data + b"\n"


def _add_group(suite: ElementTree.Element, group: Group) -> None:
    place = "all prompts" if group.prompt is None else f"prompt {group.prompt}"
    case = ElementTree.SubElement(suite, "testcase", classname=f"golden.{place}", name=_text(group.name))
    if group.failures:
        first = group.failures[0]
        failure = ElementTree.SubElement(case, "failure", message=_text(case_text(first)), type=first.measured.metric)
        failure.text = _text(case_texts(group.failures))
    ElementTree.SubElement(case, "system-out").text = _text(case_texts(group.cases))


def _text(text: str) -> str:
    return _NO_XML.sub("\ufffd", text)
