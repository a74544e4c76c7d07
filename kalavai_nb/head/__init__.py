"""The head of a pool: a process with Dask's scheduler and the ledger. Runs no user code.

Owners talk to it by Dask's own connections: messages on the stream that each client has, which keep their order; a few
calls with replies; and events on a topic of each owner. Messages to workers go through the head, so that an owner needs
to reach nothing else.

config.py   settings of Dask, and the topic of an owner
plugin.py   the ledger's place in the scheduler
roads.py    has machines measure the ways between them
waits.py    why requests wait, told to their owners
serve.py    the process
"""
