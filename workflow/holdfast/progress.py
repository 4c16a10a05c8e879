"""A progress bar on a terminal, a plain line now and then elsewhere (logs, CI, clusters)."""

import sys
import time

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Counts steps and tells how far the work is; use it as a context manager.

    Args:
        total: number of steps.
        description: what is being done.
        start: steps already done by an earlier run.
    """

    def __init__(self, total, description="", start=0):
        self.total, self.description, self.done, self.start = total, description, start, start
        self.bar = None

    def __enter__(self):
        self.began = self.told = time.monotonic()
        if sys.stderr.isatty():
            self.bar = tqdm(total=self.total, desc=self.description, initial=self.start, leave=False)
        elif self.start:
            self._tell(f"goes on from step {self.start} of {self.total}")
        return self

    def __exit__(self, *exception):
        if self.bar is not None:
            self.bar.close()
        elif exception[0] is None:
            self._tell(f"{self.total} done in {time.monotonic() - self.began:.0f} s")

    def advance(self, values=None, by=1):
        """One step (or `by`) further; `values` ({name: float}) are shown beside it."""
        self.done += by
        shown = "  ".join(f"{name} {value:.3g}" for name, value in (values or {}).items())
        if self.bar is not None:
            self.bar.update(by)
            self.bar.set_postfix_str(shown, refresh=False)
        elif time.monotonic() - self.told > SECONDS_BETWEEN_LINES:
            self.told = time.monotonic()
            rate = (self.done - self.start) / (self.told - self.began)
            left = (self.total - self.done) / rate
            self._tell(f"{self.done}/{self.total}, {left / 60:.1f} min left  {shown}")

    def _tell(self, text):
        print(f"{self.description}: {text}" if self.description else text, file=sys.stderr, flush=True)
