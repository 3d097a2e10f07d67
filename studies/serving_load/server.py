"""The server under test: ``fastervit serve`` in processes of its own, and what the system says of them."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

_START_S = 300.0
_TICKS = os.sysconf("SC_CLK_TCK")


class Server:
    """A server that runs.

    Args:
        words: Of ``fastervit serve``.
        log: Where its stderr goes.
        threads: Of its engine.
        before: A command that starts it, in front of its own.
        environment: Beside this process'.
        seen_log: Where this process finds the log, with the server's process number for ``{pid}``; by default where
            it is.

    Raises:
        RuntimeError: If it does not come up; with what it said.
    """

    def __init__(
        self,
        words: Sequence[object],
        log: Path,
        threads: int,
        before: Sequence[str] = (),
        environment: dict[str, str] | None = None,
        seen_log: str | None = None,
    ) -> None:
        command = [sys.executable, "-m", "openfastervit_cli", "serve", "--port", "0", *(str(word) for word in words)]
        variables = {**os.environ, "OMP_NUM_THREADS": str(threads), **(environment or {})}
        with contextlib.ExitStack() as files:
            err = None if before else files.enter_context(log.open("wb"))
            self.process = subprocess.Popen(
                [*before, *command], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=err, env=variables
            )
        self.log = Path(seen_log.format(pid=self.process.pid)) if seen_log else log
        self.port = 0
        try:
            self._wait()
        except BaseException:
            self.kill()
            raise

    def _wait(self) -> None:
        until = time.monotonic() + _START_S
        while time.monotonic() < until:
            said = self.said()
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with code {self.process.returncode}: {said}")
            found = re.search(r"listening on http://[^ ]*:(\d+)", said)
            if found and self.ask("/health")[0] == 200:
                return
            if found:
                self.port = int(found[1])
            time.sleep(0.1)
        raise RuntimeError(f"the server did not come up within {_START_S:g} s: {self.said()}")

    def said(self) -> str:
        """What it has said on stderr."""
        with contextlib.suppress(OSError):
            return self.log.read_text(encoding="utf-8", errors="replace")
        return ""

    def ask(self, path: str, seconds: float = 30.0) -> tuple[int, str]:
        """Status and text of a GET; 0 where there is none."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=seconds) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, ""
        except OSError:
            return 0, ""

    def metric(self, name: str) -> float:
        """A figure of ``/metrics``; 0 where it is not there."""
        for line in self.ask("/metrics")[1].splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[-1])
        return 0.0

    @property
    def pids(self) -> list[int]:
        """Of all its processes, its own first."""
        found = [self.process.pid]
        for pid in found:  # grows while it is gone through
            with contextlib.suppress(OSError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    found += [int(child) for child in (task / "children").read_text().split()]
        return found

    @property
    def worker(self) -> int:
        """The process that has the model: the largest of the children."""
        return max(self.pids[1:], key=lambda pid: memory_of([pid]), default=0)

    @property
    def sockets(self) -> int:
        """That its own process has open."""
        count = 0
        for file in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                count += str(file.readlink()).startswith("socket:")
        return count

    def end(self, patience_s: float = 60.0) -> int:
        """Ask it to end, and give its exit code; -9 if it had to be killed."""
        self.process.terminate()
        try:
            return self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return -signal.SIGKILL

    def kill(self) -> None:
        """End it and all it started, at once."""
        for pid in reversed(self.pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def memory_of(pids: Sequence[int]) -> int:
    """Bytes of main memory that processes have to themselves, what they share with one another counted once.

    Pages of files, such as libraries, are left out: their share falls and rises with whoever else on the machine uses
    them, and the system takes them back when it needs to.
    """
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            found = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines[1:])}
            total += 1024 * (found["Pss_Anon"] + found["Pss_Shmem"])
    return total


def cpu_of(pid: int) -> float:
    """Seconds of a core that a process has used."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS


class Watch:
    """The memory of a server's processes (``memory_of``), each second. A context."""

    def __init__(self, server: Server, every_s: float = 1.0) -> None:
        self._server, self._every_s = server, every_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.bytes: list[int] = []

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(self._every_s):
            self.bytes.append(memory_of(self._server.pids))


@contextlib.contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[list[str]]:
    """A command that gives the one behind it a disk of its own at ``folder``, with its stderr in ``log`` there.

    Raises:
        RuntimeError: If the system does not allow that.
    """
    folder.mkdir(parents=True, exist_ok=True)
    unshare = shutil.which("unshare")
    if unshare is None:
        raise RuntimeError("there is no unshare")
    apart = [unshare, "--user", "--map-root-user", "--mount"]
    script = f'mount -t tmpfs -o size={kib}k tmpfs "$0" && exec "$@" 2>>"$0/log"'
    command = [*apart, "sh", "-c", script, str(folder)]
    tried = subprocess.run([*command, "true"], capture_output=True, text=True)
    if tried.returncode:
        raise RuntimeError(f"a disk of its own cannot be made: {' '.join(tried.stderr.split())}")
    yield command


def fill(folder: Path) -> None:
    """Write until the disk is full, and the last page of the log too."""
    for name, piece in (("filler", b"x" * 4096), ("filler", b"x"), ("log", b"\n")):
        with contextlib.suppress(OSError), (folder / name).open("ab", buffering=0) as file:
            while file.write(piece) == len(piece):
                pass
