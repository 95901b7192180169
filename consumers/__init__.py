"""From the broker to the domain: replies come in, are applied in batches, and are acked once committed."""
