"""Stretches on the disk, below a quota: they outlive the worker that computed them. No MLX.

A file is written beside its place and renamed, so that whoever is killed leaves a whole one or none; what is torn all the same
is found by its checksum, deleted and never used. Only the user reads them: prompts are private. Several workers of a model may
share the folder, when one takes over from another.
"""

import os
import queue
import shutil
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path

import msgspec

from mlxsup.protocol.worker_link import REQUEST_MARK
from mlxsup.worker.engine.prefixes.file import (
    BadFileError,
    Header,
    Label,
    Piece,
    Tensor,
    decode,
    decode_header,
    encode,
    header_size,
)
from mlxsup.worker.engine.prefixes.stretches import (
    DIGEST_BYTES,
    Part,
    Stretch,
    Stretches,
    Tokens,
    common_tokens,
)

_SUFFIX = ".safetensors"
_TEMPORARY = ".tmp"
# Beyond that nothing more waits to be written: it is computed again some day.
QUEUED_BYTES_MAX = 1024 * 1024 * 1024
# So much stays free on the disk.
FREE_BYTES_MIN = 1024 * 1024 * 1024
_MODE = 0o600


class Stored(msgspec.Struct, frozen=True, eq=False):
    """A stretch that was read."""

    label: Label
    tensors: list[Tensor]


class Found(msgspec.Struct, frozen=True, eq=False):
    """What was read from the disk for a text that begins with `tokens`."""

    key: str
    tokens: Tokens
    stored: list[Stored]


class _Job(msgspec.Struct, frozen=True, eq=False):
    """`key` and `text` are of all tokens from the first one up to the stretch's last."""

    key: str
    text: Tokens
    label: Label
    tensors: Sequence[Tensor]
    nbytes: int
    done: threading.Event


