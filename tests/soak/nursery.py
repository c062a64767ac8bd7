"""Producers by hundreds, which are born, count and die; standard library and `statsfs` only.

They are forked, without an import, by one process without segments. Some end, some close and live
on for a while, some are killed: in the middle of publishing, of counting, of ending. Whoever dies
is replaced at once, at the same path in half of the cases. The first of each group lives until all
end, so that the group stays.
"""

import ctypes
import gc
import heapq
import json
import os
import random
import signal
import time
from collections import Counter
from typing import Any, Final

from statsfs.model.fields import log_hist, u64
from statsfs.model.stats import Stats
from statsfs.model.values import Aggregate, Kind
from statsfs.segments.publishing import Segment, publish
from tests.soak.accounts import PER_GROUP, SLOTS, Account, paths_of

__all__ = ["raise_producers"]

_TICK: Final = 0.003  # seconds
_BURST: Final = 60
_PDEATHSIG: Final = 1  # PR_SET_PDEATHSIG


class Release(Stats):
    requests = u64(Aggregate.SUM, description="Requests")
    begun = u64(Aggregate.SUM, description="Segments")
    sizes = log_hist(6, Aggregate.SUM)
    largest = u64(Aggregate.MAX, kind=Kind.PEAK)


class LaterRelease(Stats):
    begun = u64(Aggregate.SUM, description="Segments that began to count")
    more = u64(Aggregate.SUM, description="What is new")
    sizes = log_hist(6, Aggregate.SUM)
    requests = u64(Aggregate.SUM, description="Requests answered")
    largest = u64(Aggregate.MAX, kind=Kind.PEAK)


class _Life:
    # One producer: what it publishes, and how it counts there.

    def __init__(self, account: Account, slot: int, life: int, directory: str) -> None:
        self.random = random.Random(f"{slot}.{life}")
        self.account = account
        self.slot = slot
        self.stays = slot % PER_GROUP == 0
        again = self.stays or self.random.random() < 0.5
        name = f"worker-{slot}" if again else f"worker-{slot}.{life}"
        self.path = f"{paths_of(slot // PER_GROUP)}/{name}"
        self.directory = directory
        self.later = self.random.random() < 0.5

    def publish(self) -> Segment[Any]:
        labels = ("app", None, None)  # one series, with what the dead left
        values = LaterRelease if self.later else Release
        return publish(self.path, values=values, labels=labels, directory=self.directory)

    def live(self, pace: float, busy: bool) -> None:
        with self.publish() as segment:
            self.count("begun", segment.stats)
            rounds = self.random.randrange(int(30 * pace) + 2)
            while not self.account.stopped and (self.stays or busy or rounds > 0):
                rounds -= 1
                self.work(segment.stats)
                if not busy:
                    time.sleep(self.random.uniform(0.05, 0.2))
            if self.random.random() < 0.5:
                return
        time.sleep(self.random.uniform(0.0, 0.1))

    def count(self, value: str, stats: Any) -> None:
        words, begun, done = self.account.begin(value, self.slot)
        words[begun] += 1
        setattr(stats, value, getattr(stats, value) + 1)
        words[done] += 1

    def work(self, stats: Any) -> None:
        words, begun, done = self.account.begin("requests", self.slot)
        size = self.random.randrange(1, _BURST)
        sizes = stats.sizes
        for number in range(size):
            words[begun] += 1
            stats.requests += 1
            sizes.observe(number)
            words[done] += 1
        if self.later:
            self.count("more", stats)
        words, begun, done = self.account.begin("largest", self.slot)
        if size > stats.largest:
            words[begun] = max(size, words[begun])
            stats.largest = size
            words[done] = max(size, words[done])


class _Nursery:
    def __init__(self, account: Account, directory: str, pace: float, seed: str) -> None:
        self.account = account
        self.directory = directory
        self.pace = pace
        self.random = random.Random(seed)
        self.slots: dict[int, int] = {}
        self.begun: dict[int, int] = {}
        self.doomed: list[tuple[float, int, int]] = []
        self.done: Counter[str] = Counter()
        self.most = 0

    def bear(self, slot: int) -> None:
        """Fork a producer; to be killed at some time, perhaps."""
        life = self.done["lives"]
        words, begun, _ = self.account.begin("begun", slot)
        before = words[begun]
        doomed = slot % PER_GROUP > 0 and self.random.random() < 0.6
        # They do nothing but count, so that they are killed in the middle of it.
        busy = doomed and self.random.random() < 0.1
        pid = os.fork()
        if not pid:
            status = 1
            try:
                _die_with_parent()
                if busy:
                    os.nice(10)  # nobody's death is to wait for them
                _Life(self.account, slot, life, self.directory).live(self.pace, busy)
                status = 0
            finally:
                os._exit(status)
        self.slots[pid] = slot
        self.begun[pid] = before
        self.done["lives"] += 1
        if doomed:
            seconds = self.random.uniform(0, 0.015 if busy else 2 * self.pace)
            heapq.heappush(self.doomed, (time.monotonic() + seconds, pid, life))

    def kill(self) -> None:
        """Kill whose time has come; a process that has ended was not reaped yet, or is another's.

        A pid of ours is ours until we reap it, and what is reaped is in `slots` no more.
        """
        while self.doomed and self.doomed[0][0] <= time.monotonic():
            _, pid, _ = heapq.heappop(self.doomed)
            if pid in self.slots:
                os.kill(pid, signal.SIGKILL)

    def reap(self) -> list[int]:
        """Return the slots of those who have died."""
        free = []
        while self.slots:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            slot = self.slots.pop(pid)
            del self.begun[pid]
            doubt = self.account.find_doubt(slot)
            code = os.waitstatus_to_exitcode(status)
            assert code in (0, -signal.SIGKILL), f"a producer ended with {code}"
            assert code or not doubt, f"{doubt} not done"
            self.done["killed" if code else "ended"] += 1
            self.done["in doubt"] += bool(doubt)
            free.append(slot)
        # Who had this number before must not be killed in place of who has it now.
        if free:
            self.doomed = [one for one in self.doomed if one[1] in self.slots]
            heapq.heapify(self.doomed)
        return free

    def have_all_begun(self) -> bool:
        """Whether nobody who lives is about to begin."""
        for pid, slot in self.slots.items():
            words, _, done = self.account.begin("begun", slot)
            if words[done] == self.begun[pid]:
                return False
        return True

    def run(self, slots: list[int]) -> None:
        """Keep one producer in each slot until told to stop; return when all have died."""
        free = slots
        while not (self.account.stopped and not self.slots):
            if not self.account.held:
                self.account.note_holding(False)
                while free and not self.account.stopped:
                    self.bear(free.pop())
            else:
                self.account.note_holding(self.have_all_begun())
            self.most = max(self.most, len(self.slots))
            self.kill()
            time.sleep(_TICK)
            free += self.reap()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)


def raise_producers(account: str, directory: str, producers: str, pace: str, seed: str) -> None:
    """Raise producers until the account says that all are to end; print what became of them.

    Args:
        account: its file.
        directory: where they publish.
        producers: how many at the same time.
        pace: how long they live; 1.0 for some seconds.
        seed: of the moments of death.
    """
    gc.freeze()  # what is never collected is never copied
    nursery = _Nursery(Account(account), directory, float(pace), seed)
    count = int(producers)
    # As many in each group; those who stay are born first, which is from the end.
    slots = sorted(range(SLOTS), key=lambda slot: slot % PER_GROUP)[:count]
    nursery.run(slots[::-1])
    print(json.dumps({**nursery.done, "most": nursery.most}))
