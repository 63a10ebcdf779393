"""One background thread that does jobs in the order in which they were submitted.

A Ctrl-C must not leave a lock held, and what the garbage collector runs must not wait. So locks and
queue, the start of the thread and what ends it are all written in C: `threading.Thread` is not, and
goes wrong if its start, join or is_alive is interrupted.
"""

from __future__ import annotations

import _thread
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from queue import SimpleQueue
from typing import TypeAlias

__all__ = ["Job", "Worker"]


class Job(ABC):
    """Something to do, once; subclasses say what.

    Attributes:
        finished: Whether it is done.
        error: What went wrong, if it is.
    """

    def __init__(self) -> None:
        self.finished = False
        self.error: BaseException | None = None
        self._done = threading.Lock()  # released at the end
        self._done.acquire()

    @abstractmethod
    def work(self) -> None:
        """Does it, in the background."""

    def run(self) -> None:
        """Does it, and keeps the error."""
        try:
            self.work()
        except BaseException as error:
            _forget_frames(error)  # which refer to this job, and much else
            self.error = error
        self.finish()

    def finish(self) -> None:
        """Ends the waiting for it."""
        self.finished = True
        self._done.release()

    def wait(self) -> None:
        """Waits until it is done."""
        with self._done:
            pass


_Queue: TypeAlias = "SimpleQueue[Job | weakref.ref[object]]"


class Worker:
    """The thread, which ends when the owner is gone.

    Arguments:
        owner: Any object.
        at_end: Called in the thread when the owner is gone.
    """

    def __init__(self, owner: object, at_end: Callable[[], None]) -> None:
        self._jobs: _Queue = SimpleQueue()
        self._alive = threading.Lock()  # released at the end of the thread
        self._alive.acquire()
        watch = weakref.ref(owner, self._jobs.put)
        _thread.start_new_thread(_serve, (self._jobs, self._alive, watch, at_end))

    def submit(self, job: Job) -> None:
        """Queues a job, which is skipped if the owner is gone by then."""
        self._jobs.put(job)

    def join(self) -> None:
        """Waits for the end of the thread."""
        with self._alive:
            pass


def _serve(
    jobs: _Queue, alive: threading.Lock, watch: weakref.ref[object], at_end: Callable[[], None]
) -> None:
    while isinstance(job := jobs.get(), Job):
        if watch() is None:
            job.finish()
        else:
            job.run()
        del job
    at_end()  # this job is the watch: the owner is gone
    alive.release()


def _forget_frames(error: BaseException) -> None:
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
