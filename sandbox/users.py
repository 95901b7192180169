"""Run the User Service: `python -m sandbox.users`."""

from sandbox.siblings.users import main

if __name__ == "__main__":
    main()
