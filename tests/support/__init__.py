"""What the tests share: processes under test, peers made of raw sockets, payloads that know themselves."""
