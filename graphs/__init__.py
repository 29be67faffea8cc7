"""The compiler: trace, spec, passes, executor, lowering to each backend."""

from __future__ import annotations

if __name__ != "dsv3export.graphs":
    raise ImportError(f"import this package as 'dsv3export.graphs', not as {__name__!r}")

from dsv3export.graphs.executor import Executor
from dsv3export.graphs.printer import print_graph
from dsv3export.graphs.trace import graph_for

__all__ = ["Executor", "graph_for", "print_graph"]
