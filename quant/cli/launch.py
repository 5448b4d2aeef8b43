"""Start the ranks of one machine, as `torchrun --standalone` does."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from .console import fail


def launch(argv: Sequence[str], count: int) -> int:
    """Run the command line in several ranks; gives rank 0's exit code, or the first other one if rank 0 was killed.

    Args:
        argv: the command line.
        count: of the ranks.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # What torchrun sets to 1. No result depends on it.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    with tempfile.TemporaryDirectory() as folder, _silent_agent():
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        try:
            elastic_launch(config, sys.executable)("-m", _module_name(), *argv)
        except ChildFailedError as error:
            return _report_failures(error.failures)
        except SignalException as error:
            return 128 + int(error.sigval)
    return 0


def _report_failures(failures: Mapping[int, Any]) -> int:
    """The exit code of failed ranks, by rank; says what happened where no rank was left to say it."""
    codes = {rank: failure.exitcode for rank, failure in failures.items()}
    if all(code < 0 for code in codes.values()):
        killed = ", ".join(f"rank {rank} by signal {-code}" for rank, code in sorted(codes.items()))
        fail(f"All ranks were killed ({killed}); nothing was written.")
    if codes.get(0, 0) > 0:
        return int(codes[0])
    return next((int(code) for _, code in sorted(codes.items()) if code > 0), 1)


@contextmanager
def _silent_agent() -> Iterator[None]:
    """The ranks say what is wrong; torch's agent would add to it that they failed."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _module_name() -> str:
    """The module that runs the command line: ``quant`` in a checkout."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None and spec.name == "quant.__main__":
        return "quant"
    return __name__.removesuffix(".cli.launch")
