"""The setup of .venv, without a network: which Python, which torch, in which order, what is said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from scripts import setup_env
from scripts.setup_env import (
    Environment,
    Python,
    Result,
    SetupError,
    choose_python,
    has_nvidia_gpu,
    probe,
    torch_attempts,
    torch_requirement,
)

ROOT = Path(__file__).parents[1]
REQUIREMENT = "torch>=2.6,<3"


def found(**versions: str | None) -> dict[str, Python]:
    """Return interpreters by name, as python3_12="3.12"; a trailing "-" means that ensurepip is missing."""
    interpreters = {}
    for name, version in versions.items():
        if version is not None:
            major, minor = version.rstrip("-").split(".")
            path = "/usr/bin/" + name.replace("_", ".")
            interpreters[name.replace("_", ".")] = Python(path, (int(major), int(minor)), version[-1] != "-")
    return interpreters


@pytest.mark.parametrize(
    ("interpreters", "chosen"),
    [
        (found(python3="3.11", python3_13="3.13"), (3, 11)),
        (found(python3="3.9", python3_10="3.10", python3_12="3.12"), (3, 12)),
        (found(python3="3.14", python3_13="3.13"), (3, 13)),
        (found(python="3.10"), (3, 10)),
        (found(python3="3.11-", python3_12="3.12"), (3, 12)),
        (found(python3="3.11-"), (3, 11)),
    ],
)
def test_python3_comes_first_then_the_newest_that_can_make_environments(
    interpreters: dict[str, Python], chosen: tuple[int, int]
) -> None:
    assert choose_python(None, interpreters.get).version == chosen


def test_a_wanted_python_is_taken() -> None:
    assert choose_python("python3.12", found(python3="3.11", python3_12="3.12").get).version == (3, 12)


@pytest.mark.parametrize(
    ("wanted", "interpreters", "message"),
    [
        (None, found(), "no Python 3.10 to 3.13 was found (seen: none)"),
        (None, found(python3="3.9", python="3.14"), "(seen: 3.14, 3.9)"),
        ("python9", found(python3="3.11"), "PYTHON=python9 does not run"),
        ("python3.9", found(python3_9="3.9"), "PYTHON=python3.9 is 3.9; Python 3.10 to 3.13 is needed"),
    ],
)
def test_without_a_suitable_python_it_says_what_to_install(
    wanted: str | None, interpreters: dict[str, Python], message: str
) -> None:
    with pytest.raises(SetupError) as error:
        choose_python(wanted, interpreters.get)
    assert message in str(error.value)


def test_the_interpreter_that_runs_this_is_recognised() -> None:
    python = probe(sys.executable)
    assert python is not None
    assert python.version == sys.version_info[:2]
    assert probe("no-such-python") is None


def test_torch_is_required_as_in_pyproject() -> None:
    assert torch_requirement((ROOT / "pyproject.toml").read_text(encoding="utf-8")).startswith("torch>=")
    with pytest.raises(SetupError):
        torch_requirement("dependencies = []")


def test_a_gpu_or_another_system_takes_plain_torch() -> None:
    for has_gpu, system in [(True, "Linux"), (False, "Darwin")]:
        (attempt,) = torch_attempts(REQUIREMENT, has_gpu=has_gpu, system=system)
        assert attempt.is_last
        assert [command[-1] for command in attempt.commands] == [REQUIREMENT]


def test_linux_without_a_gpu_tries_the_disk_then_uv_then_the_big_build_loudly() -> None:
    disk, uv, plain = torch_attempts(REQUIREMENT, has_gpu=False, system="Linux")
    assert "--no-index" in disk.commands[0]
    assert "--torch-backend=cpu" in uv.commands[1]
    assert "NO CPU BUILD" in plain.title


def test_no_way_to_install_names_torchvision_or_a_registry() -> None:
    text = Path(setup_env.__file__).read_text(encoding="utf-8")
    assert "://" not in text
    attempts = [
        attempt
        for has_gpu in (True, False)
        for attempt in torch_attempts(REQUIREMENT, has_gpu=has_gpu, system="Linux")
    ]
    assert not [word for a in attempts for command in a.commands for word in command if "vision" in word]


@pytest.mark.parametrize(
    ("result", "is_there"),
    [
        (Result(0, "GPU 0: NVIDIA H200 (UUID: ...)"), True),
        (Result(0, "No devices found"), False),
        (Result(127, "not found"), False),
    ],
)
def test_a_gpu_is_one_that_nvidia_smi_lists(result: Result, is_there: bool) -> None:
    def run(command: Sequence[str], is_quiet: bool = False) -> Result:
        assert is_quiet
        assert command[0] == "nvidia-smi"
        return result

    assert has_nvidia_gpu(run) is is_there


class FakeMachine:
    """Carries out the setup's commands in its head, and keeps a record of them."""

    def __init__(self, root: Path, *, fails: Sequence[str] = (), has_ensurepip: bool = True) -> None:
        self.root = root
        self.fails = fails
        self.has_ensurepip = has_ensurepip
        self.commands: list[str] = []
        self.has_torch = False

    def __call__(self, command: Sequence[str], is_quiet: bool = False) -> Result:  # noqa: ARG002
        line = " ".join(command)
        self.commands.append(line)
        if any(part in line for part in self.fails):
            return Result(1, "it failed\n")
        python = self.root / ".venv" / "bin" / "python"
        if "-m venv" in line:
            python.parent.mkdir(parents=True)
            python.touch()
        if command[0] == str(python) and not python.exists():
            return Result(127, "")
        if setup_env.PROBE_PYTHON in line:
            return Result(0, json.dumps([command[0], [3, 11], self.has_ensurepip]))
        if setup_env.PROBE_TORCH in line:
            return Result(0, json.dumps(["2.13.0+cpu", None, False]))
        if line.endswith("import torch"):
            return Result(0 if self.has_torch else 1, "")
        self.has_torch = self.has_torch or line.endswith(REQUIREMENT)
        return Result(127 if command[0] == "nvidia-smi" else 0, "")

    def steps(self) -> list[str]:
        """Return the commands that change something, without the interpreter."""
        changing = [c for c in self.commands if " install " in c or "-m venv" in c]
        return [
            c.split(" -m ", 1)[1].replace(" --disable-pip-version-check --no-input", "") for c in changing
        ]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("platform.system", lambda: "Linux")
    (tmp_path / "pyproject.toml").write_text(f'dependencies = [\n    "{REQUIREMENT}",\n]\n')
    (tmp_path / "constraints.txt").write_text("transformers==5.24.0\n")
    return tmp_path


