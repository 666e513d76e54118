"""Runs a program that must not outlive this process's standard input: python leash.py PROGRAM ARGUMENT …

The program gets a process group of its own, and all of it ends when standard input does: when whoever started this has
ended, whatever way. Its exit status is that of the program. It is run as a file by itself, and imports nothing of ours.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading


def _end_with_parent() -> None:
    """On Linux the program also ends where this process is killed (prctl, PR_SET_PDEATHSIG)."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def main() -> None:
    """Run the program, and end it with standard input: politely, and after ten seconds at once."""
    posix = os.name == "posix"
    program = subprocess.Popen(
        sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=posix, preexec_fn=_end_with_parent if posix else None
    )

    def signalled(number: int) -> None:
        with contextlib.suppress(OSError):
            if posix:
                os.killpg(program.pid, number)
            else:
                program.kill()

    def watch() -> None:
        while sys.stdin.buffer.read(4096):
            pass
        signalled(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.wait(10)
        signalled(getattr(signal, "SIGKILL", signal.SIGTERM))

    threading.Thread(target=watch, daemon=True).start()
    code = program.wait()
    signalled(getattr(signal, "SIGKILL", signal.SIGTERM))  # whatever it has left behind
    os._exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()
