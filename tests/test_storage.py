"""Stores of numbered states on disk and in pinned memory."""

from __future__ import annotations

import errno
import gc
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from odegrad.errors import CheckpointStorageError, OdegradError
from odegrad.storage import DiskShelf, PinnedShelf, Shelf, scratch, worker
from odegrad.storage.pinned import PinnedRows
from odegrad.storage.statefile import MAX_READS, MAX_WRITES

DTYPES = [
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
    torch.int64,
    torch.int8,
    torch.bool,
]
SHAPES = [(), (0,), (3, 0, 2), (1,), (7,), (5, 3), (2, 3, 4)]
WAIT = 20.0  # seconds after which a test that hangs fails

Leaves = tuple[torch.Tensor, ...]
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX")


def bits(x: torch.Tensor) -> bytes:
    x = x.detach().cpu().resolve_conj().contiguous()
    return bytes(x.reshape(-1).view(torch.uint8).tolist()) if x.numel() else b""


def same(x: Leaves, y: Leaves) -> bool:
    assert [(a.shape, a.dtype, a.device) for a in x] == [(a.shape, a.dtype, a.device) for a in y]
    return all(bits(a) == bits(b) for a, b in zip(x, y, strict=True))


def like(i: int = 0, n: int = 10) -> Leaves:
    """State i: random bits, NaN among them."""
    generator = torch.Generator().manual_seed(1000 + i)
    raw = torch.randint(0, 256, (8 * n,), generator=generator, dtype=torch.uint8)
    return raw.view(torch.float64), raw[: 4 * 3].clone().view(torch.float32)


def eventually(condition: Any) -> bool:
    end = time.monotonic() + WAIT
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.001)
    return True


RUNNING: list[None] = []  # one entry for each background thread


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    inner = worker._serve

    def serve(*args: Any) -> None:
        RUNNING.append(None)
        try:
            inner(*args)
        finally:
            RUNNING.pop()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "_serve", serve)
        yield
        assert eventually(lambda: not RUNNING)


@pytest.fixture
def without_gc():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Gate:
    """Lets writes (or reads) of a file pass when it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.calls = 0
        self.error: OSError | None = None
        self._open = threading.Event()
        inner = getattr(scratch, name)

        def call(*args: Any) -> Any:
            if threading.current_thread() is threading.main_thread():
                return inner(*args)
            self.calls += 1
            assert self._open.wait(WAIT)
            if self.error is not None:
                raise self.error
            return inner(*args)

        monkeypatch.setattr(scratch, name, call)

    def open(self, error: OSError | None = None) -> None:
        self.error = error
        self._open.set()


# ---------------------------------------------------------------- a device with two streams, simulated


class FakeStreams:
    """Queues that are worked off in any order that the marks allow; memory is the CPU's."""

    pinned = False

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.queues: tuple[deque[Any], deque[Any]] = deque(), deque()
        self.queued = [0, 0]
        self.done = [0, 0]

    def _queue(self, aside: bool, work: Any) -> None:
        self.queues[aside].append(work)
        self.queued[aside] += 1
        for _ in range(self.rng.choice([0, 0, 1, 5])):
            self.step()

    def step(self) -> bool:
        for aside in self.rng.sample([0, 1], 2):
            queue = self.queues[aside]
            if queue and queue[0]() is not False:
                queue.popleft()
                self.done[aside] += 1
                return True
        return False

    def run(self) -> None:
        while self.step():
            pass
        assert not any(self.queues)

    def copy(self, target: torch.Tensor, source: torch.Tensor, aside: bool = False) -> None:
        self._queue(aside, lambda: target.copy_(source) is not None)

    def mark(self, aside: bool = False) -> Any:
        return aside, self.queued[aside]

    def wait(self, mark: Any, aside: bool = False) -> None:
        if mark is not None:
            self._queue(aside, lambda: self.done[mark[0]] >= mark[1])

    def share(self, x: torch.Tensor) -> None:
        """Memory is never reused here while it is referred to."""


