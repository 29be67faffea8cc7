"""TensorRT's own report of its progress, as one bar over several engines."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from dsv3export.graphs.lower.tensorrt.objects import IBuilderConfig, Module
from dsv3export.progress import Progress

_STEPS = 20


class Steps:
    """A bar over `engines` builds of `_STEPS` steps each.

    A build cannot be left by an exception: what is raised meanwhile, Ctrl-C too, stops it, and is raised behind it.
    """

    def __init__(self, trt: Module, progress: Progress, engines: int) -> None:
        self._trt, self._progress, self._engines = trt, progress, engines
        self._done = 0
        self._stopped: BaseException | None = None

    def __enter__(self) -> Steps:
        self._progress.start("building engines", self._engines * _STEPS, "steps")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._progress.finish()

    def watch(self, config: IBuilderConfig) -> None:
        """Follow the build of one engine."""
        self._done = 0
        config.progress_monitor = _monitor(self._trt, self)

    def built(self) -> None:
        """The engine is there, or could not be built. Raises what stopped it."""
        if self._stopped is not None:
            raise self._stopped
        self._advance_to(_STEPS)

    def reach(self, fraction: float) -> bool:
        """So much of an engine is built; returns whether to go on."""
        try:
            self._advance_to(int(fraction * _STEPS))
        except BaseException as stopped:  # noqa: BLE001 (raised again by `built`)
            self._stopped = stopped
        return self._stopped is None

    def _advance_to(self, step: int) -> None:
        if step > self._done:
            self._progress.advance(step - self._done)
            self._done = step


def _monitor(trt: Module, steps: Steps) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            # The outermost phase and its number of steps.
            self._root: tuple[str, int] | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self._root = phase_name, max(1, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if self._root is None or phase_name != self._root[0]:
                return steps.reach(0.0)
            return steps.reach((step + 1) / self._root[1])

        def phase_finish(self, phase_name: str) -> None:
            pass

    return Monitor()
