"""From one number to a schedule: the same number gives the same schedule, whatever else ran before. Pure."""

import random
from collections.abc import Sequence
from typing import Any, TypeVar

from msgspec.structs import replace

from mlxsup.config.schema import Config, Memory, Model, Recovery, Scheduling, Server, Worker
from mlxsup.protocol.generation import Priority
from mlxsup.supervisor.residency.residency import PROCESS_BYTES
from tests.simulation.causes import BLAMELESS, BLAMING, CAUSES
from tests.simulation.schedule import (
    OPERATOR,
    REFUSED,
    Act,
    Ask,
    Cancel,
    Cause,
    EndInput,
    Fate,
    Fault,
    Ill,
    Leave,
    Poison,
    Question,
    Reaction,
    Schedule,
    Send,
    Shortage,
    Strike,
    Terminate,
    Timed,
    When,
)

ValueT = TypeVar("ValueT")

GB = 10**9
MEMORY_BYTES = 200 * GB
_GRID_S = 0.25
_STATES = ("spawning", "loading", "warming", "ready", "draining", "stopping", "backoff", "stopped", "failed")
_EVENTS = ("accepted", "delta", "answered", "death", "order", "spawned", "cancel")


def draw_schedule(seed: int) -> Schedule:
    return _Drawing(seed).draw()