def fake_shelf(rows: int, state: Leaves, seed: int) -> tuple[PinnedShelf, FakeStreams]:
    streams = FakeStreams(random.Random(seed))
    return PinnedShelf._over(PinnedRows(rows, state, lambda device: streams), {}), streams


# ---------------------------------------------------------------- round trips


def every_leaf() -> Leaves:
    generator = torch.Generator().manual_seed(0)
    leaves: list[torch.Tensor] = []
    for dtype in DTYPES:
        for shape in SHAPES:
            x = torch.randn(shape, generator=generator, dtype=torch.float64) * 5
            leaves.append(x.to(dtype))
    return tuple(leaves)


def test_bits_of_all_dtypes_and_shapes(tmp_path: Path) -> None:
    state = every_leaf()
    shelf = DiskShelf(2, state, tmp_path)
    shelf.put(4, state)
    shelf.put(-7, tuple(x.clone() for x in state))
    for i in (4, -7, 4):
        found = shelf.get(i)
        assert same(found, state)
        assert all(x.data_ptr() % 64 == 0 for x in found)
        assert all(x.is_contiguous() and not x.requires_grad for x in found)
    shelf.close()


@pytest.mark.parametrize("positional", [True, False])
def test_awkward_tensors(positional: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "_POSITIONAL", positional)
    monkeypatch.setattr(scratch, "_CHUNK", 37)
    base = torch.randn(6, 10, dtype=torch.complex64)
    awkward = (
        base[::2, 1::3].mT,
        base.conj(),
        base.conj().imag,
        torch.randn(3, 1).expand(3, 4),
        torch.tensor([float("nan"), -0.0, float("inf")]),
        torch.arange(20)[3:8],
        torch.nn.Parameter(torch.randn(3)),
    )
    state = tuple(x.detach().resolve_conj().resolve_neg().clone() for x in awkward)
    shelf = DiskShelf(1, state)
    shelf.put(0, awkward)
    first = shelf.get(0)
    shelf._files[0].settle()  # that was from the buffer, this is from the file
    assert same(first, state)
    assert same(shelf.get(0), state)
    first[0].zero_()
    assert same(shelf.get(0), state)
    shelf.close()


def test_seek_and_access_stay_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "_POSITIONAL", False)
    monkeypatch.setattr(scratch, "_CHUNK", 64)
    seek = os.lseek
    monkeypatch.setattr(os, "lseek", lambda *args: (seek(*args), time.sleep(1e-4)))
    shelf = DiskShelf(60, like())
    for i in range(60):
        shelf.put(i, like(i))
        if i >= 5:
            assert same(shelf.get(i - 5), like(i - 5))
    shelf.close()


def test_no_leaves(tmp_path: Path) -> None:
    shelf = DiskShelf(1, (), tmp_path)
    shelf.put(0, ())
    assert shelf.get(0) == ()
    shelf.close()


def test_the_caller_may_change_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch, "_write")
    shelf, state = DiskShelf(1, like()), like()
    shelf.put(0, state)
    for x in state:
        x.zero_()
    assert same(shelf.get(0), like())  # not written yet
    gate.open()
    shelf._files[0].settle()
    assert same(shelf.get(0), like())
    shelf.close()


# ---------------------------------------------------------------- against a dict

OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "get", "get", "drop", "prefetch", "fork", "leave"]),
        st.integers(0, 5),
    ),
    max_size=60,
)


