"""`python -m statsfs`: the command `statsfs`."""

import sys

from statsfs.cli import main

if __name__ == "__main__":
    sys.exit(main())
