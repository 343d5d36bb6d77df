"""The command ``serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fastwan.commands.early import require_bundle
from fastwan.commands.names import BundleFolder, Name
from fastwan.commands.options import example
from fastwan.commands.running import State, report_errors
from fastwan.console import say
from fastwan.errors import BadInput
from fastwan.failures import require_address_space
from fastwan.install import require


@click.command("serve", epilog=example("serve bundle --port 8000"))
@click.argument("bundle", type=BundleFolder())
@click.option(
    "--device",
    type=Name(["auto", "cuda", "cpu", "emulated"]),
    default="auto",
    show_default=True,
    help="As of generate.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, metavar="N",
    help="0 takes a free one.",
)  # fmt: skip
@click.option(
    "--folder", type=click.Path(path_type=Path), default=Path("fastwan-videos"), show_default=True,
    help="Keeps jobs and videos.",
)  # fmt: skip
@click.option(
    "--tokens", type=click.Path(path_type=Path), metavar="FILE",
    help="Bearer tokens of clients, one a line. Default: no token is needed.",
)  # fmt: skip
@click.option(
    "--queue", "queue_size", type=click.IntRange(1), default=64, show_default=True, metavar="N",
    help="Videos that may wait.",
)  # fmt: skip
@click.option(
    "--client-share", type=click.IntRange(0), default=0, show_default=True, metavar="N",
    help="Of these, what one client may have; 0: half.",
)  # fmt: skip
@click.option(
    "--keep-seconds", type=click.IntRange(1), default=86400, show_default=True, metavar="N",
    help="How long a finished job and its video are kept.",
)  # fmt: skip
@click.option(
    "--keep-bytes", type=click.IntRange(1), default=10 << 30, show_default=True, metavar="N",
    help="What all videos may take; the oldest make room.",
)  # fmt: skip
@click.option(
    "--keep-jobs", type=click.IntRange(1), default=10_000, show_default=True, metavar="N",
    help="Finished jobs that are kept.",
)  # fmt: skip
@click.option(
    "--longest-prompt", type=click.IntRange(1), default=4096, show_default=True, metavar="N",
    help="Characters.",
)  # fmt: skip
@click.option(
    "--longest-body", type=click.IntRange(1), default=64 << 10, show_default=True, metavar="N",
    help="Bytes of a request.",
)  # fmt: skip
@click.option(
    "--drain-seconds", type=click.IntRange(0), default=60, show_default=True, metavar="N",
    help="For the video that is being made when SIGTERM comes.",
)  # fmt: skip
@click.option(
    "--prompt-cache", type=click.Path(path_type=Path), help="Folder that keeps prompt embeddings."
)
@click.option(
    "--replicas", type=click.IntRange(1), metavar="N",
    help="Serve on Ray with so many replicas, one a GPU (extra serve-ray).",
)  # fmt: skip
@click.option(
    "--max-replicas", type=click.IntRange(1), metavar="N",
    help="With --replicas: as many while videos wait.",
)  # fmt: skip
@report_errors
def serve(
    bundle: Path,
    device: str,
    tokens: Path | None,
    prompt_cache: Path | None,
    replicas: int | None,
    max_replicas: int | None,
    **options: Any,
) -> None:
    """Make videos of BUNDLE over HTTP, in the form of the public videos API."""
    from fastwan.serve.auth import read_tokens
    from fastwan.serve.settings import Settings

    require_bundle(bundle)
    if replicas is not None:
        require("serve-ray")
        from fastwan.serve.ray.run import run_on_ray

        files = {"bundle": bundle, "tokens": tokens, "prompt_cache": prompt_cache}
        run_on_ray(device, files, options, replicas=replicas, max_replicas=max_replicas)
        return
    if max_replicas is not None:
        raise BadInput("there are no replicas", where="--max-replicas", fix="give --replicas too")
    known = read_tokens(tokens) if tokens is not None else ()
    settings = Settings(tokens=known, **options)
    require("serve")
    require_address_space("serve")
    from fastwan.serve.app import create_app
    from fastwan.serve.bundle_player import BundlePlayer
    from fastwan.serve.server import listen
    from fastwan.serve.server import serve as run

    with listen(settings) as listening:
        player = BundlePlayer.open(bundle, device, prompt_cache=prompt_cache)
        app = create_app(settings, player)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        say(f"{bundle} on http://{host}:{listening.getsockname()[1]}, {player.runs_on}")
        if not settings.is_local and not known:
            say("warning: everybody who can connect is served: see --tokens")
        run(app, listening, access_log=State.verbose)