def set_up(machine: FakeMachine, kind: str = "chat") -> None:
    Environment(machine.root, run=machine, clock=lambda: 0.0).set_up(kind, None)


def test_a_new_environment_gets_torch_before_the_package(root: Path) -> None:
    machine = FakeMachine(root)
    set_up(machine, "dev")
    assert machine.steps() == [
        f"venv {root}/.venv",
        f"pip install -qq --no-index --no-deps {REQUIREMENT}",
        f"pip install -qq -c {root}/constraints.txt -e {root}[dev]",
    ]


def test_what_was_done_is_not_done_again(root: Path) -> None:
    set_up(FakeMachine(root), "dev")
    for kind in ("dev", "chat"):
        machine = FakeMachine(root)
        set_up(machine, kind)
        assert machine.commands == []


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_a_changed_file_and_more_extras_complete_what_is_there(root: Path, name: str) -> None:
    machine = FakeMachine(root)
    set_up(machine)
    set_up(machine, "dev")
    with (root / name).open("a") as stream:
        stream.write("# changed\n")
    set_up(machine, "dev")
    assert machine.steps()[2:] == [
        f"pip install -qq -c {root}/constraints.txt -e {root}",
        f"pip install -qq -c {root}/constraints.txt -e {root}[dev]",
        f"pip install -qq -c {root}/constraints.txt -e {root}[dev]",
    ]


