"""Attackers: a client, a relay and a network that mean harm, made by hand from protocol.md, and honest neighbours who must not notice.

    frames.py       bytes of the protocol, and the proofs of its handshake
    client.py       a hostile client of the real relay
    relay.py        a hostile relay of the real client
    proxy.py        a network between the real two that cuts, stalls, splits, repeats and falsifies
    neighbours.py   an honest tunnel beside all that; it loses nothing, or the test fails

The attackers know nothing of fastrelay but its processes: no code of theirs is shared with what they attack. `--long 1` runs the full figures.
"""
