"""The same processes with faults on purpose."""
