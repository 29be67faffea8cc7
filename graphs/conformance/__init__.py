"""Does a backend compute each op, at each precision, as the op is defined? Tiny engines of one op each, tried here.

`calls` is the table of ops, precisions and inputs; `one_op` makes a layer kind of one op out of a row; `reference` is
the executor's answer; each backend has a module that builds and runs such a kind; `check` compares.
"""

from dsv3export.graphs.conformance.check import Report, Verdict, check_backend

__all__ = ["Report", "Verdict", "check_backend"]
