"""The file that counts for a process is found on every kind of machine; each test writes what such a machine says."""

import os
import sys
from pathlib import Path

import pytest

from mlxsup.supervisor.pool.oom_counter import find_oom_counter, read_oom_kills

PID = 1234
V1 = "33 23 0:31 / {0}/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n"
V1_CPU = "34 23 0:32 / {0}/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
V2 = "35 23 0:33 / {0}/unified rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
OTHERS = "22 1 8:1 / / rw - ext4 /dev/root rw\n23 22 0:5 / {0}/proc rw - proc proc rw\n"


class Machine:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.proc = folder / "proc"

    def write(self, path: str, text: str) -> Path:
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def process(self, groups: str, mounts: str) -> None:
        self.write(f"proc/{PID}/cgroup", groups)
        self.write("proc/self/mountinfo", (OTHERS + mounts).replace("{0}", str(self.folder)))

    def found(self) -> Path | None:
        return find_oom_counter(PID, self.proc)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path)
    machine.write("proc/vmstat", "nr_free_pages 1\noom_kill 7\nother 2\n")
    return machine


def events(kills: int) -> str:
    return f"low 0\nhigh 0\nmax 9\noom 8\noom_kill {kills}\noom_group_kill 3\n"


def control(kills: int) -> str:
    return f"oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n"


def test_a_group_of_version_2_counts_for_itself(machine: Machine) -> None:
    machine.process("0::/user.slice/a.scope\n", V2)
    counter = machine.write("unified/user.slice/a.scope/memory.events", events(4))

    assert machine.found() == counter
    assert read_oom_kills(counter) == 4


def test_a_group_of_version_1_counts_for_itself(machine: Machine) -> None:
    machine.process("5:cpu,cpuacct:/x\n4:memory:/jobs/1\n1:name=systemd:/y\n0::/\n", V1_CPU + V1 + V2)
    counter = machine.write("memory/jobs/1/memory.oom_control", control(5))

    assert machine.found() == counter
    assert read_oom_kills(counter) == 5


@pytest.mark.parametrize("named", ["/docker/abc/inner", "/inner"])
def test_within_a_container_the_group_is_found_below_the_containers_own(machine: Machine, named: str) -> None:
    machine.process(f"0::{named}\n", V2.replace(" / ", " /docker/abc "))
    counter = machine.write("unified/inner/memory.events", events(1))

    assert machine.found() == counter


def test_a_mixed_machine_counts_where_the_memory_is(machine: Machine) -> None:
    machine.process("0::/session\n4:memory:/jobs\n", V2 + V1)
    machine.write("unified/session/cgroup.procs", "")
    counter = machine.write("memory/jobs/memory.oom_control", control(0))

    assert machine.found() == counter


@pytest.mark.parametrize("groups", ["0::/\n", "0::/gone\n", "", "3:cpu:/a:b\n"])
def test_without_a_group_that_counts_the_machine_does(machine: Machine, groups: str) -> None:
    machine.process(groups, V1_CPU + V2)

    assert machine.found() == machine.proc / "vmstat"


def test_a_process_that_has_ended_is_counted_with_the_machine(machine: Machine) -> None:
    assert machine.found() == machine.proc / "vmstat"


def test_a_mount_point_that_is_no_utf_8_is_none_of_ours(machine: Machine) -> None:
    machine.process("0::/a\n", V2)
    with (machine.proc / "self" / "mountinfo").open("ab") as mounts:
        mounts.write(b"36 35 98:0 / /mnt/M\xfcller rw - ext3 /dev/root rw\n")
    counter = machine.write("unified/a/memory.events", events(3))

    assert machine.found() == counter


@pytest.mark.skipif(sys.platform != "linux", reason="a Mac's file names are UTF-8")
def test_a_group_whose_name_is_no_utf_8_counts_for_itself(machine: Machine) -> None:
    machine.process("", V2)
    (machine.proc / str(PID) / "cgroup").write_bytes(b"0::/M\xfcller\n")
    counter = machine.write("unified/M\udcfcller/memory.events", events(3))

    assert machine.found() == counter


@pytest.mark.parametrize("line", ["0", "0:", "\n"])
def test_a_line_that_names_no_group_counts_nothing(machine: Machine, line: str) -> None:
    machine.process(line, V1 + V2)

    assert machine.found() == machine.proc / "vmstat"


def test_a_group_that_has_ended_counts_nothing(machine: Machine) -> None:
    machine.process("0::/a\n", V2)
    counter = machine.write("unified/a/memory.events", events(1))
    assert machine.found() == counter
    counter.unlink()

    assert read_oom_kills(counter) is None


def test_a_system_without_these_files_counts_nothing(tmp_path: Path) -> None:
    assert find_oom_counter(PID, tmp_path) is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_this_machine_counts() -> None:
    counter = find_oom_counter(os.getpid())

    assert counter is not None
    assert read_oom_kills(counter) is not None
