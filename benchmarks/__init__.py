"""Measurements of the service's speed and cost, next to other systems and to the limit of the machine."""
