"""Wheels for a machine without a network: gathered into one folder where there is one, unpacked beside the checkout
where there is none. Needs Python's own library only, and `pip` and `packaging` to gather.

    python -m tuneloop.selftest.wheels gather DIR          what a bare image with torch, transformers and peft lacks
    python -m tuneloop.selftest.wheels run DIR [REPORT …]  the proof, with the Python that runs this; see its --help
"""

from __future__ import annotations

import base64
import ctypes
import hashlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
MOST = 55_000_000
"""Bytes of the wheels and the files of the checkout together: what one upload to a cluster node takes."""
PYTHONS = ("3.12", "3.11")
PLATFORMS = ("manylinux1", "manylinux2010", "manylinux2014", *(f"manylinux_2_{n}" for n in range(5, 35)))
WANTED = ("transformers", "huggingface_hub", "pydantic", "typer", "rich", "SQLAlchemy", "PyYAML", "gguf", "filelock",
          "jinja2", "packaging", "bitsandbytes")  # fmt: skip
"""What a proof imports. pyarrow and the rest of tuneloop's needs are left to the image: they are large."""
THERE = {"numpy", "tokenizers", "safetensors", "regex", "accelerate", "peft", "psutil"}
"""What an image with torch, transformers and peft has: taken last, where there is room."""
NEVER = re.compile(r"torch|triton|nvidia-.*|cuda-.*")
LIBRARIES = re.compile(r"bitsandbytes/libbitsandbytes_(?:cpu|cuda(?P<cuda>\d+)|(?P<other>\w+))\.so")


def canonical(name: str) -> str:
    """A package's name as indexes compare it.

    >>> canonical("Typing_Extensions")
    'typing-extensions'
    """
    return re.sub(r"[-_.]+", "-", name).lower()


@dataclass(frozen=True, slots=True)
class RequiredWheel:
    """A wheel file, and what its name says (PEP 427)."""

    path: Path
    name: str
    version: str
    pythons: tuple[str, ...]
    abis: tuple[str, ...]
    platforms: tuple[str, ...]

    @classmethod
    def of(cls, path: Path) -> RequiredWheel:
        """
        >>> RequiredWheel.of(Path("x_y-1.0-cp39-abi3-manylinux_2_17_x86_64.whl")).name
        'x-y'
        """
        name, version, *_, pythons, abis, platforms = path.name.removesuffix(".whl").split("-")
        return cls(path, canonical(name), version, *(tuple(x.split(".")) for x in (pythons, abis, platforms)))

    def fits(self, minor: int) -> bool:
        """Whether Python 3.`minor` on Linux x86-64 can import it.

        >>> wheel = RequiredWheel.of(Path("x-1.0-cp39-abi3-manylinux_2_17_x86_64.whl"))
        >>> wheel.fits(12), wheel.fits(8), RequiredWheel.of(Path("x-1.0-cp311-cp311-manylinux1_x86_64.whl")).fits(12)
        (True, False, False)
        """
        if not any(p == "any" or p.startswith("manylinux") for p in self.platforms):
            return False
        if {"py3", f"py3{minor}", f"cp3{minor}"} & set(self.pythons):
            return True
        return "abi3" in self.abis and any(int(p[3:]) <= minor for p in self.pythons if p.startswith("cp3"))


def _numbers(version: str) -> list[int]:
    """
    >>> _numbers("2.11.0+cu130") < _numbers("2.11.1")
    True
    """
    return [int(n) for n in re.findall(r"\d+", version.partition("+")[0])]


def lacking(wheels: Iterable[RequiredWheel]) -> Iterator[RequiredWheel]:
    """Those that fit this Python, and that it has not, or in an older version."""
    for wheel in wheels:
        if not wheel.fits(sys.version_info.minor):
            continue
        try:
            if _numbers(metadata.version(wheel.name)) >= _numbers(wheel.version):
                continue
        except metadata.PackageNotFoundError:
            pass
        yield wheel


