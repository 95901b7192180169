"""What the service costs and how fast it is, next to what else could be used, and to the limit of the machine."""
