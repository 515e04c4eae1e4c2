"""`mlxsup doctor`: what is here, and what to do about each thing that is missing."""

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click
import msgspec
import psutil
import trio

from mlxsup import native
from mlxsup.protocol.client.exchange import ConnectionLostError
from mlxsup.protocol.client.sync import Client
from mlxsup.protocol.service import Health, ModelHealth
from mlxsup.protocol.worker_link import Hello
from mlxsup.supervisor.cli.render import counted, size
from mlxsup.supervisor.cli.setting import Loaded, config_option, read_setting
from mlxsup.supervisor.models.aliases import ALIASES
from mlxsup.supervisor.models.store import Store
from mlxsup.supervisor.pool.hatchery import Hatchery
from mlxsup.supervisor.pool.launch import worker_command, worker_environment
from mlxsup.supervisor.pool.lifecycle import WorkerState
from mlxsup.supervisor.pool.process import spawn_process
from mlxsup.supervisor.pool.worker import WorkerGoneError
from mlxsup.supervisor.recovery.death_report import DeathBook, DeathBookError

_PACKAGES = ("mlx", "mlx-lm", "mlx-vlm", "outlines", "msgspec", "trio")
_LINUX_BACKENDS = ("mlx-cpu", "mlx-cuda-12", "mlx-cuda-13")
_OPTIONAL = {"mlx-vlm": "pip install 'mlxsup[vision]'"}
# With less than this free, the default model and its worker do not fit.
_FREE_BYTES_MIN = 1_500_000_000


class Finding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that was looked at. `advice` is set when it is not as it should be."""

    what: str
    found: str
    advice: str | None = None


@click.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="One JSON text, for programs.")
def doctor(config_file: Path | None, as_json: bool) -> None:
    """Say what is here and what is missing; exit 1 if something is."""
    loaded = read_setting(config_file)
    findings = []
    for finding in _examine(loaded):
        findings.append(finding)
        if not as_json:
            click.echo(_line(finding))
    if as_json:
        click.echo(msgspec.json.encode(findings))
    if any(finding.advice for finding in findings):
        sys.exit(1)


def _line(finding: Finding) -> str:
    mark = click.style("✗", fg="red") if finding.advice else click.style("✓", fg="green")
    line = f"{mark} {finding.what:<16} {finding.found}"
    return f"{line}\n  {'':<16} → {finding.advice}" if finding.advice else line


def _examine(loaded: Loaded) -> Iterator[Finding]:
    yield Finding(what="platform", found=f"{platform.platform()}, Python {platform.python_version()}")
    for name in _PACKAGES:
        yield _package(name)
    yield from _backends()
    yield from _worker(loaded)
    for part in native.parts():
        yield Finding(
            what=part.name,
            found=part.purpose if part.present else (part.reason or "missing"),
            advice=part.remedy,
        )
    yield _memory()
    yield from _models(loaded)
    yield from _supervisor(loaded)
    yield from _quarantine(loaded)


def _package(name: str) -> Finding:
    try:
        return Finding(what=name, found=version(name))
    except PackageNotFoundError:
        if name in _OPTIONAL:
            return Finding(what=name, found=f"not installed, optional: {_OPTIONAL[name]}")
        return Finding(
            what=name, found="missing", advice="install mlxsup again: pip install --force-reinstall mlxsup"
        )


def _backends() -> Iterator[Finding]:
    """MLX's backends for Linux are packages with the same files: the one that was installed last is in use."""
    found = [name for name in _LINUX_BACKENDS if _is_installed(name)]
    if len(found) > 1:
        wanted = found[-1]
        yield Finding(
            what="mlx backends",
            found=f"{' and '.join(found)} overwrite each other's files",
            advice=f"pip uninstall -y {' '.join(found)} && pip install {wanted}=={version(wanted)}",
        )


def _is_installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _worker(loaded: Loaded) -> Iterator[Finding]:
    try:
        hello = trio.run(_greet_worker, loaded)
    except WorkerGoneError as gone:
        yield Finding(what="worker", found="does not start", advice=f"its last words: {gone}")
        return
    except OSError as error:
        yield Finding(
            what="worker", found=f"does not start: {error.strerror}", advice="check `worker.command`"
        )
        return
    gpu_hint = None
    if sys.platform == "darwin" and hello.device != "metal":
        gpu_hint = (
            "MLX finds no Metal device: run it natively on Apple Silicon, not under Rosetta or in a sandbox"
        )
    yield Finding(what="worker", found=f"starts, computes on {hello.device}", advice=gpu_hint)


async def _greet_worker(loaded: Loaded) -> Hello:
    config = loaded.config.worker
    environment = worker_environment(os.environ, native.preload_environment(1))
    command = worker_command(config.command)
    async with trio.open_nursery() as nursery:
        worker = await Hatchery(partial(spawn_process, command, environment), config, nursery).hatch()
        hello = None
        try:
            with trio.move_on_after(config.hello_timeout_s), suppress(WorkerGoneError):
                hello = await worker.wait_hello()
        finally:
            await worker.stop()
    if hello is None:
        raise WorkerGoneError(worker.stderr.lines[-1] if worker.stderr.lines else "none")
    return hello


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    found = f"{size(memory.available)} free of {size(memory.total)}"
    if memory.available < _FREE_BYTES_MIN:
        return Finding(what="memory", found=found, advice="close something: the smallest model needs 1.5 GB")
    return Finding(what="memory", found=found)


def _models(loaded: Loaded) -> Iterator[Finding]:
    pulled = {model.name: model for model in Store(loaded.locations.cache).pulled()}
    for name, model in pulled.items():
        yield Finding(what="model", found=f"{name}, {size(model.bytes_on_disk)}")
    for name, configured in loaded.config.models.items():
        source = configured.source or name
        if source in ALIASES and source not in pulled:
            yield Finding(what="model", found=f"{name} is not pulled", advice=f"mlxsup pull {name}")


def _supervisor(loaded: Loaded) -> Iterator[Finding]:
    try:
        with Client.connect(loaded.socket(None), timeout_s=2.0) as client:
            info = client.call("server/info")
            health: Health = client.call("server/health")
    except ConnectionLostError:
        yield Finding(what="supervisor", found="none is running")
        return
    yield Finding(what="supervisor", found=f"version {info.version} is running")
    for name, model in health.models.items():
        if not model.ready:
            yield _down(name, model)


def _down(name: str, model: ModelHealth) -> Finding:
    """Of a model that refuses requests."""
    advice = f"mend that, then `mlxsup load {name}`"
    if model.state not in (WorkerState.FAILED, WorkerState.QUARANTINED):
        advice = f"wait, or `mlxsup breaker {name} reset` lets requests in at once"
    return Finding(
        what="running model",
        found=f"{name}, {model.state}: {model.reason}",
        advice=f"{advice}; `mlxsup deaths {name}` has what died",
    )


def _quarantine(loaded: Loaded) -> Iterator[Finding]:
    """Of requests, which are refused by whatever supervisor."""
    path = loaded.locations.state / "deaths.sqlite"
    if not path.exists():
        return
    try:
        quarantined = DeathBook(path, loaded.config.recovery.reports_max).read_quarantined()
    except DeathBookError as error:
        yield Finding(what="death reports", found="can't be read", advice=str(error))
        return
    if quarantined:
        models = ", ".join(sorted({entry.model for entry in quarantined}))
        yield Finding(
            what="quarantine",
            found=f"{counted(len(quarantined), 'request')} of {models} refused: workers died of them",
            advice="`mlxsup deaths` lists them; `mlxsup deaths --forget` lets them try again",
        )
