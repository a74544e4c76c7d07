"""All that runs on a machine that lends devices.

machine.py   the process of one machine: a worker process per device, started again when one dies
host.py      the plugin in each worker: starts and drives child processes, runs no user code itself
child.py     a child process: its own session, environment and log; how it ended
rank.py      inside a child: an IPython kernel, the rank of a session
ranks.py     outside of it: the kernel's wire, from a source to Jupyter outputs
trial.py     inside a child: one call of a function
guard.py     the plugin that keeps all of it within what the owner lends; power.py, pauser.py  and so its power
outbox.py    what ranks and trials say, on its way to their owner
devices.py   what devices this machine has
speed.py     how fast they are
roads.py     the plugin that measures the ways to other machines with the head
"""
