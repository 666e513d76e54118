"""The parent of a training process: it takes the run up again where the system ends that for want of memory.

On a CPU running out of memory is no error that a program could catch: Linux ends the process with SIGKILL. So
`tuneloop train` and `tuneloop run` work in a child that is forked before anything heavy is imported. The parent, some
25 MB, waits; what it is sent goes to the child, and when it ends itself, so does the child. Where the system has ended
the child for memory the parent writes that down and forks another one, which resumes with smaller passes.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from pathlib import Path
from typing import NoReturn

from tuneloop.base.cgroups import control_groups
from tuneloop.base.environment import launch
from tuneloop.base.errors import TuneloopError
from tuneloop.cli.verb import spoken

VERBS = ("train", "run")
"""Verbs that train in the process of the command line."""
PASSED_ON = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
PR_SET_PDEATHSIG = 1
SENT_BY_KERNEL = 0x80
"""si_code of a signal that the terminal has sent, which the child gets from there as well."""

_pipe: int | None = None
_taken_up: Path | None = None


def begun(run: Path) -> None:
    """The run that this process trains, reading to its parent, if it has one."""
    if _pipe is not None:
        os.write(_pipe, os.fsencode(run.absolute()) + b"\n")


def taken_up() -> Path | None:
    """The run that this process is to go on with, because the system has ended the one before it."""
    return _taken_up


def is_needed(words: list[str]) -> bool:
    """Whether this command line trains, in a process of its own, on a system that ends processes for memory."""
    trains = next((word for word in spoken(words)[0] if not word.startswith("-")), "") in VERBS
    helps = any(word in ("-h", "--help") for word in words)
    return trains and not helps and sys.platform.startswith("linux") and launch()[0] == 1


def is_light() -> bool:
    """Whether this process may be forked: nothing heavy is in it, and no thread that a child would lack."""
    return "torch" not in sys.modules and threading.active_count() == 1


def split() -> None:
    """Go on as the child of a parent that watches. The parent does not return: it exits as its last child did."""
    global _pipe, _taken_up
    numbers = [getattr(signal, name) for name in PASSED_ON]  # also those that are ignored: the child may handle them
    while True:
        before, (reading, writing) = kills(), os.pipe()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {*numbers, signal.SIGCHLD})
        parent, pid = os.getpid(), os.fork()
        if pid == 0:
            os.close(reading)
            _end_with(parent)
            _leave_group()
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            _pipe = writing
            return
        os.close(writing)
        status = _waited(pid, numbers)
        run = _last_line(reading)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL and run and kills() > before):
            _exit_as(status)
        if not _written_down(run):
            _exit_as(status)
        _taken_up = run


def _end_with(parent: int) -> None:
    """Whoever ends the parent means the run."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _leave_group() -> None:
    """Out of the parent's process group, where no terminal needs it there: what is sent to the group comes once, by way
    of the parent."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR))
    except OSError:
        os.setpgid(0, 0)


def _waited(pid: int, numbers: list[signal.Signals]) -> int:
    """The wait status of the child, once it has ended; until then signals go on to it."""
    while True:
        info = signal.sigwaitinfo({*numbers, signal.SIGCHLD})
        if info.si_signo != signal.SIGCHLD:
            if info.si_code != SENT_BY_KERNEL:  # the child is in the same terminal
                os.kill(pid, info.si_signo)
            continue
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status


def _last_line(pipe: int) -> Path | None:
    """What the child has said of its run."""
    os.set_blocking(pipe, False)
    try:
        lines = os.read(pipe, 1 << 16).split(b"\n")
    except BlockingIOError:
        lines = []
    finally:
        os.close(pipe)
    paths = [line for line in lines if line]
    return Path(os.fsdecode(paths[-1])) if paths else None


def _written_down(run: Path) -> bool:
    """Note in the run that memory has ended it. False where its recipe wants no remedy for that, where nothing was done
    about the last such end (then loading the model is too much), and where what was ended was no training any more."""
    from tuneloop.recipe.recipe import read_recipe
    from tuneloop.runs.run import Run

    ended = Run(run)
    try:
        watch = read_recipe(ended.recipe)[0].watch
        if not (watch.enabled and watch.remedies.memory) or ended.is_killed() or ended.trained_folder() is not None:
            return False
        ended.note_kill()
    except (TuneloopError, OSError):
        return False
    return True


def _exit_as(status: int) -> NoReturn:
    """End as the child did, by the same signal if one ended it."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        os._exit(128 + number)  # the first process of a container cannot end so
    os._exit(os.WEXITSTATUS(status))


def kills(own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """How many processes the system has ended for want of memory: in this process's control group, else on this
    machine."""
    files = {1: "memory.oom_control", 2: "memory.events"}
    counts = [_count(group.folder / files[group.version]) for group in control_groups("memory", own, root)]
    return next((n for n in (*counts, _count(Path("/proc/vmstat"))) if n is not None), 0)


def _count(file: Path) -> int | None:
    """The number behind "oom_kill" in a file of the kernel's; None where there is none."""
    try:
        words = dict(line.split()[:2] for line in file.read_text(encoding="ascii").splitlines())
        return int(words["oom_kill"])
    except (OSError, ValueError, KeyError):
        return None
