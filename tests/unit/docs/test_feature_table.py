"""README says of each engine what the engine itself says."""

import pytest

from scripts.feature_table import BEGIN, END, README, make_table, with_table


def test_the_table_in_readme_is_the_one_that_the_code_gives() -> None:
    readme = README.read_text(encoding="utf-8")

    assert with_table(readme) == readme, "run scripts/features --write"


def test_every_feature_has_a_line_with_its_parameter_and_no_engine_is_left_out() -> None:
    head, _, *lines = make_table().splitlines()

    assert head.count("models") >= 1
    assert all(line.count("|") == head.count("|") for line in lines)
    assert any("`$.response_format`" in line for line in lines)


def test_what_stands_around_the_table_stays() -> None:
    assert with_table(f"before\n{BEGIN}old\n{END}after\n") == f"before\n{BEGIN}{make_table()}{END}after\n"


def test_a_readme_without_a_place_for_it_says_so() -> None:
    with pytest.raises(ValueError, match="no place for the table"):
        with_table("nothing")
