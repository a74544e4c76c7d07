"""``python -m kalavai_nb`` is ``kalavai-nb``."""

import sys

from kalavai_nb.cli import main

if __name__ == "__main__":
    sys.exit(main())
