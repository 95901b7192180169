"""A consumer that reserves stock at a Menu Service that only speaks HTTP, with MENU_SERVICE_URL set."""
