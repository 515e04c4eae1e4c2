"""Exit status: 0 all went well, 1 something did not, 130 interrupted by Ctrl-C."""

import sys

try:
    # In here, because Ctrl-C may come while this imports all that it needs.
    from scripts.demonstration.performance import main

    sys.exit(main())
except KeyboardInterrupt:
    sys.exit(130)
