# SPDX-License-Identifier: Apache-2.0
"""Batches on their way: while the device runs one, the input of the next is put into its memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock, Semaphore
from typing import Any, Generic, TypeVar

#: Batches in device memory together: one runs, one is put there.
BANKS = 2

Piece = TypeVar("Piece")


class Submissions(Generic[Piece]):
    """Takes batches in order through two threads, one that puts pieces of them into banks and one
    that runs them. A batch fails alone: those behind it go on."""

    def __init__(
        self,
        put: Callable[[Any, Callable[[], None]], Iterator[Callable[[int], Piece]]],
        run: Callable[[Piece, int], Any],
        finish: Callable[[list[Any]], Any],
    ) -> None:
        """
        Args:
            put: from a batch to what puts each of its pieces into a bank; calls what it is given
                before it needs all banks to be free.
            run: runs a piece that is in a bank.
            finish: from what `run` gave for all pieces to the result of the batch.
        """
        self._put, self._run, self._finish = put, run, finish
        self._free = Semaphore(BANKS)
        self._banks = list(range(BANKS))
        self._pending: set[Future[Any]] = set()
        self._lock = Lock()
        self._putting = ThreadPoolExecutor(1, "bbs-put")
        self._running = ThreadPoolExecutor(1, "bbs-run")

    def submit(self, x: Any) -> Future[Any]:
        """The result of batch `x`, or the error, once it is there."""
        future: Future[Any] = Future()
        with self._lock:
            self._pending.add(future)
        future.add_done_callback(self._forget)
        self._putting.submit(self._take, future, x)
        return future

    def close(self, *, cancel: bool) -> None:
        """Waits for all batches, or cancels those that have not begun and waits for the others."""
        if cancel:
            with self._lock:
                waiting = list(self._pending)
            for future in waiting:
                future.cancel()
        self._putting.shutdown()
        self._running.shutdown()

    def _forget(self, future: Future[Any]) -> None:
        with self._lock:
            self._pending.discard(future)

    def _take(self, future: Future[Any], x: Any) -> None:
        """Puts the pieces of a batch; runs on a thread of its own."""
        if not future.set_running_or_notify_cancel():
            return
        runs: list[Future[Any]] = []
        try:
            for put in self._put(x, self._drain):
                self._free.acquire()
                bank = self._banks.pop()
                try:
                    piece = put(bank)
                except BaseException:
                    self._release(bank)
                    raise
                runs.append(self._running.submit(self._run_piece, piece, bank))
        except BaseException as error:  # whatever it is, it belongs to whoever waits
            future.set_exception(error)
            return
        self._running.submit(self._conclude, future, runs)

    def _run_piece(self, piece: Piece, bank: int) -> Any:
        try:
            return self._run(piece, bank)
        finally:
            self._release(bank)

    def _conclude(self, future: Future[Any], runs: list[Future[Any]]) -> None:
        try:
            future.set_result(self._finish([run.result() for run in runs]))
        except BaseException as error:
            future.set_exception(error)

    def _release(self, bank: int) -> None:
        self._banks.append(bank)
        self._free.release()

    def _drain(self) -> None:
        """Until nothing runs and nothing waits to."""
        for _ in range(BANKS):
            self._free.acquire()
        self._free.release(BANKS)
