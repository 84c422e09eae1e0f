"""`python -m tfopt`: the `tfopt` command, for where it is not on the path."""

import sys

from tfopt.cli import main

if __name__ == "__main__":
    sys.exit(main())