def check_against_dict(shelf: Shelf, operations: Any, finish: Any = lambda: None) -> list[Any]:
    """Shelves and forks of them, each with a dict that says what it holds."""
    pairs: list[tuple[Shelf, set[int]]] = [(shelf, set())]
    found: list[tuple[Leaves, int]] = []
    for name, i in operations:
        shelf, held = pairs[i % len(pairs)]
        if name == "put":
            state = tuple(x.clone() for x in like(i))
            shelf.put(i, state)
            held.add(i)
        elif name == "get" and i in held:
            found.append((shelf.get(i), i))
        elif name == "drop" and i in held:
            shelf.drop(i)
            held.remove(i)
        elif name == "prefetch":
            shelf.prefetch(i)
        elif name == "fork" and len(pairs) < 4:
            pairs.append((shelf.fork(), set(held)))
        elif name == "leave" and len(pairs) > 1:
            pairs.pop(i % len(pairs))[0].close()
        for shelf, held in pairs:
            assert {i for i in range(6) if i in shelf} == held
    found += [(shelf.get(i), i) for shelf, held in pairs for i in sorted(held)]
    finish()
    assert all(same(x, like(i)) for x, i in found)
    return [shelf for shelf, _ in pairs]


@settings(max_examples=60, deadline=None)
@given(OPERATIONS)
def test_disk_against_a_dict(operations: Any) -> None:
    for shelf in check_against_dict(DiskShelf(3, like()), operations):
        shelf.close()


@settings(max_examples=150, deadline=None)
@given(OPERATIONS, st.integers(0, 1000))
def test_pinned_against_a_dict(operations: Any, seed: int) -> None:
    shelf, streams = fake_shelf(2, like(), seed)
    check_against_dict(shelf, operations, streams.run)


@pytest.mark.parametrize("seed", range(30))
def test_pinned_copies_wait_for_each_other(seed: int) -> None:
    shelf, streams = fake_shelf(3, like(), seed)
    found: list[tuple[Leaves, int]] = []
    work = (
        torch.zeros(10, dtype=torch.float64),
        torch.zeros(3),
    )  # the caller's, changed in its stream
    for sweep in range(2):
        for i in range(3):
            for x, y in zip(work, like(3 * sweep + i), strict=True):
                streams.copy(x, y)
            shelf.put(3 * sweep + i, work)
        for i in (2, 0, 1):
            shelf.prefetch(3 * sweep + i if seed % 2 else 3 * sweep)
            found.append((shelf.get(3 * sweep + i), 3 * sweep + i))
            shelf.drop(3 * sweep + i)
    streams.run()
    assert all(same(x, like(i)) for x, i in found)
    assert len(shelf._rows._chunks) == 1


def test_what_is_read_ahead_is_copied_once() -> None:
    shelf, streams = fake_shelf(3, like(), 0)
    shelf.put(0, like(0))
    before = streams.queued[True]
    for _ in range(2):
        shelf.prefetch(0)
        shelf.get(0)
    # Waits for what was taken before; two leaves.
    assert streams.queued[True] == before + 1 + 2


@pytest.mark.parametrize("make", [DiskShelf, lambda *args: fake_shelf(*args, 0)[0]])
def test_what_is_stored_stays(make: Any) -> None:
    shelf = make(2, like())
    shelf.put(0, like(0))
    shelf.put(0, like(1))
    found = shelf.get(0)
    if isinstance(shelf, PinnedShelf):
        next(iter(shelf._rows._streams.values())).run()
    assert same(found, like(0))
    shelf.close()


def test_pinned_bytes() -> None:
    state = torch.zeros(3), torch.zeros(0)
    shelf, streams = fake_shelf(5, state, 0)
    assert shelf.nbytes == 5 * 12
    fork = shelf.fork()
    for i in range(5):
        shelf.put(i, state)
        fork.put(-1 - i, state)
    assert shelf.nbytes == fork.nbytes == 10 * 12
    streams.pinned = True  # type: ignore[misc]
    assert shelf.nbytes == 64 + 5 * 16
    with pytest.raises(AssertionError, match="CPU memory already"):
        PinnedShelf(1, state)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", [PinnedShelf, DiskShelf])
