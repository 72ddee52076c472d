"""`python -m banditads` is the `banditads` command."""

from banditads.cli import main

if __name__ == "__main__":
    main()
