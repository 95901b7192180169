"""What an Order Service needs around it to be tried out: small real siblings, and servers to stand on."""
