"""``python -m unionfs``, and through the launchers every name this program is called by."""

from __future__ import annotations

import sys

from unionfs.cli.entry import main

if __name__ == "__main__":
    sys.exit(main())
