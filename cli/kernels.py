"""`dsv3export kernels`: the plugins' kernels, compiled and tested."""

from __future__ import annotations

from dsv3export.cli.lazy_group import CommandEntry, LazyGroup
from dsv3export.cli.options import verbose_option

EXAMPLES = (
    "dsv3export kernels compile --targets sm_90",
    "dsv3export kernels test",
)

command = verbose_option(
    LazyGroup(
        (
            CommandEntry("compile", "dsv3export.cli.kernels_compile", "Compile them for GPUs that need not be here."),
            CommandEntry("test", "dsv3export.cli.kernels_test", "Run them, and compare with their definitions."),
        ),
        name="kernels",
        help="Compile and test the kernels of the TensorRT plugins.",
        examples=EXAMPLES,
    )
)
