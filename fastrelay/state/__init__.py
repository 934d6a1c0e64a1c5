"""The state directory: what a relay and a client keep from one run to the next.

relay     lock, address, seed, first-token, tokens.json, tokens.lock, reservations.json, relay.crt, relay.key, relay.next.crt, relay.next.key,
          keys.lock
client    instance, lock (while `instance` is made), <hash>.lock and <hash>.pins for each relay and name
"""

from fastrelay.state.client import ClientState as ClientState
from fastrelay.state.files import default_state as default_state
from fastrelay.state.relay import Reservation as Reservation
from fastrelay.state.relay import ServerState as ServerState
