"""Run the Menu Service: `python -m sandbox.menu`."""

from sandbox.siblings.menu import main

if __name__ == "__main__":
    main()
