"""Reading ahead: an iterator runs in a thread while its consumer works on what came before."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


def prefetch(items: Iterator[T], depth: int, *, wait: bool = True) -> Generator[T, None, None]:
    """The same items in the same order, up to `depth` of them read ahead; errors come in their place.

    Closing the generator ends the thread after the item that it is at, and closes `items` if it is a
    generator too. With `wait` it returns when that is done.
    """
    ready: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    room = threading.Semaphore(depth)
    stopped = threading.Event()

    def read() -> None:
        try:
            room.acquire()
            for item in items:
                ready.put(("item", item))
                del item  # while waiting for room, the consumer's is the only reference
                room.acquire()
                if stopped.is_set():
                    return
            ready.put(("end", None))
        except BaseException as error:
            ready.put(("error", error))
        finally:
            if isinstance(items, Generator):
                items.close()

    thread = threading.Thread(target=read, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            room.release()
            yield value
            del value
    finally:
        stopped.set()
        room.release()
        if wait:
            thread.join()
