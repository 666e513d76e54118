from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

from tuneloop.base.environment import cores, environment, quiet_libraries

LANGUAGE = ("TUNELOOP_LANG", "LC_ALL", "LC_MESSAGES", "LANG")
OFFLINE = ("TUNELOOP_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*LANGUAGE, *OFFLINE, "TUNELOOP_HOME", "HF_ENDPOINT", "TUNELOOP_DEBUG"):
        monkeypatch.delenv(name, raising=False)


def test_nothing_is_set() -> None:
    found = environment()
    assert found.home == Path.home() / ".cache" / "tuneloop"
    assert (found.language, found.offline, found.hub_endpoint, found.verbose) == ("en", False, "", False)


def test_home_is_taken_with_its_tilde(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("TUNELOOP_HOME", "~/kept")
    assert environment().home == tmp_path / "kept"
    monkeypatch.setenv("TUNELOOP_HOME", "")
    assert environment().home == tmp_path / ".cache" / "tuneloop"


def test_the_first_language_that_is_set_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value, expected in reversed(
        [
            ("TUNELOOP_LANG", "zh", "zh"),
            ("LC_ALL", "en_GB.UTF-8", "en"),
            ("LC_MESSAGES", "zh_CN.UTF-8", "zh"),
            ("LANG", "C", "en"),
        ]
    ):
        monkeypatch.setenv(name, value)
        assert environment().language == expected, name


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [("TUNELOOP_LANG", "CN", "zh"), ("TUNELOOP_LANG", " zh-CN ", "zh"), ("TUNELOOP_LANG", "English", "en"),
     ("TUNELOOP_LANG", "fr", "fr"), ("LANG", "fr_FR.UTF-8", "en"), ("LANG", "zh_TW.UTF-8", "zh")],
)  # fmt: skip
def test_a_wrong_word_of_our_own_is_kept_to_be_told(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: str
) -> None:
    monkeypatch.setenv(name, value)
    assert environment().language == expected


@pytest.mark.parametrize("name", OFFLINE)
@pytest.mark.parametrize(
    ("value", "expected"), [("1", True), ("true", True), (" ON ", True), ("0", False), ("", False), ("no", False)]
)
def test_any_of_three_switches_means_offline(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: bool
) -> None:
    monkeypatch.setenv(name, value)
    assert environment().offline is expected


def test_no_other_file_reads_a_variable() -> None:
    """Handing the whole environment on to a child process is no reading."""
    source = Path(str(files("tuneloop")))
    for path in source.rglob("*.py"):
        if path.name == "environment.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute | ast.Subscript):
                assert not re.match(r"os\.(getenv|environ[.\[])", ast.unparse(node)), f"{path}: {ast.unparse(node)}"


def test_every_variable_is_told_in_its_docstring() -> None:
    path = Path(str(files("tuneloop").joinpath("base/environment.py")))
    text = path.read_text(encoding="utf-8")
    told = set(re.findall(r"\b[A-Z][A-Z_]{3,}\b", " ".join(re.findall(r'"""(.*?)"""', text, re.S))))
    read = set(re.findall(r'(?:get|_flag)\("([A-Z_]+)"', text))
    assert read <= told | {"LANG"}


def test_what_a_user_set_for_a_library_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
    quiet_libraries()
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"


def test_importing_tuneloop_or_its_command_line_loads_nothing_heavy() -> None:
    code = "import sys, tuneloop, tuneloop.cli.main; print(sorted({'torch','transformers','peft','pyarrow','fastapi'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_waiting_threads_soon_sleep_unless_the_user_says_otherwise() -> None:
    """OpenMP reads the policy when torch is loaded, and GOMP_SPINCOUNT goes before it."""
    code = "import os; {first}; import tuneloop; print(os.environ['OMP_WAIT_POLICY'], os.environ.get('GOMP_SPINCOUNT'))"
    for first, said in (("pass", "passive 3000"), ("os.environ['OMP_WAIT_POLICY'] = 'active'", "active None"),
                        ("os.environ['GOMP_SPINCOUNT'] = '7'", "passive 7")):  # fmt: skip
        bare = {k: v for k, v in os.environ.items() if k not in {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}}
        out = subprocess.run([sys.executable, "-c", code.format(first=first)], capture_output=True, text=True, check=True,
                             env=bare)  # fmt: skip
        assert out.stdout.strip() == said


def groups(folder: Path, lines: str, files: dict[str, str]) -> tuple[Path, Path]:
    """What /proc/self/cgroup and /sys/fs/cgroup hold on some machine."""
    root = folder / "cgroup"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    own = folder / "own"
    own.write_text(lines)
    return own, root


@pytest.mark.parametrize(
    ("lines", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "100000 100000\n"}, 1),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "50000 100000\n"}, 1),
        ("0::/docker/of-the-host\n", {"cpu.max": "90000 100000\n"}, 1),
        ("4:cpu,cpuacct:/x\n0::/\n", {"cpu,cpuacct/x/cpu.cfs_quota_us": "100000\n",
                                      "cpu,cpuacct/x/cpu.cfs_period_us": "100000\n"}, 1),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ("0::/\n", {"cpu.max": "12800000 100000\n"}, None),
        ("0::/\n", {}, None),
    ],
)  # fmt: skip
def test_a_containers_share_of_the_cores_counts(
    tmp_path: Path, lines: str, files: dict[str, str], expected: int | None
) -> None:
    tied = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert cores(*groups(tmp_path, lines, files)) == (expected or tied)


def test_a_real_cgroup_limits_the_threads_of_a_program() -> None:
    """Where the kernel lets us make one (version 1 or 2, as a superuser)."""
    root = Path("/sys/fs/cgroup")
    one, two = root / "cpu" / "tuneloop-test", root / "tuneloop-test"
    group = one if one.parent.is_dir() else two
    try:
        group.mkdir()
    except OSError:
        pytest.skip("no cgroup can be made here")
    try:
        try:
            limit, text, members = ("cpu.cfs_quota_us", "50000", "tasks") if group == one else ("cpu.max", "50000 100000", "cgroup.procs")  # fmt: skip
            (group / limit).write_text(text)
        except OSError:
            pytest.skip("this cgroup takes no limit of cores")
        code = (
            f"import os; open({str(group / members)!r}, 'w').write(str(os.getpid())); import tuneloop;"
            "from tuneloop.base.environment import cores; print(cores(), os.environ.get('OMP_NUM_THREADS'))"
        )
        bare = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=bare)
        several = len(os.sched_getaffinity(0)) > 1
        assert out.stdout.split() == ["1", "1" if several else "None"]
    finally:
        group.rmdir()
