"""The command line: one file per command, loaded only when it is called (`main.py` holds the table)."""

if __name__ != "dsv3export.cli":
    raise ImportError(f"import this package as 'dsv3export.cli', not as {__name__!r}")
