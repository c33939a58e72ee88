"""`python -m zephyra_cli` is `zephyra`."""

from zephyra_cli.app import main

main()
