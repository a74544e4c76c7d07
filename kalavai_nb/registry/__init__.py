"""Pools made known to this user's Jupyter server, by small files in the runtime directory.

Each owner of a pool has an `Entry` there: a file with what it sees of the pool, written anew each second, and an inbox
for orders. The server reads the files (published.py, reader.py) and writes the orders (asking.py). The two know each
other only by these files, which hold no keys, no code and no addresses, and neither trusts the other: folder.py.
"""

from kalavai_nb.registry.entry import Entry, Order
from kalavai_nb.registry.folder import directory

__all__ = ["Entry", "Order", "directory"]
