"""One job at a time: lock files shared by the jobs of one machine or one network file system.

The lock is `flock` (through `filelock`), which the kernel drops when its holder dies, SIGKILL
included. On NFS, Linux turns flock into a byte-range lock held by the server, so it excludes jobs
on other machines too, and the server drops it when the client's lease runs out. That holds for
NFSv4, and for v3 with lockd; mounts with `nolock` or `local_lock` lock within one machine only,
which cannot be seen from here. A file system without flock is refused.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pqd.errors import UserError

WAIT_SECONDS = 0.5  # between two looks at a lock that another job holds


@contextmanager
def held(path: Path, on_wait: Callable[[], None] | None) -> Iterator[None]:
    """Holds the lock file `path`; where another job holds it, waits after `on_wait()`.

    Raises:
        TimeoutError: the lock is held and there is no `on_wait`.
        UserError: the file cannot be written or locked.
    """
    from filelock import FileLock

    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except TimeoutError:
        if on_wait is None:
            raise
        on_wait()
        lock.acquire(poll_interval=WAIT_SECONDS)
    except OSError as error:
        raise UserError(
            f"{path.parent} cannot be locked: {error.strerror}; it must be writable, on a local "
            "disk, NFSv4, or NFSv3 with lockd"
        ) from None
    try:
        yield
    finally:
        lock.release()
