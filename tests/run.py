"""Run the suite with no network but loopback: `make test` calls this. Arguments go to pytest.

Where the kernel allows it the whole run, children included, moves into a network namespace of its own that has only a
loopback device. Elsewhere (not Linux, or not permitted) the tests refuse connections inside each Python process, and
this says so.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1


def isolate() -> bool:
    """Move this process into a loopback-only network namespace; False where that cannot be done."""
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(CLONE_NEWNET) != 0:
        if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0:
            return False
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    return _loopback_up()


def _loopback_up() -> bool:
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("16sh14x", b"lo", 0)
        try:
            flags = struct.unpack("16sh14x", fcntl.ioctl(probe, SIOCGIFFLAGS, request))[1]
            fcntl.ioctl(probe, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))
        except OSError:
            return False
    return True


def main() -> None:
    if isolate():
        print("network: a namespace with loopback only", flush=True)
    else:
        os.environ["TUNELOOP_TEST_NO_NETWORK"] = "1"
        print("network: no namespace here; connections are refused inside each Python process", flush=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    wanted = sys.argv[1:] or ["-n", str(max(2, os.cpu_count() or 2)), "--dist", "loadfile"]
    os.execv(sys.executable, [sys.executable, "-m", "pytest", *wanted])


if __name__ == "__main__":
    main()
