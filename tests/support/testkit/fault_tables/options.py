"""Options and prompts that cannot be meant, and ids of the hub that lead nowhere."""

from __future__ import annotations

from testkit.fault_tables.bundles import BENCH, PLAY
from testkit.faults import Fault

BUILD = (
    "fastwan-export build-engine --checkpoint ck --model FastWan-QAD-1.3B "
    "--components text_encoder -o out --json"
)
KEY = "fastwan-export build-engine --checkpoint ck --cache-key -o out"
CHECKS = "fastwan-export verify b --list-checks"
GATE = "fastwan-export gate b --against g.json --update-baseline --json"
MAKE = "fastwan-export make-checkpoint new --size tiny"


def _option(name: str, kind: str, command: str, words: str, twin: str, code: int = 2) -> Fault:
    return Fault(name, kind, command, code, words, twin=twin)


def _build(options: str, kind: str, words: str, code: int = 2) -> Fault:
    return _option(f"build-engine {options}", kind, f"{BUILD} {options}", words, BUILD, code)


def _play(options: str, kind: str, words: str, code: int = 2) -> Fault:
    return _option(f"generate {options}", kind, f"{PLAY} {options}", words, PLAY, code)


def _prompt(name: str, words: str, prompt: str) -> Fault:
    command = PLAY.replace("'a red fox'", prompt)
    return Fault(f"prompt: {name}", "I", command, 2, words, twin=PLAY)


FAULTS = (
    _build("--height 16000000", "M", "16000000.*--height"),
    _build("--height 15", "M", "--height"),
    _build("--height -16", "M", "--height"),
    _build("--width 1e3", "M", "width"),
    _build("--num-frames 6", "M", "4n.1.*--num-frames"),
    _build("--num-frames 1000000001", "M", "--num-frames"),
    _build("--height 8192 --width 8192 --num-frames 4097", "M", "tokens"),
    _build("--components dit,hat", "C", "unknown component 'hat'"),
    _build("--components ,", "C", "no component"),
    _build("--sampler dmd2", "C", "dmd2"),
    _build("--sampler unipc-50", "C", "unipc-50"),
    _build("--target rtx4090 --components dit", "C", "RTX 4090"),
    _build("--text-encoder-recipe int4", "C", "int4"),
    _build("--attention sage3 --target rtx4090", "C", "RTX 4090 cannot run.*sage3"),
    _build("--backend onnx", "C", "onnx"),
    _build("--revision main", "D", "revision"),
    _build("--taehv absent.safetensors --components decoder", "C", r"absent\.safetensors"),
    _build("--checkpoint nobody", "D", "nobody"),
    _build("--checkpoint a/b/c/d", "D", "does not exist"),
    _build("--checkpoint owner/../name", "D", "does not exist|not a model"),
    _build("--checkpoint owner/name@..", "D", "does not exist|not a model"),
    _build("--checkpoint owner/never-fetched", "D", "owner/never-fetched", 3),
    _build("--checkpoint ''", "D", r"model_index\.json"),
    _build(f"--checkpoint {'x' * 5000}", "D", "x"),
    _play("--seed -1", "M", "--seed.: -1 is not in"),
    _play("--seed 18446744073709551616", "M", "seed"),
    _play("--seed 1.5", "M", "1.5"),
    _play("--repeat 0", "M", "--repeat"),
    _play("--repeat 1000000000", "M", "--repeat"),
    _play("--warmup -1", "M", "--warmup"),
    _play("--sampler unipc-50", "C", "unipc-50"),
    _play("--device cuda", "O", "CUDA|GPU|cuda", 3),
    _option("build-engine --cache-key --json", "M", f"{KEY} --json", "--json", KEY),
    _option("verify --list-checks --json", "M", f"{CHECKS} --json", "--json", CHECKS),
    _option("gate --stage times", "O", f"{GATE} --stage times", "no CUDA.*--stage",
            f"{GATE} --stage schedule", 3),
    _option("gate --device cuda", "O", f"{GATE} --stage schedule --device cuda",
            "no CUDA.*leave --device", f"{GATE} --stage schedule", 3),
    _option("gate --device cpu", "M", f"{GATE} --stage schedule --device cpu", "--device",
            f"{GATE} --stage schedule --device auto"),
    _option("bench --device emulated", "O", f"{BENCH} --device emulated", "no CUDA.*--device null",
            BENCH, 3),
    _option("compare --device cuda", "O", "fastwan-export compare b b --device cuda --json",
            "no CUDA.*--device", "fastwan-export compare b b --static --json", 3),
    _option("bench --runs 0", "M", f"{BENCH} --runs 0", "--runs", f"{BENCH} --runs 2"),
    _option("bench --runs 1e9", "M", f"{BENCH} --runs 1000000000", "--runs", f"{BENCH} --runs 2"),
    _option("bench --warmup -1", "M", f"{BENCH} --warmup -1", "--warmup", BENCH),
    _option("bench, blank prompt", "I", f"{BENCH} --prompt ' '", "blank",
            f"{BENCH} --prompt fox"),
    _option("make-checkpoint --seed -1", "M", f"{MAKE} --seed -1", "seed", f"{MAKE} --seed 1"),
    _option("make-checkpoint, seed beyond 64 bits", "M", f"{MAKE} --seed {1 << 64}", "seed",
            f"{MAKE} --seed 1"),
    _option("make-checkpoint of no size", "M", "fastwan-export make-checkpoint new --size 14b",
            "14b", MAKE),
    _option("an unknown command", "I", "fastwan-export encode", "encode", "fastwan-export --help"),
    _option("an unknown option", "I", f"{PLAY} --steps 3", "--steps", PLAY),
    _prompt("blank", "blank", "' '"),
    _prompt("controls alone", "blank", "'\t\n'"),
    _prompt("empty", "blank", "''"),
    _prompt("not UTF-8", "UTF-8|not valid text", "'\udcff'"),
    _prompt("a file by mistake", "100,000", "'" + "fox " * 30_000 + "'"),
)  # fmt: skip
