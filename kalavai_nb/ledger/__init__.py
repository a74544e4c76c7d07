"""The one arbiter of a pool: who holds which devices, who waits for what. Pure: no clock, no network, no Dask.

Rules, in the order they are applied:

1. All or nothing. A request is granted every device it asks for in one step, or it waits. Two gangs cannot deadlock.
2. In order, and fairly between owners: next comes the owner that holds the fewest running devices, then the request
   that has waited longest. A request that does not fit keeps the free devices it could use for itself, so that a
   stream of small requests cannot starve a gang.
3. The owner of a lease is the notebook. Its idle session never blocks its own sweep; it does block other owners,
   until it has been idle for ``idle_seconds`` while somebody waits: then the devices that are wanted are taken back.
4. A device that was lost is expected back for ``away_seconds``: requests that need it wait, instead of failing.
5. A sweep may keep its leases from trial to trial; when anything else waits for one of its devices, it is asked to
   give that lease back after its trial, and takes its turn like everybody. A model's spares are asked for likewise.
6. A device that is leaving, since who lends it takes it back, is granted to nobody. What may move elsewhere is asked
   to; idle sessions are taken back at once. Requests that only it could fulfil wait as for a lost one, and meanwhile
   keep nothing from others.
7. Machines that do not reach each other are never in one gang that is to be ``connected``. What has not been measured
   yet is waited for.

decisions.py  what it decides
ledger.py     deciding
turns.py      whose turn it is
room.py       what idle sessions and sweeps make room for
waiting.py    why requests wait
line.py       requests in the order in which they are served
chances.py    whether and where a request can be placed
holdings.py   which leases hold which devices
devices.py    the devices, and sets of them
reach.py      which machines reach each other
"""

from kalavai_nb.ledger.decisions import Decision, Drained, Evict, Granted, Refused, Yield
from kalavai_nb.ledger.ledger import AWAY_SECONDS, Ledger
from kalavai_nb.state import Need

__all__ = ["AWAY_SECONDS", "Decision", "Drained", "Evict", "Granted", "Ledger", "Need", "Refused", "Yield"]
