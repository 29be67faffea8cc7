"""The main graphs as a sequence of calls, and what flows between them for each prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from dsv3export.config import ModelConfig
from dsv3export.errors import InternalError
from dsv3export.recipe import CacheFormat
from dsv3export.runtime.latent_cache import CacheLayout, LatentCache

T = TypeVar("T")
HIDDEN = ".hidden"
# How the weight's name ends that is added to a router's scores.
ROUTER_BIAS = "mlp.gate.e_score_correction_bias"
# The MTP layer's graph calls the tokens after the prompt's `input_ids`, as the trunk's calls the prompt's own.
NEXT_IDS, _IDS, FINAL_HIDDEN = "next_ids", "input_ids", "final_hidden"


@dataclass(frozen=True)
class Call:
    """A stage: a node of the trunk's main graph, or the MTP layer's whole graph.

    Attributes:
        inputs: Those that are no weights, by their names in the main graph.
        drafts: Whether it is the MTP layer.
    """

    stage: str
    path: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    drafts: bool = False

    @classmethod
    def of_node(cls, node: ir.Node, weights: Callable[[ir.Value], bool]) -> Call:
        """Of a node of the trunk; `weights` tells its weights from its other inputs."""
        inputs = tuple(str(value.name) for value in node.inputs if value is not None and not weights(value))
        outputs = tuple(str(value.name) for value in node.outputs)
        return cls(str(node.name), node.metadata_props["dsv3.path"], inputs, outputs)

    @classmethod
    def of_mtp(cls, graph: ir.Graph, weights: Callable[[ir.Value], bool]) -> Call:
        """Of the MTP layer's graph."""
        inputs = tuple(str(value.name) for value in graph.inputs if not weights(value))
        path = graph[-1].metadata_props["dsv3.path"]
        return cls(path, path, inputs, tuple(str(value.name) for value in graph.outputs), drafts=True)

    @property
    def hidden(self) -> str:
        """The input that the stage before has computed."""
        if self.drafts:
            return FINAL_HIDDEN
        found = [name for name in self.inputs if name.endswith(HIDDEN)]
        if len(found) != 1:
            raise InternalError(f"{self.stage} takes {len(found)} hidden states")
        return found[0]

    @property
    def output(self) -> str:
        """See `Stage.output`."""
        return self.path or {"embed": "embed_tokens", "head": "lm_head"}[self.stage]

    @property
    def handed_on(self) -> str:
        """See `Stage.handed_on`."""
        return FINAL_HIDDEN if FINAL_HIDDEN in self.outputs else self.output

    def source(self, name: str) -> str:
        """Under which name the flow has an input."""
        return NEXT_IDS if self.drafts and name == _IDS else name


class Flow(Generic[T]):
    """Each prompt's values that a later call needs.

    Args:
        given: A prompt's run-time inputs by name, for each prompt.
    """

    def __init__(self, calls: Sequence[Call], given: Sequence[Mapping[str, T]]) -> None:
        self._last_use = {call.source(name): place for place, call in enumerate(calls) for name in call.inputs}
        self._places = {call.stage: place for place, call in enumerate(calls)}
        self._values = [dict(values) for values in given]

    def inputs(self, call: Call, prompt: int, hidden: T | None) -> dict[str, T]:
        """What a call takes, with `hidden` in place of what was computed if it is given."""
        values = self._values[prompt]
        taken = {name: values[call.source(name)] for name in call.inputs if call.source(name) in values}
        return taken if hidden is None else taken | {call.hidden: hidden}

    def needed(self, call: Call) -> list[str]:
        """Those of a call's results that a later call takes."""
        return [name for name in call.outputs if name in self._last_use]

    def keep(self, call: Call, prompt: int, outputs: Mapping[str, T]) -> None:
        """A call's results, for later calls."""
        self._values[prompt].update({name: value for name, value in outputs.items() if name in self._last_use})

    def copy(self) -> Flow[T]:
        """Goes on by itself from here; the values so far are shared, and not to be altered."""
        other: Flow[T] = Flow([], self._values)
        other._last_use, other._places = self._last_use, self._places
        return other

    def forget(self, call: Call) -> None:
        """Let go of what no later call needs."""
        for values in self._values:
            for name in [name for name in values if self._last_use.get(name, -1) <= self._places[call.stage]]:
                del values[name]


def empty_caches(format: CacheFormat, config: ModelConfig, call: Call, length: int) -> dict[str, NDArray[Any]]:
    """Those that a call takes, of one slot with room for `length` tokens."""
    numbers = [name.split(".")[1] for name in call.inputs if name.startswith("latent_cache.")]
    if not numbers:
        return {}
    cache = LatentCache(CacheLayout.of(format, config, layers=1), 1, length)
    return dict(cache.inputs(range(1), first_layer=int(numbers[0])))


def given_inputs(ids: Sequence[int]) -> dict[str, NDArray[Any]]:
    """The run-time inputs of a prompt that is run as a whole."""
    return {
        "input_ids": np.array([ids], np.int64),
        "start": np.zeros(1, np.int64),
        "logit_rows": np.arange(len(ids)),
        NEXT_IDS: np.array([tokens_after(ids)], np.int64),
    }


def tokens_after(token_ids: Sequence[int]) -> list[int]:
    """The token after each; see `StagedModel.stages` for the last."""
    return [*token_ids[1:], token_ids[0]]
