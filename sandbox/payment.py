"""Run the Payment Service: `python -m sandbox.payment`."""

from sandbox.siblings.payment import main

if __name__ == "__main__":
    main()
