"""``python -m toco_train`` is ``toco-train``."""

import sys

from toco_train.commands.train import main

sys.exit(main(None))
