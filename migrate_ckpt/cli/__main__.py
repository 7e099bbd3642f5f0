"""`python -m migrate_ckpt.cli` is the command, too."""

import sys

from migrate_ckpt.cli import main

if __name__ == "__main__":
    sys.exit(main())
