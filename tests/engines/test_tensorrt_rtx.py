"""The real TensorRT-RTX builder on a CPU, with tiny graphs."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
from onnx import helper as oh

from fastwan.config import TARGETS, Target
from fastwan.engines.backend import BuildOptions, BuiltEngine, load_backend
from fastwan.engines.coverage import check_coverage
from fastwan.engines.source import EngineSource
from fastwan.engines.tensorrt_rtx import TensorRTRTX
from fastwan.errors import BadInput, EnvironmentLacks
from fastwan.parallel import in_order, workers
from fastwan.progress import Progress, Quiet

pytestmark = pytest.mark.trt
pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed")
Build = Callable[..., BuiltEngine]


def build_here(source: EngineSource, progress: Progress | None = None) -> BuiltEngine:
    """Build in this process: a source that is refused need not end a worker."""
    options = BuildOptions(TARGETS["rtx5090"])
    return TensorRTRTX().build_here(source, options, progress or Quiet())


def test_two_builds_give_the_same_bytes(kit: SimpleNamespace, build: Build, tmp_path: Path) -> None:
    source = kit.source(kit.graph(), tmp_path)
    first, second = build(source), build(source)
    assert bytes(first.plan) == bytes(second.plan)
    assert first.layers == second.layers
    assert first.scratch_bytes == second.scratch_bytes > 0


def test_inputs_and_outputs_are_recorded(
    kit: SimpleNamespace, build: Build, tmp_path: Path
) -> None:
    built = build(kit.source(kit.graph(), tmp_path))
    (x,), (y,) = built.inputs, built.outputs
    assert (x.name, x.dtype, x.shape) == ("x", "bfloat16", (1, kit.M, kit.K))
    assert (y.name, y.dtype, y.shape) == ("y", "bfloat16", (1, kit.M, kit.N))


def bf16_linear(kit: SimpleNamespace) -> onnx.ModelProto:
    graph = kit.GraphBuilder()
    graph.inputs += [kit.value("x", [4, 32]), kit.value("w", [32, 64])]
    graph.outputs.append(kit.value("y", [4, 64]))
    graph.node("MatMul", ["x", "w"], ["y"], "mm")
    return graph.model()


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_of_the_table_builds(
    kit: SimpleNamespace, build: Build, tmp_path: Path, target: str
) -> None:
    load_backend("tensorrt-rtx").check(TARGETS[target])
    built = build(kit.source(bf16_linear(kit), tmp_path, linears=()), target)
    assert built.plan.nbytes > 1000
    assert built.layers


def test_an_engine_depends_on_the_target(
    kit: SimpleNamespace, build: Build, tmp_path: Path
) -> None:
    source = kit.source(bf16_linear(kit), tmp_path, linears=())
    assert bytes(build(source, "rtx5090").plan) != bytes(build(source, "rtx4090").plan)


def test_a_capability_without_a_builder_is_refused() -> None:
    unknown = Target("h100", "H100", 90, ("tensorrt-rtx",), ("bf16",), ("native",))
    with pytest.raises(EnvironmentLacks, match="does not build for SM90"):
        TensorRTRTX().check(unknown)


def test_a_dynamic_axis_is_built_for_its_profile(
    kit: SimpleNamespace, build: Build, tmp_path: Path
) -> None:
    model = kit.graph(tokens="length")
    profiles = {"x": (((1, 1, kit.K), (1, 64, kit.K), (1, 512, kit.K)),)}
    built = build(kit.source(model, tmp_path, profiles=profiles))
    assert built.inputs[0].shape == (1, "length", kit.K)
    assert -1 in built.layers[-1].outputs[0].shape
    assert built.layers[-1].precision == "FP4E2M1"


def test_each_profile_has_the_kernels_of_an_engine_of_its_own(
    kit: SimpleNamespace, build: Build, tmp_path: Path
) -> None:
    model = kit.graph(tokens="length")

    def shapes(*bounds: tuple[int, int]) -> dict[str, object]:
        return {"x": tuple(tuple((1, n, kit.K) for n in (low, high, high)) for low, high in bounds)}

    short, long = ((1, 128), (129, 1024))
    both = build(kit.source(model, tmp_path, profiles=shapes(short, long)))
    alone = [build(kit.source(model, tmp_path, profiles=shapes(each))) for each in (short, long)]
    for profile, one in enumerate(alone):
        records = [record for record in both.layers if record.profile == profile]
        assert [(r.type, r.nodes) for r in records] == [(r.type, r.nodes) for r in one.layers]
    assert both.scratch_bytes == max(one.scratch_bytes for one in alone)
    assert alone[0].scratch_bytes < alone[1].scratch_bytes
    assert not check_coverage(both.layers, [kit.linear("a")]).lost


@pytest.mark.parametrize(
    ("profiles", "message"),
    [
        (None, "input 'x' has no profile"),
        ({"y": (((1,), (1,), (1,)),)}, "input '[xy]' has"),
        ({"x": (((1, 64, 256), (1, 1, 256), (1, 512, 256)),)}, "refused"),
    ],
)
def test_a_wrong_profile_is_refused(
    kit: SimpleNamespace, tmp_path: Path, profiles: object, message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        build_here(kit.source(kit.graph(tokens="length"), tmp_path, profiles=profiles))


def test_inputs_have_equally_many_profiles(
    kit: SimpleNamespace, build: Build, tmp_path: Path
) -> None:
    graph = kit.GraphBuilder()
    graph.inputs += [kit.value("x", ["length", 4]), kit.value("y", ["length", 4])]
    graph.outputs.append(kit.value("z", ["length", 4]))
    graph.node("Add", ["x", "y"], ["z"], "add")
    short, long = ((1, 4), (8, 4), (8, 4)), ((9, 4), (16, 4), (16, 4))
    for other in ((short, long), (short,)):
        profiles = {"x": (short, long), "y": other}
        source = kit.source(graph.model(), tmp_path, linears=(), profiles=profiles)
        if len(other) == 2:
            assert {record.profile for record in build(source).layers} == {0, 1}
        else:
            with pytest.raises(BadInput, match="different numbers of profiles"):
                build_here(source)


def convolution(kit: SimpleNamespace) -> onnx.ModelProto:
    graph = kit.GraphBuilder()
    half = onnx.TensorProto.FLOAT16
    graph.inputs.append(kit.value("memory", [1, 16, 8, 8], half))
    graph.outputs.append(kit.value("memory_out", [1, 16, 8, 8], half))
    graph.initializers.append(kit.raw_tensor("w", half, [16, 16, 3, 3], bytes(16 * 16 * 9 * 2)))
    graph.node("Conv", ["memory", "w"], ["memory_out"], "conv", pads=[1, 1, 1, 1])
    return graph.model()


def test_memory_formats_are_set_and_recorded(
    kit: SimpleNamespace, build: Build, tmp_path: Path
) -> None:
    formats = {"memory": "hwc8", "memory_out": "hwc8"}
    model = convolution(kit)
    linear = build(kit.source(model, tmp_path, linears=(), component="decoder"))
    hwc8 = build(kit.source(model, tmp_path, linears=(), component="decoder", io_formats=formats))
    assert [spec.format for spec in (*linear.inputs, *linear.outputs)] == ["linear"] * 2
    assert [spec.format for spec in (*hwc8.inputs, *hwc8.outputs)] == ["hwc8"] * 2
    assert len(hwc8.layers) < len(linear.layers)  # no reformatting before and after
    with pytest.raises(BadInput, match="'absent'"):
        build_here(kit.source(model, tmp_path, linears=(), io_formats={"absent": "hwc8"}))


def test_a_node_of_a_plugin_is_refused_before_the_parser_sees_it(
    kit: SimpleNamespace, tmp_path: Path
) -> None:
    model = kit.graph()
    model.graph.node.append(oh.make_node("SageAttention3", ["x"], ["z"], "attn", domain="fastwan"))
    with pytest.raises(BadInput, match="fastwan::SageAttention3 of node 'attn'"):
        build_here(kit.source(model, tmp_path))


def test_a_parser_error_names_the_node(kit: SimpleNamespace, build: Build, tmp_path: Path) -> None:
    graph = kit.GraphBuilder()
    graph.inputs.append(kit.value("x", [3, 4]))
    graph.outputs.append(kit.value("y", [3, 4]))
    graph.node("MatMul", ["x", "x"], ["y"], "odd/MatMul")
    with pytest.raises(BadInput, match=r"node 'odd/MatMul'.*must match") as caught:
        build(kit.source(graph.model(), tmp_path))
    assert "cudaError" not in str(caught.value)


def test_weights_are_read_from_external_data(
    build: Build, bundle_source: Callable[..., object], kit: SimpleNamespace, tmp_path: Path
) -> None:
    external = build(bundle_source())
    embedded = build(kit.source(kit.graph(), tmp_path))
    assert bytes(external.plan) == bytes(embedded.plan)


class Interrupting(Quiet):
    """Presses Ctrl-C at the first report of the builder."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def advance(self, amount: int = 1, note: str = "") -> None:
        if not self.notes:
            os.kill(os.getpid(), signal.SIGINT)
        self.notes.append(note)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_cancels_the_build_and_leaves_the_process_usable(
    kit: SimpleNamespace, build: Build, tmp_path: Path
) -> None:
    source = kit.source(kit.graph(), tmp_path)
    progress = Interrupting()
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        build_here(source, progress)
    assert progress.notes[0].startswith("dit: ")
    assert signal.getsignal(signal.SIGINT) is before
    assert build(source).plan.nbytes > 1000