class Disk:
    """`identity` names the model and the engine: what others computed is deleted."""

    def __init__(self, folder: Path, identity: str, bytes_max: int) -> None:
        self._folder = folder
        self.identity = identity
        self._index: Stretches[str] = Stretches(bytes_max)
        self._names: dict[str, Stretch[str]] = {}
        self._seen_ns = -1
        self._looking = threading.Lock()
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._queued: list[_Job] = []
        with self._no_failure():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._sweep()
            self._look()
        threading.Thread(target=self._run, name="prefixes", daemon=True).start()

    @property
    def bytes(self) -> int:
        return self._index.bytes

    def write(self, key: str, text: Tokens, label: Label, tensors: Sequence[Tensor]) -> bool:
        """The stretch at the end of this text, some time soon; False if too much waits already.

        Its tensors are let go of in one of the caller's next calls, not by another thread.
        """
        self._queued = [job for job in self._queued if not job.done.is_set()]
        size = sum(tensor.data.nbytes for tensor in tensors)
        if size + sum(job.nbytes for job in self._queued) > QUEUED_BYTES_MAX:
            return False
        job = _Job(key, text, label, tensors, size, threading.Event())
        self._queued.append(job)
        self._jobs.put(job)
        return True

    def wait(self, timeout_s: float) -> bool:
        """Until all is written that was to be, or not."""
        return all(job.done.wait(timeout_s) for job in list(self._queued))

    def reach(self, key: str, tokens: Tokens) -> int:
        """So many of the first tokens are there."""
        with self._no_failure():
            self._look()
        parts = self._index.cover(key, tokens, uses=False)
        return parts[-1].last if parts else 0

    def read(self, key: str, tokens: Tokens, known: int) -> list[Stored]:
        """What there is of the first tokens beyond those that are `known`, as far as it is as it was written."""
        found: list[Stored] = []
        with self._no_failure():
            self._look()
        parts = self._use(key, tokens)
        for part in parts:
            if part.last <= known:
                continue
            stored = self._read(part.stretch)
            if stored is None:
                break
            found.append(stored)
        return found

    def _use(self, key: str, tokens: Tokens) -> list[Part[str]]:
        """What others go on from is dropped last, after a restart, too."""
        parts = self._index.cover(key, tokens)
        for part in reversed(parts):
            with suppress(OSError):
                os.utime(self._folder / part.stretch.payload)
        return parts

    def _read(self, stretch: Stretch[str]) -> Stored | None:
        path = self._folder / stretch.payload
        try:
            content = path.read_bytes()
            label, tensors = decode(content)
            if not self._is_same(label, stretch):
                raise BadFileError("it is another one")
        except FileNotFoundError:
            self._forget(stretch)
        except (OSError, BadFileError, MemoryError) as error:
            self._say(f"cannot use {path.name}: {error}")
            self._delete(stretch)
        else:
            return Stored(label, tensors)
        return None

    def _is_same(self, label: Label, stretch: Stretch[str]) -> bool:
        return (
            label.identity == self.identity
            and (label.before, label.start, label.is_whole)
            == (stretch.before, stretch.start, stretch.is_whole)
            and len(label.tokens) == len(stretch.tokens)
            and common_tokens(label.tokens, stretch.tokens) == len(stretch.tokens)
        )

    # What is there.

    def _sweep(self) -> None:
        """What a worker that was killed did not finish."""
        for path in self._folder.glob(f"*{_TEMPORARY}"):
            pid = path.name.removesuffix(_TEMPORARY).rpartition(".")[2]
            if not pid.isdigit() or not _lives(int(pid)):
                path.unlink(missing_ok=True)

    def _look(self) -> None:
        """Take in what is new in the folder."""
        with self._looking:
            changed_ns = self._folder.stat().st_mtime_ns
            if changed_ns == self._seen_ns:
                return
            self._seen_ns = changed_ns
            with os.scandir(self._folder) as entries:
                new = [
                    entry
                    for entry in entries
                    if entry.name.endswith(_SUFFIX) and entry.name not in self._names
                ]
                aged = sorted((entry.stat().st_mtime_ns, entry.name) for entry in new)
            for _, name in aged:
                self._take_in(name)

    def _take_in(self, name: str) -> None:
        path = self._folder / name
        try:
            header = _read_header(path)
            if header.label.identity != self.identity:
                raise BadFileError("it is of another model or engine")
        except FileNotFoundError:
            return
        except (OSError, BadFileError):
            path.unlink(missing_ok=True)
            return
        self._add(name, header.label, header.size)

    def _add(self, name: str, label: Label, size: int) -> None:
        stretch = Stretch(label.before, label.start, label.tokens, name, size, label.is_whole)
        self._names[name] = stretch
        for gone in self._index.add(stretch):
            self._delete(gone)

    def _delete(self, stretch: Stretch[str]) -> None:
        self._forget(stretch)
        with suppress(OSError):
            (self._folder / stretch.payload).unlink(missing_ok=True)

    def _forget(self, stretch: Stretch[str]) -> None:
        self._index.drop(stretch)
        self._names.pop(stretch.payload, None)

    # What is written.

    def _run(self) -> None:
        while True:
            job = self._jobs.get()
            with self._no_failure():
                self._write(job)
            job.done.set()

    def _write(self, job: _Job) -> None:
        label = job.label
        tail = blake2b(label.tokens.tobytes(), digest_size=DIGEST_BYTES).hexdigest()
        name = f"{label.before.hex()}-{tail}{_SUFFIX}"
        self._use(job.key, job.text)
        if name in self._names or job.nbytes > self._index.bytes_max:
            return
        if shutil.disk_usage(self._folder).free - job.nbytes < FREE_BYTES_MIN:
            return
        temporary = self._folder / f"{name}.{os.getpid()}{_TEMPORARY}"
        try:
            size = _write_file(temporary, encode(label, job.tensors))
            temporary.replace(self._folder / name)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        with self._looking:
            if name not in self._names:
                self._add(name, label, size)
        self._use(job.key, job.text)

    @contextmanager
    def _no_failure(self) -> Iterator[None]:
        """A disk that fails costs time, and no request."""
        try:
            yield
        except OSError as error:
            self._say(f"{self._folder.name}: {error.strerror}")

    def _say(self, what: str) -> None:
        sys.stderr.write(f"{REQUEST_MARK}prefix cache: {what}\n")
        sys.stderr.flush()


def _write_file(path: Path, pieces: Sequence[Piece]) -> int:
    """So many bytes; nobody else may read them."""
    size = 0
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _MODE), "wb") as file:
        for piece in pieces:
            size += file.write(piece)
    return size


def _read_header(path: Path) -> Header:
    with path.open("rb") as file:
        start = file.read(8)
        header = decode_header(start + file.read(header_size(start) - len(start)))
        if os.fstat(file.fileno()).st_size != header.size:
            raise BadFileError("it is cut off")
        return header


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
