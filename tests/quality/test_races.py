"""The race checker finds planted races; each has a twin that differs only in the order."""

from __future__ import annotations

import pytest

from fastwan.quality.races import Race, find_races
from fastwan.runtime.device.null import HOST, Call

A, B, OTHER = (0, 64), (32, 96), (128, 160)


def write(where: tuple[int, int], stream: int = 1) -> Call:
    return Call("engine", "maker", stream, writes=(where,))


def read(where: tuple[int, int], stream: int = 1) -> Call:
    return Call("copy", "taker", stream, reads=(where,), writes=((1000, 1001),))


def record(event: int, stream: int) -> Call:
    return Call("record", stream=stream, event=event)


def wait(event: int, stream: int) -> Call:
    return Call("wait", stream=stream, event=event)


def kinds(calls: list[Call]) -> list[str]:
    return [race.kind for race in find_races(calls)]


def test_one_stream_is_in_order() -> None:
    assert kinds([write(A), read(A), write(A), read(A)]) == []


@pytest.mark.parametrize(
    ("first", "second", "kind"),
    [
        (write(A), read(A, 2), "read after write"),
        (write(A), write(B, 2), "write after write"),
    ],
)
def test_two_streams_need_an_event(first: Call, second: Call, kind: str) -> None:
    assert kinds([first, record(5, 1), wait(5, 2), second]) == []
    assert kinds([first, record(5, 1), second])[0] == kind
    # A wait on an event that was recorded too early orders nothing.
    assert kind in kinds([record(5, 1), first, wait(5, 2), second])
    # Nor does one on another event.
    assert kind in kinds([first, record(5, 1), wait(6, 2), second])


def test_a_write_waits_for_reads() -> None:
    begin = [write(A), record(5, 1), wait(5, 2), read(A, 2)]
    assert kinds([*begin, record(6, 2), wait(6, 1), write(A)]) == []
    assert kinds([*begin, write(A)]) == ["write after read"]


def test_what_does_not_overlap_is_no_race() -> None:
    assert kinds([write(A), write(OTHER, 2)]) == []
    found = find_races([write(A), write(B, 2)])
    assert found == [Race("write after write", "1: engine maker", "2: engine maker", (32, 64))]


def test_order_is_transitive() -> None:
    chain = [write(A), record(5, 1), wait(5, 2), record(6, 2), wait(6, 3)]
    assert kinds([*chain, read(A, 3)]) == []
    assert kinds([*chain[:-1], read(A, 3)]) == ["read after write"]


def test_the_host_reads_after_a_synchronise() -> None:
    host = Call("host", stream=HOST, reads=(A,))
    assert kinds([write(A), Call("synchronize", stream=1), host]) == []
    assert kinds([write(A), host]) == ["read after write"]
    assert kinds([write(A), Call("synchronize", stream=2), host]) == ["read after write"]


def test_the_host_reads_after_the_signal_that_it_waited_for() -> None:
    host = Call("host", stream=HOST, reads=(A,))
    signal = Call("signal", stream=1, writes=(OTHER,))
    wait_for = Call("wait_for", stream=HOST, reads=(OTHER,))
    assert kinds([write(A), signal, wait_for, host]) == []
    assert kinds([write(A), signal, host]) == ["read after write"]
    assert kinds([write(A), wait_for, host]) == ["read after write"]
    # What a stream does after its signal is not waited for, nor what another stream does.
    assert kinds([signal, write(A), wait_for, host]) == ["read after write"]
    assert kinds([write(A, 2), signal, wait_for, host]) == ["read after write"]
    # A word that the host has seen tells nothing of the next play.
    again = [write(A), Call("synchronize", stream=1), write(A), wait_for, host]
    assert kinds([signal, wait_for, *again]) == ["read after write"]


def test_the_host_writes_before_it_enqueues_and_not_while_the_device_reads() -> None:
    host = Call("host", stream=HOST, writes=(A,))
    assert kinds([host, read(A)]) == []
    assert kinds([host, read(A), Call("synchronize", stream=1), host]) == []
    assert kinds([host, read(A), host]) == ["write after read"]


def test_a_graph_begins_behind_its_stream_and_ends_before_it_goes_on() -> None:
    inner = (record(5, 1), wait(5, 2), read(A, 2), record(6, 2), wait(6, 1))
    launch = Call("launch", stream=1, graph=inner)
    assert kinds([write(A), launch, write(A)]) == []
    # The write before it is on another stream than the launch.
    assert kinds([write(A, 3), launch]) == ["read after write"]
    # Two launches of the same graph follow each other.
    maker = Call("launch", stream=1, graph=(write(A),))
    assert kinds([maker, launch, maker]) == []


def test_a_race_inside_a_graph_is_found() -> None:
    ordered = (write(A), record(5, 1), wait(5, 2), read(A, 2))
    assert kinds([Call("launch", stream=1, graph=ordered)]) == []
    assert kinds([Call("launch", stream=1, graph=(write(A), read(A, 2)))]) == ["read after write"]


def test_bytes_that_nobody_wrote_are_named() -> None:
    assert kinds([write((0, 64)), write((64, 96)), read((0, 96))]) == []
    found = find_races([write((0, 32)), write((64, 96)), read((0, 96))])
    assert found == [Race("unwritten", "", "3: copy taker", (32, 64))]
    assert find_races([read(A)], written=[A]) == []


def test_what_a_later_access_stands_for_is_still_found_through_it() -> None:
    ordered = [write(A), read(A), write(A), read(A), record(5, 1), wait(5, 2)]
    assert kinds([*ordered, write(A, 2)]) == []
    # One order too few, at whichever access it is missing.
    assert kinds([*ordered[:4], write(A, 2)])[0] == "write after read"
    assert kinds([write(A), write(A), read(A, 2)]) == ["read after write"]
    # A part of what was written before, and the whole of it.
    assert kinds([write(A), write((0, 96)), read((80, 96), 2)]) == ["read after write"]
    assert kinds([write((0, 96)), write(A), read((80, 96), 2)]) == ["read after write"]