def test_on_cuda(kind: Any) -> None:
    n = 1 << 20
    states = [(torch.randn(n, device="cuda"), torch.randn(3)) for _ in range(6)]
    shelf = kind(6, states[0])
    for sweep in range(3):
        work = tuple(x.clone() for x in states[0])
        for i, state in enumerate(states):
            for x, y in zip(work, state, strict=True):
                x.copy_(y)
            shelf.put(i, work)
            for x in work:
                x.zero_()
            if sweep == 1:
                del work
                work = tuple(torch.full_like(x, 7.0) for x in state)
        for i in reversed(range(6)):
            with torch.cuda.stream(torch.cuda.Stream() if sweep == 2 else None):
                shelf.prefetch(i)
                found = shelf.get(i)
                torch.cuda.current_stream().synchronize()
            assert same(found, states[i])
            shelf.drop(i)
    shelf.close()


# ---------------------------------------------------------------- forks


def test_a_fork_leaves_the_states_as_they_are(tmp_path: Path) -> None:
    shelf = DiskShelf(2, like(), tmp_path)
    shelf.put(0, like(0))
    shelf.put(1, like(1))
    fork = shelf.fork()
    once = shelf.nbytes
    fork.drop(0)
    fork.put(2, like(2))
    fork.drop(1)
    fork.put(3, like(3))
    assert shelf.nbytes == fork.nbytes == 2 * once
    assert [i for i in range(4) if i in shelf] == [0, 1]
    assert [i for i in range(4) if i in fork] == [2, 3]
    again = shelf.fork()
    assert all(same(again.get(i), like(i)) for i in (0, 1))
    shelf.close()
    again.close()
    assert all(same(fork.get(i), like(i)) for i in (2, 3))
    fork.close()


def test_dropped_places_serve_again(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch, "_write")
    shelf = DiskShelf(1, like())
    size = shelf.nbytes
    shelf.put(0, like(0))
    shelf.drop(0)  # while its write waits
    shelf.put(1, like(1))
    gate.open()
    for i in range(1, 30):
        assert same(shelf.get(i), like(i))
        shelf.drop(i)
        shelf.put(i + 1, like(i + 1))
    assert shelf.nbytes == size
    shelf.close()


# ---------------------------------------------------------------- in the background


def test_writes_in_flight_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch, "_write")
    shelf = DiskShelf(9, like())
    for i in range(MAX_WRITES):
        shelf.put(i, like(i))
    ready = threading.Event()

    def more() -> None:
        shelf.put(8, like(8))
        ready.set()

    thread = threading.Thread(target=more)
    thread.start()
    assert not ready.wait(0.1)
    assert 8 not in shelf
    gate.open()
    assert ready.wait(WAIT)
    thread.join()
    shelf._files[0].settle()
    assert len(shelf._files[0]._spare) <= MAX_WRITES
    assert all(same(shelf.get(i), like(i)) for i in (0, 1, 8))
    shelf.close()


