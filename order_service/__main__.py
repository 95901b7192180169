"""`python -m order_service`: the operator's commands."""

from order_service.cli.main import main

if __name__ == "__main__":
    main()
