"""What the HTTP edge is made of, one room a concern."""
