"""An engine for several ranks, all of them threads of this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from dsv3export.runtime.distributed.follow import follow
from dsv3export.runtime.distributed.in_process import InProcessCommunicator, run_ranks
from dsv3export.runtime.distributed.load import load_worker, open_rank, parallel_of
from dsv3export.runtime.distributed.session import DistributedSession, Model

T = TypeVar("T")


def lead(engine: Path, work: Callable[[DistributedSession], T]) -> T:
    """Runs `work` at rank 0, while the others follow."""
    parallel = parallel_of(open_rank(engine, 0))

    def run(communicator: InProcessCommunicator) -> list[T]:
        files = open_rank(engine, communicator.rank)
        worker, config = load_worker(files, communicator, 1), files.config
        if communicator.rank:
            follow(worker, communicator, config.hidden_size)
            return []
        model = Model(f"engine {engine}", config.vocab_size, config.hidden_size, drafts=True)
        session = DistributedSession(worker, communicator, parallel.layout, model, lambda: None)
        try:
            return [work(session)]
        finally:
            session.close()

    return run_ranks(parallel.layout.world, run)[0][0]