def test_a_display_that_fails_does_not_fail_the_build(kit: SimpleNamespace, tmp_path: Path) -> None:
    class Broken(Quiet):
        def advance(self, amount: int = 1, note: str = "") -> None:
            raise ValueError("no terminal")

    built = build_here(kit.source(kit.graph(), tmp_path), Broken())
    assert built.plan.nbytes > 1000


@pytest.fixture
def fresh() -> Iterator[TensorRTRTX]:
    """A builder that has built nothing."""
    backend = TensorRTRTX()
    yield backend
    backend.close()


@pytest.fixture
def backend(builder: TensorRTRTX) -> TensorRTRTX:
    """The session's builder with one worker at most."""
    if len(builder._pool.workers) > 1:
        builder.close()
    return builder


def two_outputs(kit: SimpleNamespace) -> onnx.ModelProto:
    """An output that the graph goes on to read: the builder lists such ones in no fixed order."""
    graph = kit.GraphBuilder()
    graph.inputs.append(kit.value("x", [1, kit.M, kit.K]))
    graph.outputs += [kit.value(name, [1, kit.M, kit.K]) for name in ("hidden", "y", "z")]
    graph.node("Relu", ["x"], ["hidden"], "relu")
    graph.quantise("hidden", "xq")
    graph.linear("a", "xq", "y", kit.K, kit.K)
    graph.node("Tanh", ["y"], ["z"], "tanh")
    return graph.model()


