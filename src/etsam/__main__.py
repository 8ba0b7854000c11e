"""`python -m etsam`: the command line, where the script `etsam` is not on the path."""

from etsam.cli import main

if __name__ == "__main__":  # processes that are started anew import this file too
    main()