def test_reads_ahead_are_bounded_and_used(monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = DiskShelf(9, like())
    for i in range(5):
        shelf.put(i, like(i))
    file = shelf._files[0]
    file.settle()
    gate = Gate(monkeypatch, "_read")
    for i in (0, 0, 1, 2, 7):
        shelf.prefetch(i)
    held = lambda: [i for i in range(5) if shelf._places[i].read is not None]  # noqa: E731
    assert held() == [0, 1]  # the hint for 2 found no room
    assert same(shelf.get(3), like(3))  # what was not read ahead does not wait
    gate.open()
    assert same(shelf.get(1), like(1))
    assert held() == [0]
    calls = gate.calls
    assert same(shelf.get(0), like(0))
    assert gate.calls == calls
    for i in (2, 3, 4):
        shelf.prefetch(i)
        assert eventually(lambda i=i: shelf._places[i].read.finished)
        assert len(held()) <= MAX_READS
    assert held() == [3, 4]  # an old one gave way
    shelf.drop(3)
    assert eventually(lambda: sum(r() is not None for r in file._reads) == 1)
    assert same(shelf.get(4), like(4))
    assert eventually(lambda: all(r() is None for r in file._reads))  # the thread forgets it, too
    assert shelf.memory_rows == MAX_WRITES + MAX_READS
    shelf.close()


@pytest.mark.parametrize("where", ["put", "get", "other", "close"])
def test_errors_while_writing(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch, "_write")
    shelf = DiskShelf(3, like())
    shelf.put(0, like(0))
    shelf.put(1, like(1))
    gate.open(OSError(errno.ENOSPC, "No space left on device"))
    assert eventually(lambda: all(w.finished for w in shelf._files[0]._writes))
    gate.error = None
    use = {
        "put": lambda: shelf.put(2, like(2)),
        "get": lambda: shelf.get(0),
        "other": lambda: shelf.get(1),
        "close": shelf.close,
    }[where]
    with pytest.raises(
        CheckpointStorageError, match=r"No space left on device.*bytes are free"
    ) as e:
        use()
    assert isinstance(e.value, OdegradError)
    assert isinstance(e.value, OSError)
    assert isinstance(e.value.__cause__, OSError)
    assert e.value.__cause__.errno == errno.ENOSPC
    if where == "close":
        return
    with pytest.raises(CheckpointStorageError, match="No space left"):
        shelf.get(1)  # it is reported again, and that it is lost is never forgotten
    with pytest.raises(CheckpointStorageError, match="No space left"):
        shelf.get(1)
    shelf.drop(0)
    shelf.drop(1)
    shelf.put(5, like(5))
    assert same(shelf.get(5), like(5))
    shelf.close()


def test_errors_of_states_that_nobody_holds_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = DiskShelf(3, like())
    shelf.put(0, like(0))
    shelf._files[0].settle()
    gate = Gate(monkeypatch, "_write")
    fork = shelf.fork()
    fork.put(1, like(1))
    gate.open(OSError(errno.EIO, "Input/output error"))
    del fork
    assert same(shelf.get(0), like(0))
    shelf.close()


def test_errors_while_reading_ahead(without_gc: None, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = DiskShelf(3, like())
    shelf.put(0, like(0))
    shelf._files[0].settle()
    gate = Gate(monkeypatch, "_read")
    gate.open(OSError(errno.EIO, "Input/output error"))
    shelf.prefetch(0)
    read = weakref.ref(shelf._places[0].read)
    with pytest.raises(CheckpointStorageError, match=r"state 0 cannot be read back.*Input/output"):
        shelf.get(0)
    assert same(shelf.get(0), like(0))
    shelf.close()
    assert eventually(lambda: read() is None)


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize("ahead", [False, True])
def test_damage_is_found(ahead: bool, tmp_path: Path) -> None:
    state = torch.randn(11), torch.randn(2, dtype=torch.float64)
    shelf = DiskShelf(2, state, tmp_path)
    shelf.put(0, state)
    shelf.put(1, tuple(x + 1 for x in state))
    file = shelf._files[0]
    file.settle()
    fd, layout = file._records.file._open.fd, file._layout
    whole = os.pread(fd, 2 * layout.nbytes, 0)

    def check(changed: bytes, i: int, match: str) -> None:
        os.ftruncate(fd, 0)
        os.pwrite(fd, changed, 0)
        if ahead:
            shelf.prefetch(i)
        with pytest.raises(CheckpointStorageError, match=match) as e:
            shelf.get(i)
        assert f"state {i}" in str(e.value)
        assert str(tmp_path) in str(e.value)

    meaning = [*range(24 + len(layout._description))]
    for offset, x in zip(layout.offsets, state, strict=True):
        meaning += range(offset, offset + x.numel() * x.element_size())
    for k in meaning:
        for i in (0, 1):
            at = i * layout.nbytes + k
            check(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :], i, "header|checksum")
    first, second = whole[: layout.nbytes], whole[layout.nbytes :]
    check(second + first, 0, "header")  # swapped records
    h = layout.header_nbytes
    check(second[:h] + first[h:] + first[:h] + second[h:], 0, "header")  # swapped headers
    check(first[:8] + second[8:12] + first[12:] + second, 0, "checksum")
    check(whole[:-64], 1, "the file ends before it")
    check(b"", 0, "the file ends before it")
    check(bytes(len(whole)), 0, "header")
    os.ftruncate(fd, 0)
    os.pwrite(fd, whole, 0)
    assert same(shelf.get(0), state)
    shelf.close()


# ---------------------------------------------------------------- no room


def needs(message: str, size: int) -> bool:
    return f"{size:,} bytes are needed" in message and "directory=" in message


def test_places_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("")
    for directory in (tmp_path / "absent", occupied, occupied / "below"):
        with pytest.raises(CheckpointStorageError, match="cannot be stored in") as e:
            DiskShelf(3, like(), directory)
        assert str(directory) in str(e.value)
        assert needs(str(e.value), 3 * 256)

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    inner = os.open
    create = lambda path, flags, *args, **kw: (  # noqa: E731
        (refuse if flags & os.O_CREAT else inner)(path, flags, *args, **kw)
    )
    monkeypatch.setattr(os, "open", create)
    with pytest.raises(CheckpointStorageError, match="Permission denied"):
        DiskShelf(3, like(), tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(scratch.tempfile, "gettempdir", refuse)
    with pytest.raises(CheckpointStorageError, match=r"temporary directory.*Permission denied"):
        DiskShelf(3, like())
    assert os.listdir(tmp_path) == ["file"]


def test_a_full_disk_is_found_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CheckpointStorageError, match="bytes are free"):
        DiskShelf(1 << 50, like(), tmp_path)
    with pytest.raises(CheckpointStorageError, match="bytes are free"):
        DiskShelf(1 << 80, like(), tmp_path)
    shelf = DiskShelf(1, like(), tmp_path)
    shelf.put(0, like(0))
    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(CheckpointStorageError, match="No space left") as e:
        DiskShelf(3, like(), tmp_path)
    assert needs(str(e.value), 3 * 256)
    fork = shelf.fork()
    with pytest.raises(CheckpointStorageError, match="No space left") as e:
        fork.put(1, like(1))
    assert needs(str(e.value), 256)
    assert 1 not in fork
    assert same(fork.get(0), like(0))
    monkeypatch.undo()
    fork.put(1, like(1))
    assert same(fork.get(1), like(1))
    assert os.listdir(tmp_path) == []
    fork.close()
    shelf.close()


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL, None])
def test_file_systems_that_reserve_nothing(
    code: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*args: Any) -> None:
        raise OSError(code, "not supported")

    if code is None:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    else:
        monkeypatch.setattr(os, "posix_fallocate", unsupported, raising=False)
    shelf = DiskShelf(2, like(), tmp_path)
    assert os.fstat(shelf._files[0]._records.file._open.fd).st_size == shelf.nbytes == 2 * 256
    shelf.put(1, like(1))
    assert same(shelf.get(1), like(1))
    shelf.close()
    usage = type("usage", (), {"free": 2 * 256 - 1})
    monkeypatch.setattr(scratch.shutil, "disk_usage", lambda directory: usage)
    with pytest.raises(
        CheckpointStorageError, match="512 bytes are needed there, 511 bytes are free"
    ):
        DiskShelf(2, like(), tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["posix_fallocate", "open"])
