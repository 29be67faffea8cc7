"""Models that run one stage at a time and show every value: a checkpoint's executor, and an engine's own graph."""

from dsv3export.graphs.capture.causes import cause_chain
from dsv3export.graphs.capture.engine import EngineStages
from dsv3export.graphs.capture.executor import ExecutorStages

__all__ = ["EngineStages", "ExecutorStages", "cause_chain"]
