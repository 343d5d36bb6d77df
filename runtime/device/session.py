"""A bundle on a device, and whether it is still alive."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from fastwan.bundle import Bundle
from fastwan.errors import BadInput, EnvironmentLacks
from fastwan.runtime.device.first_load import FirstLoad
from fastwan.runtime.device.kernel_choice import KernelChoice
from fastwan.runtime.device.memory import DeviceMemory, check_fit
from fastwan.runtime.device.opening import open_for
from fastwan.runtime.device.player import BEGIN, Player
from fastwan.runtime.device.runtime_cache import RuntimeCache
from fastwan.runtime.device.self_check import SelfCheck
from fastwan.runtime.model.checks import check_finite
from fastwan.runtime.model.executor import Array
from fastwan.runtime.model.loop import OnStep
from fastwan.runtime.model.noise import Normals
from fastwan.runtime.model.normal import NormalGenerator
from fastwan.runtime.model.schedule import Schedule
from fastwan.runtime.recording.machine import Device, DeviceEngine, DeviceError, Kernels
from fastwan.runtime.recording.memory_plan import plan
from fastwan.runtime.recording.operations import Copy
from fastwan.runtime.recording.record import record
from fastwan.runtime.recording.recorder import COMPUTE, Stage
from fastwan.runtime.recording.tensors import Tensor


def no_decoder(bundle: Path) -> BadInput:
    """The error of a call that needs frames from a bundle that has none to give."""
    return BadInput(
        "bundle has no decoder",
        where=str(bundle),
        fix="build it with --components dit,decoder or more",
    )


@dataclass(frozen=True)
class Platform:
    """What a session runs on.

    Attributes:
        kernels: the launches of the plugin library.
        open_engines: the engines of a bundle, deserialised after their hashes were checked.
        runtime_cache: kernels that are compiled for these engines; None where none are.
        open_fallbacks: opens the engines that can be played in place of regions, likewise.
        first_load: what was found out when the bundle was first loaded here; None where nothing is
            computed that could be compared.
        choices: kernels that were chosen where a region has several.
        processors: multiprocessors that regions are launched for; 0: those of the device.
        normals: what draws the noise of a seed.
    """

    device: Device
    kernels: Kernels
    open_engines: Callable[[Bundle], Mapping[str, DeviceEngine]]
    runtime_cache: RuntimeCache | None = None
    open_fallbacks: Callable[[Bundle], Mapping[str, DeviceEngine]] = lambda _: {}
    first_load: FirstLoad | None = None
    choices: tuple[KernelChoice, ...] = ()
    processors: int = 0
    normals: Callable[[int], Normals] = NormalGenerator


class Session:
    """One bundle and one sampler on one device. Calls must not overlap.

    After `load` nothing is allocated and, but for a stage that is played on its own for the first
    time, nothing is captured.

    Args:
        fallbacks: kinds of regions that the builder's kernels are played in place of; by default
            those whose kernels disagree with them, see `fastwan.runtime.device.self_check`.

    Attributes:
        checked: how the kernels of regions agree, known after `load`; None where nothing was
            compared.

    Raises:
        BadInput: the bundle cannot make a video, or has no such fallbacks.
    """

    def __init__(
        self,
        platform: Platform,
        bundle: Bundle,
        schedule: Schedule,
        fallbacks: Collection[str] | None = None,
    ) -> None:
        self.recording = record(bundle.manifest, schedule, fallbacks or (), platform.processors)
        self.checked: SelfCheck | None = None
        self._fallbacks = fallbacks
        self.plan = plan(self.recording)
        self._platform = platform
        self._device = platform.device
        self._bundle = bundle
        self._player: Player | None = None
        self._dead = ""

    @property
    def eager_reason(self) -> str:
        """Why videos are enqueued call by call; empty while they are graphs."""
        return self._player.eager_reason if self._player else ""

    def load(self) -> Player:
        """Open the engines, allocate, compute the tables, warm up and capture the video's graph.

        The first time on a GPU, the kernels of regions are compared with the builder's.

        Does nothing when that was done.

        Raises:
            EnvironmentLacks: the device has too little memory, cannot run the engines, or is lost.
            VerificationFailed: a file of the bundle differs from its hash.
        """
        with self._guard():
            if self._player is None:
                check_fit(self._device, self.plan)
                opened = open_for(self._platform, self._bundle, self.recording, self._fallbacks)
                self.recording, self.checked = opened.recording, opened.checked
                self.plan = plan(self.recording)
                memory = DeviceMemory(self._device, self.plan)
                try:
                    player = self._start(opened.engines, memory)
                except BaseException:
                    memory.release()
                    raise
                self._player = player
            return self._player

    def _start(self, engines: Mapping[str, DeviceEngine], memory: DeviceMemory) -> Player:
        recording = self.recording
        player = Player(self._device, self._platform.kernels, engines, memory, recording.events)
        memory.upload(self._bundle, player.streams[COMPUTE])
        for tensor in (*recording.inputs, recording.latents):
            memory.clear(tensor)
        # The tables of the schedule, once: they stay, and no video has to compute them again.
        player.enqueue(self._stage("tables"))
        # The rest once eagerly: libraries load their kernels on first use, which no capture allows.
        player.enqueue([stage for stage in recording.stages if stage.name != "tables"])
        if recording.text is not None:
            # Each profile of the text encoder has kernels of its own.
            for length in recording.text.buckets[:-1]:
                player.enqueue(recording.text.stages(length))
        player.synchronize()
        if self._platform.runtime_cache is not None:
            self._platform.runtime_cache.save()
        if recording.frames is not None:
            player.graph(recording.video)
        return player

    def close(self) -> None:
        """Give graphs and memory back; the next call loads anew."""
        if self._player is not None:
            self._player.close()
            self._player.memory.release()
            self._player = None

    def encode(self, embeddings: Array) -> Array:
        """Hidden states of a prompt's token embeddings, [1, L, d], run at length L.

        Raises:
            BadInput: longer than the engines were built for.
        """
        text = self.recording.text
        assert text is not None
        length, longest = embeddings.shape[1], text.longest
        if length > longest:
            raise BadInput(
                f"prompt has {length} tokens, the engine takes {longest}", where="prompt"
            )
        stages = text.stages(length)
        with self._running() as player:
            player.memory.write(text.host_in[:, :length], embeddings)
            player.enqueue(stages)
            player.synchronize()
            return player.memory.view(text.host_out[:, :length]).copy()

    def prepare(self, *embeds: Array) -> None:
        """Compute the keys and values of a prompt, which stay until the next one.

        Args:
            embeds: of the prompt and, where the sampler is guided, of the negative prompt.
        """
        with self._running() as player:
            for tensor, each in zip(self.recording.embeds, embeds, strict=True):
                player.memory.write(tensor, each)
            player.enqueue(self._stage("text_kv"))
            player.synchronize()

    def video(self, noises: Sequence[Array]) -> Array:
        """Frames [F, H, W, 3] of the prompt of `prepare`: one launch, one synchronisation.

        Args:
            noises: initial latents and fresh noise, fp32.

        Returns:
            A view of pinned memory, valid until the next call.

        Raises:
            VerificationFailed: the frames were made of latents that hold NaN or Inf.
        """
        with self._running() as player:
            self._draw(player, noises)
            player.run(self.recording.video)
            frames = self._frames(player)
            self._check_latents(player)
            return frames

    def video_chunks(self, noises: Sequence[Array]) -> Iterator[Array]:
        """The frames of `video` while it is made: those of a latent once they are on the host.

        It is the same one launch; what a caller does with a chunk runs beside it.

        Yields:
            [n, H, W, 3], views of pinned memory, valid until the next call.

        Raises:
            VerificationFailed: before the first chunk, as of `video`.
        """
        with self._running() as player:
            self._draw(player, noises)
            yield from self._chunks(player, self.recording.video)

    def denoise(self, noises: Sequence[Array], on_step: OnStep[Array] | None = None) -> Array:
        """Clean latents, fp32: one graph a step, and the host between two steps."""
        states, steps = self.recording.states, self.recording.schedule.steps
        with self._running() as player:
            self._draw(player, noises)
        for index, (state, step) in enumerate(zip(states, steps, strict=True)):
            with self._running() as player:
                player.run(self._stage(f"step_{index}"))
                self._copy(player, state, self.recording.latents)
                latents = player.memory.view(self.recording.latents).copy()
            replaced = None if on_step is None else on_step(index, step.timestep, latents)
            if replaced is not None:
                self._put(state, replaced)
                latents = replaced
        return latents

    def decode(self, latents: Array) -> Array:
        """Frames of clean latents, as `video` returns them."""
        self._put(self.recording.states[-1], latents)
        with self._running() as player:
            player.run(self._stage("decode"))
            return self._frames(player)

    def decode_chunks(self, latents: Array) -> Iterator[Array]:
        """Frames of clean latents, as `video_chunks` yields them."""
        self._put(self.recording.states[-1], latents)
        with self._running() as player:
            yield from self._chunks(player, self._stage("decode"))

    def milliseconds(self) -> dict[str, float]:
        """Time of each stage of the last `video`; empty where the device has no clock.

        ``copy`` is what the copies to the host take beyond ``decode``, which they run beside.
        """
        times: dict[str, float] = {}
        before = BEGIN
        for stage in self.recording.video:
            for name in stage.marks:
                passed = self._device.milliseconds(before, name)
                if passed is not None:
                    times[name] = passed
                before = name
        return times

    def _stage(self, name: str) -> list[Stage]:
        return [stage for stage in self.recording.stages if stage.name == name]

    def _draw(self, player: Player, noises: Sequence[Array]) -> None:
        for tensor, noise in zip(self.recording.noises, noises, strict=True):
            player.memory.write(tensor, noise)

    def _put(self, state: Tensor, latents: Array) -> None:
        with self._running() as player:
            player.memory.write(self.recording.latents, latents)
            self._copy(player, self.recording.latents, state)

    def _copy(self, player: Player, source: Tensor, target: Tensor) -> None:
        Copy(source=source, target=target).enqueue(player, player.streams[COMPUTE])
        player.synchronize()

    def _frames(self, player: Player) -> Array:
        frames = self.recording.frames
        if frames is None:
            raise no_decoder(self._bundle.root)
        player.synchronize()
        return player.memory.view(frames)

    def _chunks(self, player: Player, stages: Sequence[Stage]) -> Iterator[Array]:
        chunks = self.recording.chunks
        if not chunks:
            raise no_decoder(self._bundle.root)
        for chunk in chunks:
            player.memory.clear(chunk.arrived)
        player.run(stages)
        for index, chunk in enumerate(chunks):
            player.wait_for(chunk.arrived)
            if index == 0:
                self._check_latents(player)
            yield player.memory.view(chunk.frames)
        player.synchronize()

    def _check_latents(self, player: Player) -> None:
        """Look at the latents that frames were made of, which shows in none of these."""
        check_finite(player.memory.view(self.recording.latents), "after the last step")

    @contextmanager
    def _running(self) -> Iterator[Player]:
        player = self.load()
        with self._guard():
            try:
                yield player
            except BaseException:
                # What was enqueued still runs over the memory that the next call writes to.
                with suppress(DeviceError):
                    player.synchronize()
                raise

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """Turn device errors into the tool's own; a lost context is remembered."""
        if self._dead:
            raise EnvironmentLacks(
                f"the CUDA context was lost in this process: {self._dead}",
                where=self._device.info.name,
                fix="start a new process",
            )
        try:
            yield
        except DeviceError as error:
            fix = ""
            if error.kind == "sticky":
                self._dead, fix = str(error), "start a new process"
            raise EnvironmentLacks(f"the device failed: {error}", where="CUDA", fix=fix) from error
