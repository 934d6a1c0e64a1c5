"""fastrelay: a self-hosted TCP relay for services behind NAT."""

__version__ = "0.1.0"
