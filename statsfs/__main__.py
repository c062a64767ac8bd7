"""`python -m statsfs`: the same as the command `statsfs`."""

from statsfs.cli import main

if __name__ == "__main__":
    main()
