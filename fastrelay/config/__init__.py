"""What a person types, understood once: relays, exposures, bind addresses and the two configurations.

Everything here is frozen, and valid if it exists: nobody behind this room validates again. Every function that reads text raises
UsageError, a sentence that quotes the text and shows a right one, and nothing else. Pure: no files, no sockets, no name look-ups.
"""

from fastrelay.config.client import ClientConfig as ClientConfig
from fastrelay.config.exposures import LABEL as LABEL
from fastrelay.config.exposures import Exposure as Exposure
from fastrelay.config.exposures import Public as Public
from fastrelay.config.exposures import Target as Target
from fastrelay.config.exposures import assign_logins as assign_logins
from fastrelay.config.exposures import assign_pools as assign_pools
from fastrelay.config.exposures import assign_proxy as assign_proxy
from fastrelay.config.exposures import check_service as check_service
from fastrelay.config.exposures import parse_expose as parse_expose
from fastrelay.config.exposures import parse_public as parse_public
from fastrelay.config.front import Front as Front
from fastrelay.config.front import parse_front as parse_front
from fastrelay.config.hosts import NAME as NAME
from fastrelay.config.hosts import PortRange as PortRange
from fastrelay.config.hosts import host_name as host_name
from fastrelay.config.hosts import is_host as is_host
from fastrelay.config.hosts import is_loopback as is_loopback
from fastrelay.config.hosts import join_host as join_host
from fastrelay.config.hosts import parse_bind as parse_bind
from fastrelay.config.hosts import parse_host as parse_host
from fastrelay.config.hosts import parse_ports as parse_ports
from fastrelay.config.relays import DEFAULT_PORT as DEFAULT_PORT
from fastrelay.config.relays import Relay as Relay
from fastrelay.config.relays import parse_relay as parse_relay
from fastrelay.config.server import ServerConfig as ServerConfig
from fastrelay.config.through import check_client as check_client
from fastrelay.config.through import check_goal as check_goal
from fastrelay.config.through import read_through as read_through
