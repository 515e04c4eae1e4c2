"""An opener of URLs that trusts and goes through what the user's pip does. Edge."""

import importlib.util
import ssl
import urllib.request
from pathlib import Path

from mlxsup.supervisor.models.fetcher.faults import cannot_pull
from mlxsup.supervisor.models.fetcher.pip_program import run_pip
from mlxsup.supervisor.models.fetcher.pip_report import read_settings


def make_opener() -> urllib.request.OpenerDirector:
    """Proxies come from the environment, or from pip's configuration; so do the trusted certificates.

    Raises:
        RpcError: the configured certificates can't be read.
    """
    settings = read_settings(run_pip(["config", "list"]).stdout)
    handlers: list[urllib.request.BaseHandler] = [
        urllib.request.HTTPSHandler(context=_context(settings.get("cert")))
    ]
    if proxy := settings.get("proxy"):
        handlers.append(urllib.request.ProxyHandler({"http": proxy, "https": proxy}))
    return urllib.request.build_opener(*handlers)


def _context(certificates: str | None) -> ssl.SSLContext:
    try:
        if certificates is not None:
            return ssl.create_default_context(cafile=certificates)
        defaults = ssl.get_default_verify_paths()
        if not any((defaults.cafile, defaults.capath)):
            return ssl.create_default_context(cafile=_pip_certificates())
        return ssl.create_default_context()
    except OSError:
        raise cannot_pull(
            "the CA certificates that pip is configured to use can't be read; correct PIP_CERT or `pip "
            "config`"
        ) from None


def _pip_certificates() -> str | None:
    # A Python that was not built for its system, as the installer's for macOS, knows of no certificates:
    # pip's own.
    pip = importlib.util.find_spec("pip")
    if pip is None or pip.origin is None:
        return None
    certificates = Path(pip.origin).parent / "_vendor" / "certifi" / "cacert.pem"
    return str(certificates) if certificates.is_file() else None
