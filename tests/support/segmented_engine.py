"""The ranks of an engine that was cut, run in one process: each segment in ONNX Runtime, step by step on all ranks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsv3export.engine.manifest import Manifest
from dsv3export.engine.parallel import rank_folder
from dsv3export.engine.program import PROGRAM
from dsv3export.engine.reader import EngineFiles
from dsv3export.engine.segments import AllReduce, Gather, Run, SegmentProgram, Step
from dsv3export.runtime.latent_cache import CacheLayout, LatentCache
from dsv3export.runtime.onnxruntime_session import OnnxRuntimeGraph

Values = dict[str, NDArray[Any]]


class SegmentedEngine:
    """Steps as those of a session. The cache must be float32."""

    def __init__(self, path: Path) -> None:
        parallel = Manifest.read(path).parallel
        assert parallel is not None
        self.parallel, self.layout = parallel, parallel.layout
        self.files = [EngineFiles.open(path / rank_folder(rank)) for rank in range(self.layout.world)]
        self.programs = [SegmentProgram.from_json(files.graph(PROGRAM)) for files in self.files]
        self._graphs: dict[tuple[int, str], OnnxRuntimeGraph] = {}
        self.bytes: list[dict[str, int]] = [{} for _ in self.files]

    def new_caches(self, slots: int, capacity: int) -> list[LatentCache]:
        """The trunk's, of each rank."""
        config = self.files[0].config
        spans = [plan.layers for plan in self.parallel.ranks]
        return [LatentCache(CacheLayout.of("fp32", config, end - begin), slots, capacity) for begin, end in spans]

    def step(
        self, ids: NDArray[np.int64], start: NDArray[np.int64], caches: list[LatentCache], slots: range,
        rows: NDArray[np.int64],
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:  # fmt: skip
        """Logits [R, V] and final hidden states [B, S, D]."""
        given: Values = {"input_ids": ids, "start": start, "logit_rows": rows}
        for p in range(self.layout.pp):
            ranks = self.layout.group(p * self.layout.stage, "stage")
            values = {rank: {**given, **dict(caches[rank].inputs(slots))} for rank in ranks}
            self._run_part("trunk", ranks, values)
            given |= {name: value for name, value in values[ranks[0]].items() if name.endswith(".hidden")}
        first = values[ranks[0]]
        return first["logits"], first["final_hidden"]

    def draft(
        self, hidden: NDArray[np.float32], ids: NDArray[np.int64], start: NDArray[np.int64],
        rows: NDArray[np.int64], cache: NDArray[np.float32],
    ) -> NDArray[np.float32]:  # fmt: skip
        """Draft logits, over a copy of `cache` [B, T, W] on each rank."""
        ranks = self.layout.group(self.layout.logits_rank, "stage")
        name = f"latent_cache.{self.files[0].config.num_hidden_layers}"
        given: Values = {"input_ids": ids, "start": start, "logit_rows": rows, "final_hidden": hidden}
        values = {rank: {**given, name: cache.copy()} for rank in ranks}
        self._run_part("mtp", ranks, values)
        return values[ranks[0]]["logits"]

    def _run_part(self, part: str, ranks: range, values: Mapping[int, Values]) -> None:
        programs = {rank: self.programs[rank].parts[part].steps for rank in ranks}
        for steps in zip(*programs.values(), strict=True):
            for rank, step in zip(ranks, steps, strict=True):
                if isinstance(step, Run):
                    self._run(rank, step, values[rank])
            self._exchange(steps[0], ranks, values)

    def _run(self, rank: int, step: Run, values: Values) -> None:
        key = rank, step.segment
        if key not in self._graphs:
            self._graphs[key] = OnnxRuntimeGraph(self.files[rank], self.files[rank].graph(step.segment), threads=1)
        results = self._graphs[key].run(step.outputs, {name: values[name] for name in step.inputs})
        for name, result in zip(step.outputs, results, strict=True):
            if name.endswith(".updated"):
                values[name.removesuffix(".updated")][...] = result
            values[name] = result

    def _exchange(self, step: Step, ranks: range, values: Mapping[int, Values]) -> None:
        if not isinstance(step, (AllReduce, Gather)):
            return
        for group in {self.layout.group(rank, step.group) for rank in ranks}:
            parts = [values[rank][step.value] for rank in group]
            for rank, part in zip(group, parts, strict=True):
                op = "all_reduce" if isinstance(step, AllReduce) else "gather"
                self.bytes[rank][op] = self.bytes[rank].get(op, 0) + part.nbytes
            if isinstance(step, AllReduce):
                total = np.sum(parts, axis=0, dtype=np.float32)
                for rank in group:
                    values[rank][step.value] = total
            else:
                values[group[0]][step.value] = np.concatenate(parts, axis=step.axis)
