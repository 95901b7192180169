"""The processes of the Procfile, started as a user starts them."""
