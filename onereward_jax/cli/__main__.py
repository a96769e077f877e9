"""`python -m onereward_jax.cli <command>` is `onereward <command>`."""

import sys

from onereward_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
