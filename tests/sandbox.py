"""`python sandbox.py ERRNO CALL... -- COMMAND...`: execute a command to which the kernel refuses system calls, as the
filters of containers do (seccomp(2)). A call is a name below, or name:N=VALUE, if only that argument is refused.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

NUMBERS = {
    "close_range": 436,
    "eventfd2": 290,
    "fchmod": 91,
    "fcntl": 72,
    "flock": 73,
    "getsockopt": 55,
    "ioctl": 16,
    "link": 86,
    "linkat": 265,
    "memfd_create": 319,
    "pidfd_open": 434,
    "pidfd_send_signal": 424,
    "prctl": 157,
    "prlimit64": 302,
    "recvmmsg": 299,
    "sched_getaffinity": 204,
    "sched_yield": 24,
    "sendmmsg": 307,
    "setsockopt": 54,
    "shutdown": 48,
    "sigaltstack": 131,
    "socketpair": 53,
    "sysinfo": 99,
    "waitid": 247,
}
"""Of x86-64."""

PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06  # of struct sock_filter, see bpf(4)
ALLOW, FAIL = 0x7FFF0000, 0x00050000
NUMBER_AT, ARGUMENTS_AT = 0, 16  # in struct seccomp_data


def program(error: int, calls: list[str]) -> bytes:
    """The filter."""
    steps: list[tuple[int, int, int, int]] = []
    for call in calls:
        name, _, condition = call.partition(":")
        steps.append((LOAD, 0, 0, NUMBER_AT))
        if condition:
            position, _, value = condition.partition("=")
            steps.append((JUMP_IF_EQUAL, 0, 3, NUMBERS[name]))
            steps.append((LOAD, 0, 0, ARGUMENTS_AT + 8 * int(position)))
            steps.append((JUMP_IF_EQUAL, 0, 1, int(value, 0)))
        else:
            steps.append((JUMP_IF_EQUAL, 0, 1, NUMBERS[name]))
        steps.append((RETURN, 0, 0, FAIL | error))
    steps.append((RETURN, 0, 0, ALLOW))
    return b"".join(struct.pack("HBBI", *step) for step in steps)


def enter(error: int, calls: list[str]) -> None:
    """From now on, for this process and all that it starts."""

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_void_p))

    code = program(error, calls)
    steps = ctypes.create_string_buffer(code)
    libc = ctypes.CDLL(None, use_errno=True)
    whole = Program(len(code) // 8, ctypes.addressof(steps))
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(whole), 0, 0
    ):
        raise OSError(ctypes.get_errno(), "no filter can be installed")


if __name__ == "__main__":
    at = sys.argv.index("--")
    enter(getattr(errno, sys.argv[1]), sys.argv[2:at])
    os.execvp(sys.argv[at + 1], sys.argv[at + 1 :])
