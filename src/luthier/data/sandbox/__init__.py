"""Running a program that nobody has read: in a process of its own, without files, network or other processes.

On Linux (x86-64 and ARM64, kernel 5.13 or newer) the kernel itself holds the limits: Landlock denies every file but
Python's own library, a seccomp filter denies sockets, processes, threads and signals, and limits of time, memory and
size are those of the process. Where one of them is not to be had, nothing is run and the reason is told. The first use
tries them on a program that breaks each rule.

Scorers of other packages stay behind the same limits in a process that serves many answers (`scorers`); where the
system has none, that process runs on with a limit of time, and a warning says so.
"""

from luthier.data.sandbox.run import LIMITS, Limits, Ran, check_sandbox, run_program

__all__ = ["LIMITS", "Limits", "Ran", "check_sandbox", "run_program"]
