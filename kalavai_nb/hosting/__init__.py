"""A pool that is kept on this machine: its authority and members in files, its gate and its head in processes.

It knows neither Dask nor torch.

reach.py    the addresses at which others may find this machine
kept.py     what outlives the processes
host.py     the gate, the machine's process with the head, and whoever looks after both
desk.py     what the commands of this user ask for, at the pool's socket
"""
