"""Measurements of the service's speed and cost, compared with other systems and with the limit of the machine."""
