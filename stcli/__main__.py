"""`python -m stcli`."""

from stcli.cli.main import main

main()
