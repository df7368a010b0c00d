"""`python -m atoll.node` is the `atoll` command."""

import sys

from atoll.node.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
