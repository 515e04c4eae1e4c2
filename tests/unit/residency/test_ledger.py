"""What is kept for a model: as much as was measured, and never so much that it can't be had."""

from hypothesis import given
from hypothesis import strategies as st

from mlxsup.supervisor.residency.ledger import Footprint, Ledger


def ledger(budget_bytes: int | None = None, available_bytes: int = 1000) -> Ledger:
    return Ledger(
        budget_bytes=budget_bytes,
        set_aside_bytes=10,
        headroom_bytes=50,
        total_bytes=2000,
        available=lambda: available_bytes,
    )


def test_what_was_measured_replaces_what_was_estimated() -> None:
    footprint = Footprint(estimate_bytes=1000)
    assert footprint.usual_bytes == 1000
    footprint.loaded_bytes = 400
    assert footprint.usual_bytes == 400
    footprint.note_resident(600)
    assert (footprint.least_bytes, footprint.usual_bytes) == (400, 600)


def test_caches_count_at_their_bound_where_there_is_one() -> None:
    footprint = Footprint(estimate_bytes=1000, kv_bytes_max=300)
    footprint.loaded_bytes = 900
    footprint.note_resident(950)
    assert footprint.usual_bytes == 1200


def test_a_peak_that_does_not_come_again_counts_less_with_every_worker() -> None:
    footprint = Footprint(estimate_bytes=100)
    for resident in (100, 900):
        footprint.note_resident(resident)
    footprint.note_end()
    assert footprint.usual_bytes == 900
    for expected in (500, 300, 200):
        footprint.note_resident(100)
        footprint.note_end()
        assert footprint.usual_bytes == expected


@given(st.lists(st.integers(0, 500), max_size=6), st.lists(st.integers(0, 700), max_size=6))
def test_of_a_budget_is_free_what_nobody_needs_or_holds(needed: list[int], resident: list[int]) -> None:
    book = ledger(budget_bytes=1010)
    taken = 0
    for number, (need, holds) in enumerate(zip(needed, resident, strict=False)):
        book.open(f"m{number}", need)
        claim = book.get(f"m{number}")
        assert claim is not None
        claim.resident_bytes = holds
        taken += max(need, holds)
    assert book.free_bytes() == 1000 - taken


def test_without_a_budget_is_free_what_the_machine_has_but_for_what_workers_may_still_grow_by() -> None:
    book = ledger(available_bytes=1000)
    assert book.free_bytes() == 950
    book.open("a", 300)
    assert book.free_bytes() == 650
    claim = book.get("a")
    assert claim is not None
    claim.resident_bytes = 250
    assert book.free_bytes() == 900
    claim.workers = 2
    assert book.free_bytes() == 600


def test_without_a_budget_no_more_is_free_than_the_machine_could_ever_give() -> None:
    book = ledger(available_bytes=10**9)
    book.open("a", 300)
    assert book.free_bytes() == 2000 - 50 - 300
