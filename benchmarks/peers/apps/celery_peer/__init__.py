"""Celery: the siblings' answers are tasks, run by a prefork worker."""
