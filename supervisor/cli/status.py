"""`mlxsup status` and `stop`."""

from pathlib import Path

import click
import msgspec

from mlxsup.protocol.client.sync import Client
from mlxsup.protocol.service import Counters, Health, Stats, WorkerCounters
from mlxsup.supervisor.cli.model_table import model_table
from mlxsup.supervisor.cli.render import counted, size
from mlxsup.supervisor.cli.setting import config_option, read_setting, socket_option


@click.command()
@config_option
@socket_option
@click.option("--json", "as_json", is_flag=True, help="One JSON text, for programs.")
def status(config_file: Path | None, socket_path: Path | None, as_json: bool) -> None:
    """What the running supervisor does."""
    with Client.connect(read_setting(config_file).socket(socket_path)) as client:
        health: Health = client.call("server/health")
        stats: Stats = client.call("server/stats")
        listed = client.call("model/list")
    if as_json:
        click.echo(msgspec.json.encode({"health": health, "stats": stats, "models": listed.models}))
        return
    supervisor = stats.supervisor
    ready = click.style("ready", fg="green") if health.ready else click.style("not ready", fg="red")
    up = f"up {supervisor.uptime_s:.0f} s"
    click.echo(
        f"{ready}, {up}, {size(supervisor.resident_bytes)}, {counted(supervisor.connections, 'connection')}"
    )
    click.echo(_requests(stats.overall))
    for name, workers in stats.workers.items():
        if workers.deaths:
            click.echo(_deaths(name, workers, stats.models.get(name)))
    click.echo()
    click.echo(model_table(listed.models))


def _requests(counters: Counters) -> str:
    ended = (
        ", ".join(f"{count} {outcome}" for outcome, count in sorted(counters.ended.items())) or "none ended"
    )
    line = f"requests: {counters.requests_active} active ({counters.requests_queued} queued), {ended}"
    if counters.ttft_ms.count:
        line += f"; TTFT {counters.ttft_ms.p50:.0f} ms median, {counters.ttft_ms.p99:.0f} ms p99"
    return line


def _deaths(model: str, workers: WorkerCounters, requests: Counters | None) -> str:
    classes = ", ".join(f"{count} {name}" for name, count in sorted(workers.deaths.items()))
    resumed = requests.requests_resumed if requests is not None else 0
    return (
        f"deaths of {model}: {classes}; {counted(workers.restarts, 'restart')}, "
        f"{counted(resumed, 'request')} resumed"
    )


@click.command()
@config_option
@socket_option
@click.option("--drain-s", type=click.FloatRange(0, 86_400), help="How long running requests may go on.")
def stop(config_file: Path | None, socket_path: Path | None, drain_s: float | None) -> None:
    """End the running supervisor, once its running requests have ended."""
    drain_ms = None if drain_s is None else round(drain_s * 1000)
    with Client.connect(read_setting(config_file).socket(socket_path)) as client:
        client.call("server/shutdown", {"drain_ms": drain_ms})
        client.wait_closed()
    click.echo("stopped")
