"""``python -m amad``: the command, for launchers that start Python modules, such as accelerate's and torch's."""

from amad.cli.app import main

if __name__ == "__main__":
    main()
