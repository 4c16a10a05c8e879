"""``python -m holdfast``: the command line (holdfast/cli.py)."""

import sys

from holdfast.cli import main

sys.exit(main())
