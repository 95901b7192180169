"""What other programs rely on: events, envelope, topology, and the documents made from them."""
