"""What every rank does with a command, rank 0 included."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dsv3export.runtime.distributed.commands import Command, Kind

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dsv3export.engine.parallel import Layout
    from dsv3export.runtime.distributed.communicator import Communicator
    from dsv3export.runtime.distributed.stage import Stage
    from dsv3export.runtime.latent_cache import CacheLayout, LatentCache
    from dsv3export.runtime.session import Hidden, Logits

_FIGURES = 8
HIDDEN = {Kind.STEP: "final_hidden", Kind.DRAFT: "draft_hidden"}


@dataclass(frozen=True)
class RankFigures:
    """What one rank has done so far, in seconds and bytes.

    Attributes:
        compute_seconds, communication_seconds: In ONNX Runtime; waiting for another rank.
        all_reduce_bytes, gather_bytes, send_bytes, control_bytes: Sent, see `Traffic`.
        cache_bytes: Its latent caches.
        peak_memory_bytes: Of the process, the largest resident set.
    """

    rank: int
    compute_seconds: float
    communication_seconds: float
    all_reduce_bytes: int
    gather_bytes: int
    send_bytes: int
    control_bytes: int
    cache_bytes: int
    peak_memory_bytes: int

    @property
    def waiting_share(self) -> float:
        """Of the time that the rank computed or waited for another one."""
        whole = self.compute_seconds + self.communication_seconds
        return self.communication_seconds / whole if whole else 0.0

    def to_array(self) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        """All but the rank's number: what is sent; integers are exact up to 2**53."""
        return np.array(list(vars(self).values())[1:], np.float64)

    @classmethod
    def from_array(cls, rank: int, figures: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> RankFigures:
        """From `to_array`."""
        compute, communication = (float(each) for each in figures[:2])
        all_reduce, gather, send, control, cache, peak = (int(each) for each in figures[2:])
        return cls(rank, compute, communication, all_reduce, gather, send, control, cache, peak)

    @staticmethod
    def empty() -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        """What another rank's figures are received into."""
        return np.zeros(_FIGURES, np.float64)


class Worker:
    """Runs commands over a rank's stages.

    Args:
        trunk: This rank's part of the trunk.
        mtp: Its part of the MTP layer; None where it has none.
    """

    def __init__(self, communicator: Communicator, layout: Layout, trunk: Stage, mtp: Stage | None) -> None:
        self._communicator, self._layout = communicator, layout
        self._stages: dict[Kind, Stage | None] = {Kind.STEP: trunk, Kind.DRAFT: mtp}

    def cache_layout(self, kind: Kind) -> CacheLayout | None:
        """Of the cache that such a command uses here; None where this rank has no part in it."""
        stage = self._stages[kind]
        return None if stage is None else stage.cache_layout

    def compute(self, command: Command, cache: LatentCache, hidden: Hidden | None) -> list[Logits]:
        """Runs a step or a draft. At the rank that has the results: logits, and hidden states where they are wanted.

        Args:
            hidden: Of a draft, float32[B, S, D].
        """
        stage = self._stages[command.kind]
        if stage is None:
            return []
        inputs: dict[str, NDArray[Any]] = {
            "input_ids": command.input_ids,
            "start": command.start,
            "logit_rows": command.logit_rows,
        }
        if hidden is not None:
            inputs["final_hidden"] = hidden
        results = stage.run(inputs, cache, command.slot_range)
        wanted = []
        if self._communicator.rank == self._layout.logits_rank:
            wanted = ["logits", *([HIDDEN[command.kind]] if command.hidden else [])]
        copies = [results[name].copy() for name in wanted]
        stage.release(results)
        return copies

    def figures(self, cache_bytes: int) -> RankFigures:
        """As of now; `cache_bytes` are the bytes of the rank's caches."""
        traffic = self._communicator.traffic
        sent = traffic.sent
        return RankFigures(
            rank=self._communicator.rank,
            compute_seconds=sum(stage.seconds for stage in self._stages.values() if stage),
            communication_seconds=traffic.seconds,
            all_reduce_bytes=sent["all_reduce"],
            gather_bytes=sent["gather"],
            send_bytes=sent["send"],
            control_bytes=sent["control"],
            cache_bytes=cache_bytes,
            peak_memory_bytes=_peak_memory(),
        )


def _peak_memory() -> int:
    """Bytes; not `ru_maxrss`, which a process inherits from the launcher that started it."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))