def unpack(folder: Path, target: Path) -> list[RequiredWheel]:
    """Unpack what is lacking of a folder's wheels into `target`; a wheel is a zip of what lies on the path."""
    taken = list(lacking(map(RequiredWheel.of, sorted(folder.glob("*.whl")))))
    for wheel in taken:
        with zipfile.ZipFile(wheel.path) as archive:
            archive.extractall(target)
    return taken


def _pins() -> dict[str, str]:
    lines = (CHECKOUT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {canonical(name): version for name, _, version in (line.partition("==") for line in lines) if version}


def _download(names: Iterable[str], python: str, target: Path) -> None:
    pins = _pins()
    wanted = [f"{name}=={pins[name]}" if name in pins else name for name in names]
    platforms = [word for p in PLATFORMS for word in ("--platform", f"{p}_x86_64")]
    how = [
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--implementation",
        "cp",
        "--python-version",
        python,
        *platforms,
    ]
    subprocess.run([sys.executable, "-m", "pip", "download", *how, "--dest", str(target), *wanted], check=True)


def _needs(wheel: Path, python: str) -> Iterator[str]:
    """Names that a wheel's metadata requires for this Python on Linux x86-64, extras left out."""
    from packaging.requirements import Requirement

    where = {"python_version": python, "python_full_version": f"{python}.0", "platform_machine": "x86_64",
             "sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "extra": "",
             "implementation_name": "cpython", "platform_python_implementation": "CPython"}  # fmt: skip
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        lines = archive.read(name).decode("utf-8").partition("\n\n")[0].splitlines()
    for line in lines:
        if line.startswith("Requires-Dist:"):
            need = Requirement(line.partition(":")[2].strip())
            if not need.marker or need.marker.evaluate(where):
                yield canonical(need.name)


def _closure(python: str, store: Path) -> list[Path]:
    """The wheels of what is wanted and of all that it needs, in the order they were asked for."""
    wanted = list(map(canonical, WANTED))
    seen, wheels = set(wanted), list[Path]()
    while wanted:
        with tempfile.TemporaryDirectory(dir=store) as place:
            _download(wanted, python, Path(place))
            got = {RequiredWheel.of(p).name: p.rename(store / p.name) for p in Path(place).glob("*.whl")}
        wheels += [got[name] for name in wanted]
        needed = [n for name in wanted for n in _needs(got[name], python)]
        wanted = [n for n in dict.fromkeys(needed) if n not in seen and not NEVER.fullmatch(n)]
        seen |= set(wanted)
    return wheels


def thinned(wheel: Path, target: Path, budget: int) -> tuple[Path, list[str]]:
    """bitsandbytes with the libraries of CUDA that there is room for, newest first, and what was left out.

    Its wheel holds one for each CUDA version and other makers' cards, eight times what one machine loads.
    """
    with zipfile.ZipFile(wheel) as archive:
        members = {i.filename: i for i in archive.infolist()}
        matches = {name: match for name in members if (match := LIBRARIES.fullmatch(name))}
        size = sum(i.compress_size for name, i in members.items() if name not in matches or "_cpu" in name)
        chosen = [name for name in members if name not in matches or "_cpu" in name]
        for name in sorted(matches, key=lambda n: -int(matches[n]["cuda"] or 0)):
            if matches[name]["cuda"] and size + members[name].compress_size <= budget:
                size += members[name].compress_size
                chosen.append(name)
        written = target / wheel.name
        with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as out:
            rows = []
            for name in chosen:
                if not name.endswith("/RECORD"):
                    content = archive.read(name)
                    out.writestr(name, content)
                    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
                    rows.append(f"{name},sha256={digest},{len(content)}")
            record = next(n for n in members if n.endswith("/RECORD"))
            out.writestr(record, "\n".join([*rows, f"{record},,", ""]))
    return written, sorted(name.rpartition("/")[2] for name in matches if name not in chosen)


def _checkout_size() -> int:
    """Bytes of the files of the checkout, or of the folder where git does not know it."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=CHECKOUT, capture_output=True, check=False)
    files = [CHECKOUT / os.fsdecode(n) for n in listing.stdout.split(b"\0") if n]
    if listing.returncode:
        files = [Path(at, name) for at, _, names in os.walk(CHECKOUT) if "/." not in at for name in names]
    return sum(path.lstat().st_size for path in files if path.exists())


def gather(folder: Path) -> None:
    """Fill the folder, and say what it took and what did not fit."""
    folder.mkdir(parents=True, exist_ok=True)
    budget = MOST - _checkout_size()
    with tempfile.TemporaryDirectory() as place:
        store = Path(place)
        wheels = list(dict.fromkeys(path for python in PYTHONS for path in _closure(python, store)))
        of = {path: RequiredWheel.of(path) for path in wheels}
        late = [p for p in wheels if of[p].name == "bitsandbytes"]
        last = sorted((p for p in wheels if of[p].name in THERE), key=lambda p: p.stat().st_size)
        first = [p for p in wheels if p not in late and p not in last]
        left = []
        for path in [*first, *late, *last]:
            size, note = path.stat().st_size, ""
            if path in late and size > budget:
                path, out = thinned(path, folder, budget)
                size, note = path.stat().st_size, f"  without {', '.join(out)}"
            elif size <= budget:
                path.rename(folder / path.name)
            if size > budget:
                left.append(path)
                continue
            budget -= size
            print(f"  {size / 1e6:6.1f} MB  {path.name}{note}", flush=True)
    for path in left:
        print(f"  did not fit: {path.name}")
    taken = sum(p.stat().st_size for p in folder.glob("*.whl"))
    print(f"{taken / 1e6:.1f} MB of wheels, {(MOST - budget) / 1e6:.1f} MB with the checkout")


def run(folder: Path, more: list[str]) -> int:
    """The proof with this Python as it is, what it lacks unpacked into a temporary folder; no network, no home."""
    with tempfile.TemporaryDirectory(prefix="tuneloop-wheels-", ignore_cleanup_errors=True) as place:
        for wheel in unpack(folder, Path(place, "site")):
            print(f"unpacked {wheel.name} {wheel.version}", flush=True)
        caches = {
            name: str(Path(place, "cache", name.lower()))
            for name in (
                "TUNELOOP_HOME",
                "HF_HOME",
                "XDG_CACHE_HOME",
                "MPLCONFIGDIR",
                "TRITON_CACHE_DIR",
                "TORCHINDUCTOR_CACHE_DIR",
            )
        }
        path = os.pathsep.join([str(Path(place, "site")), str(CHECKOUT)])
        environment = {**os.environ, **caches, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1",
                       "PYTHONNOUSERSITE": "1", "HF_HUB_OFFLINE": "1", "TUNELOOP_OFFLINE": "1"}  # fmt: skip
        command = [sys.executable, "-m", "tuneloop.selftest", *more]
        return subprocess.run(command, env=environment, preexec_fn=with_the_parent(), check=False).returncode


def with_the_parent() -> Callable[[], None]:
    """What a child does first: whatever ends its parent ends it as well, also where nothing can be caught (Linux)."""
    try:
        control = ctypes.CDLL(None).prctl
    except (OSError, AttributeError, TypeError):
        return lambda: None
    return lambda: control(1, signal.SIGKILL)


def main() -> int:
    verb, place, *more = sys.argv[1:]
    for stop in (signal.SIGTERM, signal.SIGHUP):  # an exit, so that temporary folders go
        signal.signal(stop, lambda *_: sys.exit(143))
    if verb == "gather":
        gather(Path(place))
        return 0
    return run(Path(place), more)


if __name__ == "__main__":
    sys.exit(main())
