"""`python -m jobs.cli`: the `sdbatch` command, where that is not in PATH."""

import sys

from jobs.cli import main

if __name__ == "__main__":
    sys.exit(main())
