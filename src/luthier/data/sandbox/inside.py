"""The process that runs a program: it locks itself in first. Only the standard library; nothing of luthier.

Reads `{"code", "seconds", "memory", "token"}` from stdin; writes one line of JSON to the descriptor that its argument
names. The token is written only after the whole program has run.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import struct
import sys
from collections.abc import Sequence

try:
    import resource
except ImportError:  # not on Windows, where `lock` refuses
    resource = None  # type: ignore[assignment]

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 38, 22, 1, 4
EPERM = 1
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
READ_FILE, READ_DIR = 1 << 2, 1 << 3
RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""How many rights over files each version of Landlock knows; later ones know those of the fifth."""
MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""Audit number of an architecture, and its column below."""
DENIED = {
    # network
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "accept": (43, 202), "accept4": (288, 242),
    "bind": (49, 200), "listen": (50, 201), "sendto": (44, 206), "sendmsg": (46, 211), "sendmmsg": (307, 269),
    # processes, threads, signals
    "clone": (56, 220), "clone3": (435, 435), "fork": (57, None), "vfork": (58, None), "execve": (59, 221),
    "execveat": (322, 281), "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_open": (434, 434), "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438), "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "setpriority": (141, 140), "sched_setaffinity": (203, 122), "sched_setscheduler": (144, 119),
    # limits and rights
    "setrlimit": (160, 164), "prlimit64": (302, 261), "unshare": (272, 97), "setns": (308, 268), "chroot": (161, 51),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
    "mount_setattr": (442, 442), "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264),
    "setuid": (105, 146), "setgid": (106, 144), "setresuid": (117, 147), "setresgid": (119, 149), "capset": (126, 91),
    # what changes files without opening them, which Landlock does not see
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None),
    "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None), "utimes": (235, None),
    "utimensat": (280, 88), "futimesat": (261, None), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "setxattrat": (463, 463), "removexattrat": (466, 466),
    # the kernel itself, and memory that others see
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "keyctl": (250, 219), "add_key": (248, 217),
    "request_key": (249, 218), "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "kexec_load": (246, 104), "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "sethostname": (170, 161), "setdomainname": (171, 162),
    "syslog": (103, 116), "quotactl": (179, 60), "shmget": (29, 194), "shmat": (30, 196), "msgget": (68, 186),
    "semget": (64, 190), "mq_open": (240, 180), "memfd_create": (319, 279), "memfd_secret": (447, 447),
}  # fmt: skip
"""System calls that fail with EPERM: (number on x86-64, on ARM64)."""
LIBRARIES = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/share/zoneinfo")
"""Where shared libraries of the standard library's modules lie."""


class Unlockable(Exception):
    """Raised where a limit is not to be had."""


def lock(seconds: float | None, memory: int, readable: Sequence[str] = ()) -> None:
    """Gives up everything that a program does not need; raises `Unlockable` where that cannot be done.

    `readable` are folders that may be read beside Python's own. Without `seconds` the process may run on, and does not
    end with the thread that started it: it serves several.
    """
    if sys.platform != "linux" or platform.machine() not in MACHINES or resource is None:
        raise Unlockable(f"there is no such sandbox on {sys.platform} {platform.machine()}")
    libc = ctypes.CDLL(None, use_errno=True)
    if seconds is not None:
        _done(libc.prctl(PR_SET_PDEATHSIG, 9, 0, 0, 0), "the end with its parent (prctl)")
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 1))
    _done(libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "no dumps (prctl)")
    _done(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no new rights (prctl)")
    for kind, most in (
        (resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_NOFILE, 32),
        (resource.RLIMIT_CORE, 0), (resource.RLIMIT_MEMLOCK, 0),
    ):  # fmt: skip
        resource.setrlimit(kind, (most, most))
    _files(libc, readable)
    _rights(libc)
    _calls(libc)


def _done(code: int, what: str) -> int:
    if code < 0:
        raise Unlockable(f"{what} is refused by this kernel ({os.strerror(ctypes.get_errno())})")
    return code


def _files(libc, readable: Sequence[str]) -> None:
    """Landlock: nothing is written, made or run, and only libraries are read; no TCP where it knows of that."""
    version = _done(libc.syscall(LANDLOCK_CREATE, None, 0, 1), "the limit of files (Landlock)")
    rights = (1 << RIGHTS[min(version, 5)]) - 1
    attributes = struct.pack("=QQ", rights, 3) if version >= 4 else struct.pack("=Q", rights)
    ruleset = _done(libc.syscall(LANDLOCK_CREATE, attributes, len(attributes), 0), "the limit of files (Landlock)")
    library = os.path.dirname(os.path.dirname(os.__file__))  # with the shared libraries that it may bring
    for place in dict.fromkeys(map(os.path.realpath, (library, *LIBRARIES, *readable))):
        if os.path.isdir(place):
            opened = os.open(place, os.O_PATH | os.O_CLOEXEC)
            rule = struct.pack("=Qi", READ_FILE | READ_DIR, opened)
            _done(libc.syscall(LANDLOCK_ADD, ruleset, 1, rule, 0), "the limit of files (Landlock)")
            os.close(opened)
    _done(libc.syscall(LANDLOCK_RESTRICT, ruleset, 0), "the limit of files (Landlock)")
    os.close(ruleset)


def _rights(libc) -> None:
    """Root is root no more: every capability goes."""
    number = {"x86_64": 126, "aarch64": 91}[platform.machine()]
    header, none = struct.pack("=Ii", 0x20080522, 0), bytes(24)
    _done(libc.syscall(number, header, none), "giving up capabilities (capset)")


def _calls(libc) -> None:
    """The seccomp filter."""
    audit, column = MACHINES[platform.machine()]
    numbers = sorted({each[column] for each in DENIED.values() if each[column] is not None})
    load, equal, above, give = 0x20, 0x15, 0x35, 0x06
    kill, deny, allow = 0x80000000, 0x00050000 | EPERM, 0x7FFF0000
    program = [(load, 0, 0, 4), (equal, 1, 0, audit), (give, 0, 0, kill), (load, 0, 0, 0)]
    program += [(above, 0, 1, 0x40000000), (give, 0, 0, kill)]  # x32's calls have numbers of their own
    for i, number in enumerate(numbers):
        program.append((equal, len(numbers) - i, 0, number))
    program += [(give, 0, 0, allow), (give, 0, 0, deny)]
    packed = b"".join(struct.pack("=HBBI", *line) for line in program)
    held = ctypes.create_string_buffer(packed)
    fprog = struct.pack("@HP", len(program), ctypes.addressof(held))
    _done(libc.prctl(PR_SET_SECCOMP, 2, fprog, 0, 0), "the limit of system calls (seccomp)")


def main() -> None:
    """Locks, runs, tells."""
    given = json.loads(sys.stdin.buffer.read())
    told = int(sys.argv[1])

    def tell(**found) -> None:
        os.write(told, json.dumps(found).encode()[:4000] + b"\n")

    try:
        lock(given["seconds"], given["memory"])
    except Unlockable as error:
        tell(unlockable=str(error))
        os._exit(3)
    except Exception as error:
        tell(unlockable=f"{type(error).__name__}: {error}")
        os._exit(3)
    try:
        exec(compile(given["code"], "<program>", "exec"), {"__name__": "__main__"})
    except BaseException as error:  # SystemExit too: a program that ends itself has not passed its tests
        tell(failed=f"{type(error).__name__}: {error}"[:500])
        os._exit(1)
    tell(token=given["token"])
    os._exit(0)


if __name__ == "__main__":
    main()
