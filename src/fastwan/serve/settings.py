"""What a server is told when it starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastwan.errors import BadInput

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a server listens, what it keeps and what it refuses.

    Attributes:
        folder: holds the jobs, in SQLite, and their videos; one server at a time.
        host: address to listen on; this machine alone unless told otherwise.
        port: 0 takes a free one.
        queue_size: videos that may wait; further ones are refused with 503.
        client_share: of these, what one client may have, 0 for half; further ones are refused
            with 429.
        keep_seconds: how long a finished job and its video are kept.
        keep_bytes: what all videos together may take; beyond it the oldest are deleted.
        keep_jobs: finished jobs that are kept; beyond it the oldest are forgotten.
        tokens: of clients; empty serves everybody who can connect.
        longest_prompt: characters.
        longest_body: bytes of a request.
        drain_seconds: how long a video may take to finish once the server is asked to end.
        attempts: how often a video is begun that was interrupted by the death of the server or of
            what makes it.
        slots: videos that are made at a time, where the player takes more than one.

    Raises:
        BadInput: a number out of range.
    """

    folder: Path
    host: str = LOCAL_HOSTS[0]
    port: int = 8000
    queue_size: int = 64
    client_share: int = 0
    keep_seconds: int = 24 * 3600
    keep_bytes: int = 10 << 30
    keep_jobs: int = 10_000
    tokens: tuple[str, ...] = ()
    longest_prompt: int = 4096
    longest_body: int = 64 << 10
    drain_seconds: int = 60
    attempts: int = 3
    slots: int = 1

    def __post_init__(self) -> None:
        least = {
            "port": 0, "queue_size": 1, "client_share": 0, "keep_seconds": 1, "keep_bytes": 1,
            "keep_jobs": 1, "longest_prompt": 1, "longest_body": 1, "drain_seconds": 0,
            "attempts": 1, "slots": 1,
        }  # fmt: skip
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise BadInput(f"{name} {getattr(self, name)} is below {smallest}", where=name)
        if self.client_share == 0:
            object.__setattr__(self, "client_share", max(1, self.queue_size // 2))
        if self.client_share > self.queue_size:
            raise BadInput(
                f"client_share {self.client_share} is above queue_size {self.queue_size}",
                where="client_share",
            )

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        return self.host in LOCAL_HOSTS
