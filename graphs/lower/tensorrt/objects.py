"""Names for TensorRT's Python objects: which module they come from is known only when a flavour is loaded."""

from __future__ import annotations

from typing import Any, TypeAlias

ITensor: TypeAlias = Any
ILayer: TypeAlias = Any
IHostMemory: TypeAlias = Any
INetwork: TypeAlias = Any
IBuilder: TypeAlias = Any
IBuilderConfig: TypeAlias = Any
# A member of the module's enum.
DataType: TypeAlias = Any
# The module, or a recorder that stands for it.
Module: TypeAlias = Any
