"""A server of its own over a fake player: ``python -m testkit.fake_server FOLDER SECONDS [fail]``.

With the last word its first video fails.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fastwan.console import say
from fastwan.serve.app import create_app
from fastwan.serve.server import listen, serve
from fastwan.serve.settings import Settings
from testkit.fake_player import FakePlayer

if __name__ == "__main__":
    settings = Settings(
        folder=Path(sys.argv[1]), port=0, queue_size=10_000, client_share=10_000, attempts=100
    )
    player = FakePlayer()
    player.seconds = float(sys.argv[2])
    if sys.argv[3:] == ["fail"]:
        player.fault = RuntimeError("asked to fail")
        player.warm_up = lambda: None  # type: ignore[method-assign]
    with listen(settings) as listening:
        app = create_app(settings, player)
        say(f"fake on http://127.0.0.1:{listening.getsockname()[1]}, device cpu")
        serve(app, listening)
