"""scripts/simulate: what it prints, and how it ends."""

import re

import pytest
from click.testing import CliRunner

from tests.simulation.__main__ import main
from tests.simulation.mutations import MUTATIONS


def simulate(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, arguments)
    return done.exit_code, done.output


def test_schedules_that_pass_end_with_a_table_of_what_was_seen() -> None:
    status, shown = simulate("--schedules", "30", "--processes", "1")

    assert status == 0, shown
    assert re.match(
        r"30 schedules from seed 0, \d+\.\d ms of CPU each: \d+\.\d simulated hours, 0 failed\n", shown
    )
    assert re.search(r"^  deaths +\w+ \d+", shown, re.MULTILINE)


@pytest.mark.slow
def test_a_failing_schedule_is_named_with_the_command_that_shows_it_and_the_command_shows_it() -> None:
    (mutation,) = [mutation for mutation in MUTATIONS if mutation.name == "a delta is lost"]
    with mutation.applied():
        status, shown = simulate("--schedules", "20", "--processes", "1")
        named = re.search(
            r"^seed (\d+): scripts/simulate --seed \1\n    texts_are_exact: ", shown, re.MULTILINE
        )
        assert named is not None, shown
        assert status == 1
        status, shown = simulate("--seed", named[1])

    assert status == 1
    assert re.search(r"^WRONG  texts_are_exact: ", shown, re.MULTILINE)
    assert re.search(r"^ +\d+\.\d{3}  submitted key='q\d+' ", shown, re.MULTILINE)
