"""As much of Windows as a POSIX machine can play: run a command line of tuneloop with what Windows lacks taken away.

    python -m tests.windows prepare chats.jsonl --model tiny --then plan chats.yaml

Taken away: fcntl, resource and their like, os.fork and its like, POSIX signals, opening a folder. Text that is written
without a newline of its own gets Windows' line ends, and opening text without an encoding is an error (there it would be
GBK). The libraries below are loaded before: on Windows they are other builds.
"""

from __future__ import annotations

import builtins
import importlib
import io
import os
import shutil
import signal
import sys
import warnings
from typing import Any

MODULES = ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "readline", "curses", "posix_ipc")
FUNCTIONS = (
    "fork", "forkpty", "register_at_fork", "sched_getaffinity", "sched_setaffinity", "getuid", "geteuid", "getgid",
    "getegid", "getgroups", "chown", "lchown", "fchown", "fchmod", "getloadavg", "nice", "setsid", "mkfifo", "mknod",
    "killpg", "getpgid", "O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC", "posix_fallocate", "posix_fadvise", "sync", "fdatasync",
)  # fmt: skip
"""Not among them: what Python's own library calls on this system (statvfs for the free space, sendfile to copy)."""
SIGNALS = {"SIGABRT", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM"}
POSIX = ("pthread_sigmask", "pthread_kill", "alarm", "setitimer", "getitimer", "sigwait", "sigwaitinfo", "sigpending",
         "siginterrupt", "pause", "SIG_BLOCK", "SIG_UNBLOCK", "SIG_SETMASK")  # fmt: skip
LIBRARIES = ("torch", "transformers", "peft", "accelerate", "pyarrow.parquet", "sqlalchemy", "huggingface_hub", "psutil",
             "matplotlib.pyplot", "jieba", "sacrebleu", "tokenizers", "sentencepiece")  # fmt: skip


def take_away() -> None:
    """Make this process as like to one on Windows as it can be."""
    for name in LIBRARIES:
        importlib.import_module(name)
    for name in MODULES:
        sys.modules[name] = None  # type: ignore[assignment]  # importing it raises ImportError
    for name in FUNCTIONS:
        if hasattr(os, name):
            delattr(os, name)
    for name in [n for n in dir(signal) if n.startswith("SIG") and n[3:4] != "_" and n not in SIGNALS]:
        delattr(signal, name)
    for name in POSIX:
        delattr(signal, name)
    shutil._use_fd_functions = False  # type: ignore[attr-defined]  # there it deletes folders by their names
    _open_as_there()
    warnings.filterwarnings("error", category=EncodingWarning, module=r"tuneloop\b")


def _open_as_there() -> None:
    real_open, real_os_open = io.open, os.open

    def text(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
        newline = rest[3] if len(rest) > 3 else named.get("newline")
        if "b" not in mode and newline is None and set(mode) & set("wax+"):
            rest, named["newline"] = rest[:3], "\r\n"
        return real_open(file, mode, *rest, **named)

    def raw(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return real_os_open(path, flags, *rest, **named)

    io.open = builtins.open = text  # type: ignore[assignment]
    os.open = raw


def main() -> None:
    """Each command line of argv, split at --then; a line of dashes on stdout behind each."""
    take_away()
    from tuneloop.cli.main import main as tuneloop

    words = sys.argv[1:]
    while words:
        end = words.index("--then") if "--then" in words else len(words)
        sys.argv = ["tuneloop", *words[:end]]
        words = words[end + 1 :]
        try:
            tuneloop()
        except SystemExit as ended:
            if ended.code:
                raise
        print("-----", flush=True)


if __name__ == "__main__":
    main()
