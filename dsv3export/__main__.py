"""``python -m dsv3export``: the same as the ``dsv3export`` command."""

from dsv3export.cli.main import main

if __name__ == "__main__":
    main()
