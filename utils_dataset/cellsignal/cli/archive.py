"""What prepare_data.py, train.py and predict.py in an unpacked archive call."""

import sys
from pathlib import Path
from typing import NoReturn

from cellsignal.cli import main
from cellsignal.errors import InputError
from cellsignal.run.bundle import entry_points


def entry(path: str, name: str) -> NoReturn:
    """Do what the script `name` does, with the arguments that it was given; `path`: its own, beside SETTINGS.json.

    Exits as the command `cellsignal` does.
    """
    root = Path(path).resolve().parent
    try:
        sys.argv[1:] = entry_points.arguments(root, name, sys.argv[1:])
        main.main()
    except InputError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as ended:
        if not ended.code and name != "prepare_data" and "--help" not in sys.argv:
            print(f"copied to   {entry_points.copy_submission(root)}")
        raise
