"""`python -m tests.soak --minutes 60`: a relay and a client as processes under an hour of ordinary life, and what they keep of it.

load        visitors and targets that know what each of them must see
disorder    what happens to the processes: tunnels that are cut, relays that stop or die
figures     memory and descriptors over time, and the judgement
"""
