"""Jobs in SQLite: what was accepted is there after the process was killed."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastwan.errors import BadInput
from fastwan.serve.jobs import Asked, Job, Status

_VERSION = 1
_SCHEMA = """
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    client TEXT NOT NULL,
    key TEXT,
    digest TEXT NOT NULL,
    asked TEXT NOT NULL,
    status TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    created_at REAL NOT NULL,
    started_at REAL,
    completed_at REAL,
    expires_at REAL,
    bytes INTEGER NOT NULL DEFAULT 0,
    timings TEXT NOT NULL DEFAULT '{}',
    error TEXT
);
CREATE UNIQUE INDEX keys ON jobs (client, key) WHERE key IS NOT NULL;
CREATE INDEX expiries ON jobs (expires_at) WHERE expires_at IS NOT NULL;
"""


class Store:
    """The table of jobs. Any number of threads may use it at once; each call is one transaction.

    Args:
        path: of the database; made where nothing is.

    Raises:
        BadInput: something else lies there, or what another version wrote.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._connection.row_factory = sqlite3.Row
        try:
            # A commit is on the disk when it returns: the client was promised a video.
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            if version == 0:
                self._connection.executescript(
                    f"BEGIN; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;"
                )
            elif version != _VERSION:
                raise BadInput(
                    f"jobs of version {version}, this tool reads {_VERSION}",
                    where=str(path),
                    fix="name another folder with --folder",
                )
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise BadInput(
                f"no table of jobs: {error}",
                where=str(path),
                fix="name another folder with --folder",
            ) from error
        except BadInput:
            self._connection.close()
            raise

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    @contextmanager
    def _cursor(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def _rows(self, text: str, *values: Any) -> list[sqlite3.Row]:
        with self._lock:
            return self._connection.execute(text, values).fetchall()

    def add(self, job: Job, *, key: str | None, digest: str) -> None:
        """Keep a job that was accepted.

        Args:
            key: idempotency key; the client has no other job of it.
            digest: of the request.
        """
        with self._cursor() as cursor:
            cursor.execute(
                "INSERT INTO jobs (id, client, key, digest, asked, status, created_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    job.id, job.client, key, digest, json.dumps(asdict(job.asked)), job.status,
                    job.created_at,
                ),
            )  # fmt: skip

    def get(self, job_id: str) -> Job | None:
        """A job by its id; None where there is none any more."""
        rows = self._rows("SELECT * FROM jobs WHERE id = ?", job_id)
        return _job(rows[0]) if rows else None

    def of_key(self, client: str, key: str) -> tuple[Job, str] | None:
        """The job that a client asked for under an idempotency key, and its request's digest."""
        rows = self._rows("SELECT * FROM jobs WHERE client = ? AND key = ?", client, key)
        return (_job(rows[0]), rows[0]["digest"]) if rows else None

    def unfinished(self) -> list[Job]:
        """Jobs that are queued or were interrupted, in the order of their acceptance."""
        rows = self._rows(
            "SELECT * FROM jobs WHERE status IN ('queued', 'in_progress') ORDER BY number"
        )
        return [_job(row) for row in rows]

    def page(
        self, *, client: str | None, after: str | None, limit: int, newest_first: bool
    ) -> tuple[list[Job], bool]:
        """Jobs in the order of their acceptance, and whether there are more.

        Args:
            client: whose; None for everybody's.
            after: id that the page begins behind; one that is not there begins with the first.
        """
        sign, order, first = ("<", "DESC", 1 << 62) if newest_first else (">", "ASC", -1)
        rows = self._rows(
            f"SELECT * FROM jobs WHERE (?1 IS NULL OR client = ?1)"
            f" AND number {sign} coalesce((SELECT number FROM jobs WHERE id = ?2), {first})"
            f" ORDER BY number {order} LIMIT ?3",
            client, after, limit + 1,
        )  # fmt: skip
        return [_job(row) for row in rows[:limit]], len(rows) > limit

    def begin(self, job_id: str, now: float) -> Job | None:
        """Count an attempt at a queued job; None where it is not queued any more."""
        with self._cursor() as cursor:
            changed = cursor.execute(
                "UPDATE jobs SET status = 'in_progress', attempts = attempts + 1, started_at = ?"
                " WHERE id = ? AND status = 'queued'",
                (now, job_id),
            ).rowcount
        return self.get(job_id) if changed else None

    def queue_again(self, job_id: str, *, counted: bool) -> None:
        """Put a job that was interrupted back.

        Args:
            counted: the attempt counts; not where the server itself ended it.
        """
        with self._cursor() as cursor:
            cursor.execute(
                "UPDATE jobs SET status = 'queued', started_at = NULL, attempts = attempts - ?"
                " WHERE id = ? AND status = 'in_progress'",
                (0 if counted else 1, job_id),
            )

    def finish(
        self,
        job_id: str,
        status: Status,
        *,
        now: float,
        expires_at: float,
        size: int = 0,
        timings: Mapping[str, float] | None = None,
        error: tuple[str, str] | None = None,
    ) -> bool:
        """Write down how an unfinished job ended; False where it is not there any more.

        Args:
            size: bytes of its video; 0 for none.
        """
        with self._cursor() as cursor:
            changed = cursor.execute(
                "UPDATE jobs SET status = ?, completed_at = ?, expires_at = ?, bytes = ?,"
                " timings = ?, error = ? WHERE id = ? AND status IN ('queued', 'in_progress')",
                (
                    status, now, expires_at, size, json.dumps(timings or {}),
                    json.dumps(error) if error else None, job_id,
                ),
            ).rowcount  # fmt: skip
        return bool(changed)

    def remove(self, job_id: str) -> bool:
        """Forget a job; False where it is not there."""
        with self._cursor() as cursor:
            return bool(cursor.execute("DELETE FROM jobs WHERE id = ?", (job_id,)).rowcount)

    def remove_expired(self, now: float, most: int) -> list[str]:
        """Forget the finished jobs whose time is over, and the oldest beyond `most`; their ids."""
        with self._cursor() as cursor:
            rows = cursor.execute(
                "DELETE FROM jobs WHERE expires_at <= ? OR (expires_at IS NOT NULL AND number <="
                " (SELECT number FROM jobs WHERE expires_at IS NOT NULL"
                " ORDER BY number DESC LIMIT 1 OFFSET ?)) RETURNING id",
                (now, most),
            ).fetchall()
        return [row["id"] for row in rows]

    def drop_contents(self, most_bytes: int) -> list[str]:
        """Give up the oldest videos until the others take no more than `most_bytes`; their ids.

        The newest one stays, whatever it takes.
        """
        with self._cursor() as cursor:
            rows = cursor.execute(
                "SELECT id, bytes FROM jobs WHERE bytes > 0 ORDER BY completed_at DESC, number DESC"
            ).fetchall()
            total, dropped = 0, []
            for index, row in enumerate(rows):
                total += row["bytes"]
                if total > most_bytes and index:
                    dropped.append(row["id"])
            cursor.executemany("UPDATE jobs SET bytes = 0 WHERE id = ?", [(i,) for i in dropped])
        return dropped

    def with_content(self) -> dict[str, int]:
        """Bytes of the videos that are kept, by the id of their job."""
        return {row["id"]: row["bytes"] for row in self._rows("SELECT * FROM jobs WHERE bytes > 0")}


def _job(row: sqlite3.Row) -> Job:
    error = json.loads(row["error"]) if row["error"] else None
    return Job(
        id=row["id"],
        client=row["client"],
        asked=Asked(**json.loads(row["asked"])),
        status=row["status"],
        attempts=row["attempts"],
        created_at=row["created_at"],
        started_at=row["started_at"],
        completed_at=row["completed_at"],
        expires_at=row["expires_at"],
        has_content=row["bytes"] > 0,
        timings=json.loads(row["timings"]),
        error=(error[0], error[1]) if error else None,
    )
