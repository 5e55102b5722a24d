"""The thread that takes requests in their order: one of each model at a time, those of several models in one pass."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

from luthier.core.errors import LuthierError
from luthier.engine.request import Busy
from luthier.serving.http.bodies import parsed
from luthier.serving.training_api.asks import Ask
from luthier.serving.training_api.bodies import SampleBody
from luthier.serving.training_api.checkpoints import Checkpoints
from luthier.serving.training_api.sampling import Flight, read_prompt, sample_of, start
from luthier.serving.training_api.store import WAITING, Row, Store, waits
from luthier.serving.training_api.trainer import PASS_TOKENS, Trainer

log = logging.getLogger(__name__)
TOGETHER = 16
"""Models that share a pass, at most."""
SWEEP = 60.0
"""Seconds between two looks for what has outlived its time."""
RESULTS = 86_400.0
"""Seconds that a result can be asked for."""
LOST = 300.0
"""Seconds that a request waits for a lower number that has not come."""
USER, SERVER = "user", "server"
"""Whose fault a failure is, as the protocol says it."""


class Scheduler:
    """Runs what the store holds. `told` is called with the id of each request that is over."""

    def __init__(self, store: Store, trainer: Trainer, checkpoints: Checkpoints, told: Callable[[str], None]) -> None:
        self.store, self.trainer, self.checkpoints, self.told = store, trainer, checkpoints, told
        self.engine = trainer.engine
        self._wake = threading.Event()
        self._closed = False
        self._ended: queue.SimpleQueue[Flight] = queue.SimpleQueue()
        self._flights: dict[str, Flight] = {}
        self._errands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._served: Counter[str] = Counter()
        """Tokens by tenant in this process, so that who had less comes first."""
        self._swept = 0.0
        self._thread = threading.Thread(target=self._run, name="luthier-training", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Says that there is something new."""
        self._wake.set()

    def errand(self, what: Callable[[], None]) -> None:
        """Has something done on the thread soon."""
        self._errands.put(what)
        self.wake()

    def cancel(self, request_id: str) -> None:
        """Ends a sample that runs."""
        if (flight := self._flights.get(request_id)) is not None:
            for ticket in list(flight.tickets):
                ticket.cancel()

    def close(self) -> None:
        """Ends the thread, and saves the models."""
        self._closed = True
        self.wake()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        self._quietly(self.checkpoints.serve_newest)
        while not self._closed:
            self._wake.clear()
            if not self._quietly(self.round):
                self._wake.wait(1.0)
        self._quietly(self.trainer.close)

    def _quietly(self, what: Callable[[], bool | None]) -> bool:
        try:
            return bool(what())
        except Exception as error:
            if waits(error):
                self.store.tell_waiting(error)
            else:
                log.exception("the training API's thread met something unexpected")
                time.sleep(0.1)
            return False

    def round(self) -> bool:
        """Does what is to be done; returns whether there was anything."""
        busy = self._run_errands() | self._finish_samples() | self._start_samples()
        if ready := self._chosen(self.store.ready()):
            self._take(ready)
            return True
        if time.monotonic() - self._swept > SWEEP:
            self._swept = time.monotonic()
            self.checkpoints.sweep()
            self.store.forget(time.time() - RESULTS)
            self._give_up()
        return busy

    def _run_errands(self) -> bool:
        done = False
        while not self._errands.empty():
            self._quietly(self._errands.get())
            done = True
        return done

    def _give_up(self) -> None:
        """Fails what has waited too long for a number that never came, and waits for that number no more."""
        for request in self.store.stuck(time.time() - LOST):
            missing = request["next"]
            self._fail(request, LuthierError(f"seq_id {missing} of this model never came, and this one is behind it."))
            self.store.refuse(request["tenant"], request["owner"], missing, "it did not come in time")

    # --- training ---

    def _chosen(self, ready: list[Row]) -> list[Row]:
        """What runs next: passes of several models together, anything else alone; who had least comes first."""
        ready.sort(key=lambda request: (self._served[request["tenant"]], request["created"]))
        if not ready or ready[0]["kind"] != "forward_backward" or not self.trainer.together:
            return ready[:1]
        found, size = [], 0
        for request in ready:
            if request["kind"] == "forward_backward" and (not found or size + request["tokens"] <= PASS_TOKENS):
                found.append(request)
                size += request["tokens"]
        return found[: min(TOGETHER, self.trainer.most)]

    def _take(self, requests: Sequence[Row]) -> None:
        for request in requests:
            self._served[request["tenant"]] += max(1, request["tokens"])
        if requests[0]["kind"] == "forward_backward":
            self._pass(requests)
        else:
            self._one(requests[0])

    def _pass(self, requests: Sequence[Row]) -> None:
        """One pass for all; where it fails, one for each, so that only whose fault it is has the failure."""
        running: list[tuple[Row, str, Ask]] = []
        for request in requests:
            try:
                running.append((request, self.trainer.hold(self._model(request)), self.trainer.ask(request)))
            except Exception as error:
                if waits(error):
                    raise
                self._fail(request, error)
        try:
            results = self.trainer.run([(name, ask) for _, name, ask in running])
        except Exception as error:  # of the pass itself: what it left in memory is not to be trusted
            for request, _, _ in running:
                self.trainer.drop(request["owner"])
            if len(running) == 1:
                self._fail(running[0][0], error)
            else:
                log.warning("a pass of %s models failed, so they get one each", len(running), exc_info=error)
                for request, _, _ in running:
                    self._pass([request])
            return
        self._keep([request for request, _, _ in running], results)

    def _keep(self, requests: Sequence[Row], results: Sequence[bytes | LuthierError]) -> None:
        """Keeps what came of a pass. Requests of which it cannot be kept are run again, so their models go back to
        what they were before it."""
        for place, (request, result) in enumerate(zip(requests, results, strict=True)):
            try:
                if isinstance(result, LuthierError):
                    self._fail(request, result)
                else:
                    self._finish(request, result)
            except Exception:
                for each in requests[place:]:
                    self.trainer.drop(each["owner"])
                raise

    def _one(self, request: Row) -> None:
        model = self._model(request)
        try:
            self._finish(request, self._apply(model, request))
        except Exception as error:
            later = waits(error)
            if later or not isinstance(error, LuthierError):
                self.trainer.drop(model["id"])
            if later:
                raise
            self._fail(request, error)

    def _apply(self, model: Row, request: Row) -> bytes:
        if request["seq"] == 0:
            return self.trainer.create(model, request)
        name, kind = self.trainer.hold(model), request["kind"]
        if kind == "optim_step":
            return self.trainer.step(name, request)
        if kind == "save_weights":
            return self.checkpoints.save_weights(model, name, request)
        if kind == "save_weights_for_sampler":
            return self.checkpoints.save_for_sampler(model, name, request)
        return self.trainer.load(model, name, request)

    def _model(self, request: Row) -> Row:
        found = self.store.row("SELECT * FROM models WHERE id = ?", request["owner"])
        assert found is not None
        return found

    def _finish(self, request: Row, result: bytes) -> None:
        with self.store.changing():
            self.store.finish(request, result)
            if request["seq"] == 0:
                self.store.change("models", request["owner"], state="ready")
        self.told(request["id"])
        self.trainer.save_due(request["owner"])

    def _fail(self, request: Row, error: Exception) -> None:
        ours = not isinstance(error, LuthierError)
        if ours:
            log.error("request %s failed", request["id"], exc_info=error)
        why = f"the server failed ({type(error).__name__}); its log says more." if ours else str(error)
        with self.store.changing():
            self.store.finish(request, None, why, SERVER if ours else USER)
            if request["seq"] == 0 and request["kind"] in ("create_model", "load_weights"):
                self.store.change("models", request["owner"], state="failed")
        self.told(request["id"])

    # --- samples ---

    def _start_samples(self) -> bool:
        query = "SELECT * FROM requests WHERE kind = 'sample' AND state = ? ORDER BY created"
        begun = False
        for request in self.store.rows(query, WAITING):
            if request["id"] in self._flights:
                continue
            try:
                self._begin(request)
            except Busy:
                break
            except Exception as error:
                self._flights.pop(request["id"], None)
                if waits(error):
                    raise
                self._fail(request, error)
            begun = True
        return begun

    def _begin(self, request: Row) -> None:
        sampler = self.store.row("SELECT * FROM samplers WHERE id = ?", request["owner"])
        assert sampler is not None
        body = parsed(request["body"], SampleBody)
        sample = sample_of(body, self.trainer.words, self.engine.max_length)
        adapter = None if sampler["path"] is None else self.checkpoints.serve(sampler["path"])
        flight = Flight(request["id"], adapter, self._over)
        self._flights[request["id"]] = flight
        try:
            start(self.engine, sample, adapter, flight)
        except Busy:
            del self._flights[request["id"]]
            raise
        flight.prompt = read_prompt(self.engine, sample, adapter)

    def _over(self, flight: Flight) -> None:
        """On the engine's thread: only passed on."""
        self._ended.put(flight)
        self.wake()

    def _finish_samples(self) -> bool:
        done = False
        while not self._ended.empty():
            flight = self._ended.get()
            self._flights.pop(flight.request_id, None)
            try:
                done |= self._end(flight)
            except Exception as error:
                if waits(error):
                    self._flights[flight.request_id] = flight
                    self._ended.put(flight)
                raise
        return done

    def _end(self, flight: Flight) -> bool:
        request = self.store.row("SELECT * FROM requests WHERE id = ?", flight.request_id)
        if request is None or request["state"] != WAITING or self._closed:
            return False  # it was cancelled; or the server stops, and samples again when it is back
        body = parsed(request["body"], SampleBody)
        try:
            self._finish(request, flight.result(body.topk_sample_logprobs))
        except LuthierError as error:
            self._fail(request, error)
        return True
