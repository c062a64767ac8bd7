"""`python -m statsfs`: the command `statsfs`."""

from statsfs.cli import main

if __name__ == "__main__":
    main()
