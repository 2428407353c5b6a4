"""`python -m kvnet` is the `kvstore` command."""

from kvnet.cli import main

if __name__ == "__main__":
    main(prog_name="kvstore")
