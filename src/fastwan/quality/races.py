"""Finds races in a recorded schedule: accesses to the same bytes that nothing puts in order.

The order is CUDA's: calls of one stream follow each other; a wait puts a stream behind what was
recorded in the event; a graph begins behind its launch stream and ends before it goes on; work
comes after whatever the host did before enqueueing it, and the host comes after a synchronise, or
after what signalled the word that it waited for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fastwan.runtime.device.null import HOST, Call, Range

Clock = dict[int, int]


@dataclass(frozen=True)
class Race:
    """A pair of calls without an order, or bytes that are read before anything is written.

    Attributes:
        kind: ``write after read``, ``read after write``, ``write after write`` or ``unwritten``.
        first: number and name of the earlier call, in the order of the host; empty if there is
            none.
        second: likewise of the later one.
        bytes: where they meet.
    """

    kind: str
    first: str
    second: str
    bytes: Range


@dataclass(frozen=True)
class _Access:
    label: str
    stream: int
    time: int
    write: bool
    range: Range


class _Checker:
    def __init__(self) -> None:
        self.races: list[Race] = []
        self._clocks: dict[int, Clock] = {}
        self._events: dict[int, Clock] = {}
        self._signals: dict[tuple[Range, ...], Clock] = {}
        self._accesses: list[_Access] = []
        self._number = 0

    def clock(self, stream: int) -> Clock:
        return self._clocks.setdefault(stream, {})

    def join(self, stream: int, other: Clock) -> None:
        clock = self.clock(stream)
        for each, time in other.items():
            clock[each] = max(clock.get(each, 0), time)

    def play(self, calls: Iterable[Call], *, enqueued_by_host: bool) -> None:
        for call in calls:
            if enqueued_by_host and call.stream != HOST:
                self.join(call.stream, self.clock(HOST))
            if call.kind == "record":
                self._events[call.event] = dict(self.clock(call.stream))
            elif call.kind == "wait":
                self.join(call.stream, self._events.get(call.event, {}))
            elif call.kind == "synchronize":
                self.join(HOST, self.clock(call.stream))
            elif call.kind == "signal":
                self._signals[call.writes] = dict(self.clock(call.stream))
            elif call.kind == "wait_for":
                self.join(HOST, self._signals.pop(call.reads, {}))
            elif call.kind == "launch":
                self._launch(call)
            else:
                self._work(call)

    def _launch(self, call: Call) -> None:
        streams = {inner.stream for inner in call.graph} - {call.stream}
        outside = {stream: self._clocks.pop(stream, {}) for stream in streams}
        for stream in streams:
            self.join(stream, self.clock(call.stream))
        self.play(call.graph, enqueued_by_host=False)
        for stream in streams:
            self.join(call.stream, self.clock(stream))
            self.join(stream, outside[stream])

    def _work(self, call: Call) -> None:
        if not call.reads and not call.writes:
            return
        self._number += 1
        clock = self.clock(call.stream)
        label = f"{self._number}: {call.kind} {call.name}".strip()
        for write, ranges in ((False, call.reads), (True, call.writes)):
            for where in ranges:
                self._check(label, call.stream, clock, write, where)
        clock[call.stream] = self._number
        for write, ranges in ((False, call.reads), (True, call.writes)):
            for where in ranges:
                self._forget(call.stream, write, where)
                self._accesses.append(_Access(label, call.stream, self._number, write, where))

    def _forget(self, stream: int, write: bool, where: Range) -> None:
        """Drop accesses that the new one stands for: what is behind it is behind them, too.

        Those are of the same bytes or fewer, and ordered before it; a read stands for reads alone.
        Without this, a schedule of many steps would take the square of their number.
        """
        clock = self._clocks[stream]
        self._accesses = [
            access
            for access in self._accesses
            if not (where[0] <= access.range[0] and access.range[1] <= where[1])
            or (access.write and not write)
            or clock.get(access.stream, 0) < access.time
        ]

    def _check(self, label: str, stream: int, clock: Clock, write: bool, where: Range) -> None:
        missing = [] if write else [where]
        for access in reversed(self._accesses):
            begin, end = max(access.range[0], where[0]), min(access.range[1], where[1])
            if begin >= end:
                continue
            if access.write:
                missing = [rest for part in missing for rest in _without(part, access.range)]
            if not (write or access.write) or clock.get(access.stream, 0) >= access.time:
                continue
            kind = f"{'write' if write else 'read'} after {'write' if access.write else 'read'}"
            self.races.append(Race(kind, access.label, label, (begin, end)))
        self.races += [Race("unwritten", "", label, part) for part in missing]


def _without(part: Range, taken: Range) -> list[Range]:
    pieces = [(part[0], min(part[1], taken[0])), (max(part[0], taken[1]), part[1])]
    return [(begin, end) for begin, end in pieces if begin < end]


def find_races(calls: Sequence[Call], written: Iterable[Range] = ()) -> list[Race]:
    """Races of a schedule.

    Args:
        calls: of a `NullDevice`, in the order of the host; graphs are replayed at each launch.
        written: bytes that the host has written before the schedule begins.
    """
    checker = _Checker()
    before = Call("host", "before", HOST, writes=tuple(written))
    checker.play([before], enqueued_by_host=True)
    checker.play(calls, enqueued_by_host=True)
    return checker.races