def test_a_file_that_cannot_be_made_is_closed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = getattr(os, name)

    def full(*args: Any, **options: Any) -> Any:
        if name == "open" and not args[1] & os.O_CREAT:
            return inner(*args, **options)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, name, full, raising=False)
    file = scratch.ScratchFile(tmp_path)
    with pytest.raises(CheckpointStorageError) as e:
        file.make(10)
    assert e.value.__cause__ is not None
    assert file._open.fd == -1
    assert os.listdir(tmp_path) == []


# ---------------------------------------------------------------- nothing is left


def open_files() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("end", ["close", "del", "error", "interrupt"])
def test_nothing_is_left(
    end: str, named: bool, without_gc: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> None:
        raise PermissionError(errno.EACCES, "in use")

    before = open_files()
    if named:  # as on Windows
        with monkeypatch.context() as patch:
            patch.setattr(os, "unlink", refuse)
            shelf = DiskShelf(9, like(), tmp_path)
        (folder,) = tmp_path.iterdir()
        assert folder.name.startswith(f"odegrad-{os.getpid()}-")
        assert folder.stat().st_mode & 0o777 == 0o700
    else:
        shelf = DiskShelf(9, like(), tmp_path)
        assert os.listdir(tmp_path) == []
    for i in range(4):
        shelf.put(i, like(i))
    shelf.prefetch(0)
    fork = shelf.fork()
    fork.put(7, like(7))
    reference = weakref.ref(shelf)
    if end == "close":
        fork.close()
        shelf.get(0)
        shelf.close()
        shelf.close()
        with pytest.raises(CheckpointStorageError, match="was closed"):
            shelf.put(8, like(8))
        with pytest.raises(CheckpointStorageError, match="was closed"):
            shelf.get(0)
        shelf.prefetch(0)
        assert 0 not in shelf
    elif end == "del":
        del fork, shelf
        assert reference() is None
    else:
        error = ValueError if end == "error" else KeyboardInterrupt

        def use(shelf: Shelf, fork: Shelf) -> None:
            raise error

        shelves = [shelf, fork]
        del shelf, fork
        with pytest.raises(error):
            use(shelves.pop(0), shelves.pop())
        assert eventually(lambda: reference() is None)
    if end != "close":  # close waits, what the garbage collector does must not
        assert eventually(lambda: open_files() <= before and not os.listdir(tmp_path))
    assert os.listdir(tmp_path) == []
    assert open_files() == before
    assert eventually(lambda: not RUNNING)


def test_what_nobody_waits_for_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch, "_write")
    shelf = DiskShelf(9, like())
    shelf.put(0, like(0))
    shelf.put(1, like(1))
    assert eventually(lambda: gate.calls == 1)
    del shelf
    gate.open()
    assert eventually(lambda: not RUNNING)
    assert gate.calls == 1