def test_what_was_built_before_changes_nothing(
    kit: SimpleNamespace, fresh: TensorRTRTX, tmp_path: Path
) -> None:
    options = BuildOptions(TARGETS["rtx5090"])
    source = kit.source(two_outputs(kit), tmp_path)
    plans = set()
    for other in (None, kit.graph(), bf16_linear(kit)):
        if other is not None:
            fresh.build(kit.source(other, tmp_path, linears=()), options, Quiet())
        plans |= {bytes(fresh.build(source, options, Quiet()).plan) for _ in range(2)}
    assert len(plans) == 1


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_in_the_parent_ends_the_child(
    kit: SimpleNamespace, backend: TensorRTRTX, tmp_path: Path
) -> None:
    source = kit.source(kit.graph(), tmp_path)
    options = BuildOptions(TARGETS["rtx5090"])
    with pytest.raises(KeyboardInterrupt):
        backend.build(source, options, Interrupting())
    assert backend._pool.workers == backend._pool.idle == []
    assert backend.build(source, options, Quiet()).plan.nbytes > 1000


def test_a_builder_that_dies_is_an_error_and_not_the_end(
    kit: SimpleNamespace, backend: TensorRTRTX, tmp_path: Path
) -> None:
    source = kit.source(kit.graph(), tmp_path)
    options = BuildOptions(TARGETS["rtx5090"])

    class Killing(Quiet):
        def advance(self, amount: int = 1, note: str = "") -> None:
            (worker,) = backend._pool.workers
            os.kill(worker.child, signal.SIGKILL)

    with pytest.raises(BadInput, match="the builder ended with SIGKILL"):
        backend.build(source, options, Killing())
    assert backend.build(source, options, Quiet()).plan.nbytes > 1000


def test_builds_at_once_give_the_bytes_of_builds_in_a_row(
    kit: SimpleNamespace, backend: TensorRTRTX, tmp_path: Path
) -> None:
    options = BuildOptions(TARGETS["rtx5090"])
    source = kit.source(two_outputs(kit), tmp_path)
    alone = bytes(backend.build(source, options, Quiet()).plan)
    together = in_order(lambda _: backend.build(source, options, Quiet()), range(4), 2)
    assert {bytes(built.plan) for _, built in together} == {alone}
    assert len(backend._pool.workers) == len(backend._pool.idle) == 2
    assert backend.jobs() == workers()


def _runs(process: int) -> bool:
    """Whether a process is there and is no more than a name in the table."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to see processes")
def test_close_ends_a_build_of_another_thread(
    kit: SimpleNamespace, backend: TensorRTRTX, tmp_path: Path
) -> None:
    source = kit.source(kit.graph(), tmp_path)
    closed: list[int] = []

    class Closing(Quiet):
        def advance(self, amount: int = 1, note: str = "") -> None:
            if not closed:
                (worker,) = backend._pool.workers
                closed.append(worker.child)
                other = threading.Thread(target=backend.close)
                other.start()
                other.join()

    with pytest.raises(BadInput, match="the build process ended by itself"):
        backend.build(source, BuildOptions(TARGETS["rtx5090"]), Closing())
    for _ in range(1000):  # it has been killed; the system may still be taking it apart
        if not _runs(closed[0]):
            break
        time.sleep(0.01)
    assert not _runs(closed[0])
    assert backend._pool.workers == []
    assert backend.build(source, BuildOptions(TARGETS["rtx5090"]), Quiet()).plan.nbytes > 1000
