"""Cutting a graph over several ranks: stages of layers, slices of heads, widths and vocabulary, ranges of experts.

`stage_graph` takes the calls of a pipeline stage, `shard` cuts its layer kinds for one rank and puts collectives where
ranks have to speak with each other, `segments` cuts the lowered graph there, into what a backend runs at a stretch.
"""

from dsv3export.graphs.shard.shard import shard
from dsv3export.graphs.shard.stage import stage_graph

__all__ = ["shard", "stage_graph"]
