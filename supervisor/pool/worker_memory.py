"""What a model's workers hold of the machine's memory, as it is told to those who share it with them."""

from mlxsup.protocol import worker_link as link
from mlxsup.supervisor.pool.demand import demand_of
from mlxsup.supervisor.pool.life import Life, WorkerSource
from mlxsup.supervisor.pool.lives import Lives
from mlxsup.supervisor.residency.residency import Reservation
from mlxsup.supervisor.residency.tenant import Demand
from mlxsup.supervisor.scheduling.flights import Place
from mlxsup.supervisor.scheduling.scheduler import Scheduler


class WorkerMemory:
    """`headroom_bytes` of the machine's memory are to stay free when a second worker begins."""

    def __init__(
        self,
        reservation: Reservation,
        lives: Lives,
        scheduler: Scheduler,
        source: WorkerSource,
        headroom_bytes: int,
    ) -> None:
        self._reservation = reservation
        self._lives = lives
        self._scheduler = scheduler
        self._source = source
        self._headroom_bytes = headroom_bytes
        # It is to be another model's once these workers have ended what runs.
        self.makes_room = False

    def demand(self) -> Demand:
        """What the model has to do, running and waiting."""
        return demand_of(self._scheduler, tuple(self._lives))

    def make_room(self) -> None:
        """All end what runs, and start nothing new."""
        self.makes_room = bool(self._lives)
        self._lives.tell_to_stop(at_once=False)

    def may_double(self, life: Life) -> bool:
        """Whether another worker may begin beside this one."""
        held_bytes = life.samples[-1].resident_bytes if life.samples else 0
        has_room = self._source.available() >= held_bytes + self._headroom_bytes
        return has_room and self._reservation.may_double()

    def measure(self) -> None:
        """Tell what each worker holds."""
        self._reservation.measured([life.held_bytes for life in self._lives])

    def count(self) -> None:
        """Tell how many workers there are: at least one."""
        self._reservation.has_workers(len(self._lives))

    def place(self, life: Life, loaded: link.Loaded) -> Place:
        """Of a worker that has just been loaded, with the bytes that its KV caches may take."""
        assert life.worker is not None
        held_bytes = max(life.held_bytes, self._source.observe(life.worker.pid).resident_bytes)
        self._reservation.ready(held_bytes, loaded.kv_bytes_per_token, loaded.context_tokens)
        return Place(
            life,
            life.generation,
            context_tokens=loaded.context_tokens,
            kv_bytes_per_token=loaded.kv_bytes_per_token,
            kv_bytes_max=self._reservation.kv_bytes_max(held_bytes),
        )

    def pass_on(self, *, wanted: bool) -> None:
        """A worker is over: what it held is kept for the others, or where there is none for the next one if that is `wanted`."""
        if self._lives:
            self.count()
            self.measure()
        elif wanted:
            self._reservation.lost()
        else:
            self._reservation.release()
        self.makes_room = self.makes_room and bool(self._lives)
