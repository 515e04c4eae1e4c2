"""`claim_pipes` in a real process: afterwards nobody's print reaches the protocol, and nobody's read takes from it."""

import subprocess
import sys
from pathlib import Path

import pytest

NOISY = """
from mlxsup.protocol.descriptors import claim_pipes
pipes = claim_pipes()
import ctypes, os, subprocess, sys
print("from print", flush=True)
os.write(1, b"from a descriptor\\n")
ctypes.CDLL(None).puts(b"from C")
ctypes.CDLL(None).fflush(None)
subprocess.run(["sh", "-c", "echo from a child; cat"])
os.write(pipes.outgoing, b"%b|%d|%b" % (os.read(0, 100), min(pipes) > 2, os.read(pipes.incoming, 100)))
"""


@pytest.fixture(scope="module")
def noisy() -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-P", "-c", NOISY]
    return subprocess.run(command, input=b"protocol", capture_output=True, check=True, timeout=60)


def test_only_what_is_written_to_the_private_descriptor_is_protocol(
    noisy: subprocess.CompletedProcess[bytes],
) -> None:
    assert noisy.stdout.split(b"|")[1:] == [b"1", b"protocol"]


def test_every_other_word_goes_to_stderr(noisy: subprocess.CompletedProcess[bytes]) -> None:
    said = noisy.stderr.decode().splitlines()
    assert sorted(said) == ["from C", "from a child", "from a descriptor", "from print"]


def test_who_reads_stdin_finds_it_at_its_end(noisy: subprocess.CompletedProcess[bytes]) -> None:
    assert noisy.stdout.split(b"|")[0] == b""


def test_a_child_does_not_get_the_descriptors(tmp_path: Path) -> None:
    program = """
from mlxsup.protocol.descriptors import claim_pipes
pipes = claim_pipes()
import os, subprocess, sys
code = "import os, sys\\nfor fd in map(int, sys.argv[1:]):\\n try: os.fstat(fd)\\n except OSError: print('closed')"
command = [sys.executable, "-c", code, *map(str, pipes)]
os.write(pipes.outgoing, subprocess.run(command, capture_output=True, close_fds=False).stdout)
"""
    ran = subprocess.run(
        [sys.executable, "-P", "-c", program], input=b"", capture_output=True, check=True, timeout=60
    )
    assert ran.stdout.split() == [b"closed", b"closed"]
