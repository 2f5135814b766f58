"""Entry point of `python -m data_pipeline.check`."""

import sys

from data_pipeline.check.command import main

if __name__ == "__main__":
    sys.exit(main())
