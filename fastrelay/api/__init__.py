"""fastrelay in programs: tunnels and relays on the loop of the caller, with asyncio's own signatures.

`connect` is a client's side of a tunnel, `Server` a relay. Nothing here installs a loop, a policy, a signal handler or a handler of logs; several
of both may run in one process. Everything may be cancelled at any await, and leaves nothing behind then. `fastrelay.errors` lists what is raised.
"""

import logging

from fastrelay.api.locals import Listener as Listener
from fastrelay.api.peers import Peer as Peer
from fastrelay.api.server import Server as Server
from fastrelay.api.tunnel import Service as Service
from fastrelay.api.tunnel import Tunnel as Tunnel
from fastrelay.api.tunnel import connect as connect

logging.getLogger("fastrelay").addHandler(logging.NullHandler())  # the program decides what becomes of events
