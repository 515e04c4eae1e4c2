"""Whatever comes: the budget is kept, no busy model is put out without need, and whoever waits gets its turn."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mlxsup.supervisor.residency.tenant import HOLDING, Phase, Terms
from tests.unit.residency.machine import Machine

BUDGET = 100
SERVE_MAX_S = 20.0
LOAD_MAX_S = 10.0
BACK_OFF_MAX_S = 60.0
NAMES = [f"m{number}" for number in range(5)]

names = st.sampled_from(NAMES)
seconds = st.floats(0.1, 60.0)


class KeeperMachine(RuleBasedStateMachine):
    @initialize(
        sizes=st.lists(st.integers(10, 100), min_size=len(NAMES), max_size=len(NAMES)),
        loads_s=st.lists(st.floats(0.5, LOAD_MAX_S), min_size=len(NAMES), max_size=len(NAMES)),
        urgencies=st.lists(st.integers(0, 3), min_size=len(NAMES), max_size=len(NAMES)),
        residency_min_s=st.sampled_from([0.0, 30.0]),
        swap_wait_s=st.sampled_from([0.0, 20.0, 120.0]),
        ttl_s=st.none() | st.floats(5.0, 100.0),
    )
    def begin(
        self,
        sizes: list[int],
        loads_s: list[float],
        urgencies: list[int],
        residency_min_s: float,
        swap_wait_s: float,
        ttl_s: float | None,
    ) -> None:
        self.machine = Machine(BUDGET, residency_min_s=residency_min_s, swap_wait_s=swap_wait_s)
        self.dies = self.pins = False
        self.ttl_s = ttl_s
        for name, size, load_s, urgency in zip(NAMES, sizes, loads_s, urgencies, strict=True):
            self.machine.add(name, size, load_s=load_s, urgency=urgency, idle_ttl_s=ttl_s)

    @rule(name=names, serve_s=st.floats(0.1, SERVE_MAX_S), times=st.integers(1, 12))
    def ask(self, name: str, serve_s: float, times: int) -> None:
        for _ in range(times):
            self.machine.request(name, serve_s)

    @rule(name=names, serve_s=st.floats(0.1, 5.0), every_s=st.floats(0.1, 10.0), for_s=seconds)
    def keep_asking(self, name: str, serve_s: float, every_s: float, for_s: float) -> None:
        for number in range(int(for_s / every_s)):
            self.machine.at(
                self.machine.now_s + number * every_s, lambda: self.machine.request(name, serve_s)
            )

    @rule(duration_s=seconds)
    def go_on(self, duration_s: float) -> None:
        self.machine.run_until(self.machine.now_s + duration_s)

    @rule(name=names, back_off_s=st.floats(0.0, BACK_OFF_MAX_S))
    def die(self, name: str, back_off_s: float) -> None:
        self.dies = True
        self.machine.die(name, back_off_s)

    @rule(name=names, by_bytes=st.integers(1, 80))
    def grow(self, name: str, by_bytes: int) -> None:
        self.machine.grow(name, by_bytes)

    @rule(name=names, pinned=st.booleans(), preloaded=st.booleans())
    def change_terms(self, name: str, pinned: bool, preloaded: bool) -> None:
        self.pins = True
        terms = Terms(pinned=pinned, preloaded=preloaded, idle_ttl_s=self.ttl_s)
        self.machine.keeper.on_terms(name, terms, self.machine.now_s)

    @precondition(lambda self: hasattr(self, "machine"))
    @invariant()
    def the_budget_is_kept(self) -> None:
        self.machine.check()

    @precondition(lambda self: hasattr(self, "machine"))
    @invariant()
    def nobody_waits_longer_than_the_patience_and_a_turn_of_each_other(self) -> None:
        if self.pins or self.dies:
            return
        machine = self.machine
        turn_s = machine.residency_min_s + LOAD_MAX_S + SERVE_MAX_S + 1.0
        for model in machine.models.values():
            waited_s = (
                [machine.now_s - model.asked_s]
                if not machine.keeper.holds(model.name) and model.asked
                else []
            )
            for turn in (*model.turns_s, *waited_s):
                assert turn <= machine.swap_wait_s + len(NAMES) * turn_s, model

    @precondition(lambda self: hasattr(self, "machine"))
    @invariant()
    def who_is_told_no_is_told_because_of_what_stays(self) -> None:
        for model in self.machine.models.values():
            assert model.error is None or (self.pins and "stay loaded" in model.error.message), model.error
            model.error = None

    def teardown(self) -> None:
        if not hasattr(self, "machine"):
            return
        machine = self.machine
        for name in NAMES:
            machine.keeper.on_terms(name, Terms(idle_ttl_s=self.ttl_s), machine.now_s)
        machine.run_until(machine.now_s + 5000)
        assert machine.idle(), "somebody waits for ever"
        phases = {tenant.phase for tenant in machine.keeper}
        assert phases <= {Phase.OUT, Phase.RESIDENT}
        if self.ttl_s is not None:
            assert not any(tenant.phase in HOLDING for tenant in machine.keeper), "an idle one stays for ever"


TestKeeper = KeeperMachine.TestCase
TestKeeper.settings = settings(max_examples=100, stateful_step_count=25, deadline=None)
