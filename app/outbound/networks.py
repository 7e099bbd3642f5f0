"""Which addresses the service may connect to: public ones, and those of networks that its operator lists."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

# Addresses that stand for an IPv4 one (RFC 6052), which may be anywhere. Where in the address a network's own
# translator looks for it (RFC 8215) only its operator knows, so those are none of them.
_TRANSLATED = (ipaddress.IPv6Network("64:ff9b::/96"),)
# All that IANA has given out. Of the rest Python takes much for global: old site-local addresses (RFC 3879), IPv4
# addresses in forms that are no longer in use (RFC 4291, RFC 2765), segments of routes (RFC 9602).
_UNICAST = (ipaddress.IPv4Network("0.0.0.0/0"), ipaddress.IPv6Network("2000::/3"))
# Shared by the customers of a provider (RFC 6598), relays that nobody runs any more (RFC 7526), examples (RFC 9637).
_OTHERS = tuple(map(ipaddress.ip_network, ("100.64.0.0/10", "192.88.99.0/24", "3fff::/20")))


class Networks:
    """The networks beside the public ones that may be connected to."""

    def __init__(self, allowed: Iterable[IPNetwork] = ()) -> None:
        self._allowed = tuple(allowed)

    def allow(self, address: IPAddress) -> bool:
        """Return whether this address may be connected to; one that holds an IPv4 address counts as that, too."""
        return all(_is_public(each) or _is_in(each, self._allowed) for each in _meanings(address))


def _is_public(address: IPAddress) -> bool:
    return (
        address.is_global
        and not address.is_multicast
        and _is_in(address, _UNICAST)
        and not _is_in(address, _OTHERS)
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
