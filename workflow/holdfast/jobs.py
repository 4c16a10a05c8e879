"""What every job of the pipeline needs around its one library call: threads, log, and clear errors."""

import contextlib
import os
import sys
import traceback
from pathlib import Path

import torch

from holdfast.errors import HoldfastError


@contextlib.contextmanager
def job(log=None, threads=1):
    """Run a job's work: fixed threads, deterministic kernels, stderr copied to `log`.

    A :class:`HoldfastError` ends the process with its message and exit code 1, without a traceback;
    the traceback of any other exception is in the log as well.
    """
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling memory that is about to be written anyway costs time and decides nothing.
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = False
    # Recent cards would else round float32 convolutions to 10 bits: what is just hidden would show again.
    torch.backends.cudnn.allow_tf32 = False
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    file = None
    with contextlib.ExitStack() as stack:
        if log:
            Path(log).parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(log, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stderr(_Both(sys.stderr, file)))
        try:
            yield
        except HoldfastError as error:
            print(f"\nError: {error}\n", file=sys.stderr, flush=True)
            sys.exit(1)
        except Exception:
            # Python prints it to the terminal after the log is closed.
            if file is not None:
                traceback.print_exc(file=file)
            raise


class _Both:
    """A text stream that writes to two; a terminal stays a terminal for progress bars."""

    def __init__(self, first, second):
        self.first, self.second = first, second

    def write(self, text):
        self.first.write(text)
        # A progress bar's redrawn lines are for the terminal only.
        if not text.startswith("\r"):
            self.second.write(text)
        return len(text)

    def flush(self):
        self.first.flush()
        self.second.flush()

    def isatty(self):
        return self.first.isatty()

    def fileno(self):
        return self.first.fileno()


def device_of(config):
    """The torch device that the config's `device` names.

    Raises:
        HoldfastError: it names a GPU and there is none.
    """
    wanted = config["device"]
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise HoldfastError(
            "config key device: no GPU here that torch can use",
            found=wanted,
            expected="a CUDA device",
            repair="write `device: auto`, or install the CUDA build of torch",
        )
    return wanted
