"""The contract with other services: events, envelope, topology, and the documents generated from them."""
