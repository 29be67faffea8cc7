"""What a model takes and at best gives on a device: bytes, floating-point operations and floors of time, by arithmetic.

`weights.weight_terms` says what an engine of a recipe stores, `work` what a decode step and a prefill read and compute,
`devices` what hardware offers, and `plan.make_plan` puts them together.
"""

from dsv3export.sizing.devices import DEVICES, Device
from dsv3export.sizing.plan import Floor, Plan, Workload, make_plan
from dsv3export.sizing.term import Term

__all__ = ["DEVICES", "Device", "Floor", "Plan", "Term", "Workload", "make_plan"]
