"""A model's workers: the one that serves, the one that is to take over from it, and those that end. It decides nothing."""

from collections.abc import Iterator

from mlxsup.config.schema import Model as ModelConfig
from mlxsup.config.schema import Recovery
from mlxsup.config.schema import Worker as WorkerConfig
from mlxsup.supervisor.pool.life import Life, Owner, WorkerSource
from mlxsup.supervisor.pool.self_tests import SelfTests


class Lives:
    """Those that are not over. `current` serves, or will once it has loaded; `successor` loads, and takes over from it."""

    def __init__(
        self,
        model: ModelConfig,
        config: WorkerConfig,
        recovery: Recovery,
        source: WorkerSource,
        self_tests: SelfTests,
    ) -> None:
        # As those are loaded that begin from now on.
        self.model = model
        self._config = config
        self._recovery = recovery
        self._source = source
        self._self_tests = self_tests
        self._lives: dict[Life, None] = {}
        self.current: Life | None = None
        self.successor: Life | None = None
        self._generation = 0
        self._prefill_tokens_per_s: float | None = None
        # Other than is configured, for now.
        self._chunk_tokens: int | None = None

    def __len__(self) -> int:
        return len(self._lives)

    def __iter__(self) -> Iterator[Life]:
        """In the order in which they began; one may be removed meanwhile."""
        return iter(tuple(self._lives))

    @property
    def generation(self) -> int:
        """Of the worker that serves, or served last."""
        return self._generation if self.current is None else self.current.generation

    def begin(self, owner: Owner) -> Life:
        """Another one, which somebody has to `run`."""
        self._generation += 1
        life = Life(
            self._source,
            self.model,
            self._config,
            self._recovery,
            owner,
            self._generation,
            self._self_tests,
            self._prefill_tokens_per_s,
        )
        self._lives[life] = None
        return life

    def remove(self, life: Life) -> None:
        """It is over."""
        del self._lives[life]
        self._prefill_tokens_per_s = life.prefill_tokens_per_s
        if life is self.current:
            self.current = None
        if life is self.successor:
            self.successor = None

    def promote(self) -> Life | None:
        """The successor is the model's worker from now on; who was it before."""
        old, self.current, self.successor = self.current, self.successor, None
        return old

    def tell_to_stop(self, *, at_once: bool) -> None:
        """All of them; then none takes over from another."""
        self.successor = None
        for life in self:
            life.stop(at_once=at_once)

    async def stop(self, *, at_once: bool) -> None:
        """Those that are there now, until they are over."""
        self.tell_to_stop(at_once=at_once)
        for life in self:
            await life.over.wait()

    async def drained(self) -> None:
        """Until none drains that was replaced before: there are never more than two."""
        while self.current is not None:
            replaced = [life for life in self if life not in (self.current, self.successor)]
            if not replaced:
                return
            await replaced[0].over.wait()

    def tune_prefill(self, chunk_tokens: int | None) -> None:
        """For the workers that are there, and those to come; None: as is configured."""
        self._chunk_tokens = chunk_tokens
        for life in self:
            if life.ready_s is not None and not life.is_failing:
                life.tune(prefill_chunk_tokens=chunk_tokens or self.model.prefill_chunk_tokens)

    def tune_newcomer(self, life: Life) -> None:
        """One that is ready, as the others are."""
        if self._chunk_tokens is not None:
            life.tune(prefill_chunk_tokens=self._chunk_tokens)
        if self._self_tests.switched_off != life.switched_off:
            # Found by another worker while this one was loading.
            life.switch_off(self._self_tests.switched_off)
