"""Code shared by the entry points: domain, contract, storage and use cases."""
