"""The way to a pool: one connection to its gate, made from here, through which everything goes.

membership.py   who this machine or notebook is in a pool, kept in private files
dial.py         a connection to a gate that is the right one
enrol.py        from an invite to a membership
connection.py   the connection kept up: it comes back by itself, and certificates are renewed
__main__.py     the process that keeps it for a notebook
"""
