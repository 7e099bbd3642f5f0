"""Which addresses the service may connect to: public ones, and those of networks that its operator lists."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

# Addresses that stand for an IPv4 one (RFC 6052, RFC 8215), which may be anywhere.
_TRANSLATED = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "64:ff9b:1::/48")))
# Shared by the customers of a provider (RFC 6598), and relays that nobody runs any more (RFC 7526).
_OTHERS = tuple(map(ipaddress.ip_network, ("100.64.0.0/10", "192.88.99.0/24")))


class Networks:
    """The networks beside the public ones that may be connected to."""

    def __init__(self, allowed: Iterable[IPNetwork] = ()) -> None:
        self._allowed = tuple(allowed)

    def allow(self, address: IPAddress) -> bool:
        """Return whether this address may be connected to; one that holds an IPv4 address counts as that, too."""
        return all(
            (each.is_global and not each.is_multicast and not _is_in(each, _OTHERS))
            or _is_in(each, self._allowed)
            for each in _meanings(address)
        )


def _meanings(address: IPAddress) -> list[IPAddress]:
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    if _is_in(address, _TRANSLATED):
        return [ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)]
    embedded = [address.sixtofour, *(address.teredo or ())]
    return [address, *(each for each in embedded if each is not None)]


def _is_in(address: IPAddress, networks: Iterable[IPNetwork]) -> bool:
    return any(address.version == each.version and address in each for each in networks)
