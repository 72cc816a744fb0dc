"""What processes have used: CPU time, memory; and what the kernel holds."""
import os
import pathlib
import re
import time

PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
CPU_CLOCK_OF_PROCESS = 2  # the last bits of a clock id: all that a process has run, as the scheduler counted it


def _stat(pid):
    """The fields of /proc/PID/stat behind the name, which may hold spaces."""
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def family(root):
    """The ids of a process and of all that descend from it."""
    children = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                children.setdefault(int(_stat(entry)[1]), []).append(int(entry))
            except (FileNotFoundError, ProcessLookupError):
                continue
    members = [root]
    for member in members:
        members.extend(children.get(member, []))
    return members


def _cpu_of(pid):
    """
    utime + stime of a process with all its threads, to the nanosecond and not in ticks as /proc has them; and what its
    children have used that have ended.
    """
    own = time.clock_gettime((~pid << 3) | CPU_CLOCK_OF_PROCESS)
    ended_user, ended_system = _stat(pid)[13:15]
    return own + (int(ended_user) + int(ended_system)) / TICKS_PER_SECOND


def cpu_seconds(root):
    """CPU time of a process and its family so far, in user and kernel mode."""
    return sum(_cpu_of(pid) for pid in family(root))


def memory_kib(root):
    """Proportional set size of a family: pages that several processes share count once."""
    return sum(int(re.search(r"^Pss:\s+(\d+)", pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)[1])
               for pid in family(root))


def kernel_kib():
    """The kernel's own objects (sockets, descriptors, epoll items) and what lies in TCP buffers, of the machine."""
    slab = int(re.search(r"^Slab:\s+(\d+)", pathlib.Path("/proc/meminfo").read_text(), re.M)[1])
    buffers = int(re.search(r"^TCP:.* mem (\d+)", pathlib.Path("/proc/net/sockstat").read_text(), re.M)[1])
    return slab + buffers * PAGE_KIB
