"""Addresses to listen on: what their forms mean, and how one is shown to people. Opens nothing."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

from pyfanout.errors import ConfigError

FORMS = "host:port, [ipv6]:port, :port, unix:/path, unix:@name, fd://N or systemd"
MAX_UNIX_NAME = 107  # bytes: sun_path is 108, less the NUL that ends a path or starts a name, unix(7)
MAX_FD = 2**31 - 1  # a C int


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """`host:port`. An empty host is every interface; port 0 is one that the kernel chooses."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """`unix:/path`, or `unix:@name`, which has no file; then `name` starts with NUL, as the kernel has it."""

    name: str

    @property
    def has_file(self) -> bool:
        return not self.name.startswith("\0")


@dataclass(frozen=True, slots=True)
class InheritedFd:
    """`fd://N`: a descriptor that the program which started pyfanout left open."""

    fd: int


@dataclass(frozen=True, slots=True)
class Systemd:
    """`systemd`: all that systemd opened for this unit."""


Address: TypeAlias = TcpAddress | UnixAddress | InheritedFd | Systemd


def parse(text: str) -> Address:
    """The address that `text` names, see FORMS. Raises ConfigError, one line, if it names none. Opens
    nothing."""
    if "\0" in text:
        raise bind_error(text, "a NUL byte is in it")
    if text == "systemd":
        return Systemd()
    if text.startswith("fd://"):
        return InheritedFd(number_in(text, text.removeprefix("fd://"), "a descriptor", MAX_FD))
    if text.startswith("unix:"):
        return _parse_unix(text, text.removeprefix("unix:"))
    return _parse_tcp(text)


def parse_all(binds: Iterable[str | socket.socket]) -> list[tuple[str, Address | socket.socket]]:
    """Each with its name for people; an open socket is as it was. Raises ConfigError as `parse`, and if one is given
    twice. Opens nothing: that two names are of the same address is found later."""
    found: dict[object, tuple[str, Address | socket.socket]] = {}
    for number, bind in enumerate(binds):
        text = bind if isinstance(bind, str) else f"socket fd={bind.fileno()}"
        target = parse(bind) if isinstance(bind, str) else bind
        if isinstance(target, TcpAddress) and target.port == 0:
            found[number] = text, target  # each is another port
        elif target in found:
            raise bind_error(text, f"it is given twice{_as(found[target][0], text)}; give each address once")
        else:
            found[target] = text, target
    return list(found.values())


def _as(other: str, text: str) -> str:
    return "" if other == text else f", also as {other!r}"


def _parse_unix(text: str, name: str) -> UnixAddress:
    if name in ("", "@"):
        raise bind_error(text, "the path is missing; write unix:/path or unix:@name")
    if len(os.fsencode(name.removeprefix("@"))) > MAX_UNIX_NAME:
        raise bind_error(text, f"the path is too long; a socket's has at most {MAX_UNIX_NAME} bytes")
    return UnixAddress("\0" + name[1:] if name.startswith("@") else name)


def _parse_tcp(text: str) -> TcpAddress:
    host, colon, digits = text.rpartition(":")
    if _is_ipv6(host) and digits.isdecimal():
        raise bind_error(text, f"IPv6 goes in brackets; write [{host}]:{digits}")
    if _is_ipv6(text):
        raise bind_error(text, f"IPv6 goes in brackets, and a port is needed; write [{text}]:8000")
    if not colon or text.endswith("]"):
        raise bind_error(text, f"it has no port; write {FORMS}")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if not _is_ipv6(host):
            raise bind_error(text, f"{host!r} is not an IPv6 address")
    elif any(char in ":/[]," or char.isspace() for char in host):
        raise bind_error(text, f"it is not an address; write {FORMS}, each by itself")
    return TcpAddress(host, number_in(text, digits, "a port", 65535))


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def number_in(text: str, digits: str, what: str, most: int) -> int:
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 10 and int(digits) <= most):
        raise bind_error(text, f"{digits!r} is not {what}, which is a number from 0 to {most}")
    return int(digits)


def printable(family: int, name: Any) -> str:
    """A socket's address for people: `[::1]:80` for AF_INET6 and `("::1", 80, 0, 0)`."""
    if family == socket.AF_UNIX:
        path = os.fsdecode(name)
        return "unix:" + ("@" + path[1:] if path.startswith("\0") else path)
    host, port, *rest = name
    if family != socket.AF_INET6:
        return f"{host}:{port}"
    if rest[1] and "%" not in host:
        host += f"%{_interface(rest[1])}"
    return f"[{host}]:{port}"


def _interface(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:  # it was unplugged
        return str(index)


def bind_error(text: str, reason: str) -> ConfigError:
    return ConfigError(f"bind {text!r}: {reason}")
