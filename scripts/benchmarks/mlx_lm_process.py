"""The parent's side of mlx-lm in a child process."""

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import psutil

from mlxsup.config.schema import Model
from mlxsup.supervisor.pool.launch import worker_environment
from scripts.benchmarks.cli import child_command
from scripts.benchmarks.mlx_lm_messages import (
    Goes,
    GoesDone,
    Order,
    Rates,
    RatesDone,
    Start,
    Started,
    Texts,
    TextsDone,
)

AnswerT = TypeVar("AnswerT")


class MlxLmProcess:
    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child
        self.process = psutil.Process(child.pid)

    def start(self, folder: Path, batch_sequences_max: int) -> Started:
        chunk = Model().prefill_chunk_tokens
        return self._ask(Start(str(folder), batch_sequences_max, chunk), Started)

    def texts(self, order: Texts) -> TextsDone:
        return self._ask(order, TextsDone)

    def rates(self, order: Rates) -> RatesDone:
        return self._ask(order, RatesDone)

    def goes(self, order: Goes) -> GoesDone:
        return self._ask(order, GoesDone)

    def _ask(self, order: Order, answer_type: type[AnswerT]) -> AnswerT:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(msgspec.json.encode(order) + b"\n")
        self._child.stdin.flush()
        line = self._child.stdout.readline()
        if not line:
            raise RuntimeError("mlx-lm ended in its child process; what it said is above")
        return msgspec.json.decode(line, type=answer_type)


@contextmanager
def mlx_lm_process(preload: Mapping[str, str]) -> Iterator[MlxLmProcess]:
    """A child with the environment that a worker gets; `preload` is what its BLAS needs."""
    child: subprocess.Popen[Any] = subprocess.Popen(
        child_command("mlx-lm-child"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=worker_environment(os.environ, preload),
    )
    # Leaving closes its input, which ends it, and waits.
    with child:
        yield MlxLmProcess(child)
