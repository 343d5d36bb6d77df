"""A video that can be watched while it is made: a fragmented mp4, bytes as frames come.

Its head (``moov``) comes first and says nothing of the frames; each frame follows in a fragment of
its own (``moof``, ``mdat``). Browsers play it through Media Source Extensions, and any player of
mp4 reads it from a pipe.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from fastwan.runtime.encoder import add_stream, load_av, picture

if TYPE_CHECKING:
    from fastwan.runtime.model.executor import Array

# A fragment that ends with a keyframe could not leave before the next keyframe.
_MOVFLAGS = "+frag_every_frame+empty_moov+default_base_moof"


def codecs_of(head: bytes) -> str | None:
    """Name of the codec in the head of a video, as MIME types have it (RFC 6381); None of others.

    Profile, constraints and level of H.264 lie behind the version in its configuration box
    (ISO/IEC 14496-15, 5.3.3.1).
    """
    at = head.find(b"avcC")
    return f"avc1.{head[at + 5 : at + 8].hex()}" if at >= 0 else None


class FragmentedMp4:
    """Encodes frames one by one. It holds no bytes that were handed out.

    The muxer gives a frame away when it knows its duration, with the frame behind it.

    Args:
        height: of every frame.
        width: likewise.
        at_once: see `fastwan.runtime.encoder.add_stream`; without, the frames are those of the
            plain mp4, and the first of them come about 40 frames late.

    Raises:
        EnvironmentLacks: PyAV is missing.
    """

    def __init__(self, height: int, width: int, *, at_once: bool = True) -> None:
        av = load_av("stream")
        self._sink = _Sink()
        self._container: Any = av.open(
            self._sink, "w", format="mp4", options={"fflags": "+bitexact", "movflags": _MOVFLAGS}
        )
        self._stream = add_stream(self._container, height, width, at_once=at_once)

    def write(self, frame: Array) -> bytes:
        """Encode a frame, uint8 [H, W, 3]; the bytes that are new by it, if any."""
        self._container.mux(self._stream.encode(picture(frame)))
        return self._sink.take()

    def finish(self) -> bytes:
        """Encode what the encoder holds back; the last bytes."""
        self._container.mux(self._stream.encode(None))
        self.close()
        return self._sink.take()

    def close(self) -> None:
        """Give the encoder back, also in the middle of a video."""
        self._container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.close()


class _Sink:
    """A file to write to that hands its bytes out."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        """All that was written since the last call."""
        taken = b"".join(self._parts)
        self._parts.clear()
        return taken
