"""The gate of a pool: the one port that others reach, an SSH server that forwards, and nothing else.

It knows neither Dask nor torch. Whoever comes shows a key: that of an invite, to become a member, or that of a member.
Members reach the head and each other through it; what goes through is TLS between its ends: the gate reads none of it.

keys.py      SSH's side of keys, and what both ends of a connection agree on
gate.py      who is here, and what they may
visitor.py   one connection: who it is, what it may reach
channels.py  what it has open through the gate
desk.py      what members and admins ask for, in words
"""
