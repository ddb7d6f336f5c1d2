"""The control socket between a worker and the process that passes connections to it: its messages, and the outbox of
those that cannot be sent yet.
"""
