"""Customers of a server, who ask faster than it can serve: locust's users, and what they count."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import time
from dataclasses import dataclass, field
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import gevent
from load_prompts import SEED, prompt
from locust import HttpUser, constant_throughput, task
from locust.env import Environment

_FIGURE = r"^{} (\S+)$"
_USERS = 10
_POLL = 0.5
_QUICK_POLL = 0.002
_TRIES = 3
_PATIENCE = 600
"""Seconds after which a job that was accepted and is not done counts as lost."""


@dataclass(frozen=True)
class Moment:
    """What the server said of itself.

    Attributes:
        seconds: since the first request.
        rss: bytes of its memory.
    """

    seconds: float
    rss: float
    waiting: float


@dataclass
class Plan:
    """What is asked for, and what became of it.

    Attributes:
        digests: hash of the video of each prompt; one that is not there is the first that comes.
        moments: of the server, second by second.
    """

    requests: int
    digests: dict[str, str]
    asked: int = 0
    refused: int = 0
    done: int = 0
    lost: int = 0
    wrong: int = 0
    moments: list[Moment] = field(default_factory=list)

    @property
    def open(self) -> int:
        """Requests whose end is not known yet."""
        return self.requests - self.done - self.lost


class Customer(HttpUser):
    """Asks for a video at each beat, and follows those that were accepted."""

    plan: Plan
    abstract = False

    @task
    def ask(self) -> None:
        if self.plan.asked < self.plan.requests:
            self.plan.asked += 1
            gevent.spawn(self.follow, self.plan.asked)

    def follow(self, number: int) -> None:
        """A request from its first try to the video."""
        begin = time.perf_counter()
        try:
            problem = self._follow(number)
        except Exception as error:  # of the connection, too: nothing is known of the job any more
            problem = repr(error)
        if problem:
            self.plan.lost += 1
            print(f"lost {number}: {problem}", file=sys.stderr)
        else:
            self.plan.done += 1
        milliseconds = (time.perf_counter() - begin) * 1e3
        self.environment.events.request.fire(
            request_type="", name="from the first try to the video", response_time=milliseconds,
            response_length=0, exception=None, context={},
        )  # fmt: skip

    def _follow(self, number: int) -> str:
        """What went wrong; empty for nothing."""
        fields = {"prompt": prompt(number), "seed": SEED}
        key = {"Idempotency-Key": f"load {number}"}
        while True:
            answer = self._ask("POST", "/v1/videos", json=fields, headers=key)
            if answer.status_code not in (429, 503):
                break
            self.plan.refused += 1
            gevent.sleep(float(answer.headers["retry-after"]))
        if answer.status_code != 200:
            return f"{answer.status_code} {answer.text}"
        url = f"/v1/videos/{answer.json()['id']}"
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            video = self._ask("GET", url, name="/v1/videos/ID").json()
            if video["status"] == "completed":
                return self._compare(number, url)
            if video["status"] not in ("queued", "in_progress"):
                return f"{video['status']}: {video['error']}"
            gevent.sleep(_POLL)
        return "not done in time"

    def _ask(self, method: str, path: str, **options: Any) -> Any:
        """An answer; without one the request is sent again, as clients of the API do."""
        for _ in range(_TRIES):
            with self.client.request(method, path, catch_response=True, **options) as answer:
                if answer.status_code in (429, 503):
                    answer.success()  # there is no room now, which is no failure
            if answer.status_code:
                break
        return answer

    def _compare(self, number: int, url: str) -> str:
        content = self._ask("GET", f"{url}/content", name="/v1/videos/ID/content")
        if content.status_code != 200:
            return f"{content.status_code} {content.text}"
        digest = hashlib.sha256(content.content).hexdigest()
        if self.plan.digests.setdefault(prompt(number), digest) != digest:
            self.plan.wrong += 1
        return ""


def load(url: str, plan: Plan, rate: float) -> Environment:
    """Send the requests of a plan at `rate` a second, and wait until all are done or lost."""

    class Beat(Customer):
        wait_time = constant_throughput(rate / _USERS)

    Beat.plan = plan
    environment = Environment(user_classes=[Beat], host=url)
    runner = environment.create_local_runner()
    runner.start(_USERS, spawn_rate=_USERS)
    watcher = gevent.spawn(watch, url, plan)
    while plan.open:
        gevent.sleep(0.2)
    watcher.kill()
    runner.quit()
    return environment


def watch(url: str, plan: Plan) -> None:
    """Ask the server of itself, second by second."""
    begin, session = time.monotonic(), Session(url)
    while True:
        text = session.ask("GET", "/metrics")[1].decode()
        rss, waiting = (
            float(re.search(_FIGURE.format(name), text, re.MULTILINE)[1])  # type: ignore[index]
            for name in ("process_resident_memory_bytes", "fastwan_queue_depth")
        )
        plan.moments.append(Moment(time.monotonic() - begin, rss, waiting))
        gevent.sleep(1)


class Session:
    """One connection to a server, and one video at a time."""

    def __init__(self, url: str) -> None:
        self._connection = HTTPConnection(urlsplit(url).netloc, timeout=_PATIENCE)

    def ask(
        self, method: str, path: str, fields: dict[str, Any] | None = None
    ) -> tuple[int, bytes]:
        """Status and body of an answer."""
        body = None if fields is None else json.dumps(fields)
        headers = {} if fields is None else {"content-type": "application/json"}
        self._connection.request(method, path, body, headers)
        answer = self._connection.getresponse()
        return answer.status, answer.read()

    def wait_until_ready(self) -> None:
        while self.ask("GET", "/ready")[0] != 200:
            time.sleep(0.1)

    def order(self, number: int) -> str:
        """Path of a job for the video of a prompt."""
        _, body = self.ask("POST", "/v1/videos", {"prompt": prompt(number), "seed": SEED})
        return f"/v1/videos/{json.loads(body)['id']}"

    def fetch(self, path: str) -> None:
        """Read the video of a job as soon as it is there."""
        while self.ask("GET", f"{path}/content")[0] != 200:
            time.sleep(_QUICK_POLL)

    def one(self, usual: float) -> float:
        """Seconds from a request to the last byte of its video.

        Args:
            usual: seconds that a video takes; for most of them nobody asks whether it is there.
        """
        begin = time.perf_counter()
        path = self.order(0)
        time.sleep(0.9 * usual)
        self.fetch(path)
        return time.perf_counter() - begin

    def videos_a_second(self, count: int) -> float:
        """How many videos the server makes where there is always a next one."""
        begin = time.perf_counter()
        for path in [self.order(number) for number in range(count)]:
            self.fetch(path)
        return count / (time.perf_counter() - begin)
