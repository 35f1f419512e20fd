"""The entry point, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import errno
import signal
import sys


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the `lmi` command. Ends the process."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until a command has its own handler, Ctrl-C ends without a traceback
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Runs the command line; returns the exit code. Nothing but messages reaches the user, unless --debug."""
    import click

    from lmi.cli.console import ClosedPipe, Console, Interrupted, silence
    from lmi.cli.group import lmi
    from lmi.errors import Error, OutputError

    debug, standard_output = "--debug" in arguments, sys.stdout
    try:
        result = lmi.main(arguments, prog_name="lmi", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as e:
        return e.exit_code
    except click.ClickException as e:
        e.show()
        return e.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except Interrupted as e:
        return 128 + e.number
    except ClosedPipe:
        return 141
    except BrokenPipeError:
        silence(sys.stdout)
        return 141
    except SystemExit:
        if sys.stdout is standard_output:
            raise
        silence(standard_output)  # click printed help or version into a closed pipe, and has put something else in its place
        return 141
    except OSError as e:
        if e.filename is not None or e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            return _internal(e, arguments)
        silence(sys.stdout)
        Console(color=_color(arguments)).error(f"cannot write to standard output: {e.strerror}")
        return OutputError.exit_code
    except Error as e:
        if debug:
            raise
        remedy = e.remedy
        if getattr(e, "window", None):
            remedy = remedy.replace(f"Smaller window: {e.window}", f"Smaller window: --window {e.window}")
        Console(color=_color(arguments)).error(e.message, remedy)
        return e.exit_code
    except Exception as e:
        return _internal(e, arguments)


def _internal(e: Exception, arguments: list[str]) -> int:
    from lmi.cli.console import Console

    if "--debug" in arguments:
        raise e
    text = f"internal error ({type(e).__name__}: {' '.join(str(e).split())[:300]})"
    Console(color=_color(arguments)).error(text, "Please report it; run with --debug for details")
    return 1


def _color(arguments: list[str]) -> str:
    for i, a in enumerate(arguments):
        if a.startswith("--color="):
            return a.partition("=")[2]
        if a == "--color" and i + 1 < len(arguments):
            return arguments[i + 1]
    return "auto"