class _Drawing:
    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._rng = random.Random(seed)
        self._keys = 0
        self._asked: list[tuple[int, str]] = []

    def draw(self) -> Schedule:
        self._misery = self._pick((0.0, 0.3, 0.6, 1.0))
        self._blameless = self._chance(0.25)
        self._models = ["a"] if self._chance(0.7) else ["a", "b"]
        self._clients = self._rng.randint(1, 3)
        self._calm_s = self._time(8.0, 24.0)
        self._poisons = self._draw_poisons()
        self._midway = self._chance(0.25)
        self._rush_s = self._time(0.0, self._calm_s * 0.7) if self._chance(0.4) else None
        config = self._draw_config()
        acts = self._draw_acts()
        reactions = tuple(self._draw_reaction() for _ in range(self._rng.randint(0, 4)))
        drawn = Schedule(
            seed=self._seed,
            config=config,
            clients=self._clients + 1,
            slow_clients=tuple(n for n in range(1, self._clients + 1) if self._chance(0.1)),
            resident_bytes={model: self._rng.randint(1, 40) * GB for model in self._models},
            shortages=self._draw_shortages(),
            panics=3 if self._chance(0.03) else 0,
            disk_s=self._pick((0.0, 0.01, 0.2)),
            disk_fails=self._chance(0.1),
            locate_fails=tuple(n for n in range(1, 8) if self._chance(0.02)),
            fates=self._draw_fates(config),
            poisons=self._poisons,
            acts=tuple(sorted(acts, key=lambda timed: timed.at_s)),
            reactions=reactions,
            blameless=self._blameless,
            calm_s=self._calm_s,
            ends_midway=self._midway,
            drain_ms=self._pick((None, 0, 500, 3000, 20_000)),
            hurry_after_s=self._time(0.0, 4.0) if self._chance(0.2) else None,
        )
        memory = self._draw_memory(drawn)
        return replace(drawn, config=replace(config, memory=memory))

    # Dice.

    def _chance(self, share: float) -> bool:
        return self._rng.random() < share

    def _pick(self, values: Sequence[ValueT]) -> ValueT:
        return self._rng.choice(values)

    def _time(self, low_s: float, high_s: float) -> float:
        """Mostly on a grid: what falls together shows what depends on the order."""
        time_s = self._rng.uniform(low_s, high_s)
        return round(time_s / _GRID_S) * _GRID_S if self._chance(0.6) else time_s

    def _model(self) -> str:
        return self._pick(self._models)

    def _client(self) -> int:
        return self._rng.randint(1, self._clients)

    def _key(self) -> str:
        self._keys += 1
        return f"q{self._keys}"

    # The supervisor's side.

    def _draw_config(self) -> Config:
        beat_s = self._pick((2.0, 5.0))
        exit_grace_s, term_grace_s = self._pick((0.5, 2.0, 5.0)), self._pick((1.0, 5.0))
        return Config(
            server=Server(
                in_flight_requests_max=3 if self._chance(0.1) else 1024,
                drain_s=self._pick((0.0, 2.0, 10.0)),
            ),
            worker=Worker(
                heartbeat_interval_s=beat_s,
                hello_timeout_s=self._pick((5.0, 20.0)),
                load_timeout_s=self._pick((8.0, 30.0)),
                exit_grace_s=exit_grace_s,
                term_grace_s=term_grace_s,
                kill_grace_s=self._pick((1.0, 3.0)),
                spares=self._pick((0, 0, 1, 1, 2)),
                last_words_s=self._pick((0.5, 10.0)),
            ),
            recovery=self._draw_recovery(beat_s),
            scheduling=Scheduling(
                age_step_s=self._pick((0.5, 30.0)),
                quantum_tokens=self._pick((1, 256)),
                preemptions_soft_max=self._pick((1, 8)),
                preempt_tokens_min=self._pick((1, 2, 8)),
            ),
            models={model: self._draw_model() for model in self._models},
        )

    def _draw_memory(self, drawn: Schedule) -> Memory:
        """Sometimes too little for all models, but never for one."""
        models = drawn.config.models.values()
        if len(models) == 1 or any(model.pin or model.preload for model in models) or self._chance(0.2):
            return Memory()
        sizes = sorted(drawn.resident_bytes.values())
        process_bytes = PROCESS_BYTES * (drawn.config.worker.spares + 1)
        return Memory(
            budget_bytes=self._rng.randint(sizes[-1], sum(sizes)) + process_bytes,
            residency_min_s=self._pick((0.0, 2.0, 10.0)),
            swap_wait_s=self._pick((0.0, 3.0, 20.0)),
        )

    def _draw_recovery(self, beat_s: float) -> Recovery:
        return Recovery(
            restart_backoff_base_s=self._pick((0.25, 1.0, 2.0)),
            restart_backoff_max_s=self._pick((1.0, 4.0, 15.0)),
            restart_healthy_s=self._pick((1.0, 5.0, 60.0)),
            restarts_max=self._pick((0, 1, 3, 8, 20, 100)),
            restart_window_s=self._pick((10.0, 60.0, 300.0)),
            failed_hold_s=self._pick((0.0, 1.0, 4.0)),
            failed_hold_max_s=self._pick((4.0, 15.0)),
            silence_s=beat_s * self._pick((3, 5)),
            load_stall_s=self._pick((10.0, 60.0)),
            step_s=self._pick((6.0, 20.0)),
            pickup_s=self._pick((6.0, 15.0)),
            breaker_deaths=self._pick((1, 2, 3, 5, 100, 100)),
            breaker_open_s=self._pick((1.0, 5.0)),
            breaker_open_max_s=self._pick((5.0, 20.0)),
            panic_hold_s=self._pick((5.0, 30.0)),
            machine_deaths=self._pick((1, 2, 3, 100)),
            machine_window_s=self._pick((5.0, 600.0)),
            suspect_tokens=self._rng.randint(1, 6),
            suspect_memory_s=self._pick((3.0, 3600.0, 3600.0)),
            quarantine_max=self._pick((10, 1000)),
            fruitless_resumes_max=self._pick((1, 3, 3, 10)),
            stranded_share=self._pick((0.1, 0.5)),
            memory_wait_s=self._pick((0.0, 1.0, 10.0)),
            headroom_bytes=self._pick((0, 1, 10)) * GB,
            recycle_requests=self._rng.randint(1, 5) if self._chance(0.25) else None,
            recycle_tokens=self._rng.randint(3, 25) if self._chance(0.15) else None,
        )

    def _draw_model(self) -> Model:
        return Model(
            preload=self._chance(0.2),
            pin=self._chance(0.1),
            batch_sequences_max=self._rng.randint(1, 4),
            queue_requests_max=self._pick((1, 2, 4, 8, 100)),
        )

    def _draw_shortages(self) -> tuple[Shortage, ...]:
        if self._chance(0.8):
            return ()
        from_s = self._time(0.0, self._calm_s)
        return (
            Shortage(
                from_s=from_s,
                to_s=self._time(from_s, self._calm_s),
                taken_bytes=MEMORY_BYTES - self._rng.randint(0, 60) * GB,
            ),
        )

    # The workers' side.

    def _draw_fates(self, config: Config) -> tuple[Fate, ...]:
        return tuple(self._draw_fate(config.worker) for _ in range(self._rng.randint(1, 8)))

    def _draw_fate(self, config: Worker) -> Fate:
        is_ill = self._chance(self._misery)
        return Fate(
            spawn_fails=is_ill and self._chance(0.05),
            spawn_s=self._pick((0.0, 0.0, 0.02, 0.25)),
            hello_s=self._time(0.0, 1.5),
            load_s=self._time(0.0, 3.0),
            token_s=self._pick((0.05, 0.1, 0.25, 0.5)),
            text_lag_tokens=self._pick((0, 0, 1, 2)),
            obeys_sigterm=not (is_ill and self._chance(0.2)),
            outlives_sigkill=is_ill and self._chance(0.02),
            ends_when_told_s=self._pick((0.0, 0.1, 0.25, config.exit_grace_s, config.exit_grace_s + 0.5)),
            refuses_load=is_ill and self._chance(0.05),
            answers_load_with_nonsense=is_ill and self._chance(0.03),
            ill=self._draw_ill() if is_ill and self._chance(0.85) else None,
        )

    def _draw_ill(self) -> Ill:
        when = self._pick(
            (When.AGE, When.LOAD, When.GENERATE, When.TOKEN, When.TOKEN, When.CANCEL, When.TOLD)
        )
        return Ill(
            fault=self._draw_fault(),
            when=when,
            nth=self._rng.randint(1, 12 if when is When.TOKEN else 3),
            after_s=self._time(0.0, 12.0) if when is When.AGE else self._pick((0.0, 0.0, 0.02, 0.25, 1.0)),
            cause=self._draw_cause(),
        )

    def _draw_fault(self) -> Fault:
        if self._blameless or self._chance(0.5):
            return Fault.DIE
        return self._pick(tuple(Fault))

    def _draw_cause(self) -> Cause:
        return self._pick(BLAMELESS if self._blameless else CAUSES)

    def _draw_poisons(self) -> tuple[Poison, ...]:
        count = self._pick((0, 0, 0, 0, 1, 2))
        return tuple(
            Poison(prompt=f"poison{n}:", position=self._rng.randint(0, 6), cause=self._pick(BLAMING))
            for n in range(count)
        )

    # The clients' side.

    def _draw_acts(self) -> list[Timed]:
        acts: list[Timed] = []
        for _ in range(self._rng.randint(1, 10)):
            self._add_ask(acts)
        for poison in self._poisons:
            client, model, resume = self._client(), self._model(), not self._chance(0.1)
            for _ in range(self._rng.randint(1, 3)):
                ask = Ask(
                    key=self._key(),
                    model=model,
                    prompt=poison.prompt,
                    max_tokens=poison.position + 3,
                    resume=resume,
                )
                acts.append(self._at(Send(client=client, calls=(ask,))))
        for client in range(1, self._clients + 1):
            if self._chance(0.15):
                leaving: Act = Leave(client=client) if self._chance(0.5) else EndInput(client=client)
                acts += [self._at(leaving)]
        acts += [self._at(self._draw_question()) for _ in range(self._rng.randint(0, 3))]
        if self._misery:
            acts += [self._at(self._draw_strike()) for _ in range(self._rng.randint(0, 2))]
        if self._midway:
            acts += [self._at(self._draw_end())]
        return acts

    def _at(self, act: Act) -> Timed:
        if self._rush_s is not None and self._chance(0.5):
            return Timed(at_s=self._rush_s + self._pick((0.0, self._time(0.0, 1.0))), act=act)
        return Timed(at_s=self._time(0.0, self._calm_s * 0.8), act=act)

    def _add_ask(self, acts: list[Timed]) -> None:
        client = self._client()
        calls = tuple(self._draw_ask() for _ in range(self._rng.randint(2, 4) if self._chance(0.1) else 1))
        sent = self._at(Send(client=client, calls=calls))
        acts.append(sent)
        for call in calls:
            self._asked.append((client, call.key))
            if self._chance(0.15):
                later_s = sent.at_s + self._pick((0.0, self._time(0.0, 6.0)))
                acts.append(Timed(at_s=later_s, act=Cancel(client=client, key=call.key)))

    def _draw_ask(self) -> Ask:
        key = self._key()
        return Ask(
            key=key,
            model=self._model(),
            prompt=f"{key}:" if self._chance(0.95) else f"{REFUSED} {key}:",
            max_tokens=self._rng.randint(1, 10) if self._chance(0.9) else 25,
            stream=self._chance(0.7),
            temperature=self._pick((0.0, 0.0, 0.8)),
            seed=self._pick((None, 7)),
            resume=not self._chance(0.15),
            priority=self._pick((None, *Priority)),
            deadline_ms=round(self._time(0.1, 12.0) * 1000) or 1 if self._chance(0.2) else None,
            client=self._pick((None, None, "shared")),
        )

    def _draw_question(self) -> Send:
        model = self._model()
        method = self._pick(
            (
                *("tokenize", "detokenize", "server/stats", "server/health", "server/subscribe"),
                *("model/load", "model/unload", "model/unload", "model/recycle", "model/recycle"),
                *("model/breaker", "model/breaker", "model/forgive"),
            )
        )
        params: dict[str, dict[str, Any]] = {
            "tokenize": {"model": model, "text": "héllo"},
            "detokenize": {"model": model, "tokens": [104, 105]},
            "server/subscribe": {"topics": ["worker", "death"]},
            "model/load": {"model": model}
            | ({"options": {"context_tokens_max": self._rng.randint(16, 18)}} if self._chance(0.3) else {}),
            "model/unload": {"model": model, "force": self._chance(0.5)},
            "model/recycle": {"model": model},
            "model/forgive": {"model": model},
            "model/breaker": {"model": model, "action": self._pick(("reset", "force_open", "disable"))},
        }
        client = OPERATOR if method.startswith("model/") else self._client()
        return Send(
            client=client, calls=(Question(key=self._key(), method=method, params=params.get(method, {})),)
        )

    def _draw_strike(self) -> Strike:
        return Strike(model=self._model(), fault=self._draw_fault(), cause=self._draw_cause())

    def _draw_end(self) -> Act:
        if self._chance(0.5):
            return Terminate()
        drain_ms = self._pick((None, 0, 500, 3000))
        params = {} if drain_ms is None else {"drain_ms": drain_ms}
        question = Question(key=self._key(), method="server/shutdown", params=params)
        return Send(client=OPERATOR, calls=(question,))

    def _draw_reaction(self) -> Reaction:
        on = self._pick(_EVENTS) if self._chance(0.5) else f"{self._model()} {self._pick(_STATES)}"
        return Reaction(
            on=on,
            nth=self._rng.randint(1, 4),
            after_s=self._pick((0.0, 0.0, 0.0, 0.01, 0.25)),
            act=self._draw_answer(),
        )

    def _draw_answer(self) -> Act:
        """What somebody does about what he has just seen."""
        kind = self._rng.random()
        if kind < 0.4 and self._misery:
            return self._draw_strike()
        if kind < 0.55 and self._asked:
            client, key = self._pick(self._asked)
            return Cancel(client=client, key=key)
        if kind < 0.6:
            return Leave(client=self._client())
        if kind < 0.7:
            return Send(client=self._client(), calls=(self._draw_ask(),))
        return self._draw_question()
