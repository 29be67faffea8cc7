"""Goldens: what a model computed for some prompts, kept in a file, so that any engine can be held against it later.

`document` says what a golden holds, `file` reads and writes it; `outputs` and `layers` run a model, `record` keeps what
they see, `check` compares it, `check_pair` two of them, `diff` puts that together by layer; `profile` says how large a
difference a right engine may have, `calibrate` measures that. `junit`, `github` and `page` are reports.
"""

from dsv3export.golden.check import check_golden
from dsv3export.golden.document import Settings
from dsv3export.golden.file import Golden
from dsv3export.golden.model import GoldenModel
from dsv3export.golden.outputs import Batching
from dsv3export.golden.record import record_golden
from dsv3export.golden.results import CheckResult

__all__ = ["Batching", "CheckResult", "Golden", "GoldenModel", "Settings", "check_golden", "record_golden"]
