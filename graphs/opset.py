"""Versions and domains of the intermediate graph."""

from __future__ import annotations

from dsv3export.plugins import DOMAIN, DOMAIN_VERSION

IR_VERSION = 11
OPSET = 24
# The layer kinds' functions live in a domain of their own, apart from the ops they are made of.
KIND_DOMAIN = "dsv3.kinds"
OPSET_IMPORTS = {"": OPSET, DOMAIN: DOMAIN_VERSION, KIND_DOMAIN: 1}
