"""Where the runs of a study are made side by side: in processes of this machine, or as tasks of a Ray cluster."""

from __future__ import annotations

import math
import multiprocessing
import os
import re
import signal
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from luthier.core.device import AUTO, VARIABLE, named
from luthier.core.errors import LuthierError

Made = tuple[dict[str, str], list[str]]
"""Of runs the reasons of those that failed, by title, and what else is to be told."""
Task = Callable[[], Made]
"""Makes runs in another process. It can be pickled."""


class Worker(ABC):
    """Somebody who makes runs, a task at a time."""

    @abstractmethod
    def submit(self, task: Task) -> Future[Made]:
        """Starts a task."""

    @abstractmethod
    def close(self) -> None:
        """Ends the worker, and the task that it has."""

    def why_lost(self, error: BaseException) -> str:
        """Returns why a task was lost."""
        return f"its process ended, as when memory is short ({str(error) or type(error).__name__})"


class Place(ABC):
    """Somewhere with room for several workers."""

    jobs: int
    """Workers at once."""
    lost: tuple[type[BaseException], ...]
    """What a task raises whose worker is gone."""
    crew: dict[int, Worker]
    """The workers that were needed so far."""

    @abstractmethod
    @contextmanager
    def reached(self) -> Iterator[None]:
        """The place is there within the context, in which `jobs` is known."""
        yield

    @abstractmethod
    def worker(self, number: int) -> Worker:
        """Returns a new worker, the one of that number."""

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Workers can be had within the context, behind which they end."""
        with self.reached():
            self.crew = {}
            try:
                yield
            finally:
                for each in self.crew.values():
                    each.close()

    def submit(self, number: int, task: Task) -> Future[Made]:
        """Starts a task of the worker of that number."""
        if number not in self.crew:
            self.crew[number] = self.worker(number)
        try:
            return self.crew[number].submit(task)
        except self.lost:  # while it had nothing to do
            self._dropped(number)
            self.crew[number] = self.worker(number)
            return self.crew[number].submit(task)

    def why_lost(self, number: int, error: BaseException) -> str:
        """Lets go of a worker that is lost, and returns why it is."""
        return self._dropped(number).why_lost(error)

    def _dropped(self, number: int) -> Worker:
        worker = self.crew.pop(number)
        worker.close()
        return worker


# --- this machine ----------------------------------------------------------------------------------


class Machine(Place):
    """This machine: its cores are divided among the workers, and its accelerators where it has several."""

    lost = (BrokenExecutor,)

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs

    @contextmanager
    def reached(self) -> Iterator[None]:
        yield

    def worker(self, number: int) -> Worker:
        import torch

        return Process(max(1, torch.get_num_threads() // self.jobs), _device(number))


def _device(number: int) -> str:
    """The device of a worker: the one that was named, or one of several in turn."""
    import torch

    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    count = 0 if here is None else torch.accelerator.device_count()
    return f"{here.type}:{number % count}" if here and count > 1 and named() == AUTO else named()


class Process(Worker):
    """A process, which ends with the one that started it, however that one ends."""

    def __init__(self, threads: int, device: str) -> None:
        context = multiprocessing.get_context("spawn")  # the parent has threads of its own
        self.theirs, self.ours = context.Pipe(duplex=False)
        self.pool = ProcessPoolExecutor(1, context, _begin, (self.theirs, threads, device))
        self.began = self.pool.submit(os.getpid)

    def submit(self, task: Task) -> Future[Made]:
        return self.pool.submit(task)

    def why_lost(self, error: BaseException) -> str:
        if self.began.exception() is None:
            return super().why_lost(error)
        return (
            "its process could not be started; a script that compares with jobs has to do so below "
            '`if __name__ == "__main__":`, as each process imports it'
        )

    def close(self) -> None:
        self.ours.close()
        self.pool.shutdown(cancel_futures=True)
        self.theirs.close()


def _begin(owner: Connection, threads: int, device: str) -> None:
    """Prepares a new process."""
    from luthier.core.first_import import quiet_imports

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group, and the owner says what ends
    threading.Thread(target=_end_with, args=(owner,), daemon=True).start()
    os.environ[VARIABLE] = device
    quiet_imports().__enter__()  # for the life of the process, as a command holds it
    import torch

    torch.set_num_threads(threads)


def _end_with(owner: Connection) -> None:
    """Ends this process when the other end of the pipe is closed. A run goes on from its last checkpoint later."""
    try:
        owner.recv()
    except (EOFError, OSError):
        os._exit(1)


# --- a cluster -------------------------------------------------------------------------------------


class Cluster(Place):
    """A Ray cluster, whose nodes see this folder and the study's by the same paths.

    `address` is what `ray.init` takes: auto, HOST:PORT, ray://HOST:PORT; `local` starts one on this machine. A task has
    the cluster's cores and GPUs, divided by the number of jobs, which is that of the nodes unless it is given.
    """

    def __init__(self, address: str, jobs: int | None) -> None:
        try:
            import ray  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise LuthierError("a Ray cluster needs the extra ray: pip install 'luthier[ray]'.") from error
        self.ray, self.address, self.wanted = ray, address, jobs
        self.lost = (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError)

    @contextmanager
    def reached(self) -> Iterator[None]:
        begun = not self.ray.is_initialized()
        if begun:
            self._reach()
        try:
            self.jobs = self.wanted or len(self._nodes("CPU"))
            yield
        finally:
            if begun:
                self.ray.shutdown()

    def _reach(self) -> None:
        _knock(self.address)
        given = {name: value for name, value in os.environ.items() if _passed_on(name)}
        own = {"include_dashboard": False} if self.address == "local" else {}
        try:
            self.ray.init(self.address, runtime_env={"env_vars": given}, log_to_driver=False, **own)
        except (Exception, SystemExit) as error:  # Ray ends the process where nobody answers
            told = (str(error).splitlines() or [type(error).__name__])[0]
            raise LuthierError(f"Ray at {self.address} cannot be reached: {told}") from error

    def worker(self, number: int) -> Worker:
        """A task takes its share of the smallest node, so that it fits every one; of those with GPUs, if any has."""
        kind = "GPU" if any(self._nodes("GPU")) else "CPU"
        each = math.ceil(self.jobs / len(self._nodes(kind)))
        return RayWorker(self.ray, *(_share(min(self._nodes(kind, of)), each) for of in ("CPU", "GPU")))

    def _nodes(self, kind: str, of: str | None = None) -> list[float]:
        """What the nodes that have some of a kind have of it, or of another one."""
        alive = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        return [node.get(of or kind, 0.0) for node in alive if node.get(kind)]


def _share(there: float, tasks: int) -> float:
    """Whole cores or GPUs where there are enough."""
    share = there / tasks
    return float(int(share)) if share >= 1 else share


def _passed_on(name: str) -> bool:
    """Whether a variable of the environment goes to the nodes: settings do, secrets, which Ray would show, do not."""
    return name.startswith(("LUTHIER_", "HF_")) and not re.search("TOKEN|KEY|SECRET|PASSWORD", name)


def _knock(address: str) -> None:
    """Raises where nobody answers at HOST:PORT, which Ray would wait for for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise LuthierError(f"Ray at {address} cannot be reached: {error}") from error


class RayWorker(Worker):
    """A task of Ray, on whichever node has room. A node that is lost is told by `Place.lost`."""

    def __init__(self, ray: Any, cores: float, gpus: float) -> None:
        self.ray, self.cores, self.asked = ray, cores, None
        self.function = ray.remote(_there).options(num_cpus=cores, num_gpus=gpus, max_retries=0)

    def submit(self, task: Task) -> Future[Made]:
        self.asked = self.function.remote(task, os.getcwd(), max(1, int(self.cores)), named())
        return self.asked.future()

    def close(self) -> None:
        if self.asked is not None:
            self.ray.cancel(self.asked, force=True)  # nothing happens to one that has ended


def _there(task: Task, folder: str, threads: int, device: str) -> Made:
    """A task on a node, as if it were made here."""
    import torch

    from luthier.core.first_import import quiet_imports

    os.chdir(folder)
    os.environ[VARIABLE] = device
    torch.set_num_threads(threads)
    with quiet_imports():
        return task()