def test_collection_in_the_background_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last reference may go where the thread cannot wait for itself."""
    box: list[Any] = []
    inner = scratch._write

    def write(*args: Any) -> int:
        assert eventually(lambda: "put" not in names)
        box.clear()
        return inner(*args)

    monkeypatch.setattr(scratch, "_write", write)
    names = {"put": DiskShelf(9, like()).put}
    box.append(names["put"].__self__)
    file = box[0]._files[0]
    names["put"](0, like(0))
    del names["put"]
    assert eventually(lambda: not RUNNING)
    assert file._records.file._open.fd == -1


SCENARIOS = """
import atexit, faulthandler, json, os, signal, sys, threading, time
import torch
from odegrad.storage import DiskShelf, scratch

directory, like = sys.argv[1], (torch.arange(1000.0),)
state = lambda i: (like[0] + i,)
holds = lambda shelf, *numbers: all(torch.equal(shelf.get(i)[0], state(i)[0]) for i in numbers)
children = {}

def child(name):
    pid = os.fork()
    if pid:
        children[name] = pid
    else:
        faulthandler.dump_traceback_later(40, exit=True)
    return not pid

def busy(named):
    def refuse(path):
        raise PermissionError(13, "in use")
    unlink, os.unlink = os.unlink, refuse if named else os.unlink
    shelf = DiskShelf(9, like, directory)
    os.unlink = unlink
    for i in range(5):
        shelf.put(i, state(i))
    shelf.prefetch(0)
    return shelf

