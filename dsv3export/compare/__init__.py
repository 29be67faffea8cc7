"""How far one run of a model is from another, layer by layer.

`difference` accumulates the error of one value, `routing` that of a router's choices, `distributions` that of the
next-token distributions, `causes` where it comes from; `layers` walks two models side by side and names the first
fault.
"""

from dsv3export.compare.causes import ErrorSplit, split_causes
from dsv3export.compare.layers import LayerDiff, diff_layers
from dsv3export.compare.stages import Stage, StagedModel

__all__ = ["ErrorSplit", "LayerDiff", "Stage", "StagedModel", "diff_layers", "split_causes"]
