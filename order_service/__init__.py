"""Everything the edges share: the domain, the contract, the database and the use cases."""
