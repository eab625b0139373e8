"""The system calls that a program in the sandbox is refused: a filter in the kernel's byte code, for bwrap --seccomp.

The format is the kernel's (Documentation/userspace-api/seccomp_filter.rst; struct sock_filter in linux/filter.h). It is
written out here, since libseccomp's Python binding is on no package index.

What is refused is listed, not what is allowed: an interpreter's calls change with libc and kernel, and a program that
fails for want of a harmless one would count as wrong. What the list leaves open is bounded by namespaces and limits.
"""

from __future__ import annotations

import errno
import platform
import struct
from collections.abc import Iterable

# Processes and threads: root's are not counted by RLIMIT_NPROC (kernel/fork.c, INIT_USER), so none may start at all.
# Sockets; memory outside of the address space that is limited; other processes; mounts and namespaces; keyrings that
# namespaces do not divide; interfaces of the kernel that have let programs out before.
REFUSED = {
    "x86_64": {
        "clone": 56, "fork": 57, "vfork": 58, "clone3": 435,
        "socket": 41, "socketpair": 53, "connect": 42, "bind": 49, "listen": 50,
        "shmget": 29, "semget": 64, "msgget": 68, "mq_open": 240, "memfd_create": 319, "memfd_secret": 447,
        "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "pidfd_open": 434, "pidfd_getfd": 438,
        "kcmp": 312, "process_madvise": 440,
        "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "open_tree": 428, "move_mount": 429,
        "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "mount_setattr": 442,
        "unshare": 272, "setns": 308, "open_by_handle_at": 304,
        "add_key": 248, "request_key": 249, "keyctl": 250,
        "bpf": 321, "perf_event_open": 298, "userfaultfd": 323, "fanotify_init": 300, "personality": 135,
        "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427,
    },
    "aarch64": {
        "clone": 220, "clone3": 435,
        "socket": 198, "socketpair": 199, "connect": 203, "bind": 200, "listen": 201,
        "shmget": 194, "semget": 190, "msgget": 186, "mq_open": 180, "memfd_create": 279, "memfd_secret": 447,
        "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "pidfd_open": 434, "pidfd_getfd": 438,
        "kcmp": 272, "process_madvise": 440,
        "mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51, "open_tree": 428, "move_mount": 429,
        "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "mount_setattr": 442,
        "unshare": 97, "setns": 268, "open_by_handle_at": 265,
        "add_key": 217, "request_key": 218, "keyctl": 219,
        "bpf": 280, "perf_event_open": 241, "userfaultfd": 282, "fanotify_init": 262, "personality": 92,
        "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427,
    },
}  # fmt: skip

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # linux/audit.h
X32_BIT = 0x40000000  # x86_64 kernels may know a second set of numbers above this one, which the list would not meet

LOAD, JUMP_IF_EQUAL, JUMP_IF_NOT_BELOW, RETURN = 0x20, 0x15, 0x35, 0x06
NUMBER_AT, ARCH_AT = 0, 4  # struct seccomp_data
KILL, REFUSE, ALLOW = 0x80000000, 0x00050000 | errno.EPERM, 0x7FFF0000


def known(machine: str | None = None) -> bool:
    """Whether there is a list for this processor."""
    return (machine or platform.machine()) in REFUSED


def filter_program(machine: str | None = None) -> bytes:
    """The filter as an array of struct sock_filter (8 bytes each): calls of REFUSED end with EPERM.

    A program of another architecture (32-bit calls on a 64-bit kernel) is killed. Raises KeyError: unknown machine.
    """
    name = machine or platform.machine()
    numbers = sorted(set(REFUSED[name].values()))
    lines = [(LOAD, 0, 0, ARCH_AT), (JUMP_IF_EQUAL, 1, 0, AUDIT_ARCH[name]), (RETURN, 0, 0, KILL)]
    lines += [(LOAD, 0, 0, NUMBER_AT), (JUMP_IF_NOT_BELOW, 0, 1, X32_BIT), (RETURN, 0, 0, KILL)]
    # A jump counts the lines to leave out: past the tests that remain and ALLOW, to REFUSE.
    lines += [(JUMP_IF_EQUAL, len(numbers) - at, 0, number) for at, number in enumerate(numbers)]
    return _packed([*lines, (RETURN, 0, 0, ALLOW), (RETURN, 0, 0, REFUSE)])


def _packed(lines: Iterable[tuple[int, int, int, int]]) -> bytes:
    return b"".join(struct.pack("=HBBI", *line) for line in lines)
