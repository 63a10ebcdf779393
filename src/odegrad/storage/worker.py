"""One background thread that does jobs in the order in which they were submitted.

Only locks and queues written in C are used: a Ctrl-C cannot leave one of them held.
"""

from __future__ import annotations

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
    """The thread, which starts with the first job. It holds nothing but jobs that are to be done.

    Arguments:
        name: The name of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: threading.Thread | None = None
        self._jobs: _Queue = SimpleQueue()

    def submit(self, job: Job) -> None:
        """Queues a job."""
        if self._thread is None:
            self._start()
        self._jobs.put(job)

    def stop(self, at_end: Callable[[], None]) -> None:
        """Calls `at_end` after the jobs that are queued, ends the thread, and waits for its end."""
        thread = self._thread
        if thread is None:
            at_end()
            return
        self._jobs.put(_Last(at_end))
        if thread is not threading.current_thread():  # the garbage collector may run there
            thread.join()

    def _start(self) -> None:
        jobs: _Queue = SimpleQueue()
        thread = threading.Thread(target=_serve, args=(jobs,), name=self._name, daemon=True)
        try:
            thread.start()
            self._jobs, self._thread = jobs, thread
        except BaseException:  # whether it runs is not known: it has to end, and another is started
            self._thread = None
            jobs.put(None)
            raise


def _serve(jobs: _Queue) -> None:
    while True:
        job = jobs.get()
        if job is None:
            return
        job.run()
        if job.last:
            return
        del job


def _forget_frames(error: BaseException) -> None:
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
