"""``python -m toco_train`` is ``toco-train``."""

import sys

from toco_train.cli import main

sys.exit(main(None))
