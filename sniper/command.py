# SPDX-License-Identifier: Apache-2.0
"""How a command's process takes its paths, speaks and ends."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import select
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn


def path_argument(text: str) -> Path:
    """An argparse type: a path that a file system can have; `~` is the home folder."""
    from sniper.tts.files import with_home

    if not text.strip():  # of a variable that is not set; Path would make the present folder of it
        raise argparse.ArgumentTypeError(f"expected a path, got {text!r}")
    if "\0" in text:
        raise argparse.ArgumentTypeError(f"a path holds no NUL, got {text!r}")
    return Path(with_home(text))


path_argument.__name__ = "path"  # as argparse names it


def positive(text: str) -> int:
    """An argparse type: a whole number from 1."""
    # argparse makes a message of the ValueError that text without a number raises.
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {value}")
    return value


positive.__name__ = "whole number"


def why_missing(error: ImportError, extra: str) -> str:
    """That a package is not installed, and the extra that brings it.

    Raises:
        ImportError: the same, where it is a module of ours: that is our fault, and wants its
            traceback.
    """
    if (error.name or "sniper").startswith("sniper"):
        raise error
    return f"{error}: pip install 'sniper-tts[{extra}]'"


def prepared(work: Callable[[], int], argv: list[str] | None = None) -> int:
    """The exit status of `work`, which prepares speech; what goes wrong is told in a line.

    Args:
        argv: its arguments; None: the process's.
    """
    from sniper.tts.errors import NothingUsable, SpeechError

    try:
        return work()
    # It is a SpeechError too, so it has to come first.
    except NothingUsable as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (SpeechError, ValueError, OSError) as error:
        if is_of_output(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        # On a line of its own, since the cursor stands behind the progress bar.
        given = sys.argv[1:] if argv is None else argv
        # argparse takes beginnings of a name, too.
        anew = any(len(word) > 2 and "--force".startswith(word) for word in given)
        same = "the same command" + (" without --force" if anew else "")
        print(f"\nstopped; {same} continues from here", file=sys.stderr)
        return 130


def typed_text(text: str) -> str:
    """What a person typed, where the locale made lone bytes of letters beyond ASCII."""
    try:
        return os.fsencode(text).decode("utf-8")
    except UnicodeError:
        return text


_interrupted = False


class _AmidImports(KeyboardInterrupt):
    """Ctrl-C in the middle of an import, which may swallow it, as torch's does in that of numpy:
    then nobody keeps the exception, and Ctrl-C is sent once more.
    """

    def __del__(self) -> None:
        _press_again()


def _press_again() -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # the command has ended
        return
    # From a thread and a moment later: here the handler's exception could not go on.
    again = threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGINT))
    again.daemon = True
    again.start()


def interrupt(*_: object) -> None:
    """What Ctrl-C does by itself, remembered: a handler of signals. Torch's own import is finished
    first: what is raised in the middle of it may abort the process, or have it hang at its end.
    """
    global _interrupted
    _interrupted = True
    if _is_being_imported("torch"):
        _press_again()
        return
    frame = sys._getframe()
    while frame := frame.f_back:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            raise _AmidImports
    raise KeyboardInterrupt


def _is_being_imported(name: str) -> bool:
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return getattr(spec, "_initializing", False)


def _tell_or_press(unraisable: sys.UnraisableHookArgs) -> None:
    """A hook of Python's: Ctrl-C in a finalizer or a callback, where no exception can go on, is
    sent once more; other exceptions are told as ever.
    """
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
    elif not issubclass(unraisable.exc_type, _AmidImports):  # that one does so by itself
        _press_again()


# What writing alone comes to. Files of ours are named in their errors, as print names none.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_of_output(error: BaseException) -> bool:
    """Whether `error` is one of printing, since nobody reads any more, the disk behind it is full
    or the terminal is gone: it is for `exit_with` to end with.
    """
    if isinstance(error, BrokenPipeError):
        return reader_has_gone()
    if not isinstance(error, OSError) or error.filename is not None:
        return False
    if error.errno in _NO_ROOM:
        return True
    try:
        sys.stdout.flush()  # what could not be written is still in its buffer
    except (OSError, ValueError):
        return True
    return False


def about_output(error: BaseException) -> str:
    """What `is_of_output` found, in words."""
    return f"standard output: {getattr(error, 'strerror', None) or error}"


def reader_has_gone() -> bool:
    """Whether nobody reads what is printed any more."""
    try:
        output = sys.stdout.fileno()
    except (OSError, ValueError):  # what stands in for it has no reader, or it is closed
        return False
    # Asked of the system: of what was written past the stream's buffer a flush knows nothing.
    state = select.poll()
    state.register(output, 0)
    return any(event & select.POLLERR for _, event in state.poll(0))


def _open_missing_streams() -> None:
    """Gives whoever prints somewhere to print to, where a command was started with `2>&-` or by
    what has no terminal.
    """
    # A file that is opened later would have the number of a stream that is closed, and be written
    # to by all that know a stream by its number.
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(handle, True)
    os.close(handle)
    # Python has None for them: print would take the other one, and a progress bar ends in an error.
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def exit_with(main: Callable[[], int]) -> NoReturn:
    """Runs a command and ends the process with its exit status; neither Ctrl-C, nor letters that
    the terminal does not have, nor a stream that is closed, whose reader has gone away or whose
    disk is full leave a traceback.
    """
    _open_missing_streams()
    signal.signal(signal.SIGINT, interrupt)
    sys.unraisablehook = _tell_or_press
    warnings.formatwarning = _in_a_line
    argparse.ArgumentParser.print_help = _print_help  # pyright: ignore[reportAttributeAccessIssue]
    try:
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(errors="backslashreplace")  # pyright: ignore
        try:
            status = main()
        except SystemExit as end:  # argparse's, after --help and wrong arguments
            status = end.code
        sys.stdout.flush()
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:
        status = 141  # as of a process that SIGPIPE ended
        _forget_output()
    except Exception as error:
        if is_of_output(error):
            with contextlib.suppress(OSError):  # it may be the same disk
                print(f"error: {about_output(error)}", file=sys.stderr)
            status = 1
            _forget_output()
        # Libraries that load others swallow a Ctrl-C, and fail later for want of what was not
        # loaded: the fault is not theirs, and nothing has been lost.
        elif _interrupted:
            status = 130
        else:
            raise
    # Nothing is left to stop, and Python's own last steps answer Ctrl-C with a traceback.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(status)


_PACKAGE = str(Path(__file__).parent)
_with_place = warnings.formatwarning


def _in_a_line(message, category, filename: str, *place) -> str:
    """A warning of ours without the line of code that gave it, which tells its reader nothing."""
    if filename.startswith(_PACKAGE):
        return f"warning: {message}\n"
    return _with_place(message, category, filename, *place)


def _print_help(parser: argparse.ArgumentParser, file: Any = None) -> None:
    # argparse's own keeps to itself that it could not be written.
    print(parser.format_help(), end="", file=file)


def _forget_output() -> None:
    # Python flushes once more at its end, and says so where that fails.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
