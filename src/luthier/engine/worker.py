"""The thread that runs the model: a queue before it, and one round after another."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from luthier.core.contracts.router import adapter_and_task
from luthier.core.errors import LuthierError
from luthier.engine.batch import Alone, Assignment, Batch
from luthier.engine.job import Job
from luthier.engine.request import Busy, Statistics

log = logging.getLogger(__name__)

PROMPTS = 1024
"""Tokens of prompts, with their padding, that one pass reads: the running rows wait for it."""

GATHER = 0.005
"""Seconds that an idle worker waits for requests that come together, so that one pass reads them all."""


class Worker:
    """Takes jobs through a batch of at most `rows`; all that others share with the thread is under `changed`."""

    def __init__(
        self,
        model: Any,
        rows: int,
        waiting: int,
        deterministic: bool = False,
        row_assignment: Assignment | None = None,
    ) -> None:
        self.changed = threading.Condition()
        self.batch = Alone(model) if deterministic else Batch(model, row_assignment)
        self.live: Counter[str | None] = Counter()
        """Jobs that are not over, by adapter; one whose adapters take turns counts for each."""
        self.under_way = 0
        """Jobs that are not over."""
        self.closed = self.draining = False
        self._rows, self.places = rows, rows + waiting
        self._together = 1 if deterministic else rows
        self._waiting: deque[Job] = deque()
        self._commands: deque[tuple[Callable[[], None], Future[None]]] = deque()
        self._statistics = Statistics()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts the thread; raises if it was started or closed before."""
        with self.changed:
            if self._thread is not None or self.closed:
                raise LuthierError("the engine was started already, or closed; make a new one.")
            self._thread = threading.Thread(target=self._run, name="luthier-engine", daemon=True)
            self._thread.start()

    def add(self, jobs: Sequence[Job]) -> None:
        """Queues jobs, all or none; raises `Busy`. The caller holds `changed`."""
        if self.draining or self.closed:
            raise Busy("the engine is shutting down and takes no more requests.")
        if len(jobs) > self.places:
            raise LuthierError(f"{len(jobs)} answers at once, and this engine has {self.places} places in all.")
        if self.under_way + len(jobs) > self.places:
            raise Busy(
                f"{self.under_way} of {self.places} places are taken, and {len(jobs)} are wanted; try again later."
            )
        self._waiting.extend(jobs)
        self.under_way += len(jobs)
        self.live.update(name for job in jobs for name in whose(job))
        self.changed.notify_all()

    def cancel(self, job: Job) -> None:
        """Asks a job to end."""
        with self.changed:
            job.cancelled = True
            self.changed.notify_all()

    def between(self, command: Callable[[], None]) -> None:
        """Runs a command between two rounds, where no row is arranged, and waits for it."""
        done: Future[None] = Future()
        with self.changed:
            if running := self._thread is not None and not self.closed:
                self._commands.append((command, done))
                self.changed.notify_all()
        if not running:
            if self._thread is not None:
                self._thread.join()
            self._obey(command, done)
        done.result()

    def statistics(self) -> Statistics:
        """Returns what was done so far, and what is under way."""
        with self.changed:
            return replace(self._statistics, waiting=len(self._waiting))

    def close(self) -> None:
        """Ends the jobs that are left, and the thread."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        if self._thread is None:
            self._shut()
        else:
            self._thread.join()

    def _run(self) -> None:
        try:
            while self.round():
                pass
        finally:
            self._shut()

    def round(self) -> bool:
        """Commands, rows that were cancelled, rows that join, a step. False once closed."""
        with self.changed:
            self.changed.wait_for(lambda: self.closed or self._commands or self._waiting or self.batch.jobs)
            if not (self.batch.jobs or self._commands):
                self.changed.wait_for(lambda: self.closed or len(self._waiting) >= self._rows, GATHER)
            if self.closed:
                return False
            commands, self._commands = self._commands, deque()
        for command, done in commands:
            self._obey(command, done)
        began = time.perf_counter()
        with self.changed:
            gone = [job for job in self._waiting if job.cancelled]
            self._waiting = deque(job for job in self._waiting if not job.cancelled)
            entering = self._picked()
        seen = [*gone, *self.batch.jobs, *entering]
        before = sum(job.generated for job in seen)
        read = sum(len(job.request.prompt) for job in entering if not job.ids)
        for job in seen:
            if job.cancelled:
                job.cancel()
        self.batch.drop_finished()
        self._enter(entering)
        stepped = bool(self.batch.jobs)
        if stepped:
            self._step()
        with self.changed:
            self._waiting.extendleft(job for job in reversed(seen) if job.finish is None and job.turned)
        self._count(seen, read, sum(job.generated for job in seen) - before, stepped, time.perf_counter() - began)
        return True

    def _picked(self) -> list[Job]:
        """The next jobs that wait, as many as there are rows free and tokens allowed in one pass."""
        free, longest, found = self._rows - len(self.batch.jobs), 0, []
        while self._waiting and len(found) < free:
            longest = max(longest, len(self._waiting[0].text))
            if found and longest * (len(found) + 1) > PROMPTS:
                break
            found.append(self._waiting.popleft())
        return found

    def _enter(self, jobs: Sequence[Job]) -> None:
        """Lets jobs join. If their pass fails, each is tried alone, so that one at fault takes no other along."""
        if len(jobs) > self._together:
            for job in jobs:
                self._enter([job])
            return
        if len(kinds := list(dict.fromkeys(job.apart for job in jobs))) > 1:
            for kind in kinds:
                self._enter([job for job in jobs if job.apart == kind])
            return
        if not jobs:
            return
        before = [job.generated for job in jobs]
        try:
            self.batch.enter(jobs)
        except Exception as error:
            self.batch.row_assignment.release()
            if before != [job.generated for job in jobs]:  # the cache itself is at fault
                self._fail([*self.batch.jobs, *jobs], error)
            elif len(jobs) == 1:
                log.exception("a prompt could not be read")
                jobs[0].fail(_told(error))
            else:
                for job in jobs:
                    self._enter([job])

    def _step(self) -> None:
        try:
            self.batch.step()
        except Exception as error:
            self._fail(self.batch.jobs, error)

    def _fail(self, jobs: Sequence[Job], error: Exception) -> None:
        """Ends the jobs of a pass that failed; the next ones start with an empty batch."""
        log.error("a step failed, and %d requests with it", len(jobs), exc_info=error)
        for job in jobs:
            job.fail(_told(error))
        self.batch.clear()

    def _count(self, seen: list[Job], read: int, generated: int, stepped: bool, seconds: float) -> None:
        """Brings the statistics up to date, and wakes those who wait for jobs to end."""
        over = [job for job in seen if job.finish is not None]
        failed = sum(job.finish == "error" for job in over)
        with self.changed:
            self.under_way -= len(over)
            self.live.subtract(name for job in over for name in whose(job))
            old = self._statistics
            self._statistics = replace(
                old,
                running=len(self.batch.jobs),
                finished=old.finished + len(over) - failed,
                failed=old.failed + failed,
                prompt_tokens=old.prompt_tokens + read,
                generated_tokens=old.generated_tokens + generated,
                steps=old.steps + stepped,
                busy=old.busy + seconds,
            )
            self.changed.notify_all()

    def _obey(self, command: Callable[[], None], done: Future[None]) -> None:
        self.batch.row_assignment.release()
        try:
            command()
        except Exception as error:  # it is the caller's
            done.set_exception(error)
        else:
            done.set_result(None)

    def _shut(self) -> None:
        with self.changed:
            self.closed = True
            left, self._waiting = [*self.batch.jobs, *self._waiting], deque()
            commands, self._commands = self._commands, deque()
        for job in left:
            job.cancel()
        for _, done in commands:
            done.set_exception(LuthierError("the engine was closed."))
        self.batch.clear()
        self._count(left, 0, 0, False, 0.0)


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, LuthierError) else f"{type(error).__name__}: {error}"


def whose(job: Job) -> set[str | None]:
    """Returns the adapters of a job, without the task of its row; None for the base."""
    return {None if name is None else adapter_and_task(name)[0] for name in job.request.adapters()}
