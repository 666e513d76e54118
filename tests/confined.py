"""A command line in a child process that the machine refuses something: a full disk, a read-only one, others' files.

The refusals are the kernel's own. A private mount namespace gives a small disk and read-only mounts, where the kernel
allows one; a superuser's child gives up the right to pass over file permissions, so that they count for it as for anyone.
The child is forked from the test's process, so that a hundred command lines do not cost a hundred imports of torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
CAP_VERSION = 0x20080522
PASSES_OVER = (1, 2, 3)
"""CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER: what lets a superuser pass over permissions."""


@dataclass(frozen=True)
class Said:
    """How a command line ended; of several, the last one, and the status of each."""

    status: int
    out: str
    err: str
    each: tuple[int, ...] = ()


def _nothing(n: int) -> None:
    """Is done before each line."""


def run(
    lines: list[list[str]], folder: Path, limit: Callable[[], None], *, answers: str = "",
    before: Callable[[int], None] = _nothing, **environment: str,
) -> Said:  # fmt: skip
    """`tuneloop` with each of these lines in `folder`, in one child on whose process `limit` has been put.

    `before(n)` is done in the child before line n, and once more after the last. What is said goes to files beside
    `folder`, which are none of what is limited.
    """
    names = [folder.with_name(f"{folder.name}.{kind}") for kind in ("in", "out", "err", "status")]
    names[0].write_text(answers, encoding="utf-8")
    pid = os.fork()
    if pid == 0:
        _child(lines, folder, limit, names, before, environment)
    os.waitpid(pid, 0)
    out, err, status = (name.read_text(encoding="utf-8", errors="replace") for name in names[1:])
    each = tuple(map(int, status.split()))
    return Said(each[-1], out, err, each)


def _child(
    lines: list[list[str]], folder: Path, limit: Callable[[], None], names: list[Path], before: Callable[[int], None],
    more: dict[str, str],
) -> None:  # fmt: skip
    flags = (os.O_RDONLY, *[os.O_WRONLY | os.O_CREAT | os.O_TRUNC] * 3)
    handles = [os.open(name, flag, 0o600) for name, flag in zip(names, flags, strict=True)]
    try:
        for number, mode in enumerate("rww"):
            os.dup2(handles[number], number)
            setattr(
                sys, ("stdin", "stdout", "stderr")[number], os.fdopen(number, mode, encoding="utf-8", closefd=False)
            )
        os.environ.update({"TUNELOOP_LANG": "en", **more})
        os.environ.pop("TUNELOOP_DEBUG", None)
        limit()
        os.chdir(folder)
        for n, words in enumerate(lines):
            before(n)
            os.write(handles[3], f"{_status(words)} ".encode())
        before(len(lines))
    except BaseException:
        traceback.print_exc()
        os.write(handles[3], b"99")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _status(words: list[str]) -> int:
    from tuneloop.cli.main import main

    sys.argv = ["tuneloop", *words]
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 98


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _own_mounts() -> bool:
    """Give this process mounts of its own; False where the kernel does not."""
    if not sys.platform.startswith("linux"):
        return False
    libc, user, group = _libc(), os.getuid(), os.getgid()
    if libc.unshare(CLONE_NEWNS) != 0:
        if libc.unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0:
            return False
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            Path("/proc/self", name).write_text(text)
    return libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) == 0


def _mount(source: str, target: Path, kind: str, flags: int, options: str) -> None:
    done = _libc().mount(source.encode(), os.fsencode(target), kind.encode() or None, flags, options.encode() or None)
    if done != 0:
        raise OSError(ctypes.get_errno(), f"mount {source}", str(target))


@cache
def can_mount() -> bool:
    """Whether a child of this process may have mounts of its own."""
    if not sys.platform.startswith("linux"):
        return False
    pid = os.fork()
    if pid == 0:
        try:
            fine = _own_mounts()
            _mount("tmpfs", Path("/mnt"), "tmpfs", 0, "size=64k")
        except OSError:
            fine = False
        os._exit(0 if fine else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def require_mounts() -> None:
    if not can_mount():
        pytest.skip("this kernel gives no mounts of one's own")


def small_disk(at: Path, megabytes: int, fill: Callable[[], object], *, full: bool = True) -> None:
    """A disk of this size at `at`; `fill` puts files there, then what is left is filled to the last byte if `full`."""
    _own_mounts()
    _mount("tmpfs", at, "tmpfs", 0, f"size={megabytes}m")
    fill()
    if full:
        fill_up(at)


def without_fonts() -> None:
    """This process sees none of the fonts that the system has."""
    _own_mounts()
    for folder in (Path("/usr/share/fonts"), Path("/usr/local/share/fonts")):
        if folder.is_dir():
            _mount("tmpfs", folder, "tmpfs", 0, "size=64k")


def fill_up(folder: Path) -> None:
    """Leave no byte on the disk of this folder."""
    with (folder / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(65536))


def read_only(*folders: Path) -> None:
    """These folders become read-only mounts."""
    _own_mounts()
    for folder in folders:
        _mount(str(folder), folder, "", MS_BIND, "")
        _mount("none", folder, "", MS_BIND | MS_REMOUNT | MS_RDONLY, "")


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def as_anyone() -> None:
    """From here on, file permissions count for this process, whoever it belongs to."""
    if os.name != "posix" or os.geteuid() != 0:
        return
    header, sets, libc = _Header(CAP_VERSION, 0), (_Sets * 2)(), _libc()
    if libc.capget(ctypes.byref(header), sets) != 0:
        raise OSError(ctypes.get_errno(), "capget")
    for bit in PASSES_OVER:
        sets[0].effective &= ~(1 << bit)
        sets[0].permitted &= ~(1 << bit)
    if libc.capset(ctypes.byref(header), sets) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def given_away(folder: Path, *, private: bool = False) -> None:
    """Everything below belongs to somebody else: to be read by all, or by nobody else. Ours only a superuser can give."""
    for path in [folder, *folder.rglob("*")]:
        mode = (0o755 if path.is_dir() else 0o644) & (0o700 if private else 0o777)
        if os.geteuid() == 0:
            os.chown(path, 65534, 65534)
            path.chmod(mode)
    if os.geteuid() != 0:  # the nearest that an ordinary user can do: take one's own rights away
        for path in [*folder.rglob("*"), folder]:
            path.chmod(0o000 if private else (0o555 if path.is_dir() else 0o444))
