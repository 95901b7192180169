"""Run the command line: `python -m order_service`."""

from order_service.cli.main import main

if __name__ == "__main__":
    main()
