"""``python -m slimbrain_app``, for launchers such as torchrun."""

import sys

from slimbrain_app.cli.app import main

sys.exit(main())
