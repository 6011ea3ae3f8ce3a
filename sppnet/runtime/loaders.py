"""DataLoaders that find dead and hanging workers, and that resume in the middle of an epoch."""

import queue
import signal
import time
from collections.abc import Iterator
from multiprocessing import connection
from typing import Any, TypeVar

from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter, _MultiProcessingDataLoaderIter

# Seconds without a batch after which a loader counts as hanging. So does one that was stopped (by Ctrl-Z, say) for as
# long.
LOADER_TIMEOUT = 1800

# Seconds between looks for dead workers while a batch is waited for.
CHECK_SECONDS = 2.0

Batch = TypeVar("Batch", covariant=True)


class WatchedLoader(DataLoader[Batch]):
    """A DataLoader that raises RuntimeError seconds after a worker died, or after LOADER_TIMEOUT without a batch.

    Do not give it a `timeout`: torch would look for dead workers only after that time. Before, it relies on the error
    of a signal handler, which is lost where Python ignores errors, as in finalizers.
    """

    def _get_iterator(self) -> _BaseDataLoaderIter:
        return _WatchedBatches(self) if self.num_workers else super()._get_iterator()


class _WatchedBatches(_MultiProcessingDataLoaderIter):
    def _get_data(self) -> Any:
        """Waits for the next batch. Raises RuntimeError with how a worker ended that died."""
        self._waiting_since = time.monotonic()
        try:
            return super()._get_data()
        except RuntimeError as error:
            for worker in self._workers:
                if worker.exitcode:
                    raise RuntimeError(f"DataLoader worker (pid {worker.pid}) {_ending(worker.exitcode)}") from error
            raise

    def _try_get_data(self, timeout: float = 0) -> tuple[bool, Any]:
        """Waits CHECK_SECONDS for a batch; torch calls this until there is one or it raises.

        Unlike torch's method, opens no files to see why a read failed: a dead worker raises RuntimeError wherever this
        process is, and would leave them open.
        """
        try:
            return True, self._data_queue.get(timeout=CHECK_SECONDS)
        except queue.Empty:
            self._raise_for_dead_workers()
        except (OSError, EOFError):
            # The connection may break before the worker is dead, and a worker's sentinel closes before its exit code is
            # known: joining it waits for that.
            ended = connection.wait([worker.sentinel for worker in self._workers], timeout=CHECK_SECONDS)
            for worker in self._workers:
                if worker.sentinel in ended:
                    worker.join(CHECK_SECONDS)
            self._raise_for_dead_workers()
            raise

        if time.monotonic() - self._waiting_since > LOADER_TIMEOUT:
            raise RuntimeError(f"DataLoader timed out after {LOADER_TIMEOUT} seconds")
        return False, None

    def _raise_for_dead_workers(self) -> None:
        started = zip(self._workers, self._workers_status, strict=True)
        dead = [str(worker.pid) for worker, is_expected in started if is_expected and not worker.is_alive()]
        if dead:
            raise RuntimeError(f"DataLoader worker (pid(s) {', '.join(dead)}) exited unexpectedly")


def _ending(exit_code: int) -> str:
    """Says how a process ended, in the words of torch."""
    if exit_code < 0:
        return f"is killed by signal: {signal.strsignal(-exit_code)}"
    return f"exited unexpectedly with exit code {exit_code}"


class ResumingLoader(WatchedLoader[Any]):
    """A loader that resumes in the middle of an epoch. Lightning saves and restores its state.

    Its sampler has an attribute `start`: the next iteration skips so many items.
    """

    handed_out = 0  # batches of the epoch under way

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self.handed_out = self.sampler.start // self._items  # type: ignore[attr-defined]
        for batch in super().__iter__():
            self.handed_out += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Returns the batches handed out in the epoch under way; 0 at its end, because the next epoch follows."""
        return {"batches": self.handed_out % len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Makes the next iteration skip the batches that were handed out."""
        # If the data has changed, the epoch may have fewer batches now; one has to be left, to end the epoch.
        done = min(state["batches"], len(self) - 1)
        self.sampler.start = done * self._items  # type: ignore[attr-defined]

    @property
    def _items(self) -> int:
        """The items of a batch."""
        return self.batch_size or 1  # None: items are batches
