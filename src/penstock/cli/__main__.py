"""`python -m penstock.cli`: the same as `penstock`, with the interpreter that runs it."""

from penstock.cli.entry import main

main()
