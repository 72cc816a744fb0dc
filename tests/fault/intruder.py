"""
An intruder who runs code in a process: makes system calls there, by ptrace(2), to see what they get. x86-64 only, and
for root.
"""
import contextlib
import ctypes
import os
import pathlib
import platform

import pytest

import servers

SEIZE, INTERRUPT, DETACH, GETREGS, SETREGS, SINGLESTEP, CONT = 0x4206, 0x4207, 17, 12, 13, 9, 7
SYSCALL = b"\x0f\x05"
ALL_KINDS = 0x40000000  # __WALL: threads, too
REGISTERS = ("r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss fs_base gs_base "
             "ds es fs gs").split()
ARGUMENTS = "rdi rsi rdx r10 r8 r9".split()
NUMBERS = {"mmap": 9, "mprotect": 10, "open": 2, "ioctl": 16, "getpid": 39, "socket": 41, "clone": 56, "fork": 57,
           "execve": 59, "kill": 62, "mkdir": 83, "unlink": 87, "ptrace": 101, "setuid": 105, "setresuid": 117,
           "capset": 126, "mount": 165, "init_module": 175, "keyctl": 250, "unshare": 272, "vmsplice": 278,
           "process_vm_readv": 310, "bpf": 321, "io_uring_setup": 425, "clone3": 435}
needs_root = pytest.mark.skipif(os.getuid() != 0 or platform.machine() != "x86_64", reason="for root on x86-64")

_ptrace = ctypes.CDLL(None, use_errno=True).ptrace
_ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


class Registers(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ulonglong) for name in REGISTERS]


class Killed(Exception):
    """The process did not survive; the argument is its wait status."""


def trace(request, thread, data=None):
    if _ptrace(request, thread, None, data) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def threads(process, name=None):
    """The ids of its threads; those of that name only, as soon as one has given itself that name."""
    def found():
        tasks = pathlib.Path(f"/proc/{process.pid}/task").iterdir()
        return [int(task.name) for task in tasks if name in (None, (task / "comm").read_text().strip())]
    return servers.wait_for(found, f"a thread {name}")


@contextlib.contextmanager
def hanging(thread):
    """It does nothing at all, while all other threads go on."""
    trace(SEIZE, thread)
    trace(INTERRUPT, thread)
    os.waitpid(thread, ALL_KINDS)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            trace(DETACH, thread)


class Intruder:
    """In one thread that hangs, and waits in a system call: the instruction for one is right behind it."""

    def __init__(self, thread):
        self.thread, self.goes_on = thread, False
        servers.wait_for(self._waits_in_call, "the thread to wait in a system call")
        self.before = self._registers()
        self.room = self.before.rsp - 4096  # below the stack, and what may be used there

    def _waits_in_call(self):
        """If not, for it had something to do when it was made to hang, it goes on until it is asked again."""
        if self.goes_on:
            trace(INTERRUPT, self.thread)
            os.waitpid(self.thread, ALL_KINDS)
        with open(f"/proc/{self.thread}/mem", "rb", buffering=0) as memory:
            memory.seek(self._registers().rip - len(SYSCALL))
            self.goes_on = memory.read(len(SYSCALL)) != SYSCALL
        if self.goes_on:
            trace(CONT, self.thread)
        return not self.goes_on

    def _registers(self):
        registers = Registers()
        trace(GETREGS, self.thread, ctypes.byref(registers))
        return registers

    def text(self, text, at=0):
        """Puts it into the memory of the process; its address."""
        with open(f"/proc/{self.thread}/mem", "r+b", buffering=0) as memory:
            memory.seek(self.room + at)
            memory.write(text.encode() + b"\0")
        return self.room + at

    def call(self, name, *arguments):
        """The result of the system call, or the name of its error."""
        registers = Registers.from_buffer_copy(self.before)
        registers.rip -= len(SYSCALL)
        registers.rax, registers.orig_rax = NUMBERS[name], 0xffffffffffffffff
        for register, argument in zip(ARGUMENTS, arguments):
            value = self.text(argument) if isinstance(argument, str) else argument
            setattr(registers, register, value & 0xffffffffffffffff)
        trace(SETREGS, self.thread, ctypes.byref(registers))
        trace(SINGLESTEP, self.thread)
        _, status = os.waitpid(self.thread, ALL_KINDS)
        if not os.WIFSTOPPED(status):
            raise Killed(status)
        result = ctypes.c_longlong(self._registers().rax).value
        trace(SETREGS, self.thread, ctypes.byref(self.before))
        if -4096 < result < 0:
            import errno
            return errno.errorcode[-result]
        return result


@contextlib.contextmanager
def intruder_in(process, name="worker"):
    thread = threads(process, name)[0]
    with hanging(thread):
        yield Intruder(thread)
