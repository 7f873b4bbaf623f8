# SPDX-License-Identifier: Apache-2.0
"""Trainings that torchrun starts, watched from outside: who runs, and how far each is."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

# No wait of any of these tests may be longer, in seconds.
PATIENCE = 60.0

# Trains as the command does and leaves a trace in files: each process's number, each update that
# begins, each checkpoint that is whole. Where SAVING says so, a rank of one start kills itself
# before its n-th file operation within saving.
WITNESS = """
import os, signal, sys
from pathlib import Path
start, rank = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), os.environ["RANK"]
folder = Path(os.environ["WITNESS"])
(folder / "writing").mkdir(exist_ok=True)
def note(name, text):
    half = folder / "writing" / f"{start}-{rank}"
    half.write_text(text)
    half.rename(folder / f"{start}-{rank}.{name}")
note("pid", str(os.getpid()))
from sniper import train
from sniper.command import exit_with
from sniper.training import checkpoint
from sniper.training.trainer import Trainer
inner_update, inner_save, inner_write = Trainer._update, Trainer.save, checkpoint.save
begun, saving = [], []
def update(self, ids):
    if not begun:
        begun.append(self.progress.update)
        note("first", str(self.progress.update))
    note("update", str(self.progress.update))
    return inner_update(self, ids)
def write(run, step, *rest):
    done = inner_write(run, step, *rest)
    note("saved", str(step))
    return done
FILES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")
left = dict(each.split(":") for each in os.environ.get("SAVING", "").split(",") if each)
left = int(left.get(f"{start}-{rank}", -1))
def hook(event, args):
    global left
    if saving and event in FILES:
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
def save(self, *args):
    if left > 0 and rank != "0":  # rank 0 writes while this one goes on
        saving.append(1)
        hook("open", ())
        saving.clear()
    saving.append(1)
    try:
        return inner_save(self, *args)
    finally:
        saving.clear()
Trainer._update, Trainer.save, checkpoint.save = update, save, write
if left > 0:
    sys.addaudithook(hook)
exit_with(lambda: train.main(sys.argv[1:]))
"""


@dataclass
class Torchrun:
    """torchrun at work.

    Args:
        process: torchrun's own.
        folder: where the ranks leave their traces, and both streams of all of them.
    """

    process: subprocess.Popen
    folder: Path

    def trace(self, start: int, rank: int, name: str) -> int | None:
        """What a rank of one start has noted last: `pid`, its `first` and last `update`, the last
        update that is `saved`; None: nothing yet.
        """
        path = self.folder / f"{start}-{rank}.{name}"
        return int(path.read_text()) if path.exists() else None

    def until(self, done: Callable[[], bool], seconds: float = PATIENCE) -> bool:
        """Waits for something while torchrun runs; whether it came.

        Args:
            seconds: that may go by without a new trace.
        """
        traces, since = self._traces(), time.monotonic()
        while not done():
            if self.process.poll() is not None:
                return done()
            time.sleep(0.01)
            if (now := self._traces()) != traces:
                traces, since = now, time.monotonic()
            assert time.monotonic() - since < seconds, f"a hang of {seconds} s\n{self.said()}"
        return True

    def end(self, seconds: float = PATIENCE) -> int:
        """Waits for the end; the exit status."""
        self.until(lambda: False, seconds)
        return self.process.wait()

    def _traces(self) -> int:
        return max(path.stat().st_mtime_ns for path in (self.folder, self.folder / "err"))

    @property
    def out(self) -> str:
        return (self.folder / "out").read_text(errors="replace")

    @property
    def err(self) -> str:
        return (self.folder / "err").read_text(errors="replace")

    def said(self) -> str:
        return f"{self.out}\n{self.err}"


@contextlib.contextmanager
def torchrun(
    folder: Path,
    *arguments: object,
    ranks: int = 2,
    restarts: int = 0,
    rendezvous: tuple[str, ...] = ("--standalone",),
    inside: tuple[str, ...] = (),
    **environment: str,
) -> Iterator[Torchrun]:
    """`torchrun -m sniper.train ARGUMENTS`, with a witness in every rank.

    Args:
        folder: for traces and streams; made here.
        rendezvous: where the ranks meet.
        inside: words before the command, such as those that enter a network namespace.
        environment: of all of it.
    """
    folder.mkdir(parents=True)
    program = folder / "witness.py"
    program.write_text(WITNESS)
    line = [*inside, sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={ranks}"]
    line += [*rendezvous, f"--max-restarts={restarts}", str(program), *map(str, arguments)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "WITNESS": str(folder), **environment}
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        # As from a terminal, Ctrl-C can be sent to all of it.
        process = subprocess.Popen(line, stdout=out, stderr=err, env=env, start_new_session=True)
    try:
        yield Torchrun(process, folder)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for path in folder.glob("*.pid"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(path.read_text()), signal.SIGKILL)


@dataclass
class Machines:
    """Network namespaces with an address each, joined by a cable; to a process in one, the other is
    another machine of the same disk.

    Args:
        names: of the namespaces.
        addresses: one each.
        interface: of the cable, in each.
    """

    names: tuple[str, str]
    addresses: tuple[str, str]
    interface: str

    def inside(self, number: int) -> tuple[str, ...]:
        """Words before a command that have it run there."""
        return "ip", "netns", "exec", self.names[number]

    def cable(self, plugged: bool) -> None:
        """Pulls the cable, or puts it back."""
        state = "up" if plugged else "down"
        _ip(f"-n {self.names[1]} link set {self.interface} {state}")


def _ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True, capture_output=True)


@contextlib.contextmanager
def two_machines() -> Iterator[Machines]:
    """Needs root and iproute2.

    Raises:
        OSError, subprocess.CalledProcessError: namespaces cannot be made here.
    """
    made = Machines(
        (f"sniper-a-{os.getpid()}", f"sniper-b-{os.getpid()}"), ("10.77.0.1", "10.77.0.2"), "cable"
    )
    a, b = made.names
    try:
        for name in made.names:
            _ip(f"netns add {name}")
        _ip(f"link add {made.interface} netns {a} type veth peer name {made.interface} netns {b}")
        for name, address in zip(made.names, made.addresses, strict=True):
            _ip(f"-n {name} address add {address}/24 dev {made.interface}")
            _ip(f"-n {name} link set {made.interface} up")
            _ip(f"-n {name} link set lo up")
        yield made
    finally:
        for name in made.names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)
