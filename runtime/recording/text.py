"""The text encoder on a device: one engine or several in a row, at a prompt's own length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from fastwan.errors import BadInput
from fastwan.manifest import Engine, TensorSpec
from fastwan.runtime.recording.executor import RecordingExecutor
from fastwan.runtime.recording.recorder import Recorder, Stage
from fastwan.runtime.recording.tensors import Tensor, allocate, resolved, row_major

EMBEDDINGS, HIDDEN_STATES = "embeddings", "hidden_states"


@dataclass
class TextBuffers:
    """What the text encoder reads and writes, each in a buffer for the longest prompt.

    Attributes:
        engines: in the order in which they run.
        specs: of every tensor that goes into or comes out of an engine, by name.
        device: a tensor at the longest prompt for each of them.
        host_in: pinned [1, longest, d_model].
        host_out: pinned, like the last engine's output.
    """

    engines: Mapping[str, Engine]
    specs: Mapping[str, TensorSpec]
    device: Mapping[str, Tensor]
    host_in: Tensor
    host_out: Tensor

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return self.host_in.shape[1]

    @property
    def buckets(self) -> list[int]:
        """Tokens of the longest prompt of each optimization profile, in ascending order."""
        sizes = {self.longest}
        for engine in self.engines.values():
            for spec in engine.inputs:
                for profile in engine.profiles.get(spec.name, ()):
                    pairs = zip(spec.shape, profile[-1], strict=True)
                    sizes |= {most for size, most in pairs if isinstance(size, str)}
        return sorted(size for size in sizes if size <= self.longest)

    def stages(self, length: int) -> list[Stage]:
        """What encodes a prompt of `length` tokens, recorded by itself."""
        recorder = Recorder()
        self.record(recorder, length)
        return recorder.stages

    def record(self, recorder: Recorder, length: int) -> None:
        """Record encoding a prompt of `length` tokens, without padding.

        Raises:
            BadInput: an engine reads what no engine before it makes.
        """
        # Every dynamic axis of these engines counts tokens, whatever its name.
        run = {
            name: _packed(tensor, resolved(self.specs[name], length))
            for name, tensor in self.device.items()
        }
        recorder.begin("text")
        embeddings = run.pop(EMBEDDINGS)
        recorder.copy(self.host_in[:, :length], embeddings)
        executor = RecordingExecutor(recorder, "text_encoder", self.engines)
        hidden = executor.run({EMBEDDINGS: embeddings}, run)[HIDDEN_STATES]
        recorder.copy(hidden, self.host_out[:, :length])
        recorder.end()


def text_buffers(engines: Mapping[str, Engine]) -> TextBuffers:
    """Buffers for the text encoder's engines, sized by their profiles.

    Raises:
        BadInput: the engines do not fit together, or one has no profile.
    """
    specs: dict[str, TensorSpec] = {}
    made: dict[str, TensorSpec] = {}
    for name, engine in engines.items():
        for spec in engine.inputs:
            before = made.get(spec.name, spec)
            if (before.dtype, before.format) != (spec.dtype, spec.format):
                # A cast between them would need a buffer that grows with the prompt as well.
                raise BadInput(
                    f"{name} reads {spec.name} as {spec.dtype}, it is {before.dtype}",
                    where="text_encoder",
                    fix="build the bundle again",
                )
        made |= {spec.name: spec for spec in engine.outputs}
        specs |= {spec.name: spec for spec in engine.inputs if spec.name == EMBEDDINGS}
    for wanted, there in ((EMBEDDINGS, specs), (HIDDEN_STATES, made)):
        if wanted not in there:
            raise BadInput(
                f"no engine has {wanted}", where="text_encoder", fix="build the bundle again"
            )
    specs |= made
    longest = _longest(engines)
    read, written = specs[EMBEDDINGS], specs[HIDDEN_STATES]
    return TextBuffers(
        engines,
        specs,
        {name: allocate(spec, resolved(spec, longest)) for name, spec in specs.items()},
        allocate(read, resolved(read, longest), name=f"{EMBEDDINGS}.host", space="host"),
        allocate(written, resolved(written, longest), name=f"{HIDDEN_STATES}.host", space="host"),
    )


def _longest(engines: Mapping[str, Engine]) -> int:
    """The longest prompt that every engine takes."""
    limits = []
    for name, engine in engines.items():
        for spec in engine.inputs:
            axes = [axis for axis, size in enumerate(spec.shape) if isinstance(size, str)]
            shapes = engine.profiles.get(spec.name, ())
            if axes and not shapes:
                raise BadInput(
                    f"{name} has no profile for {spec.name}",
                    where="text_encoder",
                    fix="build the bundle again",
                )
            limits += [max(profile[-1][axis] for profile in shapes) for axis in axes]
    if not limits:
        raise BadInput(
            "no engine takes prompts of any length",
            where="text_encoder",
            fix="build the bundle again",
        )
    return min(limits)


def _packed(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The beginning of a tensor's buffer as a smaller tensor without gaps, as engines write it."""
    return replace(tensor, shape=shape, strides=row_major(shape))
