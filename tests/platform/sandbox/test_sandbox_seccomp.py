"""The filter against the kernel's own tables, and run instruction by instruction on machines that are not this one."""

from __future__ import annotations

import errno
import re
import struct
from pathlib import Path

import pytest

from megavlm.platform.sandbox import seccomp

# linux-libc-dev brings both tables on every machine, as arm64's is the generic one
TABLES = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
AUDIT = {"x86_64": 62 | 0x80000000 | 0x40000000, "aarch64": 183 | 0x80000000 | 0x40000000}  # EM_*, 64 bits, little end
I386 = 3 | 0x40000000
NOT_IN_OLD_TABLES = {"memfd_secret"}


@pytest.mark.parametrize("machine", list(TABLES))
def test_the_numbers_are_the_kernels(machine):
    if not TABLES[machine].exists():
        pytest.skip("no kernel headers here (linux-libc-dev)")
    table = dict(re.findall(r"#define __NR_(\w+)\s+(\d+)", TABLES[machine].read_text()))
    numbers = {name: number for name, number in seccomp.REFUSED[machine].items() if name not in NOT_IN_OLD_TABLES}
    assert numbers == {name: int(table[name]) for name in numbers}
    assert numbers.keys() | {"fork", "vfork"} >= seccomp.REFUSED["x86_64"].keys() - NOT_IN_OLD_TABLES


def verdict(program: bytes, arch: int, number: int) -> int:
    """What the kernel's machine (classic BPF) returns: the four instructions that occur, by their definitions."""
    lines = list(struct.iter_unpack("=HBBI", program))
    at, value = 0, 0
    while True:
        code, when_true, when_false, constant = lines[at]
        at += 1
        match code:
            case 0x20:  # BPF_LD | BPF_W | BPF_ABS, of struct seccomp_data {int nr; __u32 arch; ...}
                value = {0: number, 4: arch}[constant]
            case 0x15:  # BPF_JMP | BPF_JEQ | BPF_K
                at += when_true if value == constant else when_false
            case 0x35:  # BPF_JMP | BPF_JGE | BPF_K
                at += when_true if value >= constant else when_false
            case 0x06:  # BPF_RET | BPF_K
                return constant
            case _:
                raise AssertionError(f"an instruction that is not expected: {code:#x}")


@pytest.mark.parametrize("machine", list(TABLES))
def test_exactly_the_listed_calls_are_refused(machine):
    program, refused = seccomp.filter_program(machine), set(seccomp.REFUSED[machine].values())
    for number in range(600):
        answer = verdict(program, AUDIT[machine], number)
        assert answer == (0x00050000 | errno.EPERM if number in refused else 0x7FFF0000)  # SECCOMP_RET_ERRNO, _ALLOW


@pytest.mark.parametrize("machine", list(TABLES))
def test_calls_of_another_architecture_end_the_program(machine):
    program, killed = seccomp.filter_program(machine), 0x80000000  # SECCOMP_RET_KILL_PROCESS
    assert {verdict(program, I386, number) for number in range(600)} == {killed}
    assert verdict(program, AUDIT[machine], 0x40000000 | 41) == killed  # x32


def test_a_machine_without_a_list_is_not_known():
    assert seccomp.known("x86_64") and not seccomp.known("riscv64")
