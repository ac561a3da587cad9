"""``python -m lipctrl.cli``: the command line."""

import sys

from lipctrl.cli.command import main

if __name__ == "__main__":
    sys.exit(main())
