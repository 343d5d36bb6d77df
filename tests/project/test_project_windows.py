"""What plays a bundle does without everything that Windows lacks.

No Windows runs here: its names are taken away, and ``sys.platform`` says what it says there. What
other libraries ask of the system is theirs, so that they are imported before.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

LACKS = """
import json, os, signal, sys

MODULES = {
    "crypt", "fcntl", "grp", "nis", "posix_ipc", "pty", "pwd", "readline", "resource", "spwd",
    "syslog", "termios", "tty",
}
OS = [
    "chown", "chroot", "confstr", "fchdir", "fchmod", "fchown", "fork", "forkpty", "getegid",
    "geteuid", "getgid", "getgroups", "getloadavg", "getpgid", "getpgrp", "getpriority", "getsid",
    "getuid", "getxattr", "initgroups", "killpg", "lchown", "lockf", "mkfifo", "mknod", "nice",
    "openpty", "pathconf", "pipe2", "posix_fadvise", "posix_fallocate", "posix_spawn", "pread",
    "pwrite", "register_at_fork", "removexattr", "sched_getaffinity", "sched_setaffinity",
    "sched_yield", "sendfile", "setegid", "seteuid", "setgid", "setpgid", "setsid", "setuid",
    "setxattr", "statvfs", "sync", "sysconf", "tcgetpgrp", "ttyname", "uname", "wait", "wait3",
    "wait4", "waitid", "memfd_create", "O_ACCMODE", "O_CLOEXEC", "O_DIRECTORY", "O_DSYNC",
    "O_NOCTTY", "O_NOFOLLOW", "O_NONBLOCK", "O_PATH", "O_SYNC", "O_TMPFILE",
]
SIGNALS = [
    "SIGALRM", "SIGBUS", "SIGCHLD", "SIGCONT", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGPROF",
    "SIGQUIT", "SIGSTOP", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGUSR1", "SIGUSR2", "SIGVTALRM",
    "SIGWINCH", "alarm", "getitimer", "pause", "pthread_kill", "pthread_sigmask", "setitimer",
    "siginterrupt", "sigpending", "sigtimedwait", "sigwait", "sigwaitinfo",
]

class Lacks:
    def find_spec(self, module, path=None, target=None):
        if module.partition(".")[0] in MODULES:
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)

def refuse(*_, **__):
    raise OSError(1314, "A required privilege is not held by the client")

def take_away():
    import shutil

    sys.meta_path.insert(0, Lacks())
    for name in MODULES & sys.modules.keys():
        del sys.modules[name]
    for name in OS:
        if hasattr(os, name):
            delattr(os, name)
    for name in SIGNALS:
        if hasattr(signal, name):
            delattr(signal, name)
    os.symlink = os.link = refuse
    shutil._use_fd_functions = shutil._USE_CP_SENDFILE = False
    os.supports_dir_fd.clear()
    sys.platform = "win32"
"""

OTHERS = """
import asyncio, concurrent.futures, ctypes.util, importlib.metadata, logging, multiprocessing
import platform, queue, random, subprocess, tempfile, uuid, webbrowser
import av, click, filelock, huggingface_hub, ml_dtypes, numpy, numpy.random, onnx
import onnxruntime, PIL.Image, PIL.PngImagePlugin, pydantic, rich.console, rich.progress
import safetensors, safetensors.numpy, tokenizers, tqdm, torch
platform.uname(), platform.machine()
"""

PLAY = (
    LACKS
    + OTHERS
    + """
take_away()
import importlib, pkgutil

sys.path[:0] = json.loads(sys.argv[1])
import fastwan

imported = [
    "fastwan.bundle", "fastwan.cuda_driver", "fastwan.commands.generate",
    "fastwan.commands.comfyui", "fastwan.commands.doctor", "fastwan.doctor",
    "fastwan.plugins.loader", "fastwan.plugins.regions", "fastwan.hub.bundle",
]
for name in ("fastwan.runtime", "fastwan.comfyui"):
    package = importlib.import_module(name)
    imported += [
        each.name for each in pkgutil.walk_packages(package.__path__, name + ".")
        if not each.name.startswith("fastwan.runtime.emulated")  # needs a Hopper GPU
    ]
for name in imported:
    importlib.import_module(name)

from fastwan.comfyui import nodes
from fastwan.comfyui.install import install
from fastwan.runtime.generate import generate
from testkit.fake_comfyui import FakeComfyUI

bundle, folder, comfyui = map(importlib.import_module("pathlib").Path, sys.argv[2:5])
report = generate(
    bundle, "A red fox", folder / "fox.mp4", device="cpu", frames_dir=folder / "frames",
    prompt_cache=folder / "prompts",
)
install(comfyui)
install(comfyui)
with FakeComfyUI(comfyui / "models").running():
    (loaded, *_) = nodes.LoadBundle().load("tiny", "auto")
    images, latent = nodes.TextToVideo().make(loaded, "A red fox", 1024, nodes.OWN)
    assert nodes.DecodeLatent().decode(loaded, latent)[0].shape == images.shape
import numpy

numpy.save(folder / "images.npy", images.numpy())
print(json.dumps({
    "platform": sys.platform, "modules": len(imported), "sha": report.videos[0].frames_sha256,
}))
"""
)


@pytest.fixture(scope="module")
def played(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    """What a process without these names reported, and the folder of its outputs."""
    folder = tmp_path_factory.mktemp("windows")
    (folder / "ComfyUI" / "custom_nodes").mkdir(parents=True)
    (folder / "ComfyUI" / "models" / "fastwan").mkdir(parents=True)
    (folder / "ComfyUI" / "models" / "fastwan" / "tiny").symlink_to(tiny_bundle)
    support = str(Path(__file__).resolve().parents[1] / "support")
    done = subprocess.run(
        [
            sys.executable, "-c", PLAY, json.dumps([support]), str(tiny_bundle), str(folder),
            str(folder / "ComfyUI"),
        ],
        capture_output=True, text=True,
        env={**os.environ, "FASTWAN_CACHE_DIR": str(folder / "cache")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]), folder


def test_a_bundle_plays_without_the_names_that_windows_lacks(
    played: tuple[dict, Path], tiny_bundle: Path
) -> None:
    from fastwan.runtime.pipeline import FastWanPipeline

    report, folder = played
    assert report["platform"] == "win32"
    assert report["modules"] > 60
    frames = FastWanPipeline.from_bundle(tiny_bundle, "cpu")("A red fox", output_type="uint8")
    right = frames.frames[0]
    images = np.load(folder / "images.npy")
    np.testing.assert_array_equal((images * 255).astype(np.uint8), right)
    import hashlib

    assert report["sha"] == hashlib.sha256(right.tobytes()).hexdigest()
    assert (folder / "fox.mp4").stat().st_size > 1000
    assert len(list((folder / "frames").glob("*.png"))) == 9
    assert any((folder / "prompts").rglob("*"))


@pytest.mark.parametrize(
    ("line", "good"),
    [
        ("import fcntl", False),
        ("import resource", False),
        ("os.fork", False),
        ("os.O_NOFOLLOW", False),
        ("signal.SIGKILL", False),
        ("os.symlink('a', 'b')", False),
        ("import shutil; os.getpid; os.O_RDONLY; signal.SIGTERM; signal.SIGINT", True),
    ],
)
def test_the_names_are_gone(line: str, good: bool, tmp_path: Path) -> None:
    script = f"{LACKS}\ntake_away()\n{line}\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, cwd=tmp_path)
    assert (done.returncode == 0) is good
