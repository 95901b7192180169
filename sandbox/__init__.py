"""What it takes to try an Order Service: small sibling services, and the servers that they need."""
