"""Only an end that was counted lately can have been this worker's."""

from mlxsup.supervisor.recovery.oom_evidence import OomEvidence


def test_a_count_that_rose_since_the_spawn_is_evidence() -> None:
    assert OomEvidence(3).rose(4) is True
    assert OomEvidence(3).rose(3) is False


def test_what_was_counted_long_before_the_death_was_another_process() -> None:
    evidence = OomEvidence(0)
    evidence.note_alive(1)
    evidence.note_alive(1)

    assert evidence.rose(1) is False
    assert evidence.rose(2) is True


def test_what_was_counted_before_the_last_sign_of_life_can_have_been_this_one_on_its_way_out() -> None:
    evidence = OomEvidence(0)
    evidence.note_alive(0)
    evidence.note_alive(1)

    assert evidence.rose(1) is True


def test_where_nothing_counts_nothing_is_known() -> None:
    lost = OomEvidence(0)

    assert OomEvidence(None).rose(None) is None
    assert OomEvidence(None).rose(1) is None
    assert lost.rose(None) is None


def test_a_count_that_is_back_is_compared_from_then_on() -> None:
    evidence = OomEvidence(0)
    evidence.note_alive(None)
    evidence.note_alive(5)
    evidence.note_alive(5)

    assert evidence.rose(5) is False
