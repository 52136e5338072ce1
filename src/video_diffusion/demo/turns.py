"""Who is next where one request runs at a time: cheap ones pass dear ones that came shortly before."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

Tell = Callable[[int, float], object]  # is told how many are before, and for how many seconds
LOOK = 1.0  # seconds between two looks at the place


@dataclass(eq=False)
class Ticket:
    """A request that waits.

    Args:
        work: what it costs: pixels × frames × network calls.
        due: its rank among those that wait: the time of its coming, plus the seconds that it takes.
    """

    work: float
    due: float


class Turns:
    """Gives turns in the order of coming + own length. So a request of 2 s passes one of 60 s that came up to 58 s
    before it, and no request is passed by those that come more than its own length later.

    Args:
        rate: seconds of a unit of work, before anything was measured; then of the last turns.
        clock: of seconds.
    """

    def __init__(self, rate: float = 2e-6, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate, self.clock = rate, clock
        self.condition = threading.Condition()
        self.waiting: list[Ticket] = []
        self.running: Ticket | None = None
        self.began = 0.0

    @contextmanager
    def turn(self, work: float, tell: Tell = lambda place, seconds: None) -> Iterator[None]:
        """Waits for the turn, which is the block's; whatever happens there, the next one's follows.

        Args:
            work: of the request.
            tell: is told the place and the expected wait, each second; what it raises ends the waiting.
        """
        with self.condition:
            ticket = Ticket(work, self.clock() + work * self.rate)
            self.waiting.append(ticket)
            try:
                while self.running is not None or min(self.waiting, key=lambda one: one.due) is not ticket:
                    tell(*self.before(ticket))
                    self.condition.wait(LOOK)
                self.running, self.began = ticket, self.clock()
            finally:
                self.waiting.remove(ticket)
                self.condition.notify_all()
        try:
            yield
        except BaseException:
            self._end(None)
            raise
        self._end((self.clock() - self.began) / max(work, 1.0))

    def before(self, ticket: Ticket) -> tuple[int, float]:
        """How many are before a ticket, the one that runs among them, and how many seconds they take from now."""
        ahead = [one.work for one in self.waiting if one.due < ticket.due]
        seconds = sum(ahead) * self.rate
        if self.running is not None:
            seconds += max(self.running.work * self.rate - (self.clock() - self.began), 0.0)
        return len(ahead) + (self.running is not None), seconds

    def _end(self, rate: float | None) -> None:
        """Ends the turn; a rate that was measured counts for a third of the next expectation."""
        with self.condition:
            self.running = None
            if rate is not None:
                self.rate += (rate - self.rate) / 3
            self.condition.notify_all()
