"""Pulls one model into the store: a program of its own (`python -P -m mlxsup.supervisor.models.fetcher`).

Heavy imports, half-trusted files and their crashes stay out of the supervisor. stdout carries one JSON object
a line (`messages`), anything else goes to stderr. A killed fetcher leaves what it has downloaded, and the
next one goes on from there.
"""
