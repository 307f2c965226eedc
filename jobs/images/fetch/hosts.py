"""What a process remembers of each host: how many requests are under way, and whether it has stopped answering."""

import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from jobs.images.fetch.fetched import NotFetched


class Hosts:
    """The bounds of one run in one process, for any number of threads and clients.

    per_host: requests at a time to a host. Several workers keep to it each for itself: n of them ask a host with up to
    n times as many. down_after: failures in a row, with no answer in between, after which a host is left alone for
    good.
    """

    def __init__(self, per_host: int, down_after: int) -> None:
        self.down_after = down_after
        self._gates: defaultdict[str, threading.Semaphore] = defaultdict(lambda: threading.Semaphore(per_host))
        self._failures: defaultdict[str, int] = defaultdict(int)
        self._lock = threading.Lock()

    @contextmanager
    def turn(self, host: str) -> Iterator[None]:
        """Wait for a turn to ask the host. Raises NotFetched where it is down, also if it went down meanwhile."""
        with self._lock:
            gate = self._gates[host]
        with gate:
            with self._lock:
                down = self._failures[host] >= self.down_after
            if down:
                raise NotFetched(
                    "host_down", f"{host} gave no answer {self.down_after} times in a row: not asked again"
                )
            yield

    def answered(self, host: str) -> None:
        """Any answer, be it a refusal, shows that the host is there."""
        with self._lock:
            if self._failures[host] < self.down_after:  # who is down stays down: one meaning for a whole run
                self._failures[host] = 0

    def failed(self, host: str) -> None:
        """No connection, or no whole answer in time."""
        with self._lock:
            self._failures[host] += 1
