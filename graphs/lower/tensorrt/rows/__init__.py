"""One row per op: how it becomes layers of a TensorRT network.

Each module of this package has a table `ROWS` for some ops; here they are one table. The rows of `plugins` take the
place of the native ones where a flavour takes plugins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dsv3export.errors import InternalError
from dsv3export.graphs.lower.tensorrt.flavour import Flavour
from dsv3export.graphs.lower.tensorrt.row import Key, Row
from dsv3export.graphs.lower.tensorrt.rows import attention, cache, experts, linear, plugins, route, standard


def joined(tables: Sequence[Mapping[Key, Row]]) -> Mapping[Key, Row]:
    """One table of several; refuses an op that is in two of them."""
    rows: dict[Key, Row] = {}
    for table in tables:
        if twice := rows.keys() & table.keys():
            raise InternalError(f"two rows for {'::'.join(min(twice))}")
        rows.update(table)
    return rows


NATIVE_ROWS = joined((standard.ROWS, linear.ROWS, cache.ROWS, attention.ROWS, route.ROWS, experts.ROWS))
PLUGIN_ROWS: Mapping[Key, Row] = {**NATIVE_ROWS, **plugins.ROWS}


def rows_for(flavour: Flavour) -> Mapping[Key, Row]:
    """The rows of a flavour, by domain and op type."""
    return PLUGIN_ROWS if flavour.plugins else NATIVE_ROWS
