"""`python -m tfopt.cli`."""

import sys

from tfopt.cli import main

sys.exit(main())
