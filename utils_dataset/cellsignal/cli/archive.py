"""What prepare_data.py, train.py and predict.py in an unpacked archive call."""

import sys
from pathlib import Path
from typing import NoReturn

from cellsignal.cli import main
from cellsignal.errors import InputError, system_error
from cellsignal.run.bundle import entry_points


def entry(path: str, name: str) -> NoReturn:
    """Do what the script `name` does, with the arguments that it was given; `path`: its own, beside SETTINGS.json.

    Exits as the command `cellsignal` does.
    """
    root = Path(path).resolve().parent
    try:
        sys.argv[1:] = entry_points.arguments(root, name, sys.argv[1:])
        try:
            main.main()
        except SystemExit as ended:
            if not ended.code and name != "prepare_data" and "--help" not in sys.argv:
                print(f"copied to   {entry_points.copy_submission(root)}")
            raise
    except (InputError, OSError) as error:
        print(f"{name}: error: {system_error(error) if isinstance(error, OSError) else error}", file=sys.stderr)
        sys.exit(2)
