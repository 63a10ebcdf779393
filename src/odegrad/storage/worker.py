"""One background thread that does jobs in the order in which they were submitted.

Only locks and queues written in C are used: a Ctrl-C cannot leave one of them held.
"""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TypeAlias

__all__ = ["Job", "Worker"]


class Job:
    """Something to do, once; subclasses say what.

    Attributes:
        finished: Whether it is done.
        error: What went wrong, if it is.
        last: Whether the thread ends after it.
    """

    last = False

    def __init__(self) -> None:
        self.finished = False
        self.error: BaseException | None = None
        self._done = threading.Lock()  # released at the end
        self._done.acquire()

    def work(self) -> None:
        """Does it, in the background."""
        raise NotImplementedError

    def run(self) -> None:
        """Does it, and keeps the error."""
        try:
            self.work()
        except BaseException as error:
            _forget_frames(error)  # which refer to this job, and much else
            self.error = error
        self.finished = True
        self._done.release()

    def wait(self) -> None:
        """Waits until it is done."""
        with self._done:
            pass


class _Last(Job):
    last = True

    def __init__(self, call: Callable[[], None]) -> None:
        super().__init__()
        self._call = call

    def work(self) -> None:
        self._call()


_Queue: TypeAlias = "SimpleQueue[Job | None]"


class Worker:
    """The thread, which starts with the first job. It holds nothing but jobs that are to be done."""

    def __init__(self) -> None:
        self._thread: tuple[_Queue, threading.Lock] | None = None  # the lock is free at its end

    def submit(self, job: Job) -> None:
        """Queues a job."""
        if self._thread is None:
            self._start()
        assert self._thread is not None
        self._thread[0].put(job)

    def stop(self, at_end: Callable[[], None]) -> None:
        """Calls `at_end` after the jobs that are queued, and ends the thread."""
        if self._thread is None:
            at_end()
        else:
            self._thread[0].put(_Last(at_end))

    def join(self) -> None:
        """Waits for the end of the thread, which was stopped; not to be called in it."""
        if self._thread is not None:
            with self._thread[1]:
                pass

    def _start(self) -> None:
        jobs: _Queue = SimpleQueue()
        alive = threading.Lock()
        alive.acquire()
        try:
            # Thread.start is Python code, which a Ctrl-C can stop with a lock held.
            _thread.start_new_thread(_serve, (jobs, alive))
            self._thread = jobs, alive
        except BaseException:  # whether it runs is not known: it has to end, and another is started
            self._thread = None
            jobs.put(None)
            raise


def _serve(jobs: _Queue, alive: threading.Lock) -> None:
    while True:
        job = jobs.get()
        if job is not None:
            job.run()
        if job is None or job.last:
            break
        del job
    alive.release()


def _forget_frames(error: BaseException) -> None:
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
