"""Events: every reader sees all of them, whenever it comes and whoever publishes."""

from __future__ import annotations

import asyncio
import threading

import pytest

from fastwan.serve.events import Channel, Channels, Event

DONE = Event("done", {"status": "completed"})


async def kinds(channel: Channel) -> list[str]:
    return [event.kind async for event in channel.follow()]


def test_readers_see_all_events_whenever_they_come() -> None:
    channel = Channel()
    channel.publish(Event("queued"))

    async def read() -> list[list[str]]:
        early = asyncio.create_task(kinds(channel))
        await asyncio.sleep(0)
        await asyncio.to_thread(channel.publish, Event("step", {"step": 1, "steps": 3}))
        late = asyncio.create_task(kinds(channel))
        await asyncio.sleep(0)
        await asyncio.to_thread(channel.publish, DONE)
        return [await early, await late, await kinds(channel)]

    assert asyncio.run(read()) == [["queued", "step", "done"]] * 3


def test_nothing_follows_the_end() -> None:
    channel = Channel()
    channel.publish(DONE)
    channel.publish(Event("queued"))
    assert asyncio.run(kinds(channel)) == ["done"]
    assert channel.last("queued") is None
    assert channel.last("done") == DONE


def test_no_event_is_lost_between_a_thread_and_its_readers() -> None:
    channel = Channel()

    def tell() -> None:
        for step in range(500):
            channel.publish(Event("step", {"step": step, "steps": 500}))
        channel.publish(DONE)

    async def read() -> list[list[int]]:
        thread = threading.Thread(target=tell)
        readers = [asyncio.create_task(steps()) for _ in range(4)]
        thread.start()
        return await asyncio.gather(*readers)

    async def steps() -> list[int]:
        return [e.data["step"] async for e in channel.follow() if e.kind == "step"]

    assert asyncio.run(read()) == [list(range(500))] * 4


def test_a_reader_is_woken_once_for_all_that_it_has_not_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    channel, calls = Channel(), []

    async def read() -> list[str]:
        loop = asyncio.get_running_loop()
        wake = loop.call_soon_threadsafe
        monkeypatch.setattr(loop, "call_soon_threadsafe", lambda f: calls.append(f) or wake(f))
        seen = asyncio.create_task(kinds(channel))
        await asyncio.sleep(0)
        for _ in range(50):
            channel.publish(Event("queued"))
        channel.publish(DONE)
        return await seen

    assert asyncio.run(read()) == ["queued"] * 50 + ["done"]
    assert len(calls) == 1


def test_a_reader_that_goes_away_is_forgotten() -> None:
    channel = Channel()
    channel.publish(Event("queued"))

    async def leave() -> None:
        reader = channel.follow()
        assert (await anext(reader)).kind == "queued"
        assert len(channel._readers) == 1
        await reader.aclose()  # type: ignore[attr-defined]

    asyncio.run(leave())
    assert channel._readers == []
    channel.publish(DONE)


def test_a_finished_job_has_no_channel_but_its_readers_have() -> None:
    channels = Channels()
    channel = channels.open("a")
    assert channels.open("a") is channel
    channels.finish("a", "failed")
    assert channels.get("a") is None
    assert channel.last("done") == Event("done", {"status": "failed"})
    waiting = channels.open("b")
    channels.close("queued")
    assert waiting.last("done") == Event("done", {"status": "queued"})