def test_a_setup_that_was_cut_off_goes_on(root: Path) -> None:
    machine = FakeMachine(root, fails=["constraints.txt -e"])
    with pytest.raises(SetupError, match="pip failed"):
        set_up(machine)
    assert not list((root / ".venv").glob(".setup-*"))
    machine.fails = ()
    set_up(machine)
    assert machine.steps()[-1] == f"pip install -qq -c {root}/constraints.txt -e {root}"
    assert len([step for step in machine.steps() if step.startswith("venv")]) == 1


def test_the_next_way_to_torch_is_taken_and_the_failure_said(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = FakeMachine(root, fails=["--no-index", "--torch-backend"])
    set_up(machine)
    said = capsys.readouterr().err
    assert said.count("not this way: it failed") == 2
    assert "NO CPU BUILD COULD BE HAD" in said
    assert f"pip install -qq {REQUIREMENT}" in machine.steps()


def test_uv_is_told_which_environment_is_meant(root: Path) -> None:
    machine = FakeMachine(root, fails=["--no-index"])
    set_up(machine)
    (line,) = (step for step in machine.steps() if step.startswith("uv"))
    assert line.endswith(f"--python {root}/.venv/bin/python")


def test_torch_that_cannot_be_had_is_an_error_with_a_remedy(root: Path) -> None:
    with pytest.raises(SetupError, match="torch could not be installed"):
        set_up(FakeMachine(root, fails=[REQUIREMENT]))


def test_a_broken_environment_is_made_anew(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / ".venv" / "lib").mkdir(parents=True)
    set_up(FakeMachine(root))
    assert "is incomplete: making it anew" in capsys.readouterr().err
    assert not (root / ".venv" / "lib").exists()


def test_without_ensurepip_the_machines_own_pip_stands_in(root: Path) -> None:
    machine = FakeMachine(root, has_ensurepip=False)
    set_up(machine)
    assert machine.steps()[:2] == [
        f"venv {root}/.venv --without-pip --clear",
        f"pip --python {root}/.venv/bin/python install -qq pip",
    ]


def test_without_any_pip_it_says_what_to_install(root: Path) -> None:
    machine = FakeMachine(root, has_ensurepip=False, fails=["install -qq pip"])
    with pytest.raises(SetupError, match=r"apt-get install python3\.11-venv"):
        set_up(machine)
    assert not (root / ".venv").exists()


def test_an_error_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise SetupError("no Python. Install one.")

    monkeypatch.setattr(Environment, "set_up", fail)
    assert setup_env.main(["chat"]) == 2
    assert capsys.readouterr().err == "[setup] error: no Python. Install one.\n"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with our Makefile, a setup that does nothing, and a `llava` that prints its arguments."""
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "setup_env.py").touch()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    fake = tmp_path / ".venv" / "bin" / "llava"
    fake.write_text(
        f"#!{sys.executable}\nimport json, sys\nprint(json.dumps([sys.argv[1:], sys.stdin.read()]))\n"
    )
    fake.chmod(0o755)
    return tmp_path


def make_chat(clone: Path, *variables: str) -> list[object]:
    # As from a shell, even when `make test` runs this.
    surroundings = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))
    }
    done = subprocess.run(
        ["make", "-s", "chat", *variables],
        cwd=clone,
        env=surroundings,
        capture_output=True,
        text=True,
        check=True,
        input="typed",
    )
    answer = json.loads(done.stdout)
    assert isinstance(answer, list)
    return answer


@pytest.mark.parametrize(
    "prompt",
    [
        'What is "this"?',
        "it's $5, or $HOME, or $(HOME)",
        "`touch bad` $(shell touch bad) \\ * ~ # ; & | > bad",
        "--help",
        "two  spaces",
    ],
)
def test_make_chat_passes_a_prompt_as_it_was_typed(clone: Path, prompt: str) -> None:
    answer = make_chat(clone, f"PROMPT={prompt}", "IMAGE=my picture's.jpg")
    assert answer == [["chat", "--image=my picture's.jpg", f"--prompt={prompt}"], ""]
    assert not (clone / "bad").exists()


def test_make_chat_without_a_terminal_does_not_wait_for_one(clone: Path) -> None:
    assert make_chat(clone) == [["chat"], ""]
