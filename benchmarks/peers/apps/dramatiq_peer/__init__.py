"""Dramatiq: the siblings' answers are messages to actors, run by the threads of one worker process."""