if child("exit"):
    shelves = [busy(named=False), busy(named=True)]
    inner = scratch._write
    scratch._write = lambda *x: (time.sleep(0.2), inner(*x))[1]
    scratch._CHUNK = 64
    shelves[0].put(5, state(5))  # takes 12 s
    sys.exit(0)
if child("interrupted"):
    shelf = busy(named=True)
    sys.excepthook = lambda *error: None
    raise KeyboardInterrupt
if child("killed"):
    shelf = busy(named=False)
    inner = scratch._write
    def write(*args):
        inner(*args)
        os.kill(os.getpid(), signal.SIGKILL)
    scratch._write = write
    shelf.put(5, state(5))
    time.sleep(10)
    os._exit(0)
if child("interrupts"):
    directory = os.path.join(directory, "interrupts")
    os.mkdir(directory)
    descriptors = lambda: len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    before, caught, n, shelf = descriptors(), 0, 0, None
    def interrupt(*_):
        raise KeyboardInterrupt
    signal.signal(signal.SIGALRM, interrupt)
    while caught < 300:
        try:
            signal.setitimer(signal.ITIMER_REAL, 1e-5 + 1e-6 * (caught * 7919 % 997))
            for _ in range(1000):
                if shelf is None:
                    shelf = DiskShelf(6, like, directory)
                i = n % 6
                n += 1
                if i in shelf:
                    shelf.prefetch((i + 1) % 6)
                    assert holds(shelf, i)
                    shelf.drop(i)
                else:
                    shelf.put(i, state(i))
                if n % 61 == 0:
                    assert shelf.nbytes < 12 * 4200
                    old, shelf = shelf, None
                    old.close()
        except KeyboardInterrupt:
            caught += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
    assert n > 500, n
    shelf = old = None
    time.sleep(0.1)
    assert os.listdir(directory) == [], os.listdir(directory)
    assert descriptors() == before, descriptors() - before
    os.rmdir(directory)
    os._exit(0)

# Forks of a process that uses a store. The background thread is not in the child.
inner, gate = os.pwrite, threading.Event()
os.pwrite = lambda *x: (gate.wait(10), inner(*x))[1]
gate.set()
shelf = busy(named=True)
shelf._files[-1].settle()
for i in (0, 1, 2, 3):
    shelf.drop(i)
gate.clear()
shelf.put(0, state(0))
shelf.put(1, state(1))
shelf.prefetch(0)
shelf.prefetch(4)
if child("fork"):
    assert holds(shelf, 0, 1, 4)
    os.pwrite = inner
    shelf.prefetch(1)
    shelf.drop(0)
    shelf.put(2, state(2))
    fork = shelf.fork()
    fork.put(3, state(3))
    assert holds(fork, 1, 2, 3)
    shelf.close()
    assert holds(fork, 1, 2, 3)
    file = shelf._files[0]._records.file
    assert file._open.fd != -1
    fork.close()
    assert file._open.fd == -1
    os._exit(0)
if child("fork, unused"):
    atexit._run_exitfuncs()
    os._exit(0)
gate.set()
for name, pid in children.items():
    children[name] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
shelf.put(5, state(5))
assert holds(shelf, 0, 1, 4, 5)
assert len(os.listdir(directory)) == 1
print(json.dumps(children))
sys.stdout.flush()
shelf.close()
os._exit(0)
"""


@needs_fork
def test_processes_that_end(tmp_path: Path) -> None:
    end = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCENARIOS, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert end.stderr == ""
    assert end.returncode == 0
    expected = dict.fromkeys(["exit", "interrupts", "fork", "fork, unused"], 0)
    expected |= {"interrupted": -signal.SIGINT, "killed": -signal.SIGKILL}
    assert json.loads(end.stdout) == expected
    assert os.listdir(tmp_path) == []
