"""The one exception that Holdfast raises for bad input."""


class HoldfastError(Exception):
    """Bad input, told so that its owner can mend it.

    Args:
        what: which file, row or key is wrong, and how.
        found: what was there.
        expected: what should have been there.
        repair: what to do about it.
    """

    def __init__(self, what, *, found=None, expected=None, repair=None):
        self.what, self.found, self.expected, self.repair = what, found, expected, repair
        lines = [str(what)]
        for title, text in (("found", found), ("expected", expected), ("repair", repair)):
            if text is not None:
                lines.append(f"  {title + ':':<10}{text}")
        super().__init__("\n".join(lines))

    def __reduce__(self):
        return (_rebuild, (self.what, self.found, self.expected, self.repair))


def _rebuild(what, found, expected, repair):
    return HoldfastError(what, found=found, expected=expected, repair=repair)
