"""`python -m sublora.cli`: the command line without the installed script."""

from sublora.cli import main

main()
