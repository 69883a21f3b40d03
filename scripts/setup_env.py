"""Make .venv: the virtual environment that `make chat`, `make test` and `make check` run in.

    python3 scripts/setup_env.py chat      what a chat needs
    python3 scripts/setup_env.py dev       that, and what tests and checks need

Standard library only, for any Python from 3.8 that a machine happens to call `python3`; the environment
itself is made with 3.10 to 3.13. Releases are those of constraints.txt. Does nothing, in a moment, when it
already did the work: a stamp in .venv holds the hashes of what it depends on. torch comes first and on its
own, because its right build (CPU or CUDA) is not what a plain `pip install` takes everywhere; nothing after
it may replace it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, NamedTuple, Protocol, Sequence  # noqa: UP035 (3.8 runs this)

OLDEST, NEWEST = (3, 10), (3, 13)
EXTRAS = {"chat": "", "dev": "[dev]"}
INCLUDED = {"chat": ("chat", "dev"), "dev": ("dev",)}
"""The kinds of setup whose stamp proves that this one is done: dev holds all of chat."""
PIP = ("-m", "pip", "--disable-pip-version-check", "--no-input")

PROBE_PYTHON = (
    "import importlib.util as u, json, sys;"
    "print(json.dumps([sys.executable, sys.version_info[:2], u.find_spec('ensurepip') is not None]))"
)
PROBE_TORCH = (
    "import importlib.util as u, json, torch;"
    "print(json.dumps([torch.__version__, torch.version.cuda, u.find_spec('torchvision') is not None]))"
)


class SetupError(Exception):
    """The environment cannot be made; the message says why and what to do."""


class Python(NamedTuple):
    """An interpreter on this machine."""

    path: str
    version: tuple[int, int]
    has_ensurepip: bool

    @property
    def is_suitable(self) -> bool:
        """Whether the project runs on it."""
        return OLDEST <= self.version <= NEWEST


class Result(NamedTuple):
    """How a command ended; `output` is what it printed on both streams when it was run quietly."""

    code: int
    output: str


class TorchAttempt(NamedTuple):
    """One way to get torch: its commands (arguments of the environment's python), and what to say."""

    title: str
    commands: list[list[str]]
    is_last: bool = False


class Run(Protocol):
    """Runs a command; taken as an argument so that tests need no network."""

    def __call__(self, command: Sequence[str], is_quiet: bool = False) -> Result:
        """Run `command` to its end."""


def run(command: Sequence[str], is_quiet: bool = False) -> Result:
    """Run a command; keep what it prints to ourselves when `is_quiet`."""
    kept = subprocess.PIPE if is_quiet else None
    try:
        done = subprocess.run(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=kept,
            stderr=subprocess.STDOUT if is_quiet else None,
        )
    except OSError as error:
        return Result(127, str(error))
    return Result(done.returncode, (done.stdout or b"").decode("utf-8", "replace"))


def say(text: str) -> None:
    """Print a line of progress; on stderr, since stdout belongs to the answer of `make chat`."""
    sys.stderr.write(f"[setup] {text}\n")
    sys.stderr.flush()


def last_line(text: str) -> str:
    """Return the last line of a program's output that says something."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no output")


def probe(name: str, run: Run = run) -> Python | None:
    """Ask an interpreter what it is; None when there is none of this name or it does not run."""
    code, output = run([name, "-c", PROBE_PYTHON], is_quiet=True)
    try:
        path, version, has_ensurepip = json.loads(last_line(output)) if code == 0 else (None, (), False)
    except ValueError:
        return None
    return Python(path, tuple(version), has_ensurepip) if path else None


def choose_python(wanted: str | None, find: Callable[[str], Python | None] = probe) -> Python:
    """Return the interpreter for .venv: the wanted one, else the machine's `python3`, else the newest.

    One that can make environments goes before one that lacks ensurepip (Debian without python3-venv).
    """
    allowed = f"{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}"
    if wanted:
        python = find(wanted)
        if python is None:
            raise SetupError(f"PYTHON={wanted} does not run. Give the path of a Python {allowed}.")
        if not python.is_suitable:
            raise SetupError(f"PYTHON={wanted} is {show(python.version)}; Python {allowed} is needed.")
        return python
    newest_first = [f"python3.{minor}" for minor in range(NEWEST[1], OLDEST[1] - 1, -1)]
    found = [python for python in map(find, ["python3", *newest_first, "python"]) if python is not None]
    suitable = [python for python in found if python.is_suitable]
    if not suitable:
        seen = ", ".join(sorted({show(python.version) for python in found})) or "none"
        raise SetupError(
            f"no Python {allowed} was found (seen: {seen}). "
            "Install one (Debian: apt-get install python3 python3-venv), or run: make PYTHON=/path/to/python"
        )
    return next((python for python in suitable if python.has_ensurepip), suitable[0])


def show(version: tuple[int, ...]) -> str:
    """Return a version as people write it."""
    return ".".join(map(str, version))


def torch_requirement(pyproject: str) -> str:
    """Return the torch requirement of pyproject.toml (tomllib is too new for 3.10)."""
    found = re.search(r'^\s*"(torch[<>=!~][^"]*)"', pyproject, flags=re.MULTILINE)
    if found is None:
        raise SetupError("pyproject.toml names no torch requirement. Restore the file.")
    return found.group(1)


def torch_attempts(requirement: str, *, has_gpu: bool, system: str) -> list[TorchAttempt]:
    """Return the ways to get the right torch, the best first; the last one works wherever pip does.

    requirement: as in pyproject.toml. system: `platform.system()`. Only Linux has CUDA builds as the default,
    several GB of them, so only there a machine without a GPU needs the other ways: a wheel that this machine
    keeps on disk (pip's find-links), then uv, which knows where the CPU builds are.
    """
    plain = [*PIP, "install", "-qq", requirement]
    if has_gpu:
        return [TorchAttempt("torch for the NVIDIA GPU (CUDA build)", [plain], is_last=True)]
    if system != "Linux":
        return [TorchAttempt("torch", [plain], is_last=True)]
    uv = ["-m", "uv", "pip", "install", "--quiet", "--torch-backend=cpu"]
    return [
        TorchAttempt(
            "torch from a wheel on this machine",
            [[*PIP, "install", "-qq", "--no-index", "--no-deps", requirement]],
        ),
        TorchAttempt(
            "torch (CPU build, by uv)",
            [[*PIP, "install", "-qq", "uv"], [*uv, requirement], [*PIP, "uninstall", "-qq", "-y", "uv"]],
        ),
        TorchAttempt(
            "torch: NO CPU BUILD COULD BE HAD, so this is the CUDA build, several GB that a machine without "
            "an NVIDIA GPU does not need (it works all the same)",
            [plain],
            is_last=True,
        ),
    ]


def has_nvidia_gpu(run: Run = run) -> bool:
    """Whether nvidia-smi is there and sees a GPU."""
    code, output = run(["nvidia-smi", "-L"], is_quiet=True)
    return code == 0 and "GPU " in output


class Environment:
    """The virtual environment in `<root>/.venv`."""

    def __init__(self, root: Path, *, run: Run = run, clock: Callable[[], float] = time.monotonic) -> None:
        """Describe it; nothing is made yet."""
        self.root = root
        self.folder = root / ".venv"
        self.python = str(self.folder / "bin" / "python")
        self.constraints = root / "constraints.txt"
        self._run = run
        self._clock = clock

    def stamp(self, kind: str) -> Path:
        """Return where the proof of a finished setup is kept."""
        return self.folder / f".setup-{kind}.json"

    def fingerprint(self) -> dict[str, str]:
        """Return what the setup depends on; the root, because scripts in .venv/bin name it."""
        files = (self.root / "pyproject.toml", self.constraints)
        hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
        return {**hashes, "root": str(self.root)}

    def is_ready(self, kind: str) -> bool:
        """Whether this kind of setup was finished with the files that are here now."""
        return os.path.exists(self.python) and any(
            _read_json(self.stamp(done)) == self.fingerprint() for done in INCLUDED[kind]
        )

    def set_up(self, kind: str, wanted_python: str | None) -> None:
        """Make or complete the environment; raises SetupError."""
        if self.is_ready(kind):
            return
        begin = self._clock()
        self._create(wanted_python)
        self._install_torch()
        say(f"installing the package with what {kind} needs")
        self._pip("install", "-qq", "-c", str(self.constraints), "-e", f"{self.root}{EXTRAS[kind]}")
        self._check_torch()
        temporary = self.stamp(kind).with_suffix(".part")
        temporary.write_text(json.dumps(self.fingerprint()), encoding="utf-8")
        temporary.replace(self.stamp(kind))
        say(f"ready in {self._clock() - begin:.0f} s; next time this is skipped")

    def _create(self, wanted: str | None) -> None:
        """Make the folder with a working pip in it, or keep the one that is there."""
        present = probe(self.python, self._run)
        if present is not None and self._run([self.python, *PIP, "--version"], is_quiet=True).code == 0:
            self._check_wanted(present, wanted)
            return
        python = choose_python(wanted, lambda name: probe(name, self._run))
        if self.folder.exists():
            say(f"{self.folder} is incomplete: making it anew")
            shutil.rmtree(self.folder)
        say(f"making {self.folder} with Python {show(python.version)} ({python.path})")
        venv = [python.path, "-m", "venv", str(self.folder)]
        if python.has_ensurepip and self._run(venv, is_quiet=True).code == 0:
            return
        # Debian ships venv without ensurepip; a pip of the machine's own can stand in for it.
        made = self._run([*venv, "--without-pip", "--clear"], is_quiet=True)
        seed = [python.path, *PIP, "--python", self.python, "install", "-qq", "pip"]
        if made.code != 0 or self._run(seed, is_quiet=True).code != 0:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise SetupError(
                f"{python.path} cannot make a virtual environment (no ensurepip?). "
                f"Install what it lacks (Debian: apt-get install python{show(python.version)}-venv), "
                "see that the disk is not full, and run this again."
            )

    def _check_wanted(self, present: Python, wanted: str | None) -> None:
        if not present.is_suitable:
            raise SetupError(f"{self.folder} has Python {show(present.version)}. Run: make clean")
        chosen = probe(wanted, self._run) if wanted else None
        if chosen is not None and chosen.version != present.version:
            say(f".venv keeps its Python {show(present.version)}; `make clean` first to use {wanted}")

    def _install_torch(self) -> None:
        """Install torch if there is none; which build, is for `torch_attempts` to say."""
        if self._run([self.python, "-c", "import torch"], is_quiet=True).code == 0:
            return
        requirement = torch_requirement((self.root / "pyproject.toml").read_text(encoding="utf-8"))
        has_gpu = has_nvidia_gpu(self._run)
        for attempt in torch_attempts(requirement, has_gpu=has_gpu, system=platform.system()):
            say(f"installing {attempt.title}; this may take minutes")
            for command in attempt.commands:
                done = self._run([self.python, *self._targeted(command)], is_quiet=not attempt.is_last)
                if done.code != 0:
                    if not attempt.is_last:
                        say(f"  not this way: {last_line(done.output)}")
                    break
            else:
                return
        raise SetupError(
            "torch could not be installed; what pip said is above. Check the network and the disk."
        )

    def _targeted(self, command: list[str]) -> list[str]:
        """Tell uv which environment is meant; pip knows by the interpreter that runs it."""
        return [*command, "--python", self.python] if command[:2] == ["-m", "uv"] else command

    def _check_torch(self) -> None:
        """Say which torch there is now, and whether anything is odd about it."""
        done = self._must([self.python, "-c", PROBE_TORCH], "torch does not import", is_quiet=True)
        version, cuda, has_torchvision = json.loads(last_line(done.output))
        say(f"torch {version} ({f'CUDA {cuda}' if cuda else 'CPU'})")
        if cuda is None and has_nvidia_gpu(self._run):
            say("  this machine has an NVIDIA GPU, but .venv a CPU build: `make clean`, then try again")
        if has_torchvision:
            say("  torchvision is in .venv too; this project neither needs nor uses it")

    def _pip(self, *arguments: str) -> None:
        self._must([self.python, *PIP, *arguments], "pip failed; what it said is above")

    def _must(self, command: Sequence[str], failure: str, is_quiet: bool = False) -> Result:
        done = self._run(list(command), is_quiet=is_quiet)
        if done.code != 0:
            said = f": {last_line(done.output)}" if is_quiet else ""
            raise SetupError(f"{failure}{said}. Run again when mended; it goes on where it ended.")
        return done


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=sorted(EXTRAS))
    parser.add_argument(
        "--python", default="", help="interpreter for .venv (default: python3, else the newest)"
    )
    args = parser.parse_args(argv)
    try:
        Environment(Path(__file__).resolve().parents[1]).set_up(args.kind, args.python or None)
    except SetupError as error:
        say(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        say("interrupted; run again, it goes on where it ended")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
